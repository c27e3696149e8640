"""What a frozen encoder says of images, computed once and used many times."""

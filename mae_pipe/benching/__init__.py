"""What this machine does with each way to store some images."""

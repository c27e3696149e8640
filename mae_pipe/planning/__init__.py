"""What a big run needs before it is run: memory, traffic, time, disk; and which setting fits."""

"""The way of an image: from a file to a batch. Nothing in here needs torch but ``stream`` and ``decode``."""

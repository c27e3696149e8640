"""Discrete tokenizers of images: training, files from elsewhere, and the folder in which each is kept."""

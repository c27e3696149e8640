"""mae-pipe: from a folder of images to a pretrained, finetuned, probed and reported masked autoencoder."""

__version__ = "0.1.0"

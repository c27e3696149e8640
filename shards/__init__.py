"""Shard formats: WebDataset tar files and FFCV beton files."""

"""A stranger's plugin package."""

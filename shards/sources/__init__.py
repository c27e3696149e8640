"""Built-in sources: where images come from."""

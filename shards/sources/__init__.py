"""Built-in sources: where images come from."""

MAE_PIPE_API = (1, 1)

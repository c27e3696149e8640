"""A stranger's plugin package."""

MAE_PIPE_API = 1

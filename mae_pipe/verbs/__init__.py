"""The verbs of ``mae-pipe`` as functions for scripts and notebooks (docs/python.md); the command line calls them too.

Paths are text or ``Path``. A recipe is a built-in name, the path of a TOML file, a dict of its values, or a ``Recipe``;
``changes`` change keys of it, as ``{"data.global_batch": 256}``. What is wrong is raised as a ``MaePipeError``, and
nothing is printed unless a ``console`` is given. Under torchrun or srun every process calls the same function.
"""

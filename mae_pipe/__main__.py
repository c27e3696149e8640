"""``python -m mae_pipe``: the same as the ``mae-pipe`` command."""

from mae_pipe.cli import main

if __name__ == "__main__":
    main()

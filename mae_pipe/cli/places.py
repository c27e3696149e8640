"""Where shards or images lie, as a command is told it."""

from __future__ import annotations

from pathlib import Path

import click


class _Place(click.ParamType):  # type: ignore[type-arg]
    """A path, or a URL as text."""

    name = "place"

    def convert(self, value: str | Path, param: click.Parameter | None, ctx: click.Context | None) -> Path | str:
        from mae_pipe.data.address import is_url

        return value if isinstance(value, Path) or is_url(value) else Path(value)

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return "FOLDER_OR_URL"


PLACE = _Place()

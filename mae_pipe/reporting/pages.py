"""Templates -> pages that are one file each: they extend ``page.html.j2``, which holds style, script and policy.

The policy lets nothing be loaded and only our own script run, known by its hash: a name from data that looks like a
script is text, even where it was not escaped.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mae_pipe import __version__
from mae_pipe.disk import write_whole, writing

if TYPE_CHECKING:
    from jinja2 import Template

SCRIPT = "sorting.js"


def filled(template: str, **values: Any) -> str:
    """The page of a template in ``mae_pipe/templates``; everything that is not ``Markup`` is escaped."""
    from markupsafe import Markup

    script = (files("mae_pipe") / "templates" / SCRIPT).read_text(encoding="utf-8").strip()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = _template(template, escaped=True).render(
        script=Markup(script),  # noqa: S704 (ours)
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        version=__version__,
        **values,
    )
    return page.strip() + "\n"


def plain(template: str, **values: Any) -> str:
    """The text of a template that is no HTML: nothing is escaped."""
    return _template(template, escaped=False).render(version=__version__, **values)


def _template(name: str, *, escaped: bool) -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("mae_pipe", "templates"),
        autoescape=escaped,  # noqa: S701 (not where it is no HTML)
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def write(page: str, out: Path) -> Path:
    """Write a page, whole or not at all; returns its path."""
    with writing(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, page.encode())
    return out

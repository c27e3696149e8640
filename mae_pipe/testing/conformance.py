"""The suite: which checks there are for each kind, and running them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from mae_pipe.catalog import Catalog
from mae_pipe.errors import MaePipeError, PluginError, closest
from mae_pipe.testing import declarations, heads, masks, methods, shards, targets, training
from mae_pipe.testing.subject import Skip, Subject
from mae_pipe.testing.zero3 import trains_under_zero_3

Check = Callable[[Subject], str | None]


def is_built(subject: Subject) -> str:
    """It is built with its options."""
    assert subject.entry is not None
    entry = subject.entry
    if entry.kind == "target":
        targets.usable_views(subject)
    elif entry.kind == "head":
        subject.make(**heads.GIVEN[0])
    elif entry.kind == "method":
        training.usable_recipe(subject)
    else:
        subject.make()
    chosen = ", ".join(f"{name} = {value!r}" for name, value in subject.options.items())
    return f"with {chosen or 'its defaults'}"


SAID = (declarations.documented, declarations.refuses_wrong_options, declarations.imports_public_names)
CHECKS: dict[str, tuple[Check, ...]] = {
    "mask": (is_built, *SAID, *masks.CONTRACT, *masks.SURROUNDINGS, trains_under_zero_3),
    "target": (is_built, *SAID, *targets.CONTRACT, *targets.SURROUNDINGS, trains_under_zero_3),
    "head": (is_built, *SAID, *heads.CONTRACT, *heads.SURROUNDINGS, trains_under_zero_3),
    "shards": (is_built, *SAID, *shards.CONTRACT),
    "method": (is_built, *SAID, *methods.CONTRACT, *methods.SURROUNDINGS, trains_under_zero_3),
    "source": SAID,  # what it reads is not known here: see check_source
}
SLOW = {trains_under_zero_3}


@dataclass(frozen=True)
class Result:
    """What one check found.

    Attributes:
        detail: what holds, or why not.
    """

    check: str
    outcome: Literal["passed", "failed", "skipped"]
    detail: str
    seconds: float = 0.0


def checks(kind: str, *, fast: bool = False) -> list[str]:
    """The names of the checks of a kind; ``fast`` leaves out those that take more than a few seconds."""
    if kind not in CHECKS:
        raise PluginError(
            f"there are no checks for the kind {kind!r}{closest(kind, CHECKS)}; kinds are {', '.join(CHECKS)}"
        )
    return [_name(check) for check in CHECKS[kind] if not (fast and check in SLOW)]


def run_check(
    kind: str, name: str, check: str, *, catalog: Catalog | None = None, options: dict[str, Any] | None = None
) -> Result:
    """One check of an installed plugin, or of one in a file of ``catalog``."""
    known = {_name(function): function for function in CHECKS[kind]} if kind in CHECKS else dict.fromkeys(checks(kind))
    if check not in known:
        raise PluginError(f"there is no check {check!r}{closest(check, known)}; there are {', '.join(known)}")
    subject = Subject.of(kind, name, catalog=catalog or Catalog(), options=options or {})
    return _result(known[check], subject)  # type: ignore[arg-type]


def run(
    kind: str,
    name: str,
    *,
    catalog: Catalog,
    options: dict[str, Any] | None = None,
    fast: bool = False,
    begun: Callable[[str], None] | None = None,
) -> Iterator[Result]:
    """Every check of a plugin, in order; where it cannot be built the others are left out.

    Args:
        begun: is told each check's name before it runs.
    """
    names = checks(kind)
    subject = Subject.of(kind, name, catalog=catalog, options=options or {})
    for check_name, check in zip(names, CHECKS[kind], strict=True):
        if begun is not None:
            begun(check_name)
        if fast and check in SLOW:
            yield Result(check_name, "skipped", "left out by --fast")
            continue
        result = _result(check, subject)
        yield result
        if check is is_built and result.outcome == "failed":
            return


def _name(check: Check) -> str:
    return check.__name__.replace("_", " ")


def _result(check: Check, subject: Subject) -> Result:
    begun = time.perf_counter()
    outcome: Literal["passed", "failed", "skipped"] = "passed"
    try:
        detail = check(subject) or (check.__doc__ or "").strip().rstrip(".")
    except Skip as reason:
        outcome, detail = "skipped", str(reason)
    except MaePipeError as error:
        outcome, detail = "failed", str(error)
    except Exception as error:  # whatever a stranger's class does
        outcome, detail = "failed", " ".join(f"{type(error).__name__}: {error}".split())
    return Result(_name(check), outcome, detail, time.perf_counter() - begun)

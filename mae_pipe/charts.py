"""Line charts as SVG that take their colours and letters from the page they stand in.

matplotlib draws with stand-in colours; each is then replaced by a CSS variable, so that
one chart is right in light and in dark. Text stays text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

# Colours that nothing else draws with, and the variables that take their place.
_INK, _QUIET, _LINE = "#010203", "#010204", "#010205"
SERIES = ("#010211", "#010212", "#010213", "#010214", "#010215")
_VARIABLES = {
    _INK: "var(--ink)",
    _QUIET: "var(--quiet)",
    _LINE: "var(--line)",
    **{colour: f"var(--series-{number + 1})" for number, colour in enumerate(SERIES)},
}
_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a "$" in a name is a "$"
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": _INK,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _QUIET,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "xtick.color": _QUIET,
    "ytick.color": _QUIET,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": _LINE,
    "grid.linewidth": 0.8,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-4, 6),
    "axes.formatter.use_mathtext": False,
}
POINTS = 600  # a longer series is thinned: more could not be seen and makes the page heavy


@dataclass(frozen=True)
class Look:
    """How a line is told from others: by its colour, and by being dashed, which also print shows."""

    colour: int | None  # of SERIES; None: one of many, thin and grey
    dashed: bool = False


LOOKS = tuple(Look(colour, dashed) for dashed in (False, True) for colour in range(len(SERIES)))
OTHERS = Look(None)


@dataclass(frozen=True)
class Line:
    """One series; points that are not finite leave a gap."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    faint: bool = False  # a thin, pale line under another
    dots: bool = False
    look: Look | None = None  # None: the next one of LOOKS


def chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    y_label: str = "",
    size: tuple[float, float] = (7.2, 2.7),
    x_scale: Literal["linear", "log"] = "linear",
    y_scale: Literal["linear", "log"] = "linear",
    y_from_zero: bool = False,
    percent: bool = False,
    legend: bool = True,
) -> str:
    """An ``<svg>`` element; ``title`` is its accessible name, ``size`` in inches sets its proportions."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    with mpl.rc_context({**_STYLE, "svg.hashsalt": title}):  # same data, same bytes; no id of another chart
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        looks = iter(LOOKS)
        next_look = LOOKS[0]
        for line in lines:
            if not line.look and not (line.faint and lines[0] is not line):
                next_look = next(looks, OTHERS)
            look = line.look or next_look
            x, y = _thinned(line.x, line.y)
            axes.plot(
                x,
                y,
                color=_QUIET if look.colour is None else SERIES[look.colour],
                linestyle=(0, (3.2, 1.6)) if look.dashed else "solid",
                linewidth=1.0 if line.faint or look.colour is None else 1.8,
                alpha=0.35 if line.faint else 0.6 if look.colour is None else 1.0,
                zorder=1.9 if look.colour is None else 2.0,
                marker="o" if line.dots else "",
                markersize=4.5,
                label="_" if line.faint else line.label,
                solid_joinstyle="round",
                solid_capstyle="round",
            )
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.set_yscale(y_scale)
        axes.margins(x=0.01)
        if x_scale == "log":  # few points, each with its number
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(FixedLocator(sorted({float(x) for line in lines for x in line.x})))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        else:
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        if y_scale == "linear":
            axes.yaxis.set_major_locator(MaxNLocator(5))
            if max(map(abs, axes.get_ylim())) >= 10_000:
                axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        if y_from_zero:
            axes.set_ylim(bottom=0)
        if percent:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
        if legend and sum(not line.faint for line in lines) > 1:
            axes.legend(loc="best", handlelength=1.4)
        drawn = io.StringIO()
        # No date, no creator: the same numbers give the same page.
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _themed(drawn.getvalue(), title)


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """The running mean over ``window`` values up to each one."""
    out, total = [], 0.0
    for number, value in enumerate(values):
        total += value
        if number >= window:
            total -= values[number - window]
        out.append(total / min(number + 1, window))
    return out


def _thinned(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """Every k-th point and the last."""
    stride = -(-len(x) // POINTS)
    chosen = sorted({*range(0, len(x), stride or 1), len(x) - 1}) if len(x) else []
    return [x[n] for n in chosen], [y[n] for n in chosen]


def _themed(svg: str, title: str) -> str:
    """matplotlib's file -> an element for a page: no prologue, no metadata, CSS colours and letters."""
    from html import escape

    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)  # would style the whole page
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1; font-family: inherit", svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # the same in every chart
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    label = escape(title, quote=True)
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}" class="chart"', 1).strip()

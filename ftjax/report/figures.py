"""Learning curves as inline SVG: text stays text, and colours are the page's, so that they follow light and dark."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ftjax.report.formats import finite
from ftjax.report.runs import RunRecord

PACKAGES = ("matplotlib.backends.backend_svg", "matplotlib.figure", "matplotlib.ticker")
"""What `draw` imports, which takes a while the first time."""
COLOURS = 6
"""How many `--series-…` colours the page's style has."""
LINES: tuple[str | tuple[int, tuple[int, ...]], ...] = ("-", (0, (5, 2)), (0, (5, 2, 1, 2)), (0, (1, 1)))
MARKERS = "os^DvP"
MOST_POINTS = 500
"""More points than this a curve are averaged in groups: the page stays small, the picture the same."""
INK, FAINT = "#010101", "#020202"
SERIES = [f"#0300{number:02x}" for number in range(COLOURS)]
# matplotlib draws in these stand-ins; `_embed` puts the style sheet's variables in their place.
CSS = {INK: "currentColor", FAINT: "var(--line)"} | {c: f"var(--series-{i})" for i, c in enumerate(SERIES)}


@dataclass(frozen=True)
class Series:
    """One run's curve; `number` is the run's, which fixes colour, line and marker in every figure."""

    name: str
    number: int
    x: list[float]
    y: list[float]


def curve(run: RunRecord, kind: str, keys: Sequence[str], x: str, scale: float = 1.0) -> tuple[list[float], list[float]]:
    """A run's points: the first of the keys that a line has, over x; what is not finite is left out."""
    points = [
        (at, scale * value)
        for line in run.metrics
        if line.get("kind") == kind and (at := finite(line.get(x))) is not None
        if (value := value_of(line, keys)) is not None
    ]
    return [at for at, _ in points], [value for _, value in points]


def value_of(line: dict[str, Any], keys: Sequence[str]) -> float | None:
    """The value of the first of the keys that the line has; None where that is not finite or there is none."""
    return next((finite(line[key]) for key in keys if key in line), None)


def smoothed(values: Sequence[float]) -> list[float]:
    """Centred moving average, which does not lag behind a falling loss; the window narrows towards both ends."""
    last, found = len(values) - 1, []
    for i in range(len(values)):
        reach = min(i, last - i, -(-len(values) // 25))
        window = values[i - reach : i + reach + 1]
        found.append(sum(window) / len(window))
    return found


def draw(
    series: Sequence[Series], *, prefix: str, title: str, x_label: str, points: bool, label: str, diagonal: bool = False
) -> str:
    """One panel as an `<svg>` element.

    prefix: begins every id, as the ids of several figures on a page must differ. points: mark every value, as few
    evaluations need it; otherwise a smoothed line with the raw values faint behind it. label: read out instead of it.
    diagonal: a line where both axes have the same value.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": prefix,
        "text.parse_math": False,  # a run may be called $x$
        "font.size": 10,
        "text.color": INK,
        "axes.edgecolor": FAINT,
        "xtick.color": FAINT,
        "ytick.color": FAINT,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
    }
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's matplotlibrc does not change the page
        matplotlib.rcParams.update(settings)
        columns = max(1, min(3, 60 // (5 + max(len(one.name) for one in series))))
        rows = -(-len(series) // columns) if len(series) > 1 else 0
        figure = Figure(figsize=(5.2, 3.5 + 0.23 * max(0, rows - 1)), layout="constrained")
        axes = figure.add_subplot()
        for one in series:
            colour, line = SERIES[one.number % COLOURS], LINES[one.number % len(LINES)]
            x, y = thinned(one.x), thinned(one.y)
            if points:
                marker = MARKERS[one.number % len(MARKERS)]
                axes.plot(x, y, color=colour, linestyle=line, marker=marker, markersize=5.5, linewidth=1.6, label=one.name)
            else:
                axes.plot(x, y, color=colour, alpha=0.25, linewidth=0.8)
                axes.plot(x, smoothed(y), color=colour, linestyle=line, linewidth=1.8, label=one.name)
        if diagonal:
            lowest = min(value for one in series for value in (*one.x, *one.y))
            axes.plot([lowest, 100.0], [lowest, 100.0], color=INK, alpha=0.35, linewidth=1.0, zorder=0)
        axes.set_title(title, loc="left", fontsize=11, pad=8 + 17 * rows)
        if rows:
            axes.legend(
                loc="lower left",
                bbox_to_anchor=(-0.02, 0.99),
                ncols=columns,
                frameon=False,
                borderaxespad=0.2,
                handlelength=2.6,
                columnspacing=1.4,
                fontsize=9.5,
            )
        axes.set_xlabel(x_label, color=INK)
        axes.grid(axis="y", color=FAINT, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(left=False)
        axes.margins(x=0.04, y=0.08)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=points or x_label == "epoch"))
        axes.yaxis.set_major_locator(MaxNLocator(6))
        drawn = io.StringIO()
        FigureCanvasSVG(figure).print_svg(drawn, metadata={"Date": None})
    return _embed(drawn.getvalue(), prefix, label)


def thinned(values: list[float]) -> list[float]:
    """At most MOST_POINTS values, each the mean of neighbours."""
    size = -(-len(values) // MOST_POINTS)
    groups = [values[i : i + size] for i in range(0, len(values), size)] if size > 1 else [[v] for v in values]
    return [sum(group) / len(group) for group in groups]


def _embed(svg: str, prefix: str, label: str) -> str:
    """A matplotlib file as part of a page: no prolog, metadata or fonts of its own; own ids, the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="patch_1">.*?</g>', "", svg, count=1, flags=re.DOTALL)  # the figure's white background
    svg = re.sub(r'<g id="patch_2">.*?</g>', "", svg, count=1, flags=re.DOTALL)  # the axes' white background
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    svg = re.sub("|".join(CSS), lambda colour: CSS[colour.group()], svg)
    size = re.search(r'viewBox="[^"]*"', svg)
    opening = f'<svg {size.group() if size else ""} role="img" aria-label="{html.escape(label)}"'
    opening += ' xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    return re.sub(r"<svg[^>]*>", lambda _: opening, svg, count=1)

"""The pictures of a comparison, each as SVG to stand within a page.

Whatever is ink takes the colour of the text around it (`currentColor`), so one
picture does for light pages and for dark ones. Colours say one thing
everywhere: green kept the rule, red did not.
"""

import io
import math
import re
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from loadtest.comparison.results import (
    IN_TIME_S,
    OVERLOAD,
    Comparison,
    Contender,
    Kind,
    Summary,
)

_INK = "#010203"
"""Stands for the colour of the text around the picture; nothing else is drawn in it."""
_KEPT, _BROKEN, _CEILING = "#1a9c78", "#d9483b", "#8a8f98"
_LINES = ("#3b8fd6", "#d9722b", "#7a6fd0", "#b39a2e", "#c2559d", "#1a9c78", "#d9483b", "#6b8e23")
_MARKERS = "os^Dv<>p"
_ROW_INCHES = 0.3
_WIDE_INCHES = 9.5
_PER_THOUSAND = 1_000


def trade_off(comparison: Comparison) -> str:
    """Speed to the right, harm to the left: one row a contender, the fastest on top."""
    scenario = comparison.speed_scenario
    rows = sorted(
        (
            (summary, each)
            for each in comparison.contenders
            if each.kind in {Kind.RECIPE, Kind.RIVAL}
            and scenario is not None
            and (summary := comparison.summary(each.name, scenario)) is not None
        ),
        key=lambda row: row[0].answered_per_s.median,
    )
    if not rows:
        return ""
    harms = [_harm(comparison, each) for _, each in rows]
    figure, (left, right) = _figure(len(rows), 2, [1, 1.6])
    places = range(len(rows))
    colours = [_colour(comparison, each) for _, each in rows]
    left.barh(places, harms, color=colours, height=0.7)
    left.invert_xaxis()
    left.set_xlim(left=max(1.0, *harms) * 1.25, right=0)
    for place, harm in zip(places, harms, strict=True):
        _say(left, harm, place, f"{harm:,.0f}" if harm >= 1 or not harm else "< 1", left=True)
    left.set_xlabel("double bookings in 1,000, all scenarios")
    left.set_yticks(places, [each.name for _, each in rows])
    left.spines["left"].set_visible(False)
    for axes in (left, right):
        axes.tick_params(axis="y", length=0)
    _bars(right, [summary for summary, _ in rows], colours)
    right.set_xlabel(f"answers a second, {scenario}")
    return _svg(figure, "Trade-off of speed and safety, a row for each strategy")


def speeds(comparison: Comparison, scenario: str) -> str:
    """Throughput with its spread, and latency percentiles, under one scenario."""
    rows = sorted(
        (each for each in comparison.summaries if each.scenario == scenario),
        key=lambda each: each.answered_per_s.median,
    )
    if not rows:
        return ""
    figure, (left, right) = _figure(len(rows), 2, [1.2, 1])
    those = [comparison.contender(each.contender) for each in rows]
    _bars(left, rows, [_colour(comparison, each) for each in those])
    left.set_yticks(range(len(rows)), [each.name for each in those])
    left.set_xlabel("answers a second: median, and least to most")
    _latencies(right, rows)
    return _svg(figure, f"Throughput and latency under {scenario}, a row for each strategy")


def ramp(comparison: Comparison) -> str:
    """Goodput against arrival rate."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for cell in comparison.cells:
        if cell.key.scenario == OVERLOAD and cell.rate is not None and cell.measured:
            point = (cell.rate, cell.measured.in_time_per_s)
            lines.setdefault(cell.key.contender, []).append(point)
    if not lines:
        return ""
    figure, (axes,) = _figure(14, 1, [1])
    most = max(rate for points in lines.values() for rate, _ in points)
    axes.plot([0, most], [0, most], linestyle=":", color=_INK, label="all in time")
    for number, (name, points) in enumerate(lines.items()):
        rates, goodputs = zip(*sorted(points), strict=True)
        colour = _LINES[number % len(_LINES)]
        marker = _MARKERS[number // len(_LINES) % len(_MARKERS)]
        axes.plot(rates, goodputs, label=name, color=colour, marker=marker)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("requests due a second")
    axes.set_ylabel(f"answers a second within {IN_TIME_S:g} s of when due")
    figure.legend(loc="outside right upper", frameon=False, labelcolor=_INK, fontsize=8)
    return _svg(figure, "Goodput against arrival rate")


def double_bookings(comparison: Comparison) -> str:
    """How many double bookings each contender left under each scenario."""
    scenarios = [*comparison.scenarios]
    judged = [
        each for each in comparison.contenders if comparison.verdict(each.name).audited is not None
    ][::-1]
    if not judged or not scenarios:
        return ""
    figure, (axes,) = _figure(len(judged), 1, [1])
    for row, each in enumerate(judged):
        for column, scenario in enumerate(scenarios):
            summary = comparison.summary(each.name, scenario)
            if summary is None or summary.audited is None:
                continue
            doubles = summary.audited.double_bookings + summary.audited.passing
            axes.barh(
                row,
                0.94,
                left=column - 0.47,
                height=0.86,
                color=_BROKEN if doubles else _KEPT,
                alpha=0.75 if doubles else 0.3,
            )
            weight = "bold" if doubles else "normal"
            axes.text(
                column, row, f"{doubles:,}", ha="center", va="center", color=_INK, fontweight=weight
            )
    axes.set_yticks(range(len(judged)), [each.name for each in judged])
    axes.set_xticks(range(len(scenarios)), scenarios)
    axes.set_xlim(-0.5, len(scenarios) - 0.5)
    axes.set_ylim(-0.5, len(judged) - 0.5)
    axes.xaxis.tick_top()
    axes.grid(visible=False)
    axes.tick_params(length=0)
    return _svg(figure, "Double bookings by strategy and scenario")


def _harm(comparison: Comparison, contender: Contender) -> float:
    audited = comparison.verdict(contender.name).audited
    if audited is None or not audited.acknowledged:
        return 0.0
    doubles = audited.double_bookings + audited.passing
    return _PER_THOUSAND * doubles / audited.acknowledged


def _colour(comparison: Comparison, contender: Contender) -> str:
    if contender.kind is Kind.CEILING:
        return _CEILING
    audited = comparison.verdict(contender.name).audited
    return _BROKEN if audited is not None and audited.faults else _KEPT


def _bars(axes: Axes, rows: Sequence[Summary], colours: Sequence[str]) -> None:
    rates = [each.answered_per_s for each in rows]
    medians = [rate.median for rate in rates]
    below = [max(rate.median - rate.least, 0) for rate in rates]
    above = [max(rate.most - rate.median, 0) for rate in rates]
    axes.barh(
        range(len(rows)),
        medians,
        xerr=(below, above),
        color=colours,
        height=0.7,
        error_kw={"ecolor": _INK, "capsize": 2, "linewidth": 1},
    )
    for place, rate in enumerate(rates):
        _say(axes, rate.most, place, f"{rate.median:,.0f}")
    axes.set_xlim(right=max(rate.most for rate in rates) * 1.18)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _say(axes: Axes, value: float, place: int, told: str, *, left: bool = False) -> None:
    """Write beside the end of a bar."""
    axes.annotate(
        told,
        (value, place),
        xytext=(-5 if left else 5, 0),
        textcoords="offset points",
        ha="right" if left else "left",
        va="center",
        color=_INK,
        fontsize=8,
    )


def _latencies(axes: Axes, rows: Sequence[Summary]) -> None:
    styles = (("p50", "o", 1.0), ("p90", "d", 0.8), ("p99", "s", 0.65), ("max", "|", 1.0))
    for place, each in enumerate(rows):
        there = [each.latency_ms[name] for name, *_ in styles if name in each.latency_ms]
        if there:
            axes.plot([min(there), max(there)], [place, place], color=_INK, linewidth=0.8)
    for name, marker, alpha in styles:
        points = [
            (each.latency_ms[name], place)
            for place, each in enumerate(rows)
            if name in each.latency_ms
        ]
        if points:
            waits, places = zip(*points, strict=True)
            colour = _INK if marker == "|" else _LINES[0]
            axes.scatter(
                waits, places, marker=marker, color=colour, alpha=alpha, label=name, zorder=3
            )
    axes.set_xscale("log")
    # Whole decades, so that there are two round figures to read by, however narrow the range.
    waits_ms = [wait_ms for each in rows for wait_ms in each.latency_ms.values() if wait_ms > 0]
    if waits_ms:
        least, most = math.log10(min(waits_ms)), math.log10(max(waits_ms))
        axes.set_xlim(10 ** math.floor(least), 10 ** (math.floor(most) + 1))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.set_xlabel("latency of closed arrivals, ms")
    axes.legend(
        frameon=False,
        labelcolor=_INK,
        fontsize=8,
        ncols=4,
        loc="lower right",
        bbox_to_anchor=(1, 1),
    )


def _figure(rows: int, columns: int, widths: Sequence[float]) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(_WIDE_INCHES, 0.9 + _ROW_INCHES * max(rows, 2)), layout="constrained")
    made = figure.subplots(
        1, columns, squeeze=False, sharey=columns > 1, gridspec_kw={"width_ratios": list(widths)}
    )
    panels = list(made[0])
    for axes in panels:
        axes.patch.set_visible(False)
        axes.tick_params(which="both", colors=_INK, labelsize=8)
        axes.xaxis.label.set_color(_INK)
        axes.yaxis.label.set_color(_INK)
        axes.grid(visible=True, color=_INK, alpha=0.15)
        axes.set_axisbelow(True)
        for side, spine in axes.spines.items():
            spine.set_color(_INK)
            spine.set_visible(side in {"left", "bottom"})
    return figure, panels


def _svg(figure: Figure, label: str) -> str:
    """The figure as an element of a page, whose ids are nobody else's there."""
    # Text stays text, in the page's own letters; no date, so the same result gives the same bytes.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": label}), io.StringIO() as file:
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        drawn = file.getvalue()
    drawn = drawn[drawn.index("<svg") :].replace(_INK, "currentColor")
    drawn = re.sub(r"font(-family)?: ?([\d.]+px )?'DejaVu Sans'[^;\"]*", _page_font, drawn)
    mark = re.sub(r"\W+", "-", label.lower())
    drawn = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{mark}-", drawn)
    opening = re.sub(r' (width|height)="[\d.]+pt"', "", drawn[: drawn.index(">")])
    return f'{opening} role="img" aria-label="{label}"{drawn[drawn.index(">") :]}'


def _page_font(found: re.Match[str]) -> str:
    size = found[2]
    return f"font-size: {size.strip()}; font-family: inherit" if size else "font-family: inherit"

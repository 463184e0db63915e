"""What the experiment shows, as a plot."""

import statistics
from pathlib import Path
from typing import Any

import msgspec

from loadtest.bench.overrun.results import ALIKE, COSTS, LEARNT, MINUTE_S, Result
from loadtest.bench.tables import NoPlot

_INK = "#808080"  # readable on white and on black
_COLOURS = ("#d9722b", "#3b8fd6", "#0f9d76")


def plot(recorded: dict[str, Any], path: Path, told: str) -> None:
    """Two plots by the quantile, one SVG for light and dark pages; `told` is kept in it.

    Raises `NoPlot` where matplotlib is not installed.
    """
    try:
        import matplotlib as mpl  # noqa: PLC0415  # a second to load, and not in every environment
        from matplotlib.figure import Figure  # noqa: PLC0415  # as above
    except ModuleNotFoundError:
        raise NoPlot from None
    result = msgspec.convert(recorded, Result)
    # The same result gives the same bytes: no date, and names that do not change.
    with mpl.rc_context({"svg.hashsalt": "overrun", "font.size": 10, "text.color": _INK}):
        figure = Figure(figsize=(9, 4.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        _draw_late(left, result)
        _draw_lost(right, result)
        for axes in (left, right):
            _dress(axes)
        figure.savefig(
            path, format="svg", transparent=True, metadata={"Date": None, "Description": told}
        )


def _draw_late(axes: Any, result: Result) -> None:
    outcomes = result.of(LEARNT)
    quantiles = [each.quantile for each in outcomes]
    kinds = {
        "late": [each.late for each in outcomes],
        "handed on": [each.handed_on for each in outcomes],
        f"late by more than {result.tolerance_s / MINUTE_S:g} min": [
            each.too_late for each in outcomes
        ],
    }
    for (label, counts), marker, colour in zip(kinds.items(), "osD", _COLOURS, strict=True):
        shares = [100 * statistics.mean(each) / result.tried for each in counts]
        axes.plot(quantiles, shares, marker=marker, markersize=4, color=colour, label=label)
    axes.set_title("trips at risk, % of all", color=_INK, fontsize=10)
    axes.set_ylim(bottom=0)


def _draw_lost(axes: Any, result: Result) -> None:
    for (late, idle), colour in zip(COSTS, _COLOURS, strict=False):
        for predictor, line in ((LEARNT, "-"), (ALIKE, ":")):
            outcomes = result.of(predictor)
            lost = [statistics.mean(each.lost_min(late, idle)) / result.tried for each in outcomes]
            quantiles = [each.quantile for each in outcomes]
            axes.plot(quantiles, lost, line, color=colour, label=f"{late}:{idle}, {predictor}")
            least = lost.index(min(lost))
            axes.plot(quantiles[least], lost[least], "o", color=colour)
    if all(min(line.get_ydata()) > 0 for line in axes.get_lines()):
        axes.set_yscale("log")
    axes.set_title("minutes lost a trip, and where least", color=_INK, fontsize=10)


def _dress(axes: Any) -> None:
    axes.set_xlabel("quantile of the predicted end", color=_INK)
    axes.legend(frameon=False, fontsize=9)
    axes.tick_params(which="both", colors=_INK)
    axes.grid(visible=True, color=_INK, alpha=0.25)
    axes.patch.set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(_INK)

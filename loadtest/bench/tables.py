"""What the benchmarks show: tables in Markdown, cells for the terminal, and plots.

Each table is made from what was recorded and from nothing else. `loadtest.figures`
puts them where the documents have a place for them.
"""

import statistics
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from booking.errors import TaxiError
from loadtest import machine
from loadtest.bars import Bar, markdown
from loadtest.bench import policies as bench_policies
from loadtest.bench.method import LeftOut, Result, Shape

_INK = "#808080"  # readable on white and on black
_COLOURS = ("#0f9d76", "#3b8fd6", "#d9722b", "#c2559d", "#b39a2e", "#7a6fd0", "#5f9ea0", "#c0504d")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


class NoPlot(TaxiError):
    """Plots need matplotlib, which comes with the development tools: `uv sync`, or `make test`."""


def need_plots() -> None:
    """Raise `NoPlot` where matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise NoPlot


def result_of(recorded: dict[str, Any]) -> Result:
    """The result of a timed benchmark, as it was recorded."""
    return msgspec.convert(recorded, Result)


# Tables of a timed benchmark ---------------------------------------------------


def detection(recorded: dict[str, Any]) -> str:
    """Everything that `taxi bench detection` measured."""
    return _report(result_of(recorded), "bookings in the calendar")


def allocation(recorded: dict[str, Any]) -> str:
    """Everything that `taxi bench allocation` measured."""
    return _report(result_of(recorded), "drivers x bookings of each")


def bars(recorded: dict[str, Any]) -> str:
    """The figures to reach, and whether they were, of any recorded result that has some."""
    return markdown(msgspec.convert(recorded["bars"], list[Bar]))


def row(result: Result, name: str, measure: str) -> list[str]:
    """The contestant's medians in microseconds, one for each shape, and its growth.

    A dash where there is none; empty if the contestant was not measured so at all.
    """
    samples = result.of(name, measure)
    if not samples:
        return []
    times = [
        _microseconds(samples[shape].median_ns) if shape in samples else "-"
        for shape in result.plan.shapes
    ]
    exponent = result.exponent(name, measure)
    return [*times, "-" if exponent is None else f"n^{exponent:.2f}"]


def headings(result: Result) -> list[str]:
    """What stands above the cells of `row`."""
    return [*map(_shape, result.plan.shapes), "grows as"]


MEMORY_HEADINGS = ("the process grew by", "in use in Python's allocators", "measured at")


def memory_row(result: Result, name: str) -> list[str]:
    """What stands below `MEMORY_HEADINGS`; empty if it was not measured."""
    memory = result.memory_of(name)
    if memory is None:
        return []
    return [f"{memory.grown_bytes:,.0f}", f"{memory.in_use_bytes:,.0f}", _shape(memory.shape)]


def left_out(each: LeftOut) -> str:
    """What was left out, and why."""
    doing = "filling" if each.measure is None else f"measuring `{each.measure}`"
    return (
        f"`{each.name}` at {_shape(each.shape)} ({doing} would take about {each.expected_s:,.0f} s)"
    )


def _shape(shape: Shape) -> str:
    if shape.drivers == 1:
        return f"{shape.bookings_each:,}"
    return f"{shape.drivers:,} x {shape.bookings_each:,}"


def _microseconds(nanoseconds: float) -> str:
    """In three digits or more."""
    microseconds = round(nanoseconds / 1_000, 2)
    digits = max(0, 3 - len(str(int(microseconds))))
    return f"{microseconds:,.{digits}f}"


def _report(result: Result, axis: str) -> str:
    parts = [_times(result, measure, axis) for measure in result.measures]
    parts += [_memory(result), _speedups(result), _left_out(result), _conditions(result)]
    return "\n".join(part for part in parts if part)


def _label(result: Result, name: str) -> str:
    return f"`{name}`" if name in result.strategies else f"*{name}*"


def _times(result: Result, measure: str, axis: str) -> str:
    cells = headings(result)
    lines = [
        f"**{result.measures[measure].capitalize()}**, µs, by {axis}:",
        "",
        f"| | {' | '.join(cells)} |",
        f"|---|{'--:|' * len(cells)}",
    ]
    for name in result.names():
        cells = row(result, name, measure)
        if cells:
            lines.append(f"| {_label(result, name)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _memory(result: Result) -> str:
    rows = {name: memory_row(result, name) for name in result.names()}
    if not any(rows.values()):
        return ""
    lines = [
        "**Memory**, bytes a booking:",
        "",
        f"| | {' | '.join(MEMORY_HEADINGS)} |",
        "|---|--:|--:|--:|",
    ]
    lines += [
        f"| {_label(result, name)} | {' | '.join(cells)} |" for name, cells in rows.items() if cells
    ]
    return "\n".join(lines) + "\n"


def _speedups(result: Result) -> str:
    """How everybody compares with the baseline, at the largest shape that it reaches itself."""
    lines = []
    for measure, said in result.measures.items():
        reached = result.of(result.baseline, measure)
        if not reached:
            continue
        shape = _compared_at(list(reached))
        ratios = [
            f"{_label(result, name)} {_ratio(sample.speedup)}"
            for name in result.names()
            if name != result.baseline
            and (sample := result.of(name, measure).get(shape))
            and sample.speedup
        ]
        if ratios:
            lines.append(f"- {said}, at {_shape(shape)}: {', '.join(ratios)}")
    if not lines:
        return ""
    heading = f"Times as fast as {_label(result, result.baseline)}, in the same run:"
    return "\n".join([heading, "", *lines]) + "\n"


def _compared_at(shapes: Sequence[Shape]) -> Shape:
    """A calendar of a hundred bookings, or the largest fleet whose drivers have as many."""
    of_a_hundred = [shape for shape in shapes if shape.bookings_each == 100]  # noqa: PLR2004
    return of_a_hundred[-1] if of_a_hundred else shapes[-1]


def _ratio(speedup: float) -> str:
    digits = 0 if speedup >= 100 else 1 if speedup >= 1 else 3  # noqa: PLR2004  # of the text
    return f"{speedup:,.{digits}f}"


def _left_out(result: Result) -> str:
    said = [left_out(each) for each in result.left_out]
    said += [f"*{package}* (not installed)" for package in result.missing]
    return f"Left out: {'; '.join(said)}.\n" if said else ""


def _conditions(result: Result) -> str:
    plan = result.plan
    spreads = sorted(
        (sample.max_ns - sample.min_ns) / sample.median_ns for sample in result.samples
    )
    return (
        f"Median of {plan.repeats} repeats, CPU time. From the fastest repeat to the slowest,"
        f" half of the figures lie within {spreads[len(spreads) // 2]:.0%} of their median, and"
        f" the worst within {spreads[-1]:.0%}. {machine.measured_on(result.machine)}\n"
    )


# Policies ----------------------------------------------------------------------

POLICY_HEADINGS = ("share of the time asked for", "share of the requests")


def policies(recorded: dict[str, Any]) -> str:
    """Everything that `taxi bench policies` found."""
    result = msgspec.convert(recorded, bench_policies.Result)
    parts = []
    for world, said in bench_policies.WORLDS.items():
        lines = [
            f"**{said.capitalize()}**: what is accepted",
            "",
            f"| | {' | '.join(POLICY_HEADINGS)} |",
            "|---|--:|--:|",
        ]
        lines += [
            f"| `{each.policy}` | {' | '.join(policy_cells(each))} |" for each in result.of(world)
        ]
        parts.append("\n".join(lines) + "\n")
    plan = result.plan
    parts.append(
        f"Mean of {plan.seeds} seeds, in brackets the least and the greatest;"
        f" {result.requests:,} requests in all, {plan.drivers} drivers, {plan.days} day,"
        f" time asked for {plan.load:.0%} of the fleet's. {machine.measured_on(result.machine)}\n"
    )
    return "\n".join(parts)


def policy_cells(outcome: bench_policies.Outcome) -> list[str]:
    """What stands below `POLICY_HEADINGS`."""
    return [
        f"{statistics.mean(shares):.1%} ({min(shares):.1%} to {max(shares):.1%})"
        for shares in (outcome.of_time, outcome.of_requests)
    ]


# Plots -------------------------------------------------------------------------


def detection_plot(recorded: dict[str, Any], path: Path, told: str) -> None:
    """Free windows and recording, by the number of bookings."""
    _plot(result_of(recorded), path, told, ("free", "hold"), "bookings in the calendar")


def allocation_plot(recorded: dict[str, Any], path: Path, told: str) -> None:
    """Nobody free and recording, by the number of drivers."""
    _plot(result_of(recorded), path, told, ("nobody", "hold"), "drivers")


def _plot(result: Result, path: Path, told: str, measures: tuple[str, str], axis: str) -> None:
    """Two log-log plots, one SVG for light and dark pages; `told` is kept in it.

    Raises `NoPlot` where matplotlib is not installed.
    """
    need_plots()
    import matplotlib as mpl  # noqa: PLC0415  # a second to load, and not in every environment
    from matplotlib.figure import Figure  # noqa: PLC0415

    # The same result gives the same bytes: no date, and names that do not change.
    with mpl.rc_context({"svg.hashsalt": path.stem, "font.size": 10, "text.color": _INK}):
        figure = Figure(figsize=(9, 5.4), layout="constrained")
        both = figure.subplots(1, 2, sharey=True)
        for axes, measure in zip(both, measures, strict=True):
            _draw(axes, result, measure)
            axes.set_xlabel(axis, color=_INK)
        both[0].set_ylabel("µs a call", color=_INK)
        lines = {
            text: line
            for axes in both
            for line, text in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(
            list(lines.values()), list(lines), loc="outside lower center", ncols=4, frameon=False
        )
        figure.savefig(
            path, format="svg", transparent=True, metadata={"Date": None, "Description": told}
        )


def _draw(axes: Any, result: Result, measure: str) -> None:
    counts = {True: 0, False: 0}
    for name in result.names():
        samples = result.of(name, measure).values()
        own = name in result.strategies
        number = counts[own]
        counts[own] += 1
        axes.loglog(
            [s.shape.bookings_each if s.shape.drivers == 1 else s.shape.drivers for s in samples],
            [sample.median_ns / 1_000 for sample in samples],
            _MARKERS[number % len(_MARKERS)],
            color=_COLOURS[number % len(_COLOURS)],
            linestyle="-" if own else ":",
            markersize=5 if own else 4,
            fillstyle="full" if own else "none",
            label=name,
        )
    axes.set_title(result.measures[measure], color=_INK, fontsize=10)
    axes.tick_params(which="both", colors=_INK)
    axes.grid(visible=True, color=_INK, alpha=0.25)
    axes.patch.set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(_INK)

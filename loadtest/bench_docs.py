"""What a chapter shows of the benchmark: the table and the plot, made from the recorded result.

The figures in `docs/03-detection.md` are never typed. They stand between two
markers and are written there from `docs/results/detection.json`; a test fails
when the two differ.
"""

from pathlib import Path

import msgspec

from booking.errors import TaxiError
from loadtest.bench import BASELINE, FIT_FROM, MEASURES, Result

DOCS = Path(__file__).parent.parent / "docs"
RECORDED = DOCS / "results" / "detection.json"
PLOT = DOCS / "results" / "detection.svg"
CHAPTER = DOCS / "03-detection.md"

BEGIN = "<!-- written by `taxi bench detection --write-docs`: begin -->"
END = "<!-- end -->"

_INK = "#808080"  # readable on white and on black
_STYLES = (
    ("#0f9d76", "o"),
    ("#3b8fd6", "s"),
    ("#d9722b", "^"),
    ("#c2559d", "D"),
    ("#b39a2e", "v"),
    ("#7a6fd0", "P"),
)


class NotRecorded(TaxiError):
    """There is no recorded result; `taxi bench detection --json FILE` makes one."""


class NoPlot(TaxiError):
    """Plots need matplotlib, which comes with the development tools: `uv sync`, or `make test`."""


def recorded() -> Result:
    """The recorded result. Raises `NotRecorded` where there is none."""
    try:
        return msgspec.json.decode(RECORDED.read_bytes(), type=Result)
    except FileNotFoundError:
        name = RECORDED.relative_to(DOCS.parent)
        raise NotRecorded(f"{name} is missing: run `taxi bench detection --json {name}`.") from None


def write_json(result: Result, path: Path) -> None:
    """Write the result as indented JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")


def with_table(chapter: str, result: Result) -> str:
    """`chapter` with what stands between its markers written anew."""
    before, begin, rest = chapter.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise TaxiError(f"{CHAPTER.name} has lost the markers of its table.")
    return f"{before}{BEGIN}\n\n{markdown(result)}\n{END}{after}"


def write_docs() -> None:
    """Write the chapter's table and the plot from the recorded result."""
    result = recorded()
    plot(result, PLOT)
    CHAPTER.write_text(with_table(CHAPTER.read_text(), result))


def markdown(result: Result) -> str:
    """The result as Markdown: a table for each measure, and what must be known to read it."""
    parts = [_table(result, measure) for measure in MEASURES]
    parts += [_speedups(result), _left_out(result), _conditions(result)]
    return "\n".join(part for part in parts if part)


def row(result: Result, strategy: str, measure: str) -> list[str]:
    """The strategy's medians in microseconds, one for each size, and its growth.

    A dash where there is none; empty if the strategy was not measured so at all.
    """
    samples = result.of(strategy, measure)
    if not samples:
        return []
    times = [
        _text(samples[size].median_ns) if size in samples else "-" for size in result.plan.sizes
    ]
    growth = [
        f"n^{each.exponent:.2f}"
        for each in result.growth
        if (each.strategy, each.measure) == (strategy, measure)
    ]
    return [*times, *(growth or ["-"])]


def headings(result: Result) -> list[str]:
    """What stands above the cells of `row`."""
    return [*(f"{size:,}" for size in result.plan.sizes), "grows as"]


def _text(nanoseconds: float) -> str:
    """Microseconds, in three digits or more."""
    microseconds = round(nanoseconds / 1_000, 2)
    digits = max(0, 3 - len(str(int(microseconds))))
    return f"{microseconds:,.{digits}f}"


def _table(result: Result, measure: str) -> str:
    cells = headings(result)
    lines = [
        f"**{MEASURES[measure].capitalize()}**, µs, by bookings in the calendar:",
        "",
        f"| | {' | '.join(cells)} |",
        f"|---|{'--:|' * len(cells)}",
    ]
    for strategy in result.strategies():
        cells = row(result, strategy, measure)
        if cells:
            lines.append(f"| `{strategy}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _speedups(result: Result) -> str:
    """How the others compare with the library, at one size that every strategy reaches."""
    lines = [f"At {FIT_FROM} bookings, in the same run, against `{BASELINE}`:", ""]
    for strategy in result.strategies():
        said = [
            f"{MEASURES[measure]}: {_times(sample.speedup)}"
            for measure in MEASURES
            if (sample := result.of(strategy, measure).get(FIT_FROM)) and sample.speedup
        ]
        if strategy != BASELINE and said:
            lines.append(f"- `{strategy}`: {'; '.join(said)}")
    return "\n".join(lines) + "\n"


def _times(speedup: float) -> str:
    if speedup >= 1:
        return f"{speedup:.1f} times faster"
    return f"{1 / speedup:.1f} times slower"


def _left_out(result: Result) -> str:
    if not result.left_out:
        return ""
    said = [
        f"`{each.strategy}` at {each.size:,} (filling the calendar would take about"
        f" {each.fill_s:,.0f} s)"
        for each in result.left_out
    ]
    return f"Left out: {'; '.join(said)}.\n"


def _conditions(result: Result) -> str:
    about, plan = result.machine, result.plan
    spreads = sorted(
        (sample.max_ns - sample.min_ns) / sample.median_ns for sample in result.samples
    )
    packages = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    return (
        f"Median of {plan.repeats} repeats, CPU time. From the fastest repeat to the slowest,"
        f" half of the figures lie within {spreads[len(spreads) // 2]:.0%} of their median, and"
        f" the worst within {spreads[-1]:.0%}. Measured {about['at'][:10]} on {about['cpu']},"
        f" {about['cores']} cores, {about['system']}, load {about['load_1_min']} at the start;"
        f" {about['python']}, {packages}.\n"
    )


def plot(result: Result, path: Path) -> None:
    """A log-log plot of free windows and of recording, one SVG for light and dark pages.

    Raises `NoPlot` where matplotlib is not installed.
    """
    try:
        import matplotlib as mpl  # noqa: PLC0415  # a second to load, and not in every environment
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ModuleNotFoundError:
        raise NoPlot from None
    # The same result gives the same bytes: no date, and names that do not change.
    with mpl.rc_context({"svg.hashsalt": "detection", "font.size": 10, "text.color": _INK}):
        figure = Figure(figsize=(9, 4.6), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, measure in ((left, "free"), (right, "hold")):
            for number, strategy in enumerate(result.strategies()):
                samples = result.of(strategy, measure)
                colour, marker = _STYLES[number % len(_STYLES)]
                times_us = [sample.median_ns / 1_000 for sample in samples.values()]
                axes.loglog(
                    list(samples), times_us, marker, color=colour, linestyle="-", label=strategy
                )
            axes.set_title(MEASURES[measure], color=_INK, fontsize=10)
            axes.set_xlabel("bookings in the calendar", color=_INK)
            axes.tick_params(which="both", colors=_INK)
            axes.grid(visible=True, color=_INK, alpha=0.25)
            axes.patch.set_visible(False)
            for spine in axes.spines.values():
                spine.set_color(_INK)
        left.set_ylabel("µs a call", color=_INK)
        figure.legend(
            *left.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", transparent=True, metadata={"Date": None})

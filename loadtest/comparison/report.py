"""What a comparison looks like to a person: tables, and a page that stands alone."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from loadtest import bars
from loadtest.comparison.bars import bars_of
from loadtest.comparison.results import (
    BARE_INSERT,
    NO_OP,
    Audited,
    Comparison,
    Contender,
    Kind,
    Spread,
    Summary,
    Verdict,
)

_TEMPLATE = Path(__file__).with_name("report.html.j2")
_NONE = "-"


def matrix(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """The one table: a row a contender, its claim, what the audit found, how fast it was.

    The ceilings stand first, then what kept the rule from the fastest down, then
    what did not.
    """
    scenario = comparison.speed_scenario
    headings = [
        "strategy",
        "claims",
        "double bookings",
        "lost",
        "wrong refusals",
        "errors",
        f"answers/s, {scenario or 'no scenario'}",
        "of no-op",
        "p50 ms, closed",
        "p99 ms, closed",
    ]
    return headings, [_row(comparison, each, scenario) for each in in_order(comparison)]


def in_order(comparison: Comparison) -> list[Contender]:
    """The contenders as a reader wants them."""

    def place(contender: Contender) -> tuple[bool, bool, float]:
        verdict = comparison.verdict(contender.name)
        faults = verdict.audited.faults if verdict.audited else 0
        summary = _main_summary(comparison, contender)
        rate = summary.answered_per_s.median if summary else 0.0
        return contender.kind is not Kind.CEILING, faults > 0, -rate

    return sorted(comparison.contenders, key=place)


def _main_summary(comparison: Comparison, contender: Contender) -> Summary | None:
    """What speaks for a contender: the scenario of all, or else the only one it took part in."""
    scenario = comparison.speed_scenario
    own = [each for each in comparison.summaries if each.contender == contender.name]
    if contender.kind in {Kind.CEILING, Kind.ALLOCATOR}:
        return own[0] if own else None
    return next((each for each in own if each.scenario == scenario), None)


def _row(comparison: Comparison, contender: Contender, scenario: str | None) -> list[str]:
    verdict, summary = comparison.verdict(contender.name), _main_summary(comparison, contender)
    audited = verdict.audited
    counts = (
        [_NONE] * 4
        if audited is None
        else [
            f"{audited.double_bookings + audited.passing:,}",
            f"{audited.lost:,}",
            f"{audited.unjustified:,}",
            _NONE if audited.unexpected is None else f"{audited.unexpected:,}",
        ]
    )
    return [contender.name, _claim(contender), *counts, *_figures(summary, scenario)]


def _figures(summary: Summary | None, scenario: str | None, *, named: bool = True) -> list[str]:
    if summary is None:
        return [_NONE] * 4
    where = f" ({summary.scenario})" if named and summary.scenario != scenario else ""
    latency = summary.latency_ms
    return [
        f"{spread(summary.answered_per_s)}{where}",
        _NONE if summary.of_no_op is None else f"{summary.of_no_op:.2f}",
        *(f"{latency[name]:,.1f}" if name in latency else _NONE for name in ("p50", "p99")),
    ]


def brief_figures(comparison: Comparison, contender: Contender) -> tuple[str, str, str]:
    """Answers a second, their share of the no-op's, and p99, where there is little room."""
    rate, share, _, p99 = _figures(_main_summary(comparison, contender), None, named=False)
    return rate, share, p99


def _claim(contender: Contender) -> str:
    return "a ceiling" if contender.kind is Kind.CEILING else contender.claim.value


def spread(figure: Spread) -> str:
    """The median, and how far the others lie from it, if there are any."""
    if figure.least == figure.most:
        return f"{figure.median:,.0f}"
    aside = max(figure.median - figure.least, figure.most - figure.median)
    return f"{figure.median:,.0f} ± {aside:,.0f}"


def render_matrix(recorded: Mapping[str, Any]) -> str:
    """The matrix in Markdown, of a comparison as `comparison.json` holds it."""
    comparison = msgspec.convert(recorded, Comparison)
    headings, rows = matrix(comparison)
    named = [[f"`{name}`", *rest] for name, *rest in rows]
    return f"{_table(headings, named)}\n{conditions(comparison)}\n"


def render_profile(recorded: Mapping[str, Any]) -> str:
    """Whose processor time an answer takes, in Markdown: the closed runs of one scenario.

    The sum, times the rate, is how many of the machine's threads were at work.
    """
    comparison = msgspec.convert(recorded, Comparison)
    who = ("service", "database", "load")
    headings = ["strategy", "answers/s", "of no-op", *(f"{name}, µs" for name in who)]
    headings += ["all, µs", "threads at work"]
    rows = []
    for contender in in_order(comparison):
        summary = _main_summary(comparison, contender)
        used_us = comparison.cpu_us(contender.name, summary.scenario) if summary else {}
        if summary is None or not used_us:
            continue
        each_us = [used_us.get(name, 0.0) for name in who]
        rows.append(
            [
                f"`{contender.name}`",
                spread(summary.answered_per_s),
                _ratio(summary.of_no_op),
                *(f"{figure:,.0f}" for figure in each_us),
                f"{sum(each_us):,.0f}",
                f"{sum(each_us) * summary.answered_per_s.median / 1e6:.2f}",
            ]
        )
    return f"{_table(headings, rows)}\n{conditions(comparison)}\n"


def markdown(comparison: Comparison) -> str:
    """The matrix, a table for each scenario, and what was caught."""
    parts = ["# The strategies compared\n", render_matrix(msgspec.to_builtins(comparison))]
    parts += ["## The figures to reach\n", bars.markdown(bars_of(comparison))]
    for scenario in comparison.scenarios:
        parts += [f"## `{scenario}`\n", _table(*scenario_table(comparison, scenario))]
    caught = [each for each in examples(comparison) if each[1]]
    if caught:
        parts.append("## Caught\n")
    for name, found in caught:
        parts += [f"`{name}`:\n", *(f"- {line}" for line in found), ""]
    return "\n".join(parts)


def scenario_table(comparison: Comparison, scenario: str) -> tuple[list[str], list[list[str]]]:
    """Everything that was measured under one scenario."""
    headings = [
        "strategy",
        "answers/s",
        "booked/s",
        "of no-op",
        "of bare insert",
        *(f"{name} ms, closed" for name in ("p50", "p90", "p99", "max")),
        "faults",
        "answers",
    ]
    rows = []
    for contender in in_order(comparison):
        summary = comparison.summary(contender.name, scenario)
        if summary is None:
            continue
        waits = summary.latency_ms
        rows.append(
            [
                contender.name,
                spread(summary.answered_per_s),
                spread(summary.booked_per_s),
                _ratio(summary.of_no_op),
                _ratio(summary.of_bare_insert),
                *(
                    f"{waits[name]:,.1f}" if name in waits else _NONE
                    for name in ("p50", "p90", "p99", "max")
                ),
                _NONE if summary.audited is None else f"{summary.audited.faults:,}",
                ", ".join(f"{count:,} {name}" for name, count in summary.answers.items()) or _NONE,
            ]
        )
    return headings, rows


def _ratio(figure: float | None) -> str:
    return _NONE if figure is None else f"{figure:.2f}"


def examples(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """By contender, in a sentence each, the first of what its audits found."""
    told = []
    for contender in in_order(comparison):
        audited = comparison.verdict(contender.name).audited
        told.append((contender.name, list(_sentences(audited)) if audited else []))
    return told


def _sentences(audited: Audited) -> Iterable[str]:
    for each in audited.examples:
        driver = "" if each.driver_id is None else f" of driver {each.driver_id}"
        those = zip(each.booking_ids, each.windows, strict=False)
        held = " and ".join(f"booking {id_} ({_window(*window)})" for id_, window in those)
        asked = "" if held or not each.windows else _window(*each.windows[0])
        about = ": ".join(part for part in (held or asked, each.told) if part)
        yield f"{each.kind}{driver}: {about}"


def _window(start: datetime, end: datetime) -> str:
    return f"{start:%Y-%m-%d %H:%M} to {end:%H:%M}"


def conditions(comparison: Comparison) -> str:
    """What must be known to read the figures, in a paragraph."""
    about, plan, server = comparison.machine, comparison.plan, comparison.postgres
    packages = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    return (
        f"Median of {plan.repeats} repeat{'s' if plan.repeats > 1 else ''} of"
        f" {plan.duration_s} s, after {plan.warmup_s} s of warm-up; {plan.clients} clients, each"
        " of which asks again when it is answered (closed arrivals), in"
        f" {plan.load_processes} process{'es' if plan.load_processes > 1 else ''}, on the machine"
        " of the server and the database."
        " ± is the way from the median to the farthest repeat."
        f" Measured {about['at'][:10]} on {about['cpu']}, {about['cores']} cores,"
        f" {about['system']}, load {about['load_1_min']} at the start;"
        f" {about['python']}, PostgreSQL {server.get('server_version', '?')}"
        f" (fsync {server.get('fsync', '?')},"
        f" synchronous_commit {server.get('synchronous_commit', '?')}), {packages}."
    )


def _table(headings: list[str], rows: list[list[str]]) -> str:
    texts = {"strategy", "claims", "answers"}
    rule = "".join("---|" if name in texts else "--:|" for name in headings)
    lines = [f"| {' | '.join(headings)} |", f"|{rule}"]
    lines += [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join(lines) + "\n"


def html(comparison: Comparison) -> str:
    """The report: one page that asks nothing of any other host."""
    # Neither is there in every environment, and the tables above need neither.
    import jinja2  # noqa: PLC0415

    from loadtest.comparison import plots  # noqa: PLC0415

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(_TEMPLATE.read_text())
    headings, rows = matrix(comparison)
    failed = [cell for cell in comparison.cells if cell.error]
    return page.render(
        comparison=comparison,
        about=conditions(comparison),
        headings=headings,
        rows=rows,
        bar_headings=bars.HEADINGS,
        bars=[bars.cells(each) for each in bars_of(comparison)],
        verdicts={each.contender: each for each in comparison.verdicts},
        contenders={each.name: each for each in comparison.contenders},
        shown=_shown(comparison),
        pictures={
            "trade_off": plots.trade_off(comparison),
            "double_bookings": plots.double_bookings(comparison),
            "ramp": plots.ramp(comparison),
        },
        scenarios=[
            (name, plots.speeds(comparison, name), *scenario_table(comparison, name))
            for name in comparison.scenarios
        ],
        examples=[(name, found) for name, found in examples(comparison) if found],
        failed=failed,
        ceilings=(NO_OP, BARE_INSERT),
    )


def _shown(comparison: Comparison) -> dict[str, str]:
    """By contender: how its row is coloured."""

    def look(verdict: Verdict) -> str:
        if not verdict.stands:
            return "broken"
        if verdict.audited is None:
            return "ceiling"
        return "caught" if verdict.audited.faults else "kept"

    return {each.contender: look(each) for each in comparison.verdicts}

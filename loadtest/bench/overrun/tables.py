"""What the experiment shows, as tables."""

import statistics
from collections.abc import Iterator
from typing import Any

import msgspec

from booking.predictions import critical_fractile
from loadtest.bench.overrun.results import (
    ALIKE,
    COSTS,
    LEARNT,
    LONGEST_MIN,
    MINUTE_S,
    Outcome,
    Result,
)

HEADINGS = (
    "quantile",
    "ended in time",
    "drivers",
    "late",
    "of these handed on",
    "too late",
    "late min a trip",
    "idle min a trip",
    "late min per min over",
    *(f"lost at {late}:{idle}" for late, idle in COSTS),
)


def cells(result: Result, each: Outcome) -> list[str]:
    """What stands below `HEADINGS`; the least that is lost is bold."""
    tried = result.tried
    late = statistics.mean(each.late)
    lost = [
        f"**{text}**" if each is result.best(each.predictor, *costs) else text
        for costs in COSTS
        for text in (f"{statistics.mean(each.lost_min(*costs)) / tried:.2f}",)
    ]
    return [
        f"{each.quantile:g}",
        f"{statistics.mean(each.kept) / tried:.1%}",
        f"{statistics.mean(each.drivers):.1f}",
        f"{late / tried:.1%}",
        f"{statistics.mean(each.handed_on) / late:.0%}" if late else "-",
        f"{statistics.mean(each.too_late) / tried:.1%}",
        f"{statistics.mean(each.late_min) / tried:.2f}",
        f"{statistics.mean(each.idle_min) / tried:.2f}",
        f"{sum(each.late_min) / overrun:.2f}" if (overrun := sum(each.alone_late_min)) else "-",
        *lost,
    ]


BEST_HEADINGS = (
    "a minute late : idle",
    "the newsvendor's rule",
    "best if each trip were alone",
    "best in the fleet",
    "lost there",
    f"best in the fleet, {ALIKE}",
    "lost there",
)


def best_cells(result: Result) -> Iterator[list[str]]:
    """A row below `BEST_HEADINGS` for each of the `COSTS`."""
    for costs in COSTS:
        row = [f"{costs[0]} : {costs[1]}", f"{critical_fractile(*costs):.2f}"]
        row.append(f"{result.best_alone(LEARNT, *costs).quantile:g}")
        for predictor in (LEARNT, ALIKE):
            best = result.best(predictor, *costs)
            lost = [each / result.tried for each in best.lost_min(*costs)]
            spread = f" ({min(lost):.2f} to {max(lost):.2f})" if len(lost) > 1 else ""
            row += [f"{best.quantile:g}", f"{statistics.mean(lost):.2f}{spread}"]
        yield row


def markdown(recorded: dict[str, Any]) -> str:
    """A recorded result as two tables, and what must be known to read them."""
    result = msgspec.convert(recorded, Result)
    lines = [f"| {' | '.join(HEADINGS)} |", "|--:" * len(HEADINGS) + "|"]
    lines += [f"| {' | '.join(cells(result, each))} |" for each in result.of(LEARNT)]
    lines += ["", f"| {' | '.join(BEST_HEADINGS)} |", "|---" + "|--:" * 6 + "|"]
    lines += [f"| {' | '.join(row)} |" for row in best_cells(result)]
    return "\n".join((*lines, "", conditions(result), ""))


def conditions(result: Result) -> str:
    """What must be known to read the tables."""
    origin = f"The trips are those of {result.source}"
    if result.plan:
        seeds = result.plan.seeds
        origin = f"Synthetic demand over {result.plan.days} days; mean of {seeds} seeds"
        origin += ", in brackets the least and the greatest" if seeds > 1 else ""
    return (
        f"{origin}. Ends were learnt from {result.learnt_from:,} trips and tried on the"
        f" {result.tried:,} after them; {result.left_out:,} were left out as longer than"
        f" {LONGEST_MIN} minutes, empty or malformed. Lost: minutes a trip, late and idle,"
        f" by what they cost. Too late: by more than {result.tolerance_s / MINUTE_S:g} minutes."
        f" Counted, not timed, so the machine has no part in it; {result.python}."
    )

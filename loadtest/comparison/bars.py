"""The figures that a comparison is to reach, and whether it did."""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from booking.postgres.schema import SHIPPED
from loadtest.bars import Bar, markdown
from loadtest.comparison.results import CALM, HOT, NO_OP, ORM_RIVAL, Audited, Comparison, Kind

_OF_NO_OP, _OF_RIVAL, _HOT_OF_CALM = 0.65, 5.0, 0.5


def bars_of(comparison: Comparison) -> list[Bar]:
    """The figures to reach, in the order of the chapters that explain them."""
    return [
        _rate(comparison, "no-op POST of the same service", CALM, NO_OP, _OF_NO_OP),
        _rate(comparison, "same endpoint by an ORM session each", CALM, ORM_RIVAL, _OF_RIVAL),
        _hot_driver(comparison),
        _safe(comparison),
        _unsafe(comparison),
    ]


def render(recorded: Mapping[str, Any]) -> str:
    """`bars_of` in Markdown, of a comparison as `comparison.json` holds it."""
    return markdown(bars_of(msgspec.convert(recorded, Comparison)))


def _rate(comparison: Comparison, named: str, scenario: str, other: str, least: float) -> Bar:
    figure = f"`{SHIPPED}`, `{scenario}`, answers a second against the {named}"
    return _ratio(comparison, figure, (SHIPPED, scenario), (other, scenario), least)


def _ratio(
    comparison: Comparison,
    figure: str,
    one: tuple[str, str],
    other: tuple[str, str],
    least: float,
) -> Bar:
    above, below = comparison.summary(*one), comparison.summary(*other)
    if above is None or below is None:
        return Bar(figure, f"≥ {least:g}", "-", None)
    ratio = above.answered_per_s.median / below.answered_per_s.median
    return Bar(figure, f"≥ {least:g}", f"{ratio:.2f}", ratio >= least)


def _hot_driver(comparison: Comparison) -> Bar:
    figure = f"`{SHIPPED}`, `{HOT}` against `{CALM}`, answers a second; nothing unexpected"
    bar = _ratio(comparison, figure, (SHIPPED, HOT), (SHIPPED, CALM), _HOT_OF_CALM)
    summary = comparison.summary(SHIPPED, HOT)
    if bar.reached is None or summary is None or summary.audited is None:
        return bar
    unexpected = summary.audited.unexpected
    return Bar(
        bar.figure, bar.bar, f"{bar.measured}; {unexpected}", bar.reached and unexpected == 0
    )


def _safe(comparison: Comparison) -> Bar:
    audits = list(_audits(comparison, safe=True))
    counts = {
        "double bookings": sum(each.double_bookings + each.passing for each in audits),
        "lost": sum(each.lost for each in audits),
        "wrong refusals": sum(each.unjustified for each in audits),
        "unexpected": sum(each.unexpected or 0 for each in audits),
    }
    told = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    reached = not any(counts.values()) if audits else None
    return Bar(f"faults of the {len(audits)} that claim to be safe", "0", told, reached)


def _unsafe(comparison: Comparison) -> Bar:
    audits = list(_audits(comparison, safe=False))
    caught = sum(each.double_bookings + each.passing > 0 for each in audits)
    figure = f"caught of the {len(audits)} that claim nothing"
    return Bar(figure, f"{len(audits)}", f"{caught}", caught == len(audits) if audits else None)


def _audits(comparison: Comparison, *, safe: bool) -> Iterable[Audited]:
    for contender in comparison.contenders:
        audited = comparison.verdict(contender.name).audited
        if contender.kind is not Kind.CEILING and contender.claims_safety is safe and audited:
            yield audited

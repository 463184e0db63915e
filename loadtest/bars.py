"""Figures that are to be reached, and whether they were: the end of every measurement."""

from collections.abc import Iterable

import msgspec

HEADINGS = ("figure", "bar", "measured", "reached")


class Bar(msgspec.Struct, frozen=True):
    """A figure that is to be reached."""

    figure: str
    bar: str
    measured: str
    reached: bool | None
    """None where it was not measured."""


def cells(bar: Bar) -> list[str]:
    """What stands below `HEADINGS`."""
    said = {True: "yes", False: "no", None: "not measured"}[bar.reached]
    return [bar.figure, bar.bar, bar.measured, said]


def markdown(bars: Iterable[Bar]) -> str:
    """All of them as a table."""
    lines = [f"| {' | '.join(HEADINGS)} |", "|---|---|--:|---|"]
    lines += [f"| {' | '.join(cells(each))} |" for each in bars]
    return "\n".join(lines) + "\n"

"""Open arrivals: when each request is due, whatever became of those before it."""

from collections.abc import Iterator, Sequence
from random import Random

GAPS = ("poisson", "uniform")
"""Gaps as chance makes them (a Poisson process: riders who know nothing of each other), or all
the same."""


def due_s(rates: Sequence[float], step_s: float, gaps: str, random: Random) -> Iterator[float]:
    """Seconds from the start at which requests are due, in order, without end.

    Each of `rates` (requests a second) holds for `step_s`, the last one for good.
    """
    begins_s = 0.0
    for rate in rates[:-1]:
        yield from _steady(rate, begins_s, begins_s + step_s, gaps, random)
        begins_s += step_s
    yield from _steady(rates[-1], begins_s, float("inf"), gaps, random)


def _steady(
    rate: float, begins_s: float, ends_s: float, gaps: str, random: Random
) -> Iterator[float]:
    # A Poisson process has no memory, so beginning anew with each step is no bias.
    at_s = begins_s
    while True:
        at_s += random.expovariate(rate) if gaps == "poisson" else 1 / rate
        if at_s >= ends_s:
            return
        yield at_s

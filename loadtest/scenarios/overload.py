"""Overload: more requests than the service can carry, on purpose.

*Models* the evening on which the stadium empties. Requests come at a rate that
rises in steps and does not ask whether the service keeps up: `--rate
500,1000,2000,4000,8000`, each for `--step-s` (5 s). The demand itself is that
of `spread_out`.

*Shows* where the service's capacity lies, and how it behaves beyond: whether it
goes on answering as many requests as it can and refuses the rest quickly (503),
or answers everybody too late. Look at goodput (answers a second) and at latency
from the intended start, step by step; the history has what is needed.

*Knobs*: `--rate`, `--step-s`; `--connections` is how many requests of a user are
with the service at once, and all others wait in line in front of it.

The generator has a capacity of its own: start one user a process
(`-u 2 -r 2 --processes 2`), and see whether Locust warns of its CPU.
"""

from collections.abc import Mapping
from typing import ClassVar

from loadtest.scenarios._scenario import Scenario


class Overload(Scenario):
    """Any driver by name, at any time, more and more often."""

    defaults: ClassVar[Mapping[str, int | str]] = {
        "arrivals": "open",
        "rate": "500,1000,2000,4000,8000",
        "step-s": "5",
        "connections": 500,
    }

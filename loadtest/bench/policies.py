"""Measures policies: which free driver should get the booking, if any will do?

Each policy of `booking.policies` is given the same requests, in the same order, for
a fleet that starts with nothing booked, and takes every request for which somebody
is free. No clock is involved: what is counted is how many requests it accepts, and
how much of the time that was asked for.

The requests are those of `loadtest.trips.demand`, so many that they would fill
`Plan.load` of all the time of all drivers. In three worlds:

- `ahead`: booked ahead, in an order that has nothing to do with when they start;
- `steady`: the same, but with starts spread evenly, so that the load is the same
  at all hours, and not too much by day and too little by night;
- `now`: each asked for when it starts. The control: there no policy can differ
  from another, and a run in which one did would be wrong.
"""

import random
import statistics
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from datetime import date, datetime, timedelta
from functools import cache
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import msgspec

from booking.errors import TaxiError
from booking.policies import POLICIES, Opening, Policy
from loadtest import machine
from loadtest.bench.method import Tell
from loadtest.trips.demand import Demand, at_rate

WORLDS = {
    "ahead": "booked ahead, by the hours of a week",
    "steady": "booked ahead, evenly over the day",
    "now": "booked when they start (control)",
}

_FIRST_DAY = date(2026, 3, 2)
_PROBE_RATE = 1_000.0


class NotAllAlike(TaxiError):
    """Policies differed where none can: the experiment itself is wrong."""


class Plan(msgspec.Struct, frozen=True):
    """How much to measure."""

    drivers: int = 50
    days: int = 1
    load: float = 1.0
    seeds: int = 5
    is_quick: bool = False
    """Whether it only shows the order; what was found so is not to quote."""

    @classmethod
    def quick(cls) -> "Plan":
        """Seconds: enough to see the order, not to quote."""
        return cls(drivers=15, seeds=3, is_quick=True)


class Outcome(msgspec.Struct, frozen=True):
    """What a policy accepts in one world: shares, one for each seed."""

    policy: str
    world: str
    of_requests: list[float]
    of_time: list[float]


class Result(msgspec.Struct, frozen=True):
    """One run of the experiment."""

    machine: dict[str, Any]
    plan: Plan
    requests: int
    """In all seeds, for one policy in one world."""
    outcomes: list[Outcome]

    def of(self, world: str) -> list[Outcome]:
        """The outcomes of one world, best share of the time first."""
        found = [each for each in self.outcomes if each.world == world]
        return sorted(found, key=lambda each: -statistics.mean(each.of_time))


class Request(NamedTuple):
    """A window asked for, in seconds."""

    start_s: int
    end_s: int


def measure(
    plan: Plan,
    tell: Tell = lambda _share, _text: None,
    policies: dict[str, Policy] | None = None,
) -> Result:
    """Run the experiment. Raises `NotAllAlike` if the control shows a difference."""
    policies = policies or POLICIES
    about = machine.describe([])
    outcomes: list[Outcome] = []
    asked = 0
    for number, world in enumerate(WORLDS):
        shares: dict[str, list[tuple[float, float]]] = {name: [] for name in policies}
        for seed in range(plan.seeds):
            tell((number + seed / plan.seeds) / len(WORLDS), f"{world}: seed {seed}")
            requests = list(ask(plan, world, seed))
            asked += len(requests) if not number else 0
            for name, policy in policies.items():
                shares[name].append(accept(requests, plan, policy, seed))
        for name, both in shares.items():
            of_requests, of_time = (
                [round(each, 4) for each in some] for some in zip(*both, strict=True)
            )
            outcomes.append(Outcome(name, world, of_requests, of_time))
    result = Result(about, plan, asked, outcomes)
    first, *others = result.of("now")
    if any(each.of_requests != first.of_requests for each in others):
        raise NotAllAlike
    return result


def ask(plan: Plan, world: str, seed: int) -> Iterator[Request]:
    """The requests of one world, in the order in which they come."""
    dice = random.Random(seed)
    midnight = datetime.combine(_FIRST_DAY, datetime.min.time())
    span_s = int(timedelta(days=plan.days).total_seconds())
    requests = []
    for trip in at_rate(_trips_an_hour(plan), _demand(plan.days, seed)):
        start_s = int((trip.start - midnight).total_seconds())
        length_s = int((trip.end - trip.start).total_seconds())
        if world == "steady":
            start_s = dice.randrange(span_s)
        requests.append(Request(start_s, start_s + length_s))
    if world == "now":
        requests.sort()
    else:
        dice.shuffle(requests)
    yield from requests


def accept(
    requests: Sequence[Request], plan: Plan, policy: Policy, seed: int
) -> tuple[float, float]:
    """The share of the requests that is accepted, and the share of their time."""
    dice = random.Random(seed)
    agendas = [_Agenda(number, plan.days) for number in range(plan.drivers)]
    accepted, time_s = 0, 0
    for request in requests:
        openings = [found for agenda in agendas if (found := agenda.opening(request))]
        if openings:
            agendas[policy(openings, dice).driver_id].take(request)
            accepted += 1
            time_s += request.end_s - request.start_s
    asked_s = sum(request.end_s - request.start_s for request in requests)
    return round(accepted / len(requests), 4), round(time_s / asked_s, 4)


class _Agenda:
    """One driver's bookings, in order."""

    def __init__(self, driver_id: int, days: int) -> None:
        self._driver_id = driver_id
        # The day has an end for a gap's length, but the last trip may go beyond it.
        self._last_s = int(timedelta(days=days + 1).total_seconds())
        self._starts_s: list[int] = []
        self._ends_s: list[int] = []
        self._busy_s = 0

    def opening(self, request: Request) -> Opening | None:
        place = bisect_right(self._ends_s, request.start_s)
        until_s = self._starts_s[place] if place < len(self._starts_s) else self._last_s
        if until_s < request.end_s:
            return None
        since_s = self._ends_s[place - 1] if place else 0
        return Opening(
            self._driver_id, request.start_s - since_s, until_s - request.end_s, self._busy_s
        )

    def take(self, request: Request) -> None:
        place = bisect_right(self._ends_s, request.start_s)
        self._starts_s.insert(place, request.start_s)
        self._ends_s.insert(place, request.end_s)
        self._busy_s += request.end_s - request.start_s


def _demand(days: int, seed: int) -> Demand:
    return Demand(zone=ZoneInfo("UTC"), start=_FIRST_DAY, days=days, seed=seed)


def _trips_an_hour(plan: Plan) -> float:
    """The rate at which the time asked for is about `plan.load` of all the fleet's time."""
    all_s = plan.drivers * timedelta(days=plan.days).total_seconds()
    return _PROBE_RATE * plan.load * all_s / _asked_s(plan.days)


@cache
def _asked_s(days: int) -> float:
    """The time asked for at `_PROBE_RATE`, found by asking once; it grows with the rate."""
    trips = at_rate(_PROBE_RATE, _demand(days, seed=0))
    return sum((trip.end - trip.start).total_seconds() for trip in trips)

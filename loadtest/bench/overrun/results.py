"""What the experiment with predicted ends was asked, and what came of it."""

import statistics
from collections.abc import Sequence

import msgspec

LEARNT, ALIKE = "learnt", "alike"
LONGEST_MIN = 180
COSTS = ((1, 1), (5, 1))
"""What a minute too late costs, and what a minute costs that was held and not used."""

QUANTILES = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.975, 0.99)
MINUTE_S = 60


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How much synthetic demand there is, and how much of a duration can be known."""

    trips: int = 20_000
    days: int = 28
    seeds: int = 5
    known: float = 0.72
    quantiles: tuple[float, ...] = QUANTILES
    is_quick: bool = False

    @classmethod
    def quick(cls) -> "Plan":
        """A second or two: enough to see the shape, not to quote."""
        return cls(trips=4_000, days=14, seeds=2, is_quick=True)


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the second half with one way to predict, at one quantile.

    One figure for each seed; a file of trips has one.
    """

    predictor: str
    quantile: float
    kept: list[int]
    """Trips that lasted no longer than predicted: of all, a share of about the quantile."""
    drivers: list[int]
    late: list[int]
    """Trips that started late: they were at risk, and came so."""
    handed_on: list[int]
    """Those of them whose driver was late already when the trip before began."""
    too_late: list[int]
    """Those that were later than a rider is left waiting for without being asked."""
    late_min: list[float]
    """Minutes by which trips started too late, in all."""
    idle_min: list[float]
    """Minutes from an early end to the predicted one, in all."""
    alone_late_min: list[float]
    """Minutes by which trips would end too late, if each had a driver to itself."""
    alone_idle_min: list[float]

    def lost_min(self, late_cost: float, idle_cost: float) -> list[float]:
        """What was lost, in minutes of idle time times their cost, by seed."""
        return _weighted(self.late_min, self.idle_min, late_cost, idle_cost)

    def alone_lost_min(self, late_cost: float, idle_cost: float) -> list[float]:
        """The same for trips that stand in nobody's way: the newsvendor's costs."""
        return _weighted(self.alone_late_min, self.alone_idle_min, late_cost, idle_cost)


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One run of the experiment."""

    source: str
    """`synthetic`, or the name of the file."""
    plan: Plan | None
    """None for a file."""
    python: str
    learnt_from: int
    tried: int
    """Trips of each seed."""
    left_out: int
    """Trips that were malformed, empty or longer than `LONGEST_MIN`, in all seeds."""
    tolerance_s: float
    outcomes: list[Outcome]

    def of(self, predictor: str) -> list[Outcome]:
        """The outcomes of one way to predict, by quantile."""
        return [each for each in self.outcomes if each.predictor == predictor]

    def best(self, predictor: str, late_cost: float, idle_cost: float) -> Outcome:
        """Where least is lost, on the mean of the seeds."""
        return min(
            self.of(predictor),
            key=lambda each: statistics.mean(each.lost_min(late_cost, idle_cost)),
        )

    def best_alone(self, predictor: str, late_cost: float, idle_cost: float) -> Outcome:
        """Where least would be lost if each trip had a driver to itself."""
        return min(
            self.of(predictor),
            key=lambda each: statistics.mean(each.alone_lost_min(late_cost, idle_cost)),
        )


def _weighted(
    late_min: Sequence[float], idle_min: Sequence[float], late_cost: float, idle_cost: float
) -> list[float]:
    both = zip(late_min, idle_min, strict=True)
    return [late_cost * late + idle_cost * idle for late, idle in both]

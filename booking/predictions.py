"""Predicted ends: how long will a trip take, so that it takes longer only so often?

The mean of the past is the wrong answer. A trip that ends early wastes some of the
driver's time, one that ends late makes the next rider wait, and the two are not
worth the same. The end to predict is a *quantile* of how long such trips took, and
which one is a question of price:

    quantile = late cost / (late cost + idle cost)

with the cost of a minute too late and of a minute too early. It is the newsvendor's
rule for how many papers to buy, the *critical fractile*: buying one more paper pays
as long as the chance to sell it is worth more than the chance to be left with it.

Sources: K. J. Arrow, T. Harris, J. Marschak, "Optimal Inventory Policy",
*Econometrica* 19 (1951) 250-272; R. Koenker, G. Bassett, "Regression Quantiles",
*Econometrica* 46 (1978) 33-50, for quantiles as what minimises a sum of costs.
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence

from booking.errors import InvalidInput

_MEDIAN = 0.5


class NothingLearnt(InvalidInput):
    """There are no trips to learn from."""


def critical_fractile(late_cost: float, idle_cost: float) -> float:
    """The quantile at which the expected cost is least.

    The costs are those of one unit of time too late and too early. Raises
    `InvalidInput`, naming which, unless both are positive and finite.
    """
    for field, cost in (("late_cost", late_cost), ("idle_cost", idle_cost)):
        if not 0 < cost < math.inf:
            raise InvalidInput("A cost must be positive.", field=field)
    return late_cost / (late_cost + idle_cost)


class Quantiles:
    """What was seen, in order. Raises `NothingLearnt` if that is nothing."""

    def __init__(self, seen: Iterable[float]) -> None:
        self._seen = sorted(seen)
        if not self._seen:
            raise NothingLearnt

    def __len__(self) -> int:
        return len(self._seen)

    def at(self, quantile: float) -> float:
        """The least value that is not exceeded in that share of what was seen. O(1).

        It is one of the values: of all numbers, none has a lower cost on what was
        seen, if `quantile` is the critical fractile. Raises `InvalidInput` unless
        0 < `quantile` < 1.
        """
        check_quantile(quantile)
        return self._seen[math.ceil(quantile * len(self._seen)) - 1]


class EndPredictor:
    """Predicts how long trips take from how long others took, in seconds.

    Learns from (classes, seconds). The classes of a trip are what it has in common
    with others, from the finest to the coarsest: trips of that length in that hour,
    trips of that length. What is asked for comes from the finest class that has seen
    enough, and in the end from all trips together. Enough is `tail_min` trips on
    either side of the quantile, on average: a rare event is learnt from those trips
    only in which it happened, so a 0.99 takes 500 trips where a median takes 10.

    So two things are learnt apart, and multiplied: how long a trip *typically* takes,
    which is a median and can be had of fine classes; and how many times as long as
    that trips really took, of which the quantile is asked. A trip of a rare kind then
    borrows from others how uncertain it is, but not how long it is.

    Raises `NothingLearnt` if there are no trips, and `InvalidInput` if one took no time.
    """

    def __init__(
        self, trips: Iterable[tuple[Sequence[Hashable], float]], tail_min: float = 5
    ) -> None:
        learnt = list(trips)
        if any(seconds <= 0 for _, seconds in learnt):
            raise InvalidInput("A trip takes some time.", field="seconds")
        self._typical = _ByClass(learnt, tail_min)
        self._stretch = _ByClass(
            [(classes, seconds / self._typically_s(classes)) for classes, seconds in learnt],
            tail_min,
        )

    def seconds(self, classes: Sequence[Hashable], quantile: float) -> float:
        """How long a trip of these classes takes at most, in a share `quantile` of cases.

        O(1) for each class. Raises `InvalidInput` unless 0 < `quantile` < 1.
        """
        return self._typically_s(classes) * self._stretch.at(classes, quantile)

    def _typically_s(self, classes: Sequence[Hashable]) -> float:
        return self._typical.at(classes, _MEDIAN)


class _ByClass:
    """The quantiles of each class, and of all together."""

    def __init__(self, seen: Sequence[tuple[Sequence[Hashable], float]], tail_min: float) -> None:
        by_class: dict[Hashable, list[float]] = defaultdict(list)
        for classes, value in seen:
            for each in classes:
                by_class[each].append(value)
        self._all = Quantiles(value for _, value in seen)
        self._by_class = {each: Quantiles(values) for each, values in by_class.items()}
        self._tail_min = tail_min

    def at(self, classes: Sequence[Hashable], quantile: float) -> float:
        check_quantile(quantile)
        rarer = min(quantile, 1 - quantile)
        for each in classes:
            found = self._by_class.get(each)
            if found is not None and len(found) * rarer >= self._tail_min:
                return found.at(quantile)
        return self._all.at(quantile)


def check_quantile(quantile: float) -> None:
    """Raise `InvalidInput` unless it lies between 0 and 1."""
    if not 0 < quantile < 1:
        raise InvalidInput("A quantile must lie between 0 and 1.", field="quantile")

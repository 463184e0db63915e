"""Finds every order in which sessions can take their steps, by depth-first search.

A schedule cannot be put back to an earlier moment: the database has moved on. So
each one is run from its beginning, on a driver of its own, and differs from the one
before at the deepest place where another session could have gone on (a *stateless*
search). The number of steps need not be known: what a session does next is seen
when it stands before it.

Orders that differ by swaps of neighbouring steps, of which neither can notice the
other, are one and the same; of these one is run, and all are counted. The first is
done by *sleep sets* (Godefroid, Partial-Order Methods for the Verification of
Concurrent Systems, Springer LNCS 1032, 1996, chapter 5): once the orders in which a
session goes first are done, it sleeps in those that follow, until somebody takes a
step that it could notice.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from booking.errors import TaxiError
from loadtest.proof.footprints import Footprint

Independent = Callable[[Footprint, Footprint], bool]


@dataclass(frozen=True, slots=True)
class Step:
    """What a session is about to do: the statement's text, and what it touches."""

    statement: str
    footprint: Footprint


class Diverged(TaxiError):
    """The same choices led elsewhere this time."""


@dataclass(slots=True)
class _Fork:
    options: dict[int, Step]
    asleep: dict[int, Step]
    tried: list[int]

    @property
    def left(self) -> list[int]:
        """Who has not gone first here, and need not sleep."""
        return [
            each for each in self.options if each not in self.asleep | dict.fromkeys(self.tried)
        ]


@dataclass
class Search:
    """One search. For each schedule: `choose` at every fork, then `advance`, while it is true.

    Without `independent` every order is run.
    """

    independent: Independent = lambda _one, _other: False
    pruned: bool = False
    """Whether the schedule was left: all that follows on it is known from others."""
    _path: list[_Fork] = field(default_factory=list)
    _depth: int = 0

    def choose(self, options: Mapping[int, Step]) -> int | None:
        """Who takes the next step, of those who can; None to leave the schedule.

        Raises `Diverged` if the way here was taken before and led elsewhere.
        """
        if self._depth == len(self._path):
            fork = _Fork(dict(options), self._asleep(), [])
            if not fork.left:
                self.pruned = True
                return None
            fork.tried.append(fork.left[0])
            self._path.append(fork)
        fork = self._path[self._depth]
        if fork.options != options:
            raise Diverged
        self._depth += 1
        return fork.tried[-1]

    def again(self) -> None:
        """Go back to the beginning of the same schedule."""
        self._depth = 0
        self.pruned = False

    def advance(self) -> bool:
        """Go on to the next schedule; false if there is none."""
        self.again()
        while self._path:
            fork = self._path[-1]
            if fork.left:
                fork.tried.append(fork.left[0])
                return True
            self._path.pop()
        return False

    def _asleep(self) -> dict[int, Step]:
        """Who need not go next, as the orders in which they do have been run."""
        if not self._path:
            return {}
        fork = self._path[-1]
        taken = fork.options[fork.tried[-1]]
        done = fork.asleep | {each: fork.options[each] for each in fork.tried[:-1]}
        return {
            each: step
            for each, step in done.items()
            if self.independent(step.footprint, taken.footprint)
        }


@dataclass(frozen=True, slots=True)
class Taken:
    """A step that was taken. `after` is the number of the step that let the session go on."""

    session: int
    step: Step
    after: int | None = None


def orders(taken: Sequence[Taken], independent: Independent) -> int:
    """In how many orders these steps can be taken, by swaps that nobody notices.

    The number of linear extensions of a partial order: O(product of the sessions'
    lengths), as a session's own steps keep theirs.
    """
    sessions = sorted({each.session for each in taken})
    place = {session: number for number, session in enumerate(sessions)}
    lanes: list[list[tuple[int, ...]]] = [[] for _ in sessions]
    behind = [0] * len(sessions)  # how many steps of each session came before
    position: list[tuple[int, int]] = []
    for number, this in enumerate(taken):
        needs = [0] * len(sessions)
        for earlier_number, earlier in enumerate(taken[:number]):
            if this.after == earlier_number or not independent(
                earlier.step.footprint, this.step.footprint
            ):
                lane, index = position[earlier_number]
                needs[lane] = max(needs[lane], index + 1)
        own = place[this.session]
        needs[own] = behind[own]
        position.append((own, behind[own]))
        behind[own] += 1
        lanes[own].append(tuple(needs))

    @cache
    def ways(done: tuple[int, ...]) -> int:
        total = 0
        for lane, steps in enumerate(lanes):
            index = done[lane]
            if index < len(steps) and all(
                have >= need for have, need in zip(done, steps[index], strict=True)
            ):
                total += ways((*done[:lane], index + 1, *done[lane + 1 :]))
        return total or int(done == tuple(len(steps) for steps in lanes))

    return ways((0,) * len(sessions))

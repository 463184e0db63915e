"""Measures the memory of one contestant, in this process and nothing else's.

    .venv/bin/python -m loadtest.bench.memory ACT NAME DRIVERS BOOKINGS_EACH SEED

It prints two numbers, bytes a booking. First, how much the process grew while the
bookings were recorded: that counts what libraries allocate behind Python's back,
and what lies idle between the blocks in use. Then, by `tracemalloc`, what Python's
allocators gave out and is in use: no waste, and nothing of a library in C.
Tracing is slow, so the second is measured with at most `_TRACED_MAX` bookings.
"""

import gc
import sys
import tracemalloc
from typing import Any

import psutil

from loadtest.bench.allocation import Allocation
from loadtest.bench.detection import Detection
from loadtest.bench.method import Contest, Contestant, Shape

CONTESTS: dict[str, type[Contest[Any, Any]]] = {each.act: each for each in (Detection, Allocation)}

_WARM_UP = Shape(1, 10)
_TRACED_MAX = 100_000


def main() -> None:
    """Measure what the command line names, and print it."""
    act, name, *numbers = sys.argv[1:]
    drivers, bookings_each, seed = map(int, numbers)
    contest = CONTESTS[act]()
    contestants, _ = contest.contestants()
    shape = Shape(drivers, bookings_each)
    # Whatever is loaded at first use is no part of a booking.
    _ = _fill(contest, contestants[name], _WARM_UP, seed)
    gc.collect()
    process = psutil.Process()
    before = process.memory_info().rss
    filled = _fill(contest, contestants[name], shape, seed)
    gc.collect()
    grown = process.memory_info().rss - before
    del filled
    small = shape
    while small.drivers * small.bookings_each > _TRACED_MAX:
        small = (
            Shape(small.drivers // 2, small.bookings_each)
            if small.drivers > 1
            else Shape(1, small.bookings_each // 2)
        )
    tracemalloc.start()
    filled = _fill(contest, contestants[name], small, seed)
    gc.collect()
    in_use, _ = tracemalloc.get_traced_memory()
    del filled
    print(  # noqa: T201  # the parent reads it
        grown / (shape.drivers * shape.bookings_each),
        in_use / (small.drivers * small.bookings_each),
    )


def _fill(
    contest: Contest[Any, Any], contestant: Contestant[Any], shape: Shape, seed: int
) -> object:
    subject = contestant.new()
    contest.fill(subject, shape, contest.bookings(shape, seed))
    return subject


if __name__ == "__main__":
    main()

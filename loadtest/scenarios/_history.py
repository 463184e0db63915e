"""The history: what was asked, when, and what was answered; one line a request.

The format is described in `loadtest/scenarios/__init__.py`.
"""

import os
import socket
from pathlib import Path
from time import perf_counter, time
from typing import NamedTuple

from loadtest.scenarios._demand import Wish

_EPOCH_S = time() - perf_counter()
_LINES_BUFFERED_MAX = 1_000
_FLUSH_EVERY_S = 1.0


def now_s() -> float:
    """Seconds since 1970, by a clock that neither jumps nor is set back."""
    return _EPOCH_S + perf_counter()


class Request(NamedTuple):
    """A request before its answer: what is asked, and of which booking, if one is there yet."""

    action: str
    wish: Wish
    booking_id: int | None = None
    rider_id: int | None = None


class Answer(NamedTuple):
    """What came of a request; `status` is 0 if nothing did."""

    status: int = 0
    answered_s: float | None = None
    booking_id: int | None = None
    driver_id: int | None = None
    problem: str | None = None


class History:
    """Writes the requests of this process to a file of its own below `directory`, if there is one.

    What is buffered is on disk after `flush`.
    """

    def __init__(self, directory: Path | None, scenario: str, instants: list[str]) -> None:
        self._lines: list[str] = []
        self._flushed_s = perf_counter()
        self._instants = instants
        self._scenario = scenario
        self._file: Path | None = None
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = directory / f"{socket.gethostname()}-{os.getpid()}.jsonl"

    def note(
        self,
        request: Request,
        answer: Answer,
        intended_s: float,
        sent_s: float | None,
        *,
        measured: bool,
    ) -> None:
        """Add a request that is done with."""
        if self._file is None:
            return
        # By hand, as it costs a quarter of what `json.dumps` does; no value needs escaping.
        wish = request.wish
        problem = f'"{answer.problem}"' if answer.problem else "null"
        self._lines.append(
            f'{{"scenario":"{self._scenario}","action":"{request.action}",'
            f'"rider_id":{_id(request.rider_id)},'
            f'"driver_id":{_id(wish.driver_id)},"booked_driver_id":{_id(answer.driver_id)},'
            f'"start":"{self._instants[wish.start]}","end":"{self._instants[wish.end]}",'
            f'"booking_id":{_id(answer.booking_id or request.booking_id)},'
            f'"intended_s":{intended_s:.6f},"sent_s":{_time(sent_s)},'
            f'"answered_s":{_time(answer.answered_s)},"status":{answer.status},'
            f'"problem":{problem},"measured":{"true" if measured else "false"}}}\n'
        )
        full = len(self._lines) >= _LINES_BUFFERED_MAX
        if full or perf_counter() - self._flushed_s >= _FLUSH_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Write what is buffered."""
        if self._file is not None and self._lines:
            lines, self._lines = self._lines, []
            self._flushed_s = perf_counter()
            with self._file.open("a") as file:
                file.writelines(lines)


def _id(number: int | None) -> int | str:
    return "null" if number is None else number


def _time(at_s: float | None) -> str:
    return "null" if at_s is None else f"{at_s:.6f}"

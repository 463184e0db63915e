"""What the sessions of a proof do, and how the outcome is judged.

Judged is from outside: from the answers that the sessions got, and from the rows that
the table holds in the end. Nothing is asked of the recipe.

- *Double booking*: two active bookings of the driver overlap.
- *Lost*: what was acknowledged is not in the table. A booking or a move counts as
  there if the booking stands where some acknowledged command put it last; of moves
  under way at once, either may be the last.
- *Ghost*: what was refused, or never answered, is in the table all the same.
- *Wrong refusal*: a conflict was answered, though no booking that overlaps could have
  held the time at any moment between the session's first step and its answer. A
  booking could have held its time from the first step of the command that put it
  there, if that succeeded, until the answer of the one that took it away. This is
  generous to the recipe: who is called wrong by it is wrong.
- *Gave up*: the answer was `Contended`, "try again shortly".
- *Failed*: any other answer; also a session that never got one, a conflict where no time
  was asked for, and a session that gave up though it met no other.

A deadlock, or to give up, is no anomaly if the recipe says so of itself (`may_deadlock`,
`may_give_up`), and at levels that it does not ask for.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import combinations
from typing import Any, NamedTuple

from booking.bookings import Booking, BookingRequest, BookingState
from booking.errors import BookingConflict, Contended, IllegalTransition
from booking.postgres.ledger import PostgresLedger
from booking.time_window import TimeWindow
from loadtest.proof.steps import DEADLOCK, RUN_AGAIN, Run

_MIDNIGHT = datetime(2026, 3, 8, tzinfo=UTC)


class Sign(StrEnum):
    """What a schedule can show."""

    DOUBLE_BOOKING = "double booking"
    LOST = "lost"
    GHOST = "ghost"
    WRONG_REFUSAL = "wrong refusal"
    FAILED = "failed"
    DEADLOCK = "deadlock"
    RETRY = "retry"
    GAVE_UP = "gave up"


ANOMALIES = (Sign.DOUBLE_BOOKING, Sign.LOST, Sign.GHOST, Sign.WRONG_REFUSAL, Sign.FAILED)
"""What no schedule of a safe recipe may show, at any level."""
TOLD = (Sign.DEADLOCK, Sign.GAVE_UP)
"""What it may show at the level it asks for if it says so, and not otherwise."""


class Deed(StrEnum):
    """What a session asks of the ledger."""

    BOOK = "book"
    MOVE = "move"
    CANCEL = "cancel"


@dataclass(frozen=True, slots=True)
class Command:
    """One session's command; `held` says which of the scenario's bookings it is about."""

    deed: Deed
    window: TimeWindow | None = None
    held: int | None = None

    async def perform(
        self, ledger: PostgresLedger, driver: int, rider: int, held: list[Booking]
    ) -> Booking:
        """Give the command to the ledger."""
        match self:
            case Command(Deed.BOOK, TimeWindow() as window):
                return await ledger.book(BookingRequest(rider, window, driver))
            case Command(Deed.MOVE, TimeWindow() as window, int(number)):
                return await ledger.reschedule(held[number].id, window)
            case Command(Deed.CANCEL, None, int(number)):
                return await ledger.change_state(held[number].id, BookingState.CANCELLED)
        raise ValueError(self)

    def __str__(self) -> str:
        match self:
            case Command(Deed.BOOK, TimeWindow() as window):
                return f"book {_said(window)}"
            case Command(Deed.MOVE, TimeWindow() as window, int(number)):
                return f"move booking {number + 1} to {_said(window)}"
        return f"cancel booking {(self.held or 0) + 1}"


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is booked already, and what each session does about it."""

    name: str
    held: tuple[TimeWindow, ...]
    commands: tuple[Command, ...]

    def __str__(self) -> str:
        there = ", ".join(f"booking {n} at {_said(w)}" for n, w in enumerate(self.held, start=1))
        return f"{there or 'nothing'} is booked; " + "; ".join(
            f"{'ABC'[number]}: {command}" for number, command in enumerate(self.commands)
        )


def hours(start: float, end: float) -> TimeWindow:
    """The window between two hours of one fixed day."""
    return TimeWindow(_MIDNIGHT + timedelta(hours=start), _MIDNIGHT + timedelta(hours=end))


def _said(window: TimeWindow) -> str:
    return f"[{window.start:%H:%M}, {window.end:%H:%M})"


def _book(start: float, end: float) -> Command:
    return Command(Deed.BOOK, hours(start, end))


def _move(held: int, start: float, end: float) -> Command:
    return Command(Deed.MOVE, hours(start, end), held)


def _cancel(held: int) -> Command:
    return Command(Deed.CANCEL, None, held)


_NINE, _TEN, _TWO = hours(9, 10), hours(10, 11), hours(14, 15)

OF_TWO = (
    Scenario("books_that_overlap", (), (_book(9, 10), _book(9.5, 10.5))),
    Scenario("books_that_touch", (), (_book(9, 10), _book(10, 11))),
    Scenario("book_and_cancel", (_NINE,), (_cancel(0), _book(9.5, 10.5))),
    Scenario("book_and_move_in", (_TWO,), (_move(0, 9, 10), _book(9.5, 10.5))),
    Scenario("book_and_move_away", (_NINE,), (_move(0, 14, 15), _book(9.5, 10.5))),
    Scenario("moves_into_one_window", (_TEN, _TWO), (_move(0, 8, 9), _move(1, 8.5, 9.5))),
    Scenario("moves_that_swap", (_NINE, _TEN), (_move(0, 10, 11), _move(1, 9, 10))),
    Scenario("moves_of_one_booking", (_NINE,), (_move(0, 11, 12), _move(0, 12, 13))),
    Scenario("move_and_cancel", (_NINE,), (_move(0, 11, 12), _cancel(0))),
)
OF_THREE = (
    Scenario("three_books", (), (_book(9, 10), _book(9.5, 10.5), _book(10, 11))),
    Scenario("two_books_and_cancel", (_NINE,), (_cancel(0), _book(9, 10), _book(9.5, 10.5))),
    Scenario(
        "book_move_and_cancel", (_NINE, _TWO), (_cancel(0), _move(1, 9, 10), _book(9.5, 10.5))
    ),
)
SCENARIOS = {2: OF_TWO, 3: OF_THREE}
"""By number of sessions."""


class Row(NamedTuple):
    """A booking as the table holds it in the end."""

    id: int
    state: str
    start: datetime
    end: datetime

    @property
    def active(self) -> bool:
        """Whether it keeps others out of its time."""
        return BookingState(self.state).active


class _Span(NamedTuple):
    """A booking may have held this window between these steps."""

    booking: int
    window: TimeWindow
    since: float
    until: float


@dataclass(frozen=True)
class Judge:
    """One schedule, and what it left behind."""

    scenario: Scenario
    run: Run
    held: list[Booking]
    rows: list[Row]
    looks_early: bool = False
    """Whether a session may look before its first step: into the memory of the process."""

    def signs(self) -> set[Sign]:
        """All that the schedule shows."""
        found = {
            Sign.DOUBLE_BOOKING: self._double_booked(),
            Sign.LOST: self._lost(),
            Sign.GHOST: self._ghost(),
            Sign.WRONG_REFUSAL: any(map(self._wrongly_refused, self._numbers)),
            Sign.FAILED: self.run.stuck or any(map(self._failed, self._numbers)),
            Sign.DEADLOCK: any(DEADLOCK in each.errors for each in self.run.sessions),
            Sign.RETRY: any(RUN_AGAIN & {*each.errors} for each in self.run.sessions),
            Sign.GAVE_UP: any(isinstance(each.answer, Contended) for each in self.run.sessions),
        }
        return {sign for sign, shown in found.items() if shown}

    @property
    def _numbers(self) -> range:
        return range(len(self.scenario.commands))

    def _double_booked(self) -> bool:
        active = [row for row in self.rows if row.active]
        return any(a.start < b.end and b.start < a.end for a, b in combinations(active, 2))

    def _answer(self, number: int) -> Any:
        return self.run.sessions[number].answer

    def _succeeded(self, number: int) -> bool:
        return isinstance(self._answer(number), Booking)

    def _since(self, number: int) -> int:
        return 0 if self.looks_early else self.run.started.get(number, 0)

    def _until(self, number: int) -> float:
        return self.run.answered.get(number, float("inf"))

    def _done(self, deed: Deed, held: int | None = None) -> list[int]:
        """The sessions whose deed succeeded."""
        return [
            number
            for number, command in enumerate(self.scenario.commands)
            if command.deed is deed and command.held == held and self._succeeded(number)
        ]

    def _places(self, held: int) -> set[TimeWindow]:
        """Where a booking that was there may stand in the end: where it was moved last."""
        moves = self._done(Deed.MOVE, held)
        last = [
            move
            for move in moves
            if not any(self._since(other) >= self._until(move) for other in moves)
        ]
        windows = [self.scenario.commands[move].window for move in last]
        return {each for each in windows if each is not None} or {self.scenario.held[held]}

    def _expected(self) -> Iterator[tuple[int, bool, set[TimeWindow]]]:
        """Each booking that was acknowledged: is it active, and where may it stand?"""
        for number, booking in enumerate(self.held):
            yield booking.id, not self._done(Deed.CANCEL, number), self._places(number)
        for number in self._done(Deed.BOOK):
            booked, window = self._answer(number), self.scenario.commands[number].window
            yield booked.id, True, {booked.window if window is None else window}

    def _lost(self) -> bool:
        rows = {row.id: row for row in self.rows}
        return any(
            booking_id not in rows
            or rows[booking_id].active is not active
            or TimeWindow(rows[booking_id].start, rows[booking_id].end) not in places
            for booking_id, active, places in self._expected()
        )

    def _ghost(self) -> bool:
        known = {booking_id for booking_id, _, _ in self._expected()}
        return any(row.id not in known for row in self.rows)

    def _failed(self, number: int) -> bool:
        answer = self._answer(number)
        if isinstance(answer, IllegalTransition):
            # Right only if the booking was cancelled meanwhile.
            held = self.scenario.commands[number].held
            return not any(
                self._since(other) < self._until(number)
                for other in self._done(Deed.CANCEL, held)
                if other != number
            )
        if isinstance(answer, BookingConflict):
            return self.scenario.commands[number].window is None
        if isinstance(answer, Contended):
            return not self._met_another(number)
        return not isinstance(answer, Booking)

    def _met_another(self, number: int) -> bool:
        """Whether some other session was under way between its first step and its answer."""
        return any(
            self._since(other) < self._until(number) and self._until(other) > self._since(number)
            for other in self._numbers
            if other != number
        )

    def _wrongly_refused(self, number: int) -> bool:
        command = self.scenario.commands[number]
        if not isinstance(self._answer(number), BookingConflict) or command.window is None:
            return False
        return not any(
            span.window.overlaps(command.window)
            and span.since < self._until(number)
            and span.until > self._since(number)
            and span.booking != (None if command.held is None else self.held[command.held].id)
            for span in self._spans()
        )

    def _spans(self) -> Iterator[_Span]:
        """All time that bookings held, at the most, and when."""
        for number, booking in enumerate(self.held):
            cancels, moves = self._done(Deed.CANCEL, number), self._done(Deed.MOVE, number)
            gone = min((self._until(each) for each in (*cancels, *moves)), default=float("inf"))
            yield _Span(booking.id, booking.window, -1, gone)
            gone = min(map(self._until, cancels), default=float("inf"))
            for move in moves:
                window = self.scenario.commands[move].window
                if window is not None:
                    yield _Span(booking.id, window, self._since(move), max(gone, self._until(move)))
        for number in self._done(Deed.BOOK):
            window = self.scenario.commands[number].window
            if window is not None:
                yield _Span(self._answer(number).id, window, self._since(number), float("inf"))

"""A model of the service, simple enough to be believed, and a machine that drives both.

The model knows one fleet: who has what when, in a dictionary. Each step asks the service
over HTTP, works out what it should have answered, and compares. In the end everything the
service has is compared with everything the model has.
"""

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import combinations, count, takewhile
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from booking.overrun import Chain, Policy, Upcoming
from booking.time_window import TimeWindow

_DRIVERS = 3
_ACTIVE = {"held", "confirmed", "in_progress"}
_TO_COME = {"held", "confirmed"}
_POLICY = Policy()
_CREATED, _OK, _CONFLICT, _STALE = 201, 200, 409, 412
_SOON = timedelta(minutes=10)
_numbers = count(1)

# By the grid of five minutes, windows touch and meet often.
_STARTS = st.integers(-24, 48).map(lambda fives: timedelta(minutes=5 * fives))
_LENGTHS = st.sampled_from([5, 10, 20, 45]).map(lambda minutes: timedelta(minutes=minutes))
_PLACES = st.integers(0, 10**6)


@dataclass(frozen=True)
class Known:
    """A booking as the model has it. `lapsed` is a hold that is over, swept or not."""

    id: int
    driver_id: int
    window: TimeWindow
    state: str
    promised: datetime | None = None

    @property
    def holds(self) -> bool:
        return self.state in _ACTIVE

    @property
    def to_come(self) -> bool:
        return self.state in _TO_COME


class LockStep(RuleBasedStateMachine):
    """The service on PostgreSQL beside the model."""

    def __init__(
        self, client: httpx.Client, database_url: str, stepped: Callable[[], None]
    ) -> None:
        super().__init__()
        self.client, self.database_url, self.stepped = client, database_url, stepped
        self.known: dict[int, Known] = {}
        self.tags: dict[int, str] = {}

    # --- The world. ----------------------------------------------------------------------

    @initialize()
    def people(self) -> None:
        self.now = datetime.now(UTC).replace(microsecond=0)
        self.fleet = f"lock-step {next(_numbers)} {uuid4()}"
        self.rider = self._ask("/riders", {"name": "Alan"}).json()["id"]
        self.drivers = [
            self._ask("/drivers", {"name": "Ada", "fleet": self.fleet}).json()["id"]
            for _ in range(_DRIVERS)
        ]

    def _ask(self, path: str, body: dict[str, Any] | None = None, **headers: str) -> httpx.Response:
        return self.client.post(path, json=body or {}, headers=headers)

    def _pick(self, place: int) -> Known:
        in_order = sorted(self.known)
        return self.known[in_order[place % len(in_order)]]

    def _in_the_way(
        self, driver_id: int, window: TimeWindow, besides: int | None = None
    ) -> list[int]:
        return sorted(
            each.id
            for each in self.known.values()
            if each.driver_id == driver_id
            and each.holds
            and each.id != besides
            and each.window.overlaps(window)
        )

    def _free(
        self, window: TimeWindow, other_than: Collection[int] = (), besides: int | None = None
    ) -> list[int]:
        return [
            driver
            for driver in self.drivers
            if driver not in other_than and not self._in_the_way(driver, window, besides)
        ]

    # --- The comparison. -----------------------------------------------------------------

    def _same(self, known: Known, told: dict[str, Any]) -> None:
        """The service and the model have the same booking."""
        state = told["state"]
        if known.state == "lapsed" and state in {"held", "expired"}:
            state = "lapsed"  # when it is swept is the service's own affair
        window = TimeWindow(_instant(told["start"]), _instant(told["predicted_end"]))
        promised = told["promised_start"] and _instant(told["promised_start"])
        assert Known(told["id"], told["driver_id"], window, state, promised) == known

    def _accept(self, response: httpx.Response, known: Known, status: int = _OK) -> None:
        assert response.status_code == status, response.text
        self._same(known, response.json())
        self.known[known.id] = known
        self.tags[known.id] = response.headers["ETag"]

    def _refused(self, response: httpx.Response, conflicts: list[int] | None = None) -> None:
        assert response.status_code == _CONFLICT, response.text
        if conflicts is not None:
            told = [each["booking_id"] for each in response.json()["conflicts"]]
            assert sorted(told) == conflicts

    # --- What may happen. ----------------------------------------------------------------

    @rule(
        place=st.one_of(st.none(), _PLACES),
        start=_STARTS,
        length=_LENGTHS,
        hold=st.booleans(),
        again=st.booleans(),
    )
    def book(
        self, place: int | None, start: timedelta, length: timedelta, *, hold: bool, again: bool
    ) -> None:
        self.stepped()
        window = TimeWindow(self.now + start, self.now + start + length)
        wanted = None if place is None else self.drivers[place % _DRIVERS]
        body = {"rider_id": self.rider} | _times(window)
        body |= {"fleet": self.fleet} if wanted is None else {"driver_id": wanted}
        if hold:
            body["hold_s"] = 900
        key = {"Idempotency-Key": str(uuid4())} if again else {}
        response = self._ask("/bookings", body, **key)
        if again:
            repeated = self._ask("/bookings", body, **key)
            assert (repeated.status_code, repeated.content) == (
                response.status_code,
                response.content,
            )
        free = self._free(window)
        if wanted is not None and (conflicts := self._in_the_way(wanted, window)):
            self._refused(response, conflicts)
        elif wanted is None and not free:
            self._refused(response)
        else:
            told = response.json()
            assert response.status_code == _CREATED, response.text
            driver = told["driver_id"]
            assert driver == wanted if wanted is not None else driver in free
            state = "held" if hold else "confirmed"
            self._accept(response, Known(told["id"], driver, window, state), _CREATED)

    @precondition(lambda self: self.known)
    @rule(place=_PLACES, start=_STARTS, length=_LENGTHS)
    def reschedule(self, place: int, start: timedelta, length: timedelta) -> None:
        self.stepped()
        known = self._pick(place)
        window = TimeWindow(self.now + start, self.now + start + length)
        response = self._ask(f"/bookings/{known.id}/reschedule", _times(window))
        if not known.to_come:
            self._refused(response)
        elif conflicts := self._in_the_way(known.driver_id, window, known.id):
            self._refused(response, conflicts)
        else:
            self._accept(response, replace(known, window=window, promised=None))

    @precondition(lambda self: self.known)
    @rule(place=_PLACES, other=st.one_of(st.none(), _PLACES))
    def reassign(self, place: int, other: int | None) -> None:
        self.stepped()
        known = self._pick(place)
        wanted = None if other is None else self.drivers[other % _DRIVERS]
        body = {} if wanted is None else {"driver_id": wanted}
        response = self._ask(f"/bookings/{known.id}/reassign", body)
        free = self._free(known.window, besides=known.id)
        if not known.to_come:
            self._refused(response)
        elif wanted is not None and wanted not in free:
            self._refused(response, self._in_the_way(wanted, known.window, known.id))
        elif wanted is None and not self._free(known.window):
            self._refused(response)
        else:
            driver = response.json()["driver_id"]
            assert driver == wanted if wanted is not None else driver in free
            self._accept(response, replace(known, driver_id=driver))

    @precondition(lambda self: self.known)
    @rule(place=_PLACES)
    def confirm(self, place: int) -> None:
        self.stepped()
        known = self._pick(place)
        response = self._ask(f"/bookings/{known.id}/confirm")
        if known.state == "held":
            self._accept(response, replace(known, state="confirmed"))
        else:
            self._refused(response)

    @precondition(lambda self: self.known)
    @rule(place=_PLACES, stale=st.booleans())
    def cancel(self, place: int, *, stale: bool) -> None:
        self.stepped()
        known = self._pick(place)
        tag = '"0"' if stale else "*"
        response = self._ask(f"/bookings/{known.id}/cancel", **{"If-Match": tag})
        if stale:
            assert response.status_code == _STALE
        elif known.holds or (known.state == "lapsed" and response.status_code == _OK):
            self._accept(response, replace(known, state="cancelled"))
        else:
            self._refused(response)

    @precondition(lambda self: self.known)
    @rule(place=_PLACES)
    def lapse(self, place: int) -> None:
        """The clock passes the end of a hold."""
        self.stepped()
        known = self._pick(place)
        if known.state == "held":
            asyncio.run(self._let_lapse(known.id))
            self.known[known.id] = replace(known, state="lapsed")

    async def _let_lapse(self, booking_id: int) -> None:
        connection = await asyncpg.connect(self.database_url)
        try:
            await connection.execute(
                "UPDATE bookings SET held_until = now() WHERE id = $1", booking_id
            )
        finally:
            await connection.close()

    def _may_run(self, known: Known) -> bool:
        """Whether a trip could be under way now, and not be found overdue during the test."""
        return known.window.start < self.now and known.window.end > self.now + _SOON

    @precondition(lambda self: self.known)
    @rule(place=_PLACES)
    def start(self, place: int) -> None:
        self.stepped()
        known = self._pick(place)
        if not self._may_run(known):
            return
        body = {"at": known.window.start.isoformat()}
        response = self._ask(f"/bookings/{known.id}/start", body)
        if known.state == "confirmed":
            self._accept(response, replace(known, state="in_progress"))
        else:
            self._refused(response)

    @precondition(lambda self: self.known)
    @rule(place=_PLACES)
    def complete(self, place: int) -> None:
        self.stepped()
        known = self._pick(place)
        response = self._ask(f"/bookings/{known.id}/complete", {"at": self.now.isoformat()})
        if known.state == "in_progress":
            self._accept(response, replace(known, state="completed"))
        else:
            self._refused(response)

    @precondition(lambda self: self.known)
    @rule(place=_PLACES)
    def no_show(self, place: int) -> None:
        self.stepped()
        known = self._pick(place)
        response = self._ask(f"/bookings/{known.id}/no-show", {"at": self.now.isoformat()})
        if known.state == "confirmed" and known.window.start <= self.now:
            self._accept(response, replace(known, state="no_show"))
        else:
            self._refused(response)

    @precondition(lambda self: any(each.state == "in_progress" for each in self.known.values()))
    @rule(place=_PLACES, fives=st.integers(3, 40))
    def predict_end(self, place: int, fives: int) -> None:
        """A trip will end at another time than was thought, and others move for it."""
        self.stepped()
        under_way = sorted(each.id for each in self.known.values() if each.state == "in_progress")
        trip = self.known[under_way[place % len(under_way)]]
        end = self.now + timedelta(minutes=5 * fives)
        response = self._ask(f"/bookings/{trip.id}/predict-end", {"predicted_end": end.isoformat()})
        expected, remedies = self._planned(trip, end)
        if _overlapping(expected):
            self._refused(response)
            return
        assert response.status_code == _OK, response.text
        told = response.json()
        self._same(expected[trip.id], told["booking"])
        assert {each["booking"]["id"]: each["remedy"] for each in told["moved"]} == remedies
        for each in told["moved"]:
            self._same(expected[each["booking"]["id"]], each["booking"])
        self.known = expected

    def _planned(self, trip: Known, end: datetime) -> tuple[dict[int, Known], dict[int, str]]:
        """What everything is to be like, by the pure policy, and who was helped how."""
        behind = sorted(
            (
                each
                for each in self.known.values()
                if each.driver_id == trip.driver_id
                and each.holds
                and each.window.start >= trip.window.end
            ),
            key=lambda each: each.window.start,
        )
        waiting = [_upcoming(each) for each in takewhile(lambda each: each.to_come, behind)]
        chain = Chain(trip.driver_id, _upcoming(trip), waiting)

        def free(window: TimeWindow, other_than: frozenset[int]) -> int | None:
            return next(iter(self._free(window, other_than)), None)

        expected, remedies = dict(self.known), {}
        for step in _POLICY.plan(chain, end, self.now, free):
            known = expected[step.booking_id]
            promised = (known.promised or known.window.start) if step.late_s > 0 else None
            expected[known.id] = replace(
                known, driver_id=step.driver_id, window=step.window, promised=promised
            )
            remedies[known.id] = str(step.remedy)
        expected[trip.id] = replace(trip, window=TimeWindow(trip.window.start, end))
        return expected, remedies

    def teardown(self) -> None:
        """Everything is as the model has it, and nothing else is there."""
        if not hasattr(self, "fleet"):
            return
        found = self.client.get("/bookings", params={"fleet": self.fleet, "limit": 1_000}).json()
        told = {each["id"]: each for each in found["items"]}
        assert told.keys() == self.known.keys()
        for id_, known in self.known.items():
            self._same(known, told[id_])


def _overlapping(known: dict[int, Known]) -> bool:
    held = [each for each in known.values() if each.holds]
    return any(
        one.driver_id == other.driver_id and one.window.overlaps(other.window)
        for one, other in combinations(held, 2)
    )


def _upcoming(known: Known) -> Upcoming:
    return Upcoming(known.id, known.window.start, known.window.end, promised_start=known.promised)


def _instant(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _times(window: TimeWindow) -> dict[str, Any]:
    return {"start": window.start.isoformat(), "predicted_end": window.end.isoformat()}

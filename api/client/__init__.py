"""`TaxiClient`: the running service, from Python."""

from collections.abc import AsyncGenerator, AsyncIterator
from datetime import datetime

from msgspec import Struct

from api.bodies.availability import Availability
from api.bodies.bookings import (
    BookingIn,
    BookingOut,
    BookingPage,
    Cancellation,
    Check,
    Happened,
    NewDriver,
    NewEnd,
    NewTime,
    OverrunOut,
    PlaceBody,
)
from api.bodies.common import WindowOut
from api.bodies.drivers import Agenda, DriverIn, DriverOut, DriverPage, Gaps
from api.bodies.events import EventOut
from api.bodies.riders import RiderIn, RiderOut, RiderPage
from api.bodies.schedule import Schedule
from api.bodies.waiting_list import WaitingIn, WaitingOut, WaitingPage
from api.client.transport import Transport
from booking.bookings import BookingState
from booking.drivers import MAIN_FLEET
from booking.places import Place
from booking.time_window import utc
from booking.waiting import WaitingState


class TaxiClient(Transport):
    """What the service can be asked, a method each; how, `Transport` says.

    Those methods that change a booking take the `version` at which it was seen: if it
    has been changed since, `ProblemChanged` is raised, and nothing done. Instants without
    an offset are `InvalidInput`.
    """

    async def add_driver(
        self,
        name: str,
        *,
        fleet: str = MAIN_FLEET,
        zone: str = "UTC",
        turnaround_s: int | None = None,
    ) -> DriverOut:
        """Add a driver."""
        body = DriverIn(name, fleet, zone, turnaround_s)
        return await self._command(DriverOut, "/drivers", body)

    async def add_rider(self, name: str) -> RiderOut:
        """Add a rider."""
        return await self._command(RiderOut, "/riders", RiderIn(name))

    async def driver(self, driver_id: int) -> DriverOut:
        """One driver."""
        return await self._get(DriverOut, f"/drivers/{driver_id}")

    def drivers(
        self, *, fleet: str | None = None, working: bool | None = None
    ) -> AsyncIterator[DriverOut]:
        """All drivers, or those of a fleet, in order of id."""
        return self._each(DriverPage, "/drivers", fleet=fleet, working=working)

    def riders(self) -> AsyncIterator[RiderOut]:
        """All riders in order of id."""
        return self._each(RiderPage, "/riders")

    async def book(
        self,
        rider_id: int,
        start: datetime,
        predicted_end: datetime,
        *,
        driver_id: int | None = None,
        fleet: str | None = None,
        hold_s: int | None = None,
        pickup: Place | None = None,
        dropoff: Place | None = None,
        key: str | None = None,
    ) -> BookingOut:
        """Book a driver, or any free driver of a fleet.

        A program that is to survive its own crash brings its own `key`, kept
        beforehand: under it, the same booking is not made twice.
        """
        wanted = _wanted(rider_id, start, predicted_end, driver_id, fleet)
        wanted.hold_s = hold_s
        wanted.pickup, wanted.dropoff = PlaceBody.of(pickup), PlaceBody.of(dropoff)
        return await self._command(BookingOut, "/bookings", wanted, key=key)

    async def check(
        self,
        rider_id: int,
        start: datetime,
        predicted_end: datetime,
        *,
        driver_id: int | None = None,
        fleet: str | None = None,
    ) -> Check:
        """What `book` would meet now. Nothing is recorded."""
        wanted = _wanted(rider_id, start, predicted_end, driver_id, fleet)
        answer = await self.send("POST", "/bookings/check", body=wanted)
        return self._decoded(answer.response, Check)

    async def booking(self, booking_id: int) -> BookingOut:
        """One booking."""
        return await self._get(BookingOut, f"/bookings/{booking_id}")

    def bookings(
        self,
        *,
        driver_id: int | None = None,
        rider_id: int | None = None,
        fleet: str | None = None,
        state: BookingState | None = None,
        at_risk: bool | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
    ) -> AsyncIterator[BookingOut]:
        """All bookings that fit, in order of start; they overlap `[start, end)`, if given."""
        return self._each(
            BookingPage,
            "/bookings",
            driver_id=driver_id,
            rider_id=rider_id,
            fleet=fleet,
            state=state,
            at_risk=at_risk,
            start=None if start is None else _instant(start, "start"),
            end=None if end is None else _instant(end, "end"),
        )

    async def confirm(self, booking_id: int, *, version: int | None = None) -> BookingOut:
        """Confirm a booking whose time is held."""
        return await self._step(booking_id, "confirm", None, version)

    async def cancel(
        self, booking_id: int, reason: str | None = None, *, version: int | None = None
    ) -> BookingOut:
        """Cancel a booking that is not finished; its time is free at once."""
        return await self._step(booking_id, "cancel", Cancellation(reason), version)

    async def reschedule(
        self,
        booking_id: int,
        start: datetime,
        predicted_end: datetime,
        *,
        version: int | None = None,
    ) -> BookingOut:
        """Move a booking to another time of the same driver, or leave it where it is."""
        body = NewTime(utc(start, "start"), utc(predicted_end, "predicted_end"))
        return await self._step(booking_id, "reschedule", body, version)

    async def reassign(
        self, booking_id: int, driver_id: int | None = None, *, version: int | None = None
    ) -> BookingOut:
        """Give a booking to another driver, or to whoever of the fleet is free."""
        return await self._step(booking_id, "reassign", NewDriver(driver_id), version)

    async def start(
        self, booking_id: int, at: datetime | None = None, *, version: int | None = None
    ) -> BookingOut:
        """Say that the trip has started, now or at `at`."""
        return await self._step(booking_id, "start", _happened(at), version)

    async def complete(
        self, booking_id: int, at: datetime | None = None, *, version: int | None = None
    ) -> BookingOut:
        """Say that the trip has ended, now or at `at`."""
        return await self._step(booking_id, "complete", _happened(at), version)

    async def no_show(
        self, booking_id: int, at: datetime | None = None, *, version: int | None = None
    ) -> BookingOut:
        """Say that the rider was not there."""
        return await self._step(booking_id, "no-show", _happened(at), version)

    async def predict_end(
        self, booking_id: int, predicted_end: datetime, *, version: int | None = None
    ) -> OverrunOut:
        """Say when a trip that is under way will end; what had to move is in the answer."""
        body = NewEnd(utc(predicted_end, "predicted_end"))
        path = f"/bookings/{booking_id}/predict-end"
        return await self._command(OverrunOut, path, body, version=version)

    async def wait(
        self,
        rider_id: int,
        start: datetime,
        predicted_end: datetime,
        *,
        driver_id: int | None = None,
        fleet: str | None = None,
        key: str | None = None,
    ) -> WaitingOut:
        """Wait for time of a driver, or of any driver of a fleet; offered at once if it is free.

        What is offered is a booking, to be confirmed by `offer_expires_at`.
        """
        wanted = WaitingIn(
            rider_id, utc(start, "start"), utc(predicted_end, "predicted_end"), driver_id, fleet
        )
        return await self._command(WaitingOut, "/waiting-list", wanted, key=key)

    async def waiting_entry(self, entry_id: int) -> WaitingOut:
        """One entry of the waiting list."""
        return await self._get(WaitingOut, f"/waiting-list/{entry_id}")

    def waiting_list(
        self,
        *,
        rider_id: int | None = None,
        fleet: str | None = None,
        state: WaitingState | None = None,
    ) -> AsyncIterator[WaitingOut]:
        """All entries that fit, in order of joining."""
        return self._each(WaitingPage, "/waiting-list", rider_id=rider_id, fleet=fleet, state=state)

    async def withdraw(self, entry_id: int) -> WaitingOut:
        """Wait no longer, or decline what was offered."""
        return await self._command(WaitingOut, f"/waiting-list/{entry_id}/withdraw", None)

    async def agenda(self, driver_id: int, start: datetime, end: datetime) -> list[BookingOut]:
        """The driver's active bookings that overlap `[start, end)`, in order of start."""
        agenda = await self._get(Agenda, f"/drivers/{driver_id}/agenda", **_span(start, end))
        return agenda.items

    async def gaps(
        self, driver_id: int, start: datetime, end: datetime, *, at_least_minutes: int = 0
    ) -> list[WindowOut]:
        """When the driver is free in `[start, end)`, in order."""
        span = _span(start, end)
        path = f"/drivers/{driver_id}/gaps"
        return (await self._get(Gaps, path, at_least_minutes=at_least_minutes, **span)).items

    async def availability(
        self, start: datetime, end: datetime, *, fleet: str = MAIN_FLEET, limit: int = 100
    ) -> Availability:
        """Drivers who were free for the whole of `[start, end)`: an answer, not a promise."""
        span = _span(start, end)
        return await self._get(Availability, "/availability", fleet=fleet, limit=limit, **span)

    async def schedule(
        self, start: datetime, end: datetime, *, fleet: str = MAIN_FLEET
    ) -> Schedule:
        """Every working driver of a fleet, with what they have in `[start, end)`."""
        return await self._get(Schedule, "/schedule", fleet=fleet, **_span(start, end))

    def events(
        self,
        *,
        after: str | None = None,
        booking_id: int | None = None,
        driver_id: int | None = None,
        rider_id: int | None = None,
    ) -> AsyncGenerator[EventOut]:
        """What happens, as it happens and without end: from now on, or behind the event `after`.

        A stream that breaks is taken up again where it broke, so nothing is missed and
        nothing comes twice. Raises `NoAnswer` when it cannot be taken up for `patience_s`,
        and otherwise as the class says.
        """
        return self._follow(
            EventOut,
            "/events/stream",
            after,
            booking_id=booking_id,
            driver_id=driver_id,
            rider_id=rider_id,
        )

    async def _step(
        self, booking_id: int, step: str, body: Struct | None, version: int | None
    ) -> BookingOut:
        path = f"/bookings/{booking_id}/{step}"
        return await self._command(BookingOut, path, body, version=version)


def _wanted(
    rider_id: int,
    start: datetime,
    predicted_end: datetime,
    driver_id: int | None,
    fleet: str | None,
) -> BookingIn:
    return BookingIn(
        rider_id=rider_id,
        start=utc(start, "start"),
        predicted_end=utc(predicted_end, "predicted_end"),
        driver_id=driver_id,
        fleet=fleet,
    )


def _happened(at: datetime | None) -> Happened | None:
    return None if at is None else Happened(utc(at, "at"))


def _span(start: datetime, end: datetime) -> dict[str, str]:
    return {"start": _instant(start, "start"), "end": _instant(end, "end")}


def _instant(instant: datetime, field: str) -> str:
    return utc(instant, field).isoformat()

"""What goes over the wire: one struct a body.

Requests refuse fields they do not know: a misspelt `predicted_end` must not be
taken for one that was left out. Every instant comes and goes as RFC 3339 with
an offset, and goes as UTC.
"""

from calendar import Day
from datetime import date, datetime, time
from enum import StrEnum
from typing import Annotated, Any, Self, override

from msgspec import UNSET, Meta, Struct, UnsetType, structs

from api.patterns import CLOCK, PRINTABLE, WALL_CLOCK, WITHOUT_NUL
from booking.bookings import HOLD_S_MAX, Booking, BookingRequest, BookingState
from booking.calendars import Held
from booking.drivers import MAIN_FLEET, TURNAROUND_S_MAX, Driver, Rider
from booking.errors import BookingConflict, EmptyWindow, InvalidInput
from booking.events import BookingEvent, EventKind
from booking.overrun import Remedy
from booking.places import Place
from booking.postgres.outbox import Delivery, DeliveryState, NewWebhook, Webhook
from booking.postgres.overruns import Overrun
from booking.postgres.series import OnConflict, Outcome, Series, SeriesRequest, StoredSeries
from booking.recurrence import INTERVAL_WEEKS_MAX, OCCURRENCES_MAX, Adjustment, Recurrence
from booking.shifts import AbsenceKind, Stranded
from booking.time_window import TimeWindow, utc
from booking.waiting import WaitingEntry, WaitingState
from booking.webhooks import URL_CHARS_MAX

ID_MAX = 2**53 - 1
"""The largest integer that every reader of JSON keeps exact (RFC 8259, section 6)."""

Id = Annotated[int, Meta(ge=1, le=ID_MAX, examples=[1])]
Name = Annotated[
    str, Meta(min_length=1, max_length=200, pattern=PRINTABLE, examples=["Ada Lovelace"])
]
FleetName = Annotated[str, Meta(min_length=1, max_length=100, pattern=PRINTABLE, examples=["main"])]
ZoneName = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=100,
        description="The IANA name of a time zone.",
        examples=["Europe/Berlin"],
    ),
]
_RFC_3339 = "RFC 3339 with its offset from UTC."
Instant = Annotated[datetime, Meta(description=_RFC_3339, examples=["2026-12-01T09:00:00Z"])]
End = Annotated[datetime, Meta(description=_RFC_3339, examples=["2026-12-01T09:30:00Z"])]
HoldSeconds = Annotated[
    int,
    Meta(
        ge=1,
        le=HOLD_S_MAX,
        description="Hold the time for so many seconds, to be confirmed by then.",
        examples=[300],
    ),
]
TurnaroundSeconds = Annotated[
    int,
    Meta(
        ge=0,
        le=TURNAROUND_S_MAX,
        description="What the driver needs between two trips, beside the way. With it, even if"
        " it is 0, the way from one trip to the next is kept free.",
        examples=[300],
    ),
]
ClockTime = Annotated[
    str,
    Meta(
        pattern=CLOCK,
        description="By the clock on the wall, from 00:00 to 24:00.",
        examples=["07:30"],
    ),
]
WallClock = Annotated[
    str,
    Meta(
        pattern=WALL_CLOCK,
        description="By the clock on the wall, hours and minutes.",
        examples=["07:30"],
    ),
]
Reason = Annotated[str, Meta(max_length=500, pattern=WITHOUT_NUL, examples=["flight cancelled"])]


class DriverIn(Struct, forbid_unknown_fields=True):
    """A driver to be added to a fleet."""

    name: Name
    fleet: FleetName = MAIN_FLEET
    zone: ZoneName = "UTC"
    turnaround_s: TurnaroundSeconds | None = None


class DriverChange(Struct, forbid_unknown_fields=True):
    """What to change of a driver; what is left out stays."""

    name: Name | UnsetType = UNSET
    zone: ZoneName | UnsetType = UNSET
    turnaround_s: TurnaroundSeconds | UnsetType | None = UNSET


class DriverOut(Struct):
    """A driver."""

    id: Id
    name: str
    fleet: str
    zone: str
    created_at: Instant
    retired_at: Instant | None
    turnaround_s: int | None
    has_shifts: bool

    @classmethod
    def of(cls, driver: Driver) -> Self:
        """As it goes over the wire."""
        return cls(
            driver.id,
            driver.name,
            driver.fleet,
            driver.zone,
            driver.created_at,
            driver.retired_at,
            driver.turnaround_s,
            driver.has_shifts,
        )


class RiderIn(Struct, forbid_unknown_fields=True):
    """A rider to be added."""

    name: Name


class RiderOut(Struct):
    """A rider."""

    id: Id
    name: str
    created_at: Instant

    @classmethod
    def of(cls, rider: Rider) -> Self:
        """As it goes over the wire."""
        return cls(rider.id, rider.name, rider.created_at)


class PlaceBody(Struct, forbid_unknown_fields=True):
    """A point on the Earth, in degrees of WGS 84."""

    latitude_deg: Annotated[float, Meta(ge=-90, le=90, examples=[52.52])]
    longitude_deg: Annotated[float, Meta(ge=-180, le=180, examples=[13.405])]

    def place(self) -> Place:
        """What is meant."""
        return Place(self.latitude_deg, self.longitude_deg)

    @classmethod
    def of(cls, place: Place | None) -> Self | None:
        """As it goes over the wire."""
        return None if place is None else cls(place.latitude_deg, place.longitude_deg)


class BookingIn(Struct, forbid_unknown_fields=True):
    """A booking that is asked for: of one driver, or of any free driver of a fleet."""

    rider_id: Id
    start: Instant
    predicted_end: End
    driver_id: Id | None = None
    fleet: FleetName | None = None
    hold_s: HoldSeconds | None = None
    pickup: PlaceBody | None = None
    dropoff: PlaceBody | None = None

    def request(self) -> BookingRequest:
        """What the ledger is asked.

        Raises `InvalidInput` when both a driver and a fleet are named, and what
        `TimeWindow` and `BookingRequest` raise.
        """
        if self.driver_id is not None and self.fleet is not None:
            raise InvalidInput("Name a driver or a fleet, not both.", field="fleet")
        return BookingRequest(
            rider_id=self.rider_id,
            window=window_of(self.start, self.predicted_end, end_field="predicted_end"),
            driver_id=self.driver_id,
            fleet=self.fleet or MAIN_FLEET,
            hold_s=self.hold_s,
            pickup=None if self.pickup is None else self.pickup.place(),
            dropoff=None if self.dropoff is None else self.dropoff.place(),
        )


class BookingOut(Struct):
    """A booking. Its end is a prediction until it is completed.

    `blocked_from` is when it begins to take its driver's time: before `start`, where the
    driver has a turnaround. `lead_short_s` is by how much that is too late, where what
    comes before it has changed since. `travel_source` says who estimated the way.
    """

    id: Id
    driver_id: Id
    rider_id: Id
    state: BookingState
    start: Instant
    predicted_end: End
    created_at: Instant
    actual_start: Instant | None
    actual_end: Instant | None
    cancel_reason: str | None
    promised_start: Instant | None
    late_s: float
    held_until: Instant | None
    series_id: Id | None
    version: int
    pickup: PlaceBody | None
    dropoff: PlaceBody | None
    blocked_from: Instant
    travel_source: str | None
    lead_short_s: int

    @classmethod
    def of(cls, booking: Booking) -> Self:
        """As it goes over the wire."""
        return cls(
            booking.id,
            booking.driver_id,
            booking.rider_id,
            booking.state,
            booking.start,
            booking.predicted_end,
            booking.created_at,
            booking.actual_start,
            booking.actual_end,
            booking.cancel_reason,
            booking.promised_start,
            booking.late_s,
            booking.held_until,
            booking.series_id,
            booking.version,
            PlaceBody.of(booking.pickup),
            PlaceBody.of(booking.dropoff),
            booking.window.start,
            booking.travel_source,
            booking.lead_short_s,
        )


class NewEnd(Struct, forbid_unknown_fields=True):
    """When a trip that is under way will end, as it looks now."""

    predicted_end: End


class MovedOut(Struct):
    """A booking that a late trip has moved, and what was done about it.

    `late_s` counts from what its rider was first promised.
    """

    booking: BookingOut
    remedy: Remedy
    late_s: float


class OverrunOut(Struct):
    """A trip with its new predicted end, and every booking that had to move for it."""

    booking: BookingOut
    moved: list[MovedOut]

    @classmethod
    def of(cls, overrun: Overrun) -> Self:
        """As it goes over the wire."""
        return cls(
            BookingOut.of(overrun.trip),
            [
                MovedOut(BookingOut.of(each.booking), each.remedy, each.late_s)
                for each in overrun.moved
            ],
        )


class NewTime(Struct, forbid_unknown_fields=True):
    """The time to which a booking is moved."""

    start: Instant
    predicted_end: End


class NewDriver(Struct, forbid_unknown_fields=True):
    """The driver to whom a booking is given; without one, whoever of the fleet is free."""

    driver_id: Id | None = None


class Cancellation(Struct, forbid_unknown_fields=True):
    """Why a booking is cancelled."""

    reason: Reason | None = None


class Happened(Struct, forbid_unknown_fields=True):
    """When a trip started or ended; now, if left out."""

    at: Instant | None = None


class WindowOut(Struct):
    """A half-open span of time, `[start, end)`."""

    start: Instant
    end: End

    @classmethod
    def of(cls, window: TimeWindow) -> Self:
        """As it goes over the wire."""
        return cls(window.start, window.end)


class Offer(Struct):
    """A time at which the trip could be booked instead."""

    start: Instant
    predicted_end: End

    @classmethod
    def of(cls, window: TimeWindow | None) -> Self | None:
        """As it goes over the wire."""
        return None if window is None else cls(window.start, window.end)


class Conflict(Struct):
    """A booking that is in the way; riders do not see which."""

    booking_id: Id | None
    start: Instant
    predicted_end: End

    @classmethod
    def of(cls, held: Held) -> Self:
        """As it goes over the wire."""
        return cls(held.booking_id, held.window.start, held.window.end)


class Weekday(StrEnum):
    """A day of the week."""

    MONDAY = "monday"
    TUESDAY = "tuesday"
    WEDNESDAY = "wednesday"
    THURSDAY = "thursday"
    FRIDAY = "friday"
    SATURDAY = "saturday"
    SUNDAY = "sunday"

    @property
    def day(self) -> Day:
        """As the calendar counts them."""
        return Day[self.name]


class RecurrenceBody(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A wish by the clock on the wall. It ends with `last_date`, or after `count` occurrences."""

    zone: ZoneName
    wall_clock: WallClock
    duration_s: Annotated[int, Meta(ge=1, le=86_400, examples=[1800])]
    weekdays: Annotated[list[Weekday], Meta(min_length=1, max_length=7, examples=[["monday"]])]
    first_date: Annotated[date, Meta(examples=["2027-01-04"])]
    last_date: date | None = None
    count: Annotated[int, Meta(ge=1, le=OCCURRENCES_MAX, examples=[10])] | None = None
    interval_weeks: Annotated[int, Meta(ge=1, le=INTERVAL_WEEKS_MAX)] = 1

    def recurrence(self) -> Recurrence:
        """What is meant. Raises as `Recurrence` does."""
        try:
            # The pattern lets a newline behind it pass, as Python reads it.
            wall_clock = time.fromisoformat(self.wall_clock)
        except ValueError:
            raise InvalidInput("It must be HH:MM.", field="wall_clock") from None
        return Recurrence(
            self.zone,
            wall_clock,
            self.duration_s,
            frozenset(weekday.day for weekday in self.weekdays),
            self.first_date,
            self.last_date,
            self.count,
            self.interval_weeks,
        )

    @classmethod
    def of(cls, recurrence: Recurrence) -> Self:
        """As it goes over the wire."""
        return cls(
            recurrence.zone,
            recurrence.wall_clock.strftime("%H:%M"),
            recurrence.duration_s,
            [Weekday[day.name] for day in sorted(recurrence.weekdays)],
            recurrence.first_date,
            recurrence.last_date,
            recurrence.count,
            recurrence.interval_weeks,
        )


class SeriesIn(Struct, forbid_unknown_fields=True):
    """A series that is asked for: of one driver, or each time of any free driver of a fleet."""

    rider_id: Id
    recurrence: RecurrenceBody
    driver_id: Id | None = None
    fleet: FleetName | None = None
    on_conflict: OnConflict = OnConflict.ALL_OR_NOTHING

    def request(self) -> SeriesRequest:
        """What the ledger is asked. Raises `InvalidInput` that names the field."""
        if self.driver_id is not None and self.fleet is not None:
            raise InvalidInput("Name a driver or a fleet, not both.", field="fleet")
        try:
            return SeriesRequest.of(
                self.recurrence.recurrence(),
                self.on_conflict,
                self.rider_id,
                self.driver_id,
                self.fleet or MAIN_FLEET,
            )
        except InvalidInput as error:
            raise type(error)(error.message, field=f"recurrence.{error.field}") from None


class OccurrenceOut(Struct):
    """What became of one occurrence. `adjustment` says what the clocks' changing did to it."""

    local_date: date
    start: Instant
    predicted_end: End
    adjustment: Adjustment
    booking: BookingOut | None
    refusal: str | None
    conflicts: list[Conflict]

    @classmethod
    def of(cls, outcome: Outcome, *, booked: bool = True) -> Self:
        """As it goes over the wire; not `booked`, if all of it was rolled back."""
        occurrence, booking, refusal = outcome
        conflicts = refusal.conflicts if isinstance(refusal, BookingConflict) else ()
        return cls(
            occurrence.local_date,
            occurrence.window.start,
            occurrence.window.end,
            occurrence.adjustment,
            BookingOut.of(booking) if booking is not None and booked else None,
            None if refusal is None else refusal.message,
            [Conflict.of(held) for held in conflicts],
        )


class SeriesOut(Struct):
    """A series that was booked, with the answer to each occurrence."""

    id: Id
    rider_id: Id
    recurrence: RecurrenceBody
    created_at: Instant
    occurrences: list[OccurrenceOut]

    @classmethod
    def of(cls, series: Series) -> Self:
        """As it goes over the wire."""
        return cls(
            series.id,
            series.rider_id,
            RecurrenceBody.of(series.recurrence),
            series.created_at,
            [OccurrenceOut.of(each) for each in series.outcomes],
        )


class SeriesDetail(Struct):
    """A series as it stands now: what was meant, and its bookings in order of start."""

    id: Id
    rider_id: Id
    recurrence: RecurrenceBody
    created_at: Instant
    bookings: list[BookingOut]

    @classmethod
    def of(cls, series: StoredSeries) -> Self:
        """As it goes over the wire."""
        return cls(
            series.id,
            series.rider_id,
            RecurrenceBody.of(series.recurrence),
            series.created_at,
            [BookingOut.of(each) for each in series.bookings],
        )


class WaitingIn(Struct, forbid_unknown_fields=True):
    """Time that is waited for: of one driver, or of any driver of a fleet."""

    rider_id: Id
    start: Instant
    predicted_end: End
    driver_id: Id | None = None
    fleet: FleetName | None = None

    def request(self) -> BookingRequest:
        """What would be booked. Raises as `BookingIn.request` does."""
        return BookingIn(
            self.rider_id, self.start, self.predicted_end, self.driver_id, self.fleet
        ).request()


class WaitingOut(Struct):
    """An entry of the waiting list.

    `booking_id` is the booking that was offered; while the entry is `offered`, it can be
    confirmed until `offer_expires_at`.
    """

    id: Id
    rider_id: Id
    fleet: str
    driver_id: Id | None
    start: Instant
    predicted_end: End
    state: WaitingState
    joined_at: Instant
    booking_id: Id | None
    offer_expires_at: Instant | None

    @classmethod
    def of(cls, entry: WaitingEntry) -> Self:
        """As it goes over the wire."""
        return cls(
            entry.id,
            entry.rider_id,
            entry.fleet,
            entry.driver_id,
            entry.window.start,
            entry.window.end,
            entry.state,
            entry.joined_at,
            entry.booking_id,
            entry.offer_expires_at,
        )


class Check(Struct):
    """What a booking would meet if it were made now; `reason` as in a refusal."""

    would_conflict: bool
    reason: str | None
    conflicts: list[Conflict]
    next_free: Offer | None
    free_drivers: list[Id]


class Availability(Struct):
    """Drivers who were free for the whole window at `as_of`."""

    items: list[Id]
    as_of: Instant
    source: str


class Page[T](Struct):
    """A part of a list; `next_cursor` leads to the next part, and is null on the last."""

    items: list[T]
    next_cursor: str | None


class DriverPage(Page[DriverOut]):
    """A part of the list of drivers."""

    items: list[DriverOut]


class RiderPage(Page[RiderOut]):
    """A part of the list of riders."""

    items: list[RiderOut]


class BookingPage(Page[BookingOut]):
    """A part of a list of bookings."""

    items: list[BookingOut]


class WaitingPage(Page[WaitingOut]):
    """A part of the waiting list."""

    items: list[WaitingOut]


class Agenda(Struct):
    """A driver's active bookings, in order of start."""

    items: list[BookingOut]


class ScheduleRow(Struct):
    """A driver, and what they have, in order of start."""

    driver: DriverOut
    bookings: list[BookingOut]


class Schedule(Struct):
    """A whole fleet at `as_of`."""

    items: list[ScheduleRow]
    as_of: Instant


class Gaps(Struct):
    """When a driver is free, in order."""

    items: list[WindowOut]


class FieldError(Struct):
    """One input that breaks a rule."""

    field: str
    rule: str


class Problem(Struct, omit_defaults=True, kw_only=True):
    """RFC 9457: why a request was not carried out."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldError] | UnsetType = UNSET


class BookingProblem(Problem, kw_only=True):
    """Why a booking was refused; if its time was not free, what is free instead.

    `reason` is `overlap`, `travel`, `turnaround` or `shift`.
    """

    reason: str | UnsetType = UNSET
    conflicts: list[Conflict] | UnsetType = UNSET
    next_free: Offer | UnsetType | None = UNSET
    free_drivers: list[Id] | UnsetType = UNSET


class StrandedOut(Struct):
    """A booking that would lie outside of the working hours, and the first part that does."""

    booking_id: Id
    start: Instant
    predicted_end: End
    reason: AbsenceKind
    outside: WindowOut

    @classmethod
    def of(cls, stranded: Stranded) -> Self:
        """As it goes over the wire."""
        return cls(
            stranded.booking_id,
            stranded.window.start,
            stranded.window.end,
            stranded.absence.kind,
            WindowOut.of(stranded.absence.part),
        )


class StrandProblem(Problem, kw_only=True):
    """Why working hours were not changed: the bookings that would lie outside of them."""

    stranded: list[StrandedOut] | UnsetType = UNSET


class SpanBody(Struct, forbid_unknown_fields=True, rename={"from_": "from"}):
    """A part of a day by the clock on the wall; if it ends earlier than it begins, the next day."""

    from_: ClockTime
    until: ClockTime


class ShiftBody(Struct, forbid_unknown_fields=True, rename={"from_": "from"}):
    """A shift, and the breaks within it."""

    from_: ClockTime
    until: ClockTime
    breaks: Annotated[list[SpanBody], Meta(max_length=20)] = []


class TimeOffBody(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Time off: between two instants, or from one date to another, which is included."""

    start: Instant | None = None
    end: Instant | None = None
    first: date | None = None
    last: date | None = None


class ShiftsBody(Struct, forbid_unknown_fields=True):
    """Working hours, meant by the clock of the driver's own zone.

    `weekly` has the shifts of each weekday; a weekday that is left out is not worked.
    Without it every hour is. On the dates of `exceptions` other shifts begin, or none.
    """

    weekly: dict[Weekday, Annotated[list[ShiftBody], Meta(max_length=20)]] | None = None
    exceptions: dict[str, Annotated[list[ShiftBody], Meta(max_length=20)]] = {}
    time_off: Annotated[list[TimeOffBody], Meta(max_length=400)] = []


class ShiftsOut(Struct):
    """A driver's working hours, or null; and the bookings that lie outside of them."""

    shifts: ShiftsBody | None
    zone: str
    stranded: list[StrandedOut]


class SeriesProblem(Problem, kw_only=True):
    """Why a series was refused: the answer to each of its occurrences."""

    occurrences: list[OccurrenceOut] | UnsetType = UNSET


class ProblemType(Struct):
    """A kind of problem that this service answers with."""

    type: str
    title: str
    status: int


class ProblemTypes(Struct):
    """Every kind of problem."""

    items: list[ProblemType]


class Status(Struct):
    """Whether the service, or one part of it, works."""

    status: str


class Readiness(Struct):
    """What the service needs in order to answer."""

    status: str
    database: str
    index: str
    index_lag_s: float | None


def window_of(start: datetime, end: datetime, *, end_field: str = "end") -> TimeWindow:
    """A `TimeWindow` whose errors name the fields as the request does."""
    start, end = utc(start, "start"), utc(end, end_field)
    if end <= start:
        raise EmptyWindow(field=end_field)
    return TimeWindow(start, end)


EventId = Annotated[
    str,
    Meta(
        description="The event, and its place in the order of all; otherwise opaque.",
        examples=["4711-12"],
    ),
]


class EventOut(Struct):
    """One change of one booking, and who did it.

    `booking` is the booking after the change, and `changed` what was different before,
    both by name.
    """

    id: EventId
    kind: EventKind
    at: Instant
    actor: str
    request_id: str | None
    booking_id: Id
    version: int
    booking: dict[str, Any]
    changed: dict[str, Any]

    @classmethod
    def of(cls, event: BookingEvent) -> Self:
        """As it goes over the wire."""
        return cls(
            str(event.cursor),
            event.kind,
            event.at,
            event.actor,
            event.request_id,
            event.booking_id,
            event.version,
            dict(event.booking),
            dict(event.changed),
        )


class TrailEntry(EventOut):
    """An event, and from which address it was brought about."""

    origin: str | None

    @classmethod
    @override
    def of(cls, event: BookingEvent) -> Self:
        """As it goes over the wire."""
        told = EventOut.of(event)
        return cls(**structs.asdict(told), origin=event.origin)


class EventsPage(Struct):
    """Some events in their order. `position` is where to read on, also if there is no more yet."""

    items: list[EventOut]
    position: EventId
    more: bool


class Trail(Struct):
    """What happened to one booking, in order; read on at `position` if there is `more`."""

    items: list[TrailEntry]
    position: EventId
    more: bool


WebhookUrl = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=URL_CHARS_MAX,
        description="https; or http on this machine, where the service allows it.",
        examples=["https://example.com/taxi"],
    ),
]


class WebhookIn(Struct, forbid_unknown_fields=True):
    """Who is to be told: where, and of what. What is left out is not restricted."""

    url: WebhookUrl
    kinds: Annotated[list[EventKind], Meta(min_length=1, max_length=50)] | None = None
    fleet: FleetName | None = None


class WebhookOut(Struct):
    """A webhook. Its secret was shown when it was created, and is not shown again."""

    id: Id
    url: str
    kinds: list[str] | None
    fleet: str | None
    created_at: Instant
    disabled_at: Instant | None
    disabled_why: str | None

    @classmethod
    def of(cls, webhook: Webhook) -> Self:
        """As it goes over the wire."""
        return cls(
            webhook.id,
            webhook.url,
            None if webhook.kinds is None else list(webhook.kinds),
            webhook.fleet,
            webhook.created_at,
            webhook.disabled_at,
            webhook.disabled_why,
        )


class NewWebhookOut(Struct):
    """A webhook that was just created, with the secret that its messages are signed with."""

    webhook: WebhookOut
    secret: str

    @classmethod
    def of(cls, new: NewWebhook) -> Self:
        """As it goes over the wire."""
        return cls(WebhookOut.of(new.webhook), new.secret)


class Webhooks(Struct):
    """All webhooks."""

    items: list[WebhookOut]


class ReplayIn(Struct, forbid_unknown_fields=True):
    """From where on events are to be sent again: an instant, or an event."""

    since: Instant | None = None
    event: Annotated[str, Meta(max_length=40)] | None = None


class DeliveryOut(Struct):
    """One message to one webhook: what became of it, and when it is tried next."""

    id: Id
    webhook_id: Id
    event: EventId | None
    booking_id: Id | None
    kind: str
    happened_at: Instant
    state: DeliveryState
    attempts: int
    next_try: Instant | None
    tried_at: Instant | None
    status: int | None
    error: str | None

    @classmethod
    def of(cls, delivery: Delivery) -> Self:
        """As it goes over the wire."""
        pending = delivery.state is DeliveryState.PENDING
        return cls(
            delivery.id,
            delivery.webhook_id,
            None if delivery.event is None else str(delivery.event),
            delivery.booking_id,
            delivery.kind,
            delivery.happened_at,
            delivery.state,
            delivery.attempts,
            delivery.next_try if pending else None,
            delivery.tried_at,
            delivery.status,
            delivery.error,
        )


class DeliveryPage(Page[DeliveryOut]):
    """A part of the list of a webhook's deliveries, the newest first."""

    items: list[DeliveryOut]

"""Everything the domain can refuse, under one root.

The docstring of an error is its default message, so the class, the message a
user reads and the documentation of the problem cannot drift apart. An error
that is about one input carries the name of that input in `field`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from booking.calendars import Held
    from booking.shifts import Stranded


class TaxiError(Exception):
    """The request could not be carried out."""

    def __init__(self, message: str = "", *, field: str | None = None) -> None:
        self.message = message or self.default_message()
        self.field = field
        super().__init__(self.message)

    @classmethod
    def default_message(cls) -> str:
        """First line of the docstring."""
        return (cls.__doc__ or cls.__name__).partition("\n")[0]


class InvalidInput(TaxiError):
    """A value breaks a rule of the domain."""


class NaiveInstant(InvalidInput):
    """An instant must carry its offset from UTC, as in 2026-03-08T09:00:00Z."""


class OutOfCalendar(InvalidInput):
    """An instant must lie in the years 2 to 9998."""


class EmptyWindow(InvalidInput):
    """A time window must end after it starts."""


class TooLong(InvalidInput):
    """A booking lasts at most 24 hours."""


class UnknownCursor(InvalidInput):
    """That is no place in the order of events as this service gives them."""


class NotFound(TaxiError):
    """There is nothing with that id."""


class UnknownDriver(NotFound):
    """There is no driver with that id."""


class UnknownRider(NotFound):
    """There is no rider with that id."""


class UnknownBooking(NotFound):
    """There is no booking with that id."""


class UnknownSeries(NotFound):
    """There is no series with that id."""


class UnknownEntry(NotFound):
    """There is no entry of the waiting list with that id."""


class UnknownWebhook(NotFound):
    """There is no webhook with that id."""


class UnknownAccount(NotFound):
    """There is no account with that id."""


class UnknownLink(NotFound):
    """There is no calendar behind that link, or not any more."""


class UnknownProblem(NotFound):
    """There is no problem of that name."""


class Refused(TaxiError):
    """The request is valid, but the present state of things forbids it."""


class BookingConflict(Refused):
    """The driver already has a booking in that time."""

    reason: ClassVar[str] = "overlap"
    """Why not, in one word."""

    def __init__(self, message: str = "", *, conflicts: Sequence["Held"] = ()) -> None:
        super().__init__(message, field="start")
        self.conflicts = tuple(conflicts)


class NoTimeToTravel(BookingConflict):
    """The way between this trip and a neighbouring one takes longer than there is time."""

    reason = "travel"


class NoTurnaround(BookingConflict):
    """Too little time is left between this trip and a neighbouring one."""

    reason = "turnaround"


class OffShift(BookingConflict):
    """The driver does not work in that time."""

    reason = "shift"


class ShiftsStrand(Refused):
    """Bookings would lie outside of the new working hours."""

    def __init__(self, message: str = "", *, stranded: Sequence["Stranded"] = ()) -> None:
        super().__init__(message, field="shifts")
        self.stranded = tuple(stranded)


class NoDriverFree(Refused):
    """No driver is free for the whole of that time."""


class DriverRetired(Refused):
    """The driver has retired and takes no more bookings."""


class DriverStillBooked(Refused):
    """The driver still has bookings that are not finished."""


class IllegalTransition(Refused):
    """The booking's state does not allow that step."""


class HoldLapsed(Refused):
    """The hold has lapsed; its time may be somebody else's by now."""


class TooEarly(Refused):
    """That cannot be said of a booking before its start."""


class VersionMismatch(Refused):
    """The booking has been changed since; read it again."""


class WebhookDisabled(Refused):
    """The webhook is disabled; nothing is sent to it any more."""


class TooManyWebhooks(Refused):
    """There are as many webhooks as there may be; delete one first."""


class OverLimit(Refused):
    """One rider may not have more time booked ahead, or wait for more, than the service allows."""


class EmailTaken(Refused):
    """There is an account with that e-mail, or with that subject, already."""


class OwnAccount(Refused):
    """Nobody disables their own account; another administrator does."""


class LastAdministrator(Refused):
    """The last administrator stays, as nobody would be left to add another; add one first."""


class NoPasswords(Refused):
    """Nobody signs in by password here; tokens come from the issuer that the service trusts."""


class KeyInUse(Refused):
    """A request with this idempotency key is still running."""


class KeyReused(InvalidInput):
    """This idempotency key was used before with a different request."""


class NotSignedIn(TaxiError):
    """A valid token is needed, sent as `Authorization: Bearer`."""


class WrongCredentials(NotSignedIn):
    """There is no account with that e-mail and password."""


class NotAllowed(TaxiError):
    """Your account may not do that."""


class TooManyRequests(TaxiError):
    """That is too often; try again later."""

    def __init__(self, message: str = "", *, field: str | None = None, wait_s: int = 1) -> None:
        super().__init__(message, field=field)
        self.wait_s = wait_s


class Unavailable(TaxiError):
    """The system of record cannot answer right now; try again shortly."""


class Contended(Unavailable):
    """Too many requests fight for the same time; try again shortly."""


class LedgerBusy(Unavailable):
    """Every connection to the system of record is in use; try again shortly."""


class TooManyStreams(Unavailable):
    """As many follow the events as may; try again later, or read them by the page."""


class ServiceBusy(Unavailable):
    """The service has as many requests under way as it can carry; try again shortly."""


class ServiceStopping(Unavailable):
    """This instance of the service is about to stop; another will answer."""


class LedgerLost(Unavailable):
    """The system of record cannot be reached; whether the request was recorded is not known."""


class IssuerSilent(Unavailable):
    """The issuer of that token does not answer, so it cannot be checked; try again shortly."""

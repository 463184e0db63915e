"""The audit of a comparison: what is wrong is found, and what may be right is never reported."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from booking.bookings import BookingState
from loadtest.comparison.audit import (
    Row,
    lost_bookings,
    passing_double_bookings,
    stays,
    unexpected_answers,
    unjustified_refusals,
)
from loadtest.history import BadHistory, Request, first_of_each_process, read_history

NINE = datetime(2026, 12, 1, 9, tzinfo=UTC)
ADA, GRACE, ELSEWHERE = 1, 2, 3
FLEET = (ADA, GRACE)
BOB, CAROL = 1, 2


def minute(number: float) -> datetime:
    return NINE + timedelta(minutes=number)


def request(action: str, sent_s: float | None, answered_s: float | None, **said: object) -> Request:
    """A request for Ada's half hour from nine, which was done, unless something else is said."""
    fields: dict[str, object] = {
        "scenario": "test",
        "action": action,
        "intended_s": sent_s or 0.0,
        "sent_s": sent_s,
        "answered_s": answered_s,
        "status": 201 if action == "book" else 200,
        "measured": True,
        "rider_id": BOB if action == "book" else None,
        "driver_id": ADA,
        "booked_driver_id": ADA,
        "start": minute(0),
        "end": minute(30),
        "booking_id": 1,
    }
    return msgspec.convert(fields | said, Request)


def refusal(sent_s: float, answered_s: float, **said: object) -> Request:
    refused = {"status": 409, "problem": "booking-conflict", "booking_id": None}
    action = str(said.pop("action", "book"))
    return request(action, sent_s, answered_s, **refused | {"booked_driver_id": None} | said)


def nobody_free(sent_s: float, answered_s: float) -> Request:
    return refusal(sent_s, answered_s, problem="no-driver-free", driver_id=None)


def row(
    booking_id: int = 1,
    driver_id: int = ADA,
    start: float = 0,
    end: float = 30,
    state: BookingState = BookingState.CONFIRMED,
    rider_id: int = BOB,
) -> Row:
    return Row(booking_id, driver_id, minute(start), minute(end), state, rider_id)


BOOKED = request("book", 10, 11)
CANCELLED = request("cancel", 20, 21)
UNANSWERED = {"status": 0, "booking_id": None, "booked_driver_id": None}


# Acknowledged, and there? ------------------------------------------------------------------------


def test_an_acknowledged_booking_that_is_there_is_not_lost() -> None:
    assert lost_bookings([BOOKED], [row()]) == []


@pytest.mark.parametrize(
    ("history", "rows", "said"),
    [
        ([BOOKED], [], "not in the ledger"),
        ([BOOKED], [row(driver_id=GRACE)], "driver 2"),
        ([BOOKED], [row(end=45)], "09:45"),
        ([BOOKED], [row(state=BookingState.CANCELLED)], "Nobody cancelled"),
        ([BOOKED, CANCELLED], [row()], "still holds"),
        ([BOOKED, CANCELLED], [], "not in the ledger"),
        ([BOOKED], [row(rider_id=CAROL)], "for rider 2, and rider 1"),
        ([request("book", 10, 11, booked_driver_id=GRACE)], [row(driver_id=GRACE)], "driver 1 was"),
        (
            [request("book", 10, 11, driver_id=None, booked_driver_id=ELSEWHERE)],
            [row(driver_id=ELSEWHERE)],
            "not of the fleet",
        ),
        (
            [BOOKED, request("reschedule", 12, 13, start=minute(60), end=minute(90))],
            [row()],
            "nobody was told",
        ),
    ],
)
def test_a_lost_booking_is_found(history: list[Request], rows: list[Row], said: str) -> None:
    (found,) = lost_bookings(history, rows, FLEET)
    assert found.booking_id == 1
    assert said in found.reason


def test_one_booking_that_three_were_told_of_is_lost_to_two_of_them() -> None:
    told = [request("book", 10, 11), request("book", 10, 12), request("book", 10, 13)]
    lost = lost_bookings(told, [row()], FLEET)
    assert [(each.booking_id, "Another request" in each.reason) for each in lost] == [(1, True)] * 2


def test_any_driver_of_the_fleet_will_do_where_none_was_named() -> None:
    anyone = request("book", 10, 11, driver_id=None, booked_driver_id=GRACE)
    assert lost_bookings([anyone], [row(driver_id=GRACE)], FLEET) == []


@pytest.mark.parametrize(
    ("later", "end"),
    [
        (request("cancel", 20, None, status=0), row()),
        (request("cancel", 20, 21, status=503), row(state=BookingState.CANCELLED)),
        (CANCELLED, row(state=BookingState.CANCELLED)),
        (request("reschedule", 20, 21, start=minute(5), end=minute(35)), row(start=5, end=35)),
        (request("reschedule", 20, None, start=minute(5), end=minute(35), status=0), row()),
        (
            request("reschedule", 20, None, start=minute(5), end=minute(35), status=0),
            row(start=5, end=35),
        ),
        (
            request("reschedule", 20, 21, status=409, problem="booking-conflict", end=minute(45)),
            row(),
        ),
    ],
)
def test_what_a_later_request_may_have_done_is_no_loss(later: Request, end: Row) -> None:
    assert lost_bookings([BOOKED, later], [end]) == []


def test_a_cancellation_that_was_never_sent_excuses_nothing() -> None:
    never = request("cancel", None, None, status=0)
    (found,) = lost_bookings([BOOKED, never], [row(state=BookingState.CANCELLED)])
    assert "Nobody cancelled" in found.reason


# Held at once? -----------------------------------------------------------------------------------

SECOND = request("book", 12, 13, booking_id=2, start=minute(10), end=minute(40))


def test_a_double_booking_of_which_one_was_given_back_is_found() -> None:
    history = [BOOKED, SECOND, CANCELLED]
    rows = [row(state=BookingState.CANCELLED), row(2, start=10, end=40)]
    (found,) = passing_double_bookings(history, rows)
    assert {each.booking_id for each in found} == {1, 2}


@pytest.mark.parametrize(
    "second",
    [
        pytest.param(request("book", 20.5, 23, booking_id=2), id="may have come after"),
        pytest.param(
            request("book", 12, 13, booking_id=2, driver_id=GRACE, booked_driver_id=GRACE),
            id="another's",
        ),
        pytest.param(
            request("book", 12, 13, booking_id=2, start=minute(30), end=minute(60)), id="touches"
        ),
    ],
)
def test_what_need_not_have_been_held_at_once_is_not_reported(second: Request) -> None:
    assert passing_double_bookings([BOOKED, second, CANCELLED], []) == []


@pytest.mark.parametrize("status", [0, 503])
def test_a_move_of_which_nobody_knows_the_outcome_holds_nothing_for_sure(status: int) -> None:
    later = {"start": minute(60), "end": minute(90)}
    move = request("reschedule", 12, 13, status=status, **later)
    other = request("book", 14, 15, booking_id=2, **later)
    rows = [row(state=BookingState.CANCELLED), row(2, start=60, end=90)]
    assert passing_double_bookings([BOOKED, move, other, CANCELLED], rows) == []
    moved = msgspec.structs.replace(move, status=200)
    assert len(passing_double_bookings([BOOKED, moved, other, CANCELLED], rows)) == 1


def test_a_double_booking_that_is_still_there_is_left_to_the_sweep_of_the_ledger() -> None:
    assert passing_double_bookings([BOOKED, SECOND], [row(), row(2, start=10, end=40)]) == []


# Refused, and held? ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("history", "rows"),
    [
        pytest.param([], [], id="nothing booked at all"),
        pytest.param([BOOKED, CANCELLED], [], id="given back before"),
        pytest.param([request("book", 40, 41)], [row()], id="booked after"),
        pytest.param([request("book", 10, 11, booked_driver_id=GRACE)], [], id="another driver"),
        pytest.param(
            [request("book", 10, 11, start=minute(30), end=minute(60))], [], id="only touching"
        ),
        pytest.param(
            [BOOKED, request("reschedule", 12, 13, start=minute(60), end=minute(90))],
            [row(start=60, end=90)],
            id="moved away before",
        ),
    ],
)
def test_a_refusal_with_nothing_in_the_way_is_found(
    history: list[Request], rows: list[Row]
) -> None:
    (found,) = unjustified_refusals([*history, refusal(30, 31)], rows, FLEET)
    assert (found.driver_id, found.sent_s) == (ADA, 30)


@pytest.mark.parametrize(
    ("history", "rows"),
    [
        pytest.param([BOOKED], [row()], id="booked before"),
        pytest.param([request("book", 30.5, 40)], [row()], id="perhaps booked meanwhile"),
        pytest.param([BOOKED, request("cancel", 29, 30.5)], [], id="perhaps not yet cancelled"),
        pytest.param([BOOKED, request("cancel", 12, None, status=0)], [row()], id="cancelled?"),
        pytest.param([BOOKED, request("cancel", 12, 13, status=503)], [row()], id="cancelled??"),
        pytest.param([request("book", 10, None, **UNANSWERED)], [row()], id="unknown, and there"),
        pytest.param([], [row()], id="there before the history began"),
        pytest.param(
            [
                request("book", 10, 11, start=minute(60), end=minute(90)),
                request("reschedule", 12, None, status=0),
            ],
            [row(start=60, end=90)],
            id="perhaps moved here",
        ),
    ],
)
def test_a_refusal_that_may_be_right_is_not_reported(
    history: list[Request], rows: list[Row]
) -> None:
    assert unjustified_refusals([*history, refusal(30, 31)], rows, FLEET) == []


def test_a_booking_is_not_in_its_own_way_when_it_is_moved() -> None:
    move = refusal(30, 31, action="reschedule", booking_id=1, start=minute(10), end=minute(40))
    assert len(unjustified_refusals([BOOKED, move], [row()], FLEET)) == 1
    assert unjustified_refusals([BOOKED, move], [row(), row(9, start=35, end=50)], FLEET) == []


def test_nobody_free_is_no_answer_to_who_asked_for_one_driver() -> None:
    asked = refusal(30, 40, problem="no-driver-free")
    (found,) = unjustified_refusals([BOOKED, asked], [row()], (ADA,))
    assert "driver 1 was asked for" in found.reason


def test_nobody_free_needs_one_moment_at_which_every_driver_was_held() -> None:
    graces = request("book", 10, 11, booking_id=2, booked_driver_id=GRACE)
    asked = nobody_free(30, 40)
    assert unjustified_refusals([BOOKED, graces, asked], [], FLEET) == []
    (found,) = unjustified_refusals([BOOKED, asked], [], FLEET)
    assert "driver 2" in found.reason
    # Both were held while the request was under way, but one after the other.
    passing = [
        request("cancel", 31, 32),
        request("book", 35, 36, booking_id=2, booked_driver_id=GRACE),
    ]
    assert len(unjustified_refusals([BOOKED, *passing, asked], [], FLEET)) == 1


# An answer at all? -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answered",
    [
        request("book", 10, 11, status=500),
        request("book", 10, 11, status=422, problem="invalid-input"),
        request("book", 10, 11, status=409, problem="key-in-use"),
        request("book", 10, 11, booking_id=None),
        request("look", 10, 11, status=404, problem="unknown-booking"),
        refusal(10, 11, action="cancel", booking_id=1),
    ],
)
def test_what_is_no_answer_to_a_request_is_found(answered: Request) -> None:
    assert unexpected_answers([BOOKED, answered, CANCELLED]) == [answered]


def test_a_refusal_a_request_to_come_back_and_no_answer_are_not_unexpected() -> None:
    answers = [
        refusal(10, 11),
        refusal(10, 11, action="reschedule", booking_id=1),
        nobody_free(10, 11),
        request("book", 10, 11, status=503, booking_id=None),
        request("book", 10, None, **UNANSWERED),
    ]
    assert unexpected_answers(answers) == []


# A service that is right, whatever the network does ----------------------------------------------


Step = tuple[str, int, int, float, float, bool]
"""An action, the minute it is about, a driver, how long before and after the moment at which it
takes effect it was sent and answered, and whether the answer arrives."""

STEPS = st.lists(
    st.tuples(
        st.sampled_from(("book", "any", "cancel", "reschedule")),
        st.integers(0, 5),
        st.sampled_from(FLEET),
        st.floats(0, 3),
        st.floats(0, 3),
        st.booleans(),
    ),
    max_size=25,
)


class Service:
    """One that is right: each request takes effect at one moment between sending and answer."""

    def __init__(self) -> None:
        self.held: dict[int, tuple[int, int, int]] = {}
        self.gone: dict[int, tuple[int, int, int]] = {}
        self.told: list[int] = []
        """Bookings that a client knows of."""

    def free(self, driver: int, start: int, besides: int = 0) -> bool:
        return all(
            there[0] != driver or there[2] <= start or start + 3 <= there[1]
            for id_, there in self.held.items()
            if id_ != besides
        )

    def rows(self) -> list[Row]:
        active = [row(id_, *there) for id_, there in self.held.items()]
        return active + [row(id_, *it, BookingState.CANCELLED) for id_, it in self.gone.items()]

    def change(self, action: str, id_: int, start: int) -> dict[str, object]:
        """Cancel or move a booking; what is said."""
        driver = self.held[id_][0]
        said = {"booking_id": id_, "driver_id": driver, "booked_driver_id": driver}
        if action == "cancel":
            self.gone[id_] = self.held.pop(id_)
        elif self.free(driver, start, besides=id_):
            self.held[id_] = (driver, start, start + 3)
        else:
            return said | {"status": 409, "problem": "booking-conflict", "booked_driver_id": None}
        return dict(said)

    def book(self, id_: int, those: Sequence[int], start: int) -> dict[str, object]:
        """Book one of those drivers; what is said."""
        named = those[0] if len(those) == 1 else None
        for driver in those:
            if self.free(driver, start):
                self.held[id_] = (driver, start, start + 3)
                return {"driver_id": named, "booking_id": id_, "booked_driver_id": driver}
        problem = "booking-conflict" if named else "no-driver-free"
        said = {"driver_id": named, "booking_id": None, "booked_driver_id": None}
        return said | {"status": 409, "problem": problem}


def played(steps: Sequence[Step]) -> tuple[list[Request], Service]:
    """What the clients of a right service write down; some answers never arrive."""
    service, history = Service(), []
    for number, (action, start, driver, early_s, late_s, answered) in enumerate(steps, 1):
        known = [id_ for id_ in service.told if id_ in service.held]
        booking = action in {"book", "any"} or not known
        if booking:
            said = service.book(number, FLEET if action == "any" else (driver,), start)
        else:
            said = service.change(action, known[0], start)
        if not answered:
            said |= {"status": 0, "problem": None, "booked_driver_id": None}
            said |= {"booking_id": None} if booking else {}
        elif booking and said["booking_id"]:
            service.told.append(number)
        window = {"start": minute(start), "end": minute(start + 3)}
        answered_s = number + late_s if answered else None
        word = "book" if booking else action
        history.append(request(word, number - early_s, answered_s, **window | said))
    return sorted(history, key=lambda each: each.intended_s), service


@settings(deadline=None)  # a busy machine is not a failure
@given(STEPS)
def test_of_a_service_that_is_right_nothing_is_ever_reported(steps: list[Step]) -> None:
    history, service = played(steps)
    rows = service.rows()
    assert lost_bookings(history, rows, FLEET) == []
    assert unjustified_refusals(history, rows, FLEET) == []
    assert unexpected_answers(history) == []
    assert passing_double_bookings(history, rows) == []


@settings(deadline=None)
@given(STEPS, st.data())
def test_a_booking_deleted_behind_its_back_is_always_reported(
    steps: list[Step], data: st.DataObject
) -> None:
    history, service = played(steps)
    acknowledged = [
        each.booking_id for each in history if each.acknowledged and each.action == "book"
    ]
    if not acknowledged:
        return
    victim = data.draw(st.sampled_from(acknowledged))
    rows = [each for each in service.rows() if each.booking_id != victim]
    assert [each.booking_id for each in lost_bookings(history, rows, FLEET)] == [victim]


def test_a_row_that_the_history_explains_holds_no_longer_than_the_history_says() -> None:
    (only,) = stays([BOOKED, CANCELLED], [row(state=BookingState.CANCELLED)])
    assert (only.may_from_s, only.may_until_s) == (10, 21)
    (unexplained,) = stays([], [row()])
    assert (unexplained.may_from_s, unexplained.may_until_s) == (-math.inf, math.inf)


def test_a_history_is_read_from_all_its_files_and_one_that_is_cut_is_refused(
    tmp_path: Path,
) -> None:
    for name, each in (("a", CANCELLED), ("b", BOOKED)):
        (tmp_path / f"{name}.jsonl").write_bytes(msgspec.json.encode(each) + b"\n")
    assert read_history(tmp_path) == [BOOKED, CANCELLED]
    (tmp_path / "b.jsonl").write_bytes(b'{"scenario":')
    assert first_of_each_process(tmp_path) == [CANCELLED]
    with pytest.raises(BadHistory, match=r"b\.jsonl"):
        read_history(tmp_path)

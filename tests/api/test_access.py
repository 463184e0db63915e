"""Who may do what: every operation of the OpenAPI document, asked by everybody, of everybody's.

What is expected is written down here a second time, on purpose: a route that is in one table
and not in the other fails, and so does one that is in neither.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, NamedTuple

import httpx
import pytest
from litestar import Litestar, get

from api import access
from api.access import Of, Rule
from booking.accounts import Role
from tests.api.household import (
    ABSENT,
    FAR_AWAY,
    LOOPBACK,
    Household,
    asking,
    at,
    bearer,
    running,
    series,
)
from tests.conftest import AUTHORIZATION

pytestmark = pytest.mark.anyio

OPEN = "get_health get_readiness list_problems get_problem create_token add_account open_calendar"
"""To everybody."""
SIGNED_IN = "get_me change_password"
"""To whoever has signed in."""
ADMINISTRATORS = (
    "list_accounts get_account disable_account add_webhook list_webhooks get_webhook"
    " enable_webhook test_webhook replay_webhook list_deliveries delete_webhook"
)
THEIR_OWN = {
    "rider": (
        "book check_booking list_bookings get_booking confirm_booking cancel_booking"
        " reschedule_booking book_series get_series cancel_series get_rider rider_calendar"
        " link_rider_calendar join_waiting_list list_waiting get_waiting_entry"
        " withdraw_from_waiting_list"
    ),
    "driver": (
        "list_bookings get_booking start_booking predict_end complete_booking report_no_show"
        " get_driver get_agenda get_gaps driver_calendar link_driver_calendar get_shifts"
    ),
}
"""Beside dispatchers and administrators, who may do what is named nowhere here as well."""
RIDERS_ALL = "get_availability"
FLEET = (
    "reassign_booking add_rider list_riders add_driver list_drivers change_driver retire_driver"
    " read_schedule set_shifts drop_shifts list_events follow_events get_booking_events"
)
ROLES = ("nobody", "rider", "driver", "dispatcher", "administrator")
LET_IN, SIGN_IN, NOT_ALLOWED, NOT_THERE = "let in", "sign in", "not allowed", "not there"
_VERDICTS = {401: SIGN_IN, 403: NOT_ALLOWED, 404: NOT_THERE}


class Operation(NamedTuple):
    name: str
    method: str
    path: str
    parameters: tuple[str, ...]
    """Of the path, or of the body, that say whose it is."""

    def request(self, ids: dict[str, int]) -> dict[str, Any]:
        """A request that the doors can judge; beyond them it may be refused."""
        path = self.path
        for name in self.parameters:
            path = path.replace(f"{{{name}}}", str(ids[name]))
        path = path.replace("{name}", "unknown-driver")
        body = _BODIES.get(self.name, lambda _: {})(ids)
        window = {"start": at(0), "end": at(30)} if self.name in _IN_A_WINDOW else {}
        query = {"token": "x"} if self.name == "open_calendar" else window
        sent: dict[str, Any] = {"json": body} if self.method != "GET" else {}
        if self.name == "follow_events":
            sent["headers"] = {"Last-Event-ID": "none"}  # let in, and refused: it would last
        return {"method": self.method, "url": path, "params": query, **sent}


def _booking(ids: dict[str, int]) -> dict[str, Any]:
    return {"rider_id": ids["rider_id"], "start": at(600), "predicted_end": at(630)}


_BODIES: dict[str, Callable[[dict[str, int]], dict[str, Any]]] = {
    "book": _booking,
    "check_booking": _booking,
    "book_series": lambda ids: series(ids, count=1),
    "reschedule_booking": lambda _: {"start": at(0), "predicted_end": at(20)},
    "predict_end": lambda _: {"predicted_end": at(40)},
    "join_waiting_list": _booking,
    "set_shifts": lambda _: {},
    "add_webhook": lambda _: {"url": "no address"},
}
_IN_A_WINDOW = {"get_agenda", "get_gaps", "get_availability", "read_schedule"}


def operations(document: dict[str, Any]) -> list[Operation]:
    """All of them, and last the one after which others would find nothing."""
    return sorted(_operations(document), key=lambda each: each.name == "delete_webhook")


def _operations(document: dict[str, Any]) -> Iterator[Operation]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            name = operation["operationId"]
            named = tuple(
                each["name"]
                for each in operation.get("parameters", ())
                if each["in"] == "path" and each["name"] != "name"
            )
            if not named and name in _BODIES and name != "add_webhook":
                named = ("rider_id",)
            yield Operation(name, method.upper(), path, named)


_RUN_THE_FLEET = [*FLEET.split(), *RIDERS_ALL.split()]
_RUN_THE_FLEET += [name for names in THEIR_OWN.values() for name in names.split()]
MAY: dict[str, dict[str, str]] = {
    role: dict.fromkeys(SIGNED_IN.split(), "all")
    | {name: of for names, of in each for name in names}
    for role, each in {
        "rider": [(RIDERS_ALL.split(), "all"), (THEIR_OWN["rider"].split(), "own")],
        "driver": [(THEIR_OWN["driver"].split(), "own")],
        "dispatcher": [(_RUN_THE_FLEET, "all")],
        "administrator": [([*_RUN_THE_FLEET, *ADMINISTRATORS.split()], "all")],
    }.items()
}


def expected(name: str, role: str, whose: str) -> str:
    """What the doors must say."""
    if name in OPEN.split():
        return NOT_THERE if name == "open_calendar" else LET_IN
    if role == "nobody":
        return SIGN_IN
    of = MAY[role].get(name)
    if of is None:
        return NOT_ALLOWED
    return LET_IN if whose == "own" or (of, whose) == ("all", "other") else NOT_THERE


@pytest.fixture(scope="module")
async def app(own_url: str) -> AsyncIterator[Litestar]:
    limits = {"TAXI_REQUESTS_PER_MIN": "100000", "TAXI_SIGN_INS_PER_MIN": "100000"}
    async with running(own_url, **limits) as running_app:
        yield running_app


@pytest.fixture
async def household(app: Litestar) -> Household:
    settled = Household(app)
    await settled.settle()
    return settled


@pytest.fixture
async def document(household: Household) -> dict[str, Any]:
    async with household.as_role("nobody") as nobody:
        found: dict[str, Any] = (await nobody.get("/docs/openapi.json")).json()
        return found


async def verdicts(
    household: Household, document: dict[str, Any]
) -> dict[tuple[str, str, str], httpx.Response]:
    """Every answer, by operation, role and whose it was."""
    absent = dict.fromkeys(household.own, ABSENT)
    found = {}
    for role in ROLES:
        async with household.as_role(role) as client:
            for operation in operations(document):
                for whose, ids in (
                    ("other", household.others),
                    ("absent", absent),
                    ("own", household.own),
                ):
                    if whose == "own" or operation.parameters:
                        answer = await client.request(**operation.request(ids))
                        found[operation.name, role, whose] = answer
    return found


def wrong(found: dict[tuple[str, str, str], httpx.Response]) -> list[str]:
    return [
        f"{name}: a {role} was {verdict} to {whose}, and not {expected(name, role, whose)}"
        for (name, role, whose), answer in found.items()
        if (verdict := _VERDICTS.get(answer.status_code, LET_IN)) != expected(name, role, whose)
    ]


async def test_everybody_is_let_in_where_they_may_be_and_nowhere_else(
    household: Household, document: dict[str, Any]
) -> None:
    found = await verdicts(household, document)
    assert len(found) > 400
    assert wrong(found) == []
    assert {answer.status_code for answer in found.values()} <= {
        *(200, 201, 400, 401, 403, 404, 409, 415, 422)
    }
    for (name, role, whose), answer in found.items():
        where = (name, role, whose)
        if answer.status_code == 401:
            assert answer.headers["WWW-Authenticate"] == "Bearer", where
        if answer.status_code >= 400:
            assert answer.headers["Content-Type"] == "application/problem+json", where
        if whose == "other" and expected(*where) == NOT_THERE and answer.status_code == 404:
            # Not yours is not there: byte for byte, but for the number.
            absent = found[name, role, "absent"]
            number = answer.json()["detail"].rstrip(".").rpartition(" ")[2]
            assert answer.text.replace(f" {number}.", f" {ABSENT}.") == absent.text, where
            assert _told(answer) == _told(absent), where


def _told(answer: httpx.Response) -> dict[str, str]:
    varying = ("content-length", "x-request-id", "ratelimit-remaining", "ratelimit-reset")
    return {name: value for name, value in answer.headers.items() if name not in varying}


async def test_a_table_that_lets_too_many_in_would_be_noticed(
    household: Household, document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("get_booking", "list_drivers"):
        wider = Rule(dict.fromkeys(Role, Of.ALL))
        monkeypatch.setitem(access.RULES, name, wider)
    assert {each.partition(":")[0] for each in wrong(await verdicts(household, document))} == {
        *("get_booking", "list_drivers")
    }


async def test_a_route_that_is_not_listed_is_denied_to_everybody(
    household: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    @get("/forgotten", operation_id="forgotten")
    async def forgotten() -> str:
        return "secret"

    household.app.register(forgotten)
    for role in ROLES:
        async with household.as_role(role, address=LOOPBACK) as client:
            assert (await client.get("/forgotten")).status_code == 403, role
            unknown = await client.get("/nowhere")
            assert unknown.status_code == 404
    # The control: once it is listed, it is there.
    rule = Rule({Role.DISPATCHER: Of.ALL})
    monkeypatch.setitem(access.RULES, "forgotten", rule)
    async with household.as_role("dispatcher") as client:
        assert (await client.get("/forgotten")).text == "secret"


async def test_every_rule_is_about_an_operation_that_there_is(document: dict[str, Any]) -> None:
    pages = {name for name in access.RULES if name.startswith("/")}
    assert set(access.RULES) - pages == {each.name for each in operations(document)}


async def test_the_document_says_where_a_token_is_needed(document: dict[str, Any]) -> None:
    schemes = document["components"]["securitySchemes"]
    assert {each["scheme"] for each in schemes.values()} == {"bearer"}
    assert document["security"] == [{name: [] for name in schemes}]
    for item in document["paths"].values():
        for operation in item.values():
            is_open = operation["operationId"] in set(OPEN.split()) - {"add_account"}
            assert ("401" in operation["responses"]) is not is_open or (
                operation["operationId"] == "create_token"
            )
            assert (operation.get("security") == [{}]) is is_open, operation["operationId"]


async def test_the_pages_are_open_and_the_metrics_are_not(household: Household) -> None:
    async with household.as_role("nobody") as stranger:
        for page in ("/docs", "/docs/openapi.json", "/docs-assets/swagger-ui.css", "/"):
            assert (await stranger.get(page)).status_code in {200, 302}, page
        for nowhere in ("/docs/nowhere", "/docs/no/where", "/docs-assets/nowhere", "/nowhere"):
            none = await stranger.get(nowhere)
            assert (none.status_code, none.json()["type"]) == (404, "about:blank"), nowhere
            assert none.headers["Content-Type"] == "application/problem+json", nowhere
        assert (await stranger.get("/metrics")).status_code == 401
        assert (await stranger.options("/bookings")).status_code == 204
    async with household.as_role("nobody", address=LOOPBACK) as local:
        assert "taxi_bookings" in (await local.get("/metrics")).text
    async with household.as_role("dispatcher") as dispatcher:
        assert (await dispatcher.get("/metrics")).status_code == 403
    async with household.as_role("administrator") as administrator:
        assert (await administrator.get("/metrics")).status_code == 200


async def test_lists_hold_what_is_theirs(household: Household) -> None:
    def ids(answer: httpx.Response) -> set[int]:
        return {each["id"] for each in answer.json()["items"]}

    async with household.as_role("dispatcher") as dispatcher:
        everything = ids(await dispatcher.get("/bookings"))
    assert household.others["booking_id"] in everything
    for role, own in (("rider", "rider_id"), ("driver", "driver_id")):
        async with household.as_role(role) as client:
            listed = (await client.get("/bookings")).json()["items"]
            assert {each[own] for each in listed} == {household.own[own]}
            assert household.own["booking_id"] in {each["id"] for each in listed}
            other = await client.get("/bookings", params={own: household.others[own]})
            absent = await client.get("/bookings", params={own: ABSENT})
            assert other.content == absent.content == b'{"items":[],"next_cursor":null}'


async def test_a_malformed_request_about_what_is_not_theirs_says_no_more(
    household: Household,
) -> None:
    async with household.as_role("rider") as rider:
        answers = []
        for number in (household.others["booking_id"], ABSENT):
            path = f"/bookings/{number}/reschedule"
            for sent in (
                {"content": b"{", "headers": {"Content-Type": "application/json"}},
                {"json": {"start": at(0)}},
                {"json": {}, "headers": {"If-Match": "nonsense"}},
            ):
                answer = await rider.post(path, **sent)
                assert answer.status_code == 404
                answers.append(answer.text.replace(str(number), "N"))
        assert len(set(answers)) == 1


async def test_riders_are_not_told_whose_booking_is_in_the_way(household: Household) -> None:
    taken = {
        "rider_id": household.own["rider_id"],
        "driver_id": household.others["driver_id"],
        "start": at(70),
        "predicted_end": at(80),
    }
    weekly = series(household.own | {"driver_id": household.others["driver_id"]})
    for role, shown in (("rider", False), ("dispatcher", True)):
        async with household.as_role(role) as client:
            refused = (await client.post("/bookings", json=taken)).json()
            checked = (await client.post("/bookings/check", json=taken)).json()
            none = (await client.post("/series", json=weekly)).json()
        found = [*refused["conflicts"], *checked["conflicts"]]
        found += [held for each in none["occurrences"] for held in each["conflicts"]]
        assert len(found) >= 3
        assert all((held["booking_id"] is not None) is shown for held in found), role
        assert refused["conflicts"][0]["start"] == at(60)


async def test_a_key_is_that_of_the_account_which_sends_it(household: Household) -> None:
    headers = {"Idempotency-Key": "one"}
    bodies = [
        {"rider_id": ids["rider_id"], "start": at(900), "predicted_end": at(910)}
        for ids in (household.own, household.others)
    ]
    others = bearer(household.others["account_id"])
    async with household.as_role("rider") as mine, asking(household.app, others) as theirs:
        first = await mine.post("/bookings", json=bodies[0], headers=headers)
        again = await mine.post("/bookings", json=bodies[0], headers=headers)
        other = await theirs.post("/bookings", json=bodies[1], headers=headers)
    assert first.content == again.content
    assert (first.status_code, other.status_code) == (201, 201)
    assert other.json()["rider_id"] == household.others["rider_id"]


async def test_whose_it_is_is_asked_again_where_it_is_changed(
    household: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trip is given to another driver between the door and the step."""
    async with asking(household.app, AUTHORIZATION) as administrator:
        given = household.others["booking_id"]
        headers = household.headers["driver"]
        real = access.owners_of_booking

        async def as_it_was(connection: Any, number: int, *, lock: bool = False) -> Any:
            owners = await real(connection, number, lock=lock)
            assert owners is not None
            return owners if lock else owners._replace(driver_id=household.own["driver_id"])

        stale = access._OWNED[Of.BOOKING]  # noqa: SLF001  # what the door asks
        replaced = access._Owned(  # noqa: SLF001  # as above
            stale.parameter, stale.kind, as_it_was, stale.missing
        )
        monkeypatch.setitem(access._OWNED, Of.BOOKING, replaced)  # noqa: SLF001  # as above
        async with asking(household.app, headers, address=FAR_AWAY) as driver:
            assert (await driver.get(f"/bookings/{given}")).status_code == 200, "past the door"
            refused = await driver.post(f"/bookings/{given}/start")
            assert refused.status_code == 404
        seen = (await administrator.get(f"/bookings/{given}")).json()
        assert seen["state"] in {"confirmed", "cancelled"}

"""A client that a common generator makes from the OpenAPI document: it can do all there is."""

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

from tests.conftest import AUTHORIZATION, RunningService

GENERATED = "generated_taxi_client"
FLEET = "generated"
PASSWORD, OTHER_PASSWORD = "a few words to sign in", "some other words to sign in"  # a test's

Module = Callable[[str], ModuleType]


@pytest.fixture(scope="module")
def generated(
    service: RunningService, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Module]:
    """Imports a module of a client that has just been made."""
    folder = tmp_path_factory.mktemp("generated")
    (folder / "config.yml").write_text("post_hooks: []\n")
    made = subprocess.run(
        [
            Path(sys.executable).parent / "openapi-python-client",
            "generate",
            *("--url", f"{service.address}/docs/openapi.json"),
            *("--output-path", folder / GENERATED),
            *("--config", folder / "config.yml"),
            *("--meta", "none", "--fail-on-warning"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield lambda name: importlib.import_module(f"{GENERATED}.{name}")


class Caller:
    """Calls operations by their names, and remembers which of them succeeded."""

    def __init__(self, service: RunningService, generated: Module) -> None:
        self.generated, self.models = generated, generated("models")
        document = httpx.get(f"{service.address}/docs/openapi.json", trust_env=False).json()
        self.rooms = {
            operation["operationId"]: operation["tags"][0].replace(" ", "_")
            for item in document["paths"].values()
            for operation in item.values()
        }
        self.succeeded: set[str] = set()
        self.client = generated("client").Client(
            base_url=service.address, headers=AUTHORIZATION, raise_on_unexpected_status=True
        )

    def module(self, operation: str) -> ModuleType:
        return self.generated(f"api.{self.rooms[operation]}.{operation}")

    def __call__(
        self,
        operation: str,
        *path: Any,
        body: tuple[str, dict[str, Any]] | None = None,
        **more: Any,
    ) -> Any:
        if body is not None:
            name, fields = body
            more["body"] = getattr(self.models, name).from_dict(fields)
        answer = self.module(operation).sync_detailed(*path, client=self.client, **more)
        assert answer.status_code.is_success, (operation, answer.content)
        self.succeeded.add(operation)
        return answer.parsed


@pytest.fixture(scope="module")
def call(service: RunningService, generated: Module) -> Iterator[Caller]:
    caller = Caller(service, generated)
    with caller.client:
        yield caller


TOMORROW = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)


def window(hour: float, hours: float = 0.5) -> dict[str, str]:
    start = TOMORROW + timedelta(hours=hour)
    end = start + timedelta(hours=hours)
    return {"start": start.isoformat(), "predicted_end": end.isoformat()}


def span(hours: float) -> dict[str, datetime]:
    return {"start": TOMORROW, "end": TOMORROW + timedelta(hours=hours)}


def test_every_operation_there_is_succeeds(call: Caller) -> None:
    ada, bob, rider = _people(call)
    _a_booking_in_every_way(call, ada, bob, rider)
    _what_comes_again_and_what_is_waited_for(call, ada, rider)
    _what_is_free(call, ada)
    _what_happened(call)
    _accounts(call, ada, rider)
    _terms(call, ada, bob)
    for name in ("get_health", "get_readiness", "list_problems"):
        call(name)
    call("get_problem", "booking-conflict")
    assert call.succeeded == set(call.rooms), "the document names others, or more"


def _people(call: Caller) -> tuple[int, int, int]:
    ada, bob = (
        call("add_driver", body=("DriverIn", {"name": name, "fleet": FLEET})).id
        for name in ("Ada", "Bob")
    )
    call("list_drivers", fleet=FLEET)
    call("get_driver", ada)
    rider = call("add_rider", body=("RiderIn", {"name": "Alan"})).id
    call("list_riders")
    call("get_rider", rider)
    return ada, bob, rider


def _a_booking_in_every_way(call: Caller, ada: int, bob: int, rider: int) -> None:
    def book(hour: float, **more: Any) -> int:
        wish = {"rider_id": rider, "driver_id": ada} | window(hour) | more
        booked: int = call("book", body=("BookingIn", wish)).id
        return booked

    call("check_booking", body=("BookingIn", {"rider_id": rider, "fleet": FLEET} | window(0)))
    held = book(0, hold_s=600)
    call("confirm_booking", held)
    call("reschedule_booking", held, body=("NewTime", window(1)))
    call("reassign_booking", held, body=("NewDriver", {"driver_id": bob}))
    call("cancel_booking", held, body=("Cancellation", {"reason": "flu"}))
    call("get_booking", held)
    call("list_bookings", fleet=FLEET)
    call("get_booking_events", held)
    missed, driven = book(-26), book(-24.25)
    call("report_no_show", missed, body=("Happened", {}))
    call("start_booking", driven, body=("Happened", {}))
    call("predict_end", driven, body=("NewEnd", {"predicted_end": window(-23)["start"]}))
    call("complete_booking", driven, body=("Happened", {}))


def _what_comes_again_and_what_is_waited_for(call: Caller, ada: int, rider: int) -> None:
    rule = {
        "zone": "Europe/Berlin",
        "wall_clock": "07:30",
        "duration_s": 1800,
        "weekdays": ["monday", "friday"],
        "first_date": str((TOMORROW + timedelta(days=7)).date()),
        "count": 3,
    }
    wish = {"rider_id": rider, "driver_id": ada, "recurrence": rule}
    series = call("book_series", body=("SeriesIn", wish)).id
    call("get_series", series)
    call("cancel_series", series, body=("Cancellation", {}))
    wish = {"rider_id": rider, "driver_id": ada} | window(5)
    taken = call("book", body=("BookingIn", wish)).id
    entry = call("join_waiting_list", body=("WaitingIn", wish)).id
    call("list_waiting")
    call("get_waiting_entry", entry)
    call("withdraw_from_waiting_list", entry)
    call("cancel_booking", taken, body=("Cancellation", {}))


def _what_is_free(call: Caller, ada: int) -> None:
    call("get_agenda", ada, **span(24))
    call("get_gaps", ada, **span(24))
    call("get_availability", **span(1), fleet=FLEET)
    call("read_schedule", **span(24), fleet=FLEET)


def _what_happened(call: Caller) -> None:
    events = call("list_events").items
    # It does not end, and a generated client reads to the end.
    stream = call.module("follow_events")._get_kwargs(after="0-0")  # noqa: SLF001  # its request
    with call.client.get_httpx_client().stream(**stream) as answer:
        assert answer.status_code == HTTPStatus.OK
        assert any(line.startswith("id: ") for line in answer.iter_lines())
        call.succeeded.add("follow_events")
    wish = {"url": "http://127.0.0.1:9/nobody", "fleet": FLEET}
    hook = call("add_webhook", body=("WebhookIn", wish)).webhook.id
    call("list_webhooks")
    call("get_webhook", hook)
    call("enable_webhook", hook)
    call("test_webhook", hook)
    call("replay_webhook", hook, body=("ReplayIn", {"event": events[0].id}))
    call("list_deliveries", hook)
    call("delete_webhook", hook)


def _accounts(call: Caller, ada: int, rider: int) -> None:
    feeds = [
        call("link_driver_calendar", ada).path,
        call("link_rider_calendar", rider).path,
    ]
    for link in feeds:
        call("open_calendar", token=httpx.URL(link).params["token"])
    call("driver_calendar", ada)
    call("rider_calendar", rider)
    who = {"email": "grace@generated.example", "password": PASSWORD, "name": "Grace"}
    account = call("add_account", body=("AccountIn", who)).id
    call("list_accounts")
    call("get_account", account)
    sign_in = {"email": who["email"], "password": PASSWORD}
    token = call("create_token", body=("SignIn", sign_in)).access_token
    call.client.with_headers({"Authorization": f"Bearer {token}"})
    call("get_me")
    change = {"present_password": PASSWORD, "new_password": OTHER_PASSWORD}
    call("change_password", body=("PasswordChange", change))
    call.client.with_headers(AUTHORIZATION)
    call("disable_account", account)


def _terms(call: Caller, ada: int, bob: int) -> None:
    call("change_driver", ada, body=("DriverChange", {"turnaround_s": 300}))
    always = {"weekly": {"monday": [{"from": "00:00", "until": "24:00"}]}}
    call("set_shifts", bob, body=("ShiftsBody", always))
    call("get_shifts", bob)
    call("drop_shifts", bob)
    call("retire_driver", bob)


def test_what_is_refused_is_read_as_well(call: Caller) -> None:
    ada, _, rider = _people(call)
    models, book = call.models, call.module("book").sync_detailed
    wish = {"rider_id": rider, "driver_id": ada} | window(9)
    body = models.BookingIn.from_dict(wish)
    booked = book(client=call.client, body=body, idempotency_key="generated-1")
    assert booked.status_code == HTTPStatus.CREATED
    assert isinstance(booked.parsed, models.BookingOut)
    assert isinstance(booked.parsed.start, datetime)

    refused = book(client=call.client, body=body)
    assert refused.status_code == HTTPStatus.CONFLICT
    assert isinstance(refused.parsed, models.BookingProblem)
    assert refused.parsed.conflicts[0].booking_id == booked.parsed.id
    assert refused.parsed.next_free.start == booked.parsed.predicted_end

    wrong = models.BookingIn.from_dict(wish | {"driver_id": 2**52})
    assert isinstance(book(client=call.client, body=wrong).parsed, models.Problem)

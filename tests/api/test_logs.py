"""The log: a line a request, by which one finds what became of it, and nothing one must not."""

import asyncio
import io
import json
import logging
import logging.config
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from api import app as app_module
from api import logs
from booking.postgres.database import parse_url
from booking.postgres.embedded import EmbeddedPostgres
from tests.api import household
from tests.api.conftest import add
from tests.conftest import AUTHORIZATION, RunningService
from tests.world import Execute

NAME = "Philippa"


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def test_each_request_is_one_line_that_says_no_name_and_no_secret(
    fresh_url: str,
    serve: Callable[..., RunningService],
    capfd: pytest.CaptureFixture[str],
    execute: Execute,
    server: EmbeddedPostgres,
) -> None:
    running = serve(fresh_url, "--log-level", "info")
    with httpx.Client(headers=AUTHORIZATION, base_url=running.address, trust_env=False) as client:
        driver = add(client, "/drivers", {"name": NAME})
        path = f"/drivers/{driver}"
        given = client.get(path, params={"x": NAME}, headers={"X-Request-ID": "abc-1"})
        lost = client.get(f"/nowhere/{NAME}")
        name = parse_url(fresh_url).database
        shut_out = (
            f"ALTER DATABASE {name} ALLOW_CONNECTIONS false",
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'",
        )
        asyncio.run(execute(server.url, *shut_out))
        away = client.get(path)
        assert away.status_code == 503
    assert (given.status_code, given.headers["X-Request-ID"]) == (422, "abc-1")
    running.process.terminate()
    running.process.wait(timeout=60)
    text = capfd.readouterr().err
    requests = [each for each in events(text) if each["event"] == "request"]
    told = [each for each in requests if each["route"] != "/ready"]
    fields = {"event", "level", "logger", "timestamp", "request_id"}
    fields |= {"method", "route", "status", "duration_ms"}
    assert all(set(each) == fields for each in told)
    assert [(each["method"], each["route"], each["status"]) for each in told] == [
        ("POST", "/drivers", 201),
        ("GET", "/drivers/{driver_id}", 422),
        ("GET", None, 404),
        ("GET", "/drivers/{driver_id}", 503),
    ]
    assert told[1]["request_id"] == "abc-1"
    assert told[2]["request_id"] == lost.headers["X-Request-ID"]
    [problem] = [each for each in events(text) if each["logger"] == "api.problems"]
    assert problem["request_id"] == away.headers["X-Request-ID"]
    assert problem["event"].startswith("/problems/unavailable: ")
    url = parse_url(fresh_url)
    for secret in (NAME, f"{url.password}", f"{url.port},", f":{url.port}", "127.0.0.1"):
        assert secret not in text


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What is logged, as it is written to a file."""
    file = io.StringIO()
    handler = logging.StreamHandler(file)
    handler.setFormatter(logs.formatter(as_json=True, colors=False))
    logging.getLogger().addHandler(handler)
    yield file
    logging.getLogger().removeHandler(handler)


def test_what_postgresql_quotes_of_a_row_is_not_logged(written: io.StringIO) -> None:
    row = f"refused\nDETAIL:  Failing row contains (1, {NAME}).\nHINT:  None."
    logging.getLogger("taxi").error(row, exc_info=ValueError(row))
    [event] = events(written.getvalue())
    assert "refused" in event["event"]
    assert "ValueError: refused" in event["exception"]
    assert NAME not in written.getvalue()


@pytest.mark.parametrize(("style", "as_json"), [("auto", True), ("json", True), ("text", False)])
def test_the_style_is_json_unless_somebody_reads_along(style: str, as_json: bool) -> None:
    config = logs.config("info", style)
    assert config["formatters"]["one"]["as_json"] is as_json
    record = logging.LogRecord("taxi", logging.INFO, "", 0, "Hello %s", ("Ada",), None)
    made = {key: value for key, value in config["formatters"]["one"].items() if key != "()"}
    line = logs.formatter(**made).format(record)
    if as_json:
        assert json.loads(line)["event"] == "Hello Ada"
    else:
        assert "[info     ] Hello Ada" in line


@pytest.mark.anyio
async def test_that_an_overdue_trip_cannot_be_helped_is_said_once(
    fresh_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    def said() -> int:
        return caplog.text.count("keeps its predicted end")

    now = datetime.now(UTC)
    async with (
        household.running(fresh_url) as app,
        household.asking(app, AUTHORIZATION) as dispatcher,
    ):
        service = app.dependencies["service"].dependency()
        rider_id = await household.add(dispatcher, "/riders", name="Alan")
        driver_id = await household.add(dispatcher, "/drivers", name="Stuck")
        trips = []
        for begin, end in ((-20, -1), (-1, 20)):  # the second is in the way of the first
            times = {
                "start": (now + timedelta(minutes=begin)).isoformat(),
                "predicted_end": (now + timedelta(minutes=end)).isoformat(),
            }
            body = {"rider_id": rider_id, "driver_id": driver_id} | times
            trips.append(await household.add(dispatcher, "/bookings", **body))
            assert (await dispatcher.post(f"/bookings/{trips[-1]}/start")).status_code == 200
        for _ in range(3):
            await app_module._watch_the_clock(service)  # noqa: SLF001  # else every 5 s
        assert said() == 1
        # The control: who has forgotten that it was said says it again.
        service.forget_stuck_but(())
        await app_module._watch_the_clock(service)  # noqa: SLF001  # as above
        assert said() == 2
        await dispatcher.post(f"/bookings/{trips[0]}/complete")
        await app_module._watch_the_clock(service)  # noqa: SLF001  # as above
        assert not service._stuck, "what is over is forgotten"  # noqa: SLF001  # the memory itself

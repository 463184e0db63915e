"""Makes the fleet and the riders of a scenario over HTTP, or finds them again."""

import http.client
import json
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlencode, urlsplit

RIDERS = 8
"""Who books. More would change nothing: a rider may have any number of bookings."""

_TOKEN = os.environ.get("TAXI_TOKEN")
AUTHORIZATION = {"Authorization": f"Bearer {_TOKEN}"} if _TOKEN else {}
"""Of every request: a dispatcher's token, which comes by the environment so that no list of
processes shows it."""

_AT_ONCE = 16
_PAGE = 1_000
_TIMEOUT_S = 30.0


class NoFleet(Exception):
    """The fleet could not be made; the message says why."""


def fleet_of(host: str, name: str, size: int) -> list[int]:
    """The ids of the first `size` working drivers of the fleet; those that lack are added.

    Raises `NoFleet`.
    """
    service = _Service(host)
    drivers: list[int] = []
    query = {"fleet": name, "working": "true", "limit": _PAGE}
    while len(drivers) < size:
        page = service.get(f"/drivers?{urlencode(query)}")
        drivers += (each["id"] for each in page["items"])
        if page["next_cursor"] is None:
            break
        query["cursor"] = page["next_cursor"]
    drivers += service.add(
        "/drivers", size - len(drivers), lambda number: {"name": f"Driver {number}", "fleet": name}
    )
    return sorted(drivers)[:size]


def riders(host: str) -> list[int]:
    """The ids of the first riders of the service; those that lack are added. Raises `NoFleet`."""
    service = _Service(host)
    there = [each["id"] for each in service.get(f"/riders?limit={RIDERS}")["items"]]
    added = service.add("/riders", RIDERS - len(there), lambda number: {"name": f"Rider {number}"})
    return sorted(there + added)


class _Service:
    """The service, asked by up to `_AT_ONCE` threads, each with a connection of its own."""

    def __init__(self, host: str) -> None:
        self._url = urlsplit(host)
        self._mine = threading.local()

    def get(self, path: str) -> Any:
        return self._ask("GET", path)

    def add(self, path: str, count: int, body: Callable[[int], dict[str, str]]) -> list[int]:
        """Post `count` bodies, made from their numbers; the ids of what was created."""
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            created = threads.map(
                lambda number: self._ask("POST", path, body(number)), range(1, count + 1)
            )
            return [each["id"] for each in created]

    def _ask(self, method: str, path: str, body: dict[str, str] | None = None) -> Any:
        connection = self._connection()
        text = None if body is None else json.dumps(body)
        headers = AUTHORIZATION | ({} if body is None else {"Content-Type": "application/json"})
        try:
            connection.request(method, self._url.path.rstrip("/") + path, text, headers)
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise NoFleet(f"No service answers at {self._url.geturl()} ({error}).") from error
        if response.status not in {200, 201}:
            told = answer.decode(errors="replace")[:300]
            raise NoFleet(f"{method} {path} was answered by {response.status}: {told}")
        return json.loads(answer)

    def _connection(self) -> http.client.HTTPConnection:
        try:
            connection: http.client.HTTPConnection = self._mine.connection
        except AttributeError:
            secure = self._url.scheme == "https"
            kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
            connection = kind(self._url.netloc, timeout=_TIMEOUT_S)
            self._mine.connection = connection
        return connection

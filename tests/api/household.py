"""People with accounts, and a service within the tests' own process, asked over ASGI.

So a test chooses from which address somebody asks, and may change what the service believes.
"""

import gc
import os
import warnings
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
from litestar import Litestar

from api.app import create_app
from api.settings import read_settings
from api.tokens import mint
from booking.accounts import Role
from tests.conftest import AUTHORIZATION

SECRET = os.environ["TAXI_TOKEN_SECRET"]
PASSWORD = "a few words to remember"  # noqa: S105  # of nobody but the tests
ABSENT = 2**52
NINE = datetime(2031, 5, 6, 9, tzinfo=UTC)
FAR_AWAY, LOOPBACK = "203.0.113.7", "127.0.0.1"


def at(minute: int) -> str:
    """So many minutes after nine."""
    return (NINE + timedelta(minutes=minute)).isoformat().replace("+00:00", "Z")


def make(environment: Mapping[str, str]) -> Litestar:
    """The service as the environment describes it. Raises as `create_app` does."""
    with warnings.catch_warnings(category=DeprecationWarning, action="ignore"):
        return create_app(read_settings(environment))  # whose assets are mounted in the old way


@asynccontextmanager
async def running(url: str, **settings: str) -> AsyncIterator[Litestar]:
    """The service on that database, with these variables beside those of the environment."""
    app = make(os.environ | {"DATABASE_URL": url} | settings)
    thresholds = gc.get_threshold()
    try:
        async with app.lifespan():
            yield app
    finally:  # a server process has the collector to itself; this one has not
        gc.unfreeze()
        gc.set_threshold(*thresholds)


def asking(
    app: Litestar, headers: Mapping[str, str] | None = None, *, address: str = FAR_AWAY
) -> httpx.AsyncClient:
    """Somebody who asks the service from an address."""
    transport = httpx.ASGITransport(app=app, client=(address, 4711))
    return httpx.AsyncClient(transport=transport, base_url="http://taxi", headers=headers)


def bearer(account_id: int) -> dict[str, str]:
    """What that account sends."""
    return {"Authorization": f"Bearer {mint(SECRET, account_id, timedelta(hours=1))}"}


@dataclass
class Household:
    """Two riders and two drivers, of whom the first are asking; a booking and a series of each."""

    app: Litestar
    own: dict[str, int] = field(default_factory=dict)
    """Ids by the name of a path's parameter."""
    others: dict[str, int] = field(default_factory=dict)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    """What each role sends; "nobody" sends nothing."""

    async def settle(self) -> None:
        """Make them."""
        async with asking(self.app, AUTHORIZATION) as administrator:
            for ids, minute in ((self.own, 0), (self.others, 60)):
                ids["rider_id"] = await add(administrator, "/riders", name="Alan")
                ids["driver_id"] = await add(administrator, "/drivers", name="Ada")
                booking = {
                    "rider_id": ids["rider_id"],
                    "driver_id": ids["driver_id"],
                    "start": at(minute),
                    "predicted_end": at(minute + 30),
                }
                ids["booking_id"] = await add(administrator, "/bookings", **booking)
                ids["series_id"] = await add(administrator, "/series", **series(ids))
                # Withdrawn at once, or it would be offered what a test gives back.
                awaited = {"start": "2032-01-05T06:30:00Z", "predicted_end": "2032-01-05T06:50:00Z"}
                ids["entry_id"] = await add(administrator, "/waiting-list", **booking | awaited)
                await administrator.post(f"/waiting-list/{ids['entry_id']}/withdraw")
                hook = {"url": "http://127.0.0.1:9/"}
                added = await administrator.post("/webhooks", json=hook)
                ids["webhook_id"] = added.json()["webhook"]["id"]
                number = ids["rider_id"]
                ids["account_id"] = await add(
                    administrator,
                    "/accounts",
                    role="rider",
                    rider_id=number,
                    **external(f"rider{number}@tests.example"),
                )
            self.headers = {
                "nobody": {},
                "rider": bearer(self.own["account_id"]),
                "driver": bearer(await self._add(administrator, Role.DRIVER)),
                "dispatcher": bearer(await self._add(administrator, Role.DISPATCHER)),
                "administrator": AUTHORIZATION,
            }

    async def _add(self, administrator: httpx.AsyncClient, role: Role) -> int:
        whom = {"driver_id": self.own["driver_id"]} if role is Role.DRIVER else {}
        email = f"{role}{self.own['driver_id']}@tests.example"
        body = {"role": role} | external(email) | whom
        return await add(administrator, "/accounts", **body)

    def as_role(self, role: str, *, address: str = FAR_AWAY) -> httpx.AsyncClient:
        """Somebody of that role, who asks."""
        return asking(self.app, self.headers[role], address=address)


def external(email: str) -> dict[str, str]:
    """What says that somebody has no password here, which takes a while to hash."""
    return {"email": email, "issuer": "https://issuer.example", "subject": email}


def series(ids: Mapping[str, int], *, duration_s: int = 1800, count: int = 2) -> dict[str, Any]:
    """The body of a request for a series: Mondays, a year after everything else."""
    return {
        "rider_id": ids["rider_id"],
        "driver_id": ids["driver_id"],
        "recurrence": {
            "zone": "Europe/Berlin",
            "wall_clock": "07:30",
            "duration_s": duration_s,
            "weekdays": ["monday"],
            "first_date": "2032-01-05",
            "count": count,
        },
    }


async def add(client: httpx.AsyncClient, path: str, **body: Any) -> int:
    """The id of something new."""
    response = await client.post(path, json=body)
    assert response.status_code == 201, response.text
    id_: int = response.json()["id"]
    return id_

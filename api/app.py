"""`create_app(settings)`: the composition root. Nothing is opened at import."""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from importlib.metadata import version
from typing import Any

from litestar import Litestar, get
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin, SwaggerRenderPlugin
from litestar.openapi.spec import License, Tag
from litestar.response import Redirect
from litestar_offline_docs import generate_static_files_config

from api import metrics
from api.idempotency import Commands, forget_keys
from api.problems import on_bug, on_domain_error, on_http_error
from api.requests import StrictRequest, refuse_unknown_parameters
from api.routes.availability import AvailabilityController
from api.routes.bookings import BookingsController
from api.routes.drivers import DriversController
from api.routes.operations import HealthController, MetricsController, ProblemsController
from api.routes.riders import RidersController
from api.routes.schedule import ScheduleController
from api.routes.series import SeriesController
from api.service import Service
from api.settings import Settings, read_settings, variable_of
from booking.errors import (
    InvalidInput,
    LedgerBusy,
    LedgerLost,
    TaxiError,
    Unavailable,
    VersionMismatch,
)
from booking.fleet_index import FleetIndex
from booking.overrun import Policy
from booking.postgres.advice import Advice
from booking.postgres.database import Database
from booking.postgres.follower import Follower
from booking.postgres.overruns import overdue, report_end
from booking.strategies import Act, find

logger = logging.getLogger(__name__)

BODY_BYTES_MAX = 64 * 1024
_FORGET_INTERVAL_S = 3_600
_SWEEP_INTERVAL_S = 1.0
_WATCH_INTERVAL_S = 5.0
_STATIC = "/docs-assets"
_DESCRIPTION = """
Books drivers, and never the same driver twice for the same time.

* Windows are half-open, `[start, end)`: a trip that ends at ten and one that begins at ten
  do not conflict.
* Instants are RFC 3339 with an offset from UTC; one without is refused.
* What is refused is answered with a problem (RFC 9457); `GET /problems` lists them.
* Send an `Idempotency-Key` with whatever must not happen twice, and repeat the request
  under the same key when the answer was lost.
"""


def create_app(settings: Settings) -> Litestar:
    """The service on the database that `settings` name, which must have been prepared.

    Raises `InvalidInput` for a strategy or a database address that there is none of.
    """
    service = _service(settings)

    @asynccontextmanager
    async def lifespan(_app: Litestar) -> AsyncIterator[None]:
        async with service.follower.running():
            helpers = [
                asyncio.create_task(metrics.watch(service.ledger, service.follower)),
                *(
                    asyncio.create_task(_forever(what, interval_s, partial(work, service)))
                    for what, interval_s, work in _CHORES
                ),
                asyncio.create_task(_tune_the_collector(service.follower)),
            ]
            try:
                yield
            finally:
                for helper in helpers:
                    helper.cancel()
                await asyncio.gather(*helpers, return_exceptions=True)
        for database in (service.database, service.follower.database):
            await database.close()

    return Litestar(
        route_handlers=[
            DriversController,
            RidersController,
            BookingsController,
            SeriesController,
            AvailabilityController,
            ScheduleController,
            HealthController,
            ProblemsController,
            MetricsController,
            _to_the_docs,
        ],
        dependencies={"service": Provide(lambda: service, sync_to_thread=False)},
        request_class=StrictRequest,
        before_request=refuse_unknown_parameters,
        exception_handlers={
            TaxiError: on_domain_error,
            HTTPException: on_http_error,
            Exception: on_bug,
        },
        lifespan=[lifespan],
        middleware=[metrics.REQUESTS.middleware],
        openapi_config=_openapi(),
        static_files_config=[generate_static_files_config(_STATIC)],
        request_max_body_size=BODY_BYTES_MAX,
        logging_config=None,  # whoever runs the service decides where its log goes
    )


@get("/", include_in_schema=False)
async def _to_the_docs() -> Redirect:
    return Redirect("/docs")


def from_environment() -> Litestar:
    """The service as the environment describes it: what a server process is pointed at."""
    return create_app(read_settings())


def _service(settings: Settings) -> Service:
    database = _database(settings, pool_size=settings.pool_size)
    allocator = _strategy(Act.ALLOCATION, settings.allocator, "allocate", "TAXI_ALLOCATOR")
    ledger = _strategy(Act.PREVENTION, settings.prevention, "record", "TAXI_PREVENTION")
    index = FleetIndex(
        _strategy(Act.DETECTION, settings.calendar, "is_free", "TAXI_CALENDAR"),
        _strategy(Act.ALLOCATION, settings.roster, "any_free", "TAXI_ROSTER"),
    )
    # One connection of its own: a poll must not queue behind the requests.
    follower = Follower(_database(settings, pool_size=1), index)
    recording = ledger(database, allocator())
    return Service(
        settings,
        database,
        recording,
        follower,
        Advice(database, follower),
        Commands(recording),
        _policy(settings),
    )


def _policy(settings: Settings) -> Policy:
    try:
        return Policy(settings.tolerance_s, settings.may_push_back_s)
    except InvalidInput as error:
        raise InvalidInput(error.message, field=variable_of(str(error.field))) from None


def _strategy(act: Act, name: str, method: str, variable: str) -> type[Any]:
    """The strategy's class, which must have `method`: rosters and allocators share a folder."""
    try:
        strategy = find(act, name).load()
    except InvalidInput as error:
        raise InvalidInput(error.message, field=variable) from None
    if not hasattr(strategy, method):
        raise InvalidInput(f"{name!r} is of another kind: it has no {method}().", field=variable)
    return strategy


def _database(settings: Settings, *, pool_size: int) -> Database:
    return Database(
        settings.database_url,
        pool_size=pool_size,
        waiting_max=settings.waiting_max,
        wait_s_max=settings.wait_s_max,
        statement_s_max=settings.statement_s_max,
    )


def _openapi() -> OpenAPIConfig:
    return OpenAPIConfig(
        title="Taxi booking",
        version=version("taxi-booking"),
        description=_DESCRIPTION,
        license=License(name="MIT", identifier="MIT"),
        use_handler_docstrings=True,
        path="/docs",
        render_plugins=[
            SwaggerRenderPlugin(
                path="/",
                favicon="",  # the default comes from another host
                js_url=f"{_STATIC}/swagger-ui-bundle.js",
                css_url=f"{_STATIC}/swagger-ui.css",
                standalone_preset_js_url=f"{_STATIC}/swagger-ui-standalone-preset.js",
            ),
            JsonRenderPlugin(),
        ],
        tags=[
            Tag("bookings", "Book, look, hold, move, give away, start, complete, cancel."),
            Tag("series", "Bookings that come again and again, by the clock on the wall."),
            Tag("drivers", "The fleet, each driver's agenda and free time."),
            Tag("riders", "Who books."),
            Tag("availability", "Who is free, across the fleet."),
            Tag("operations", "For whoever watches over the service."),
            Tag("problems", "What the `type` of a problem means."),
        ],
    )


async def _forever(what: str, interval_s: float, work: Callable[[], Awaitable[None]]) -> None:
    """Do the work again and again; a failure is told, and is not the last time."""
    while True:
        try:
            await work()
        except Unavailable as error:
            logger.warning("%s waits for now: %s", what, error)
        except Exception:
            logger.exception("%s failed", what)
        await asyncio.sleep(interval_s)


async def _forget_old_keys(service: Service) -> None:
    await forget_keys(service.database, timedelta(hours=service.settings.idempotency_hours))


async def _sweep_holds(service: Service) -> None:
    for expired in await service.ledger.sweep():
        service.advice.note(expired)


async def _watch_the_clock(service: Service) -> None:
    """Predict anew the end of every trip that is still under way when it should have ended."""
    for trip, end in await service.look(overdue):
        try:
            # By its version, as another process watches the same clock.
            overrun = await report_end(
                service.ledger, trip.id, end, service.policy, version=trip.version
            )
        except (LedgerBusy, LedgerLost):
            raise
        except VersionMismatch:
            continue  # it did, or somebody reported
        except TaxiError as error:
            # One trip that cannot be helped must not keep the others waiting.
            logger.warning("Overdue booking %s keeps its predicted end: %s", trip.id, error)
        else:
            service.note_overrun(overrun)


_CHORES = (
    ("Forgetting old idempotency keys", _FORGET_INTERVAL_S, _forget_old_keys),
    ("Sweeping lapsed holds", _SWEEP_INTERVAL_S, _sweep_holds),
    ("Watching the clock", _WATCH_INTERVAL_S, _watch_the_clock),
)


async def _tune_the_collector(follower: Follower) -> None:
    """Once the index is loaded, keep the collector from walking it again and again.

    With the collector's defaults the slowest hundredth of requests waits for it.
    """
    await follower.loaded.wait()
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)

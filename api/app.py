"""`create_app(settings)`: the composition root. Nothing is opened at import."""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from datetime import timedelta
from functools import partial
from importlib.metadata import version
from typing import Any

from litestar import Litestar, Router, get
from litestar.di import Provide
from litestar.exceptions import HTTPException, InternalServerException
from litestar.openapi.plugins import JsonRenderPlugin, SwaggerRenderPlugin
from litestar.openapi.spec import License, Tag
from litestar.response import Redirect
from litestar.static_files import StaticFilesConfig
from litestar_offline_docs import generate_static_files_config

from api import metrics, tracing
from api.deliveries import Deliveries
from api.doors import Doors
from api.edge import Edge
from api.feed import Feed
from api.idempotency import Commands, forget_keys
from api.openapi import DocumentConfig
from api.osrm import Osrm
from api.problems import (
    instead_of_no_page,
    on_bug,
    on_domain_error,
    on_http_error,
    on_no_file,
)
from api.requests import StrictRequest, check_address
from api.routes.availability import AvailabilityController
from api.routes.bookings import BookingsController
from api.routes.drivers import DriversController
from api.routes.events import EventsController
from api.routes.operations import HealthController, MetricsController, ProblemsController
from api.routes.riders import RidersController
from api.routes.schedule import ScheduleController
from api.routes.series import SeriesController
from api.routes.waiting_list import WaitingListController
from api.routes.webhooks import WebhooksController
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
from booking.postgres.attribution import CLOCK, Attribution, attribute
from booking.postgres.database import Database
from booking.postgres.events import forget_events
from booking.postgres.follower import Follower
from booking.postgres.observers import Observer
from booking.postgres.overruns import overdue, report_end
from booking.postgres.terms import work_out_ahead
from booking.postgres.waiting import WaitingList
from booking.strategies import Act, find
from booking.travel import GreatCircle, TravelTimes

logger = logging.getLogger(__name__)

BODY_BYTES_MAX = 64 * 1024
_FORGET_INTERVAL_S = 3_600
_WORK_OUT_INTERVAL_S = 3_600
_SWEEP_INTERVAL_S = 1.0
_COUNTS_INTERVAL_S = 60.0
_WATCH_INTERVAL_S = 5.0
_CATCH_UP_INTERVAL_S = 5.0
_STATIC = "/docs-assets"
_DESCRIPTION = """
Books drivers, and never the same driver twice for the same time.

* Windows are half-open, `[start, end)`: a trip that ends at ten and one that begins at ten
  do not conflict.
* Instants are RFC 3339 with an offset from UTC; one without is refused.
* What is refused is answered with a problem (RFC 9457); `GET /problems` lists them.
* Send an `Idempotency-Key` with whatever must not happen twice, and repeat the request
  under the same key when the answer was lost.
* Send the token from `POST /tokens` as `Authorization: Bearer`. What is not yours is answered
  as what does not exist.
"""


def create_app(settings: Settings) -> Litestar:
    """The service on the database that `settings` name, which must have been prepared.

    Raises `InvalidInput` for a strategy or a database address that there is none of.
    """
    traces = tracing.Tracing() if tracing.wanted() else None
    observer = metrics.Counting(traces)
    service = _service(settings, observer)
    if traces is not None:
        traces.follow(service.database.engine, service.database.lanes)
    # One connection of its own: who somebody is must not queue behind the requests.
    standings = _database(settings, 1, observer)
    doors = Doors(settings, standings, service.look)

    @asynccontextmanager
    async def lifespan(_app: Litestar) -> AsyncIterator[None]:
        with (
            traces.exporting() if traces is not None else nullcontext(),
            service.stopping.listening(settings.drain_s),
        ):
            async with _at_work(service, doors):
                yield
            for database in (
                service.database,
                service.follower.database,
                service.feed.database,
                standings,
            ):
                await database.close()
            if isinstance(service.ledger.travel_times, Osrm):
                await service.ledger.travel_times.close()

    app = Litestar(
        route_handlers=[
            DriversController,
            RidersController,
            BookingsController,
            SeriesController,
            WaitingListController,
            AvailabilityController,
            ScheduleController,
            EventsController,
            WebhooksController,
            HealthController,
            ProblemsController,
            MetricsController,
            _to_the_docs,
        ],
        dependencies={"service": Provide(lambda: service, sync_to_thread=False)},
        request_class=StrictRequest,
        before_request=check_address,
        after_exception=[metrics.count_unavailable],
        exception_handlers={
            TaxiError: on_domain_error,
            HTTPException: on_http_error,
            Exception: on_bug,
        },
        lifespan=[lifespan],
        middleware=[*([traces.middleware] if traces else []), metrics.REQUESTS.middleware],
        plugins=[doors],
        openapi_config=_openapi(),
        static_files_config=[_assets()],
        request_max_body_size=BODY_BYTES_MAX,
        logging_config=None,  # whoever runs the service decides where its log goes
    )
    # Round all of it, also where no route is found: the list above goes round routes.
    app.asgi_handler = Edge(
        app.asgi_handler, requests_max=settings.requests_max, stopping=service.stopping
    )
    return app


@asynccontextmanager
async def _at_work(service: Service, doors: Doors) -> AsyncIterator[None]:
    """What the service does besides answering, until the block is left."""
    deliveries = Deliveries(
        service.feed.database,
        answer_s_max=service.settings.webhook_answer_s_max,
        private=service.settings.webhook_private,
    )
    async with service.follower.running(), service.feed.running(), deliveries.running():
        with tracing.untraced():
            helpers = [
                asyncio.create_task(metrics.watch(service.ledger, service.follower)),
                *(
                    asyncio.create_task(_forever(what, interval_s, partial(work, service)))
                    for what, interval_s, work in _CHORES
                ),
                asyncio.create_task(
                    _forever("Forgetting counts", _COUNTS_INTERVAL_S, doors.forget_counts)
                ),
                asyncio.create_task(_tune_the_collector(service.follower)),
                asyncio.create_task(_end_streams(service)),
            ]
        try:
            yield
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)


@get("/", include_in_schema=False)
async def _to_the_docs() -> Redirect:
    return Redirect("/docs")


def from_environment() -> Litestar:
    """The service as the environment describes it: what a server process is pointed at."""
    return create_app(read_settings())


def _service(settings: Settings, observer: Observer) -> Service:
    database = _database(settings, settings.pool_size, observer)
    allocator = _strategy(Act.ALLOCATION, settings.allocator, "allocate", "TAXI_ALLOCATOR")
    ledger = _strategy(Act.PREVENTION, settings.prevention, "record", "TAXI_PREVENTION")
    index = FleetIndex(
        _strategy(Act.DETECTION, settings.calendar, "is_free", "TAXI_CALENDAR"),
        _strategy(Act.ALLOCATION, settings.roster, "any_free", "TAXI_ROSTER"),
    )
    # One connection of its own: a poll must not queue behind the requests.
    follower = Follower(_database(settings, 1, observer), index)
    recording = ledger(database, allocator(), _travel_times(settings))
    advice = Advice(database, follower, recording.travel_times)
    waiting_list = WaitingList(recording, settings.offer_s, advice.note)
    recording.queue = waiting_list
    # Two of their own: those who are told what happened must not queue behind the requests.
    feed = Feed(_database(settings, 2, observer), streams_max=settings.streams_max)
    return Service(
        settings,
        database,
        recording,
        follower,
        advice,
        Commands(recording, settings.rider_hours_max),
        _policy(settings),
        waiting_list,
        feed,
    )


def _travel_times(settings: Settings) -> TravelTimes:
    try:
        straight = GreatCircle(settings.city_zone)
    except InvalidInput as error:
        raise InvalidInput(error.message, field="TAXI_CITY_ZONE") from None
    if not settings.osrm_url:
        return straight
    try:
        return Osrm(settings.osrm_url, straight)
    except InvalidInput as error:
        raise InvalidInput(error.message, field="TAXI_OSRM_URL") from None


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


def _database(settings: Settings, pool_size: int, observer: Observer) -> Database:
    return Database(
        settings.database_url,
        pool_size=pool_size,
        waiting_max=settings.waiting_max,
        wait_s_max=settings.wait_s_max,
        statement_s_max=settings.statement_s_max,
        observer=observer,
    )


def _assets() -> StaticFilesConfig:
    assets = generate_static_files_config(_STATIC)
    # The framework's word for what the file system will not look up.
    assets.exception_handlers = {InternalServerException: on_no_file, ValueError: on_no_file}
    return assets


def _openapi() -> DocumentConfig:
    return DocumentConfig(
        title="Taxi booking",
        version=version("taxi-booking"),
        description=_DESCRIPTION,
        license=License(name="MIT", identifier="MIT"),
        use_handler_docstrings=True,
        openapi_router=Router(
            "/docs", route_handlers=[], include_in_schema=False, after_request=instead_of_no_page
        ),
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
            Tag("waiting list", "Time that is taken, offered in order when it becomes free."),
            Tag("drivers", "The fleet, each driver's agenda and free time."),
            Tag("riders", "Who books."),
            Tag("accounts", "Sign up, sign in, and who may do what."),
            Tag("availability", "Who is free, across the fleet."),
            Tag("events", "What happened, and who did it: by the page, or as it happens."),
            Tag("webhooks", "Messages to those who want to know, signed, until they are accepted."),
            Tag("operations", "For whoever watches over the service."),
            Tag("problems", "What the `type` of a problem means."),
        ],
    )


async def _forever(what: str, interval_s: float, work: Callable[[], Awaitable[None]]) -> None:
    """Do the work again and again; a failure is told, and is not the last time."""
    attribute(Attribution(CLOCK))
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


async def _forget_old_events(service: Service) -> None:
    await forget_events(service.database, timedelta(days=service.settings.events_days))


async def _sweep_holds(service: Service) -> None:
    swept = await service.ledger.sweep()
    metrics.count_expired(len(swept))
    for expired in swept:
        service.advice.note(expired)


async def _watch_the_clock(service: Service) -> None:
    """Predict anew the end of every trip that is still under way when it should have ended."""
    late = await service.look(overdue)
    service.forget_stuck_but({trip.id for trip, _ in late})
    for trip, end in late:
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
            service.note_stuck(trip, error)
        else:
            service.note_overrun(overrun)


async def _work_out_hours(service: Service) -> None:
    while await service.database.transact(work_out_ahead):
        pass


async def _offer_what_was_missed(service: Service) -> None:
    await service.waiting_list.catch_up()


_CHORES = (
    ("Forgetting old idempotency keys", _FORGET_INTERVAL_S, _forget_old_keys),
    ("Working out shifts", _WORK_OUT_INTERVAL_S, _work_out_hours),
    ("Forgetting old events", _FORGET_INTERVAL_S, _forget_old_events),
    ("Sweeping lapsed holds", _SWEEP_INTERVAL_S, _sweep_holds),
    ("Watching the clock", _WATCH_INTERVAL_S, _watch_the_clock),
    ("Offering free time to those who wait", _CATCH_UP_INTERVAL_S, _offer_what_was_missed),
)


async def _end_streams(service: Service) -> None:
    """Streams last for ever, and would keep a process that is to stop from it."""
    await service.stopping.wait()
    service.feed.stop()


async def _tune_the_collector(follower: Follower) -> None:
    """Once the index is loaded, keep the collector from walking it again and again.

    With the collector's defaults the slowest hundredth of requests waits for it.
    """
    await follower.loaded.wait()
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)

"""The rival: the same endpoint as most of the world writes it.

An ORM, a session for each request, and a look before the insert: SQLAlchemy's
own tutorial and every framework's template have it so. It double-books, as
`check_then_insert` does, and for the same reason; it is here for its speed.

The people, the tables and the number of connections are the service's. What differs
is the handler and, as usual too, an engine with SQLAlchemy's defaults: no limit on a
statement, the pool's own queue, which is not first come, first served, and plans as
PostgreSQL chooses them. (The service forces generic ones. A generic plan cannot tell
that `state IN ($2, $3, $4)` is the condition of the partial index, so the look before
the insert would read the whole table.)
"""

from collections.abc import AsyncIterator
from datetime import datetime

from litestar import Response, post
from litestar.di import NamedDependency, Provide
from litestar.handlers import HTTPRouteHandler
from litestar.types import ASGIApp
from sqlalchemy import BigInteger, Text, func, select
from sqlalchemy.dialects.postgresql import TSTZRANGE, Range
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from api.bodies.bookings import BookingOut
from api.routes.bookings import BookingBody
from api.settings import read_settings
from booking.bookings import ACTIVE_STATES, Booking, BookingState
from booking.errors import BookingConflict, UnknownDriver, UnknownRider
from booking.postgres.database import parse_url
from loadtest.comparison.stand_in import STANDS_IN_FOR, as_booked, stand_in

PATH = "/orm-session"


class _Base(DeclarativeBase):
    """What the models have in common."""


class _Driver(_Base):
    __tablename__ = "drivers"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    name: Mapped[str]
    retired_at: Mapped[datetime | None]


class _Rider(_Base):
    __tablename__ = "riders"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    name: Mapped[str]


class _Booking(_Base):
    __tablename__ = "bookings"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    driver_id: Mapped[int] = mapped_column(BigInteger)
    rider_id: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[str] = mapped_column(Text)
    during: Mapped[Range[datetime]] = mapped_column(TSTZRANGE)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


def handler_on(sessions: async_sessionmaker[AsyncSession]) -> HTTPRouteHandler:
    """The handler, each of whose requests has a session of its own."""

    async def session_of_the_request() -> AsyncIterator[AsyncSession]:
        async with sessions() as session:
            yield session

    @post(
        PATH,
        dependencies={"session": Provide(session_of_the_request)},
        include_in_schema=False,
        operation_id=STANDS_IN_FOR,
    )
    async def book(
        data: BookingBody, session: NamedDependency[AsyncSession]
    ) -> Response[BookingOut]:
        """Look, then insert."""
        wanted = data.request()
        rider = await session.get(_Rider, wanted.rider_id)
        if rider is None:
            raise UnknownRider
        driver = await session.get(_Driver, wanted.driver_id)
        if driver is None or driver.retired_at is not None:
            raise UnknownDriver
        during = Range(wanted.window.start, wanted.window.end)
        in_the_way = await session.scalar(
            select(_Booking)
            .where(
                _Booking.driver_id == driver.id,
                _Booking.state.in_(ACTIVE_STATES),
                _Booking.during.overlaps(during),
            )
            .limit(1)
        )
        if in_the_way is not None:
            raise BookingConflict
        booking = _Booking(
            driver_id=driver.id, rider_id=rider.id, state=BookingState.CONFIRMED, during=during
        )
        session.add(booking)
        await session.commit()
        await session.refresh(booking)
        return as_booked(_as_domain(booking))

    return book


def _as_domain(row: _Booking) -> Booking:
    start, end = row.during.lower, row.during.upper
    assert start is not None  # noqa: S101  # a CHECK of the table sees to both
    assert end is not None  # noqa: S101
    return Booking(
        row.id, row.driver_id, row.rider_id, BookingState(row.state), start, end, row.created_at
    )


def from_environment() -> ASGIApp:
    """The application: what a server process is pointed at."""
    settings = read_settings()
    engine = create_async_engine(
        parse_url(settings.database_url), pool_size=settings.pool_size, max_overflow=0
    )
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    return stand_in(settings, PATH, handler_on(sessions))

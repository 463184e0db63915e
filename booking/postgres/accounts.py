"""Accounts, what belongs to whom, and how much time a rider has booked ahead."""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, delete, func, literal, not_, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import DateTime, Interval

from booking.accounts import Account, Principal, Role, check_fits
from booking.bookings import LONGEST
from booking.errors import (
    EmailTaken,
    LastAdministrator,
    OverLimit,
    OwnAccount,
    UnknownAccount,
    UnknownLink,
    UnknownRider,
)
from booking.postgres import reads
from booking.postgres.ledger import lock_drivers_of
from booking.postgres.tables import (
    accounts,
    begins,
    booking_series,
    bookings,
    calendar_links,
    lapsed,
    predicted_ends,
    riders,
    starts,
    to_come,
    waiting_list,
)
from booking.postgres.waiting import waited_for

_COLUMNS = (
    accounts.c.id,
    accounts.c.email,
    accounts.c.role,
    accounts.c.rider_id,
    accounts.c.driver_id,
    accounts.c.issuer,
    accounts.c.subject,
    accounts.c.created_at,
    accounts.c.disabled_at,
)
_HOUR = timedelta(hours=1)


class Credentials(NamedTuple):
    """An account, and the hash of its password, if it has one."""

    account: Account
    password_hash: str | None


class Standing(NamedTuple):
    """Who an account speaks for now, and from when on its tokens count."""

    principal: Principal
    tokens_count_from: datetime | None


def _account_of(row: Any) -> Account:
    id_, email, role, *rest = row
    return Account(id_, email, Role(role), *rest)


async def add_account(
    connection: AsyncConnection,
    email: str,
    role: Role,
    *,
    password_hash: str | None = None,
    rider_id: int | None = None,
    driver_id: int | None = None,
    external: tuple[str, str] | None = None,
) -> Account:
    """Add an account; `external` is the issuer and the subject of one that signs in there.

    Raises `EmailTaken` if there is one with that address, or with that subject;
    `UnknownRider`, `UnknownDriver`; and `InvalidInput` where the role does not fit whom it
    speaks for.
    """
    check_fits(role, rider_id, driver_id)
    if rider_id is not None:
        await reads.rider(connection, rider_id)
    if driver_id is not None:
        await reads.driver(connection, driver_id)
    issuer, subject = external or (None, None)
    added = await connection.execute(
        insert(accounts)
        .values(
            email=email,
            role=role,
            password_hash=password_hash,
            rider_id=rider_id,
            driver_id=driver_id,
            issuer=issuer,
            subject=subject,
        )
        .on_conflict_do_nothing()
        .returning(*_COLUMNS)
    )
    row = added.one_or_none()
    if row is None:
        raise EmailTaken(field="email")
    return _account_of(row)


async def ensure_account(
    connection: AsyncConnection,
    email: str,
    role: Role,
    *,
    password_hash: str | None = None,
    rider_id: int | None = None,
    driver_id: int | None = None,
) -> Account:
    """The account with that address, which is added if there is none. Raises as `add_account`."""
    found = await credentials(connection, email)
    if found is not None:
        return found.account
    return await add_account(
        connection,
        email,
        role,
        password_hash=password_hash,
        rider_id=rider_id,
        driver_id=driver_id,
    )


async def account(connection: AsyncConnection, account_id: int) -> Account:
    """Raises `UnknownAccount`."""
    found = await connection.execute(select(*_COLUMNS).where(accounts.c.id == account_id))
    row = found.one_or_none()
    if row is None:
        raise UnknownAccount(f"There is no account {account_id}.", field="account_id")
    return _account_of(row)


async def account_of(connection: AsyncConnection, email: str) -> Account:
    """The account with that address, whatever the case of its letters. Raises `UnknownAccount`."""
    found = await credentials(connection, email)
    if found is None:
        raise UnknownAccount(f"There is no account of {email}.", field="email")
    return found.account


async def credentials(connection: AsyncConnection, email: str) -> Credentials | None:
    """The account with that address, and the hash of its password."""
    found = await connection.execute(
        select(*_COLUMNS, accounts.c.password_hash).where(
            func.lower(accounts.c.email) == func.lower(email)
        )
    )
    row = found.one_or_none()
    if row is None:
        return None
    *columns, password_hash = row
    return Credentials(_account_of(columns), password_hash)


async def credentials_of(connection: AsyncConnection, account_id: int) -> Credentials:
    """The same for an account by its number. Raises `UnknownAccount`."""
    known = await account(connection, account_id)
    password_hash = await connection.scalar(
        select(accounts.c.password_hash).where(accounts.c.id == account_id)
    )
    return Credentials(known, password_hash)


async def list_accounts(connection: AsyncConnection, *, after: int, limit: int) -> list[Account]:
    """Up to `limit` accounts in order of id, from just behind `after`."""
    rows = await connection.execute(
        select(*_COLUMNS).where(accounts.c.id > after).order_by(accounts.c.id).limit(limit)
    )
    return [_account_of(row) for row in rows]


async def standing(connection: AsyncConnection, who: int | tuple[str, str]) -> Standing | None:
    """How the account of that number, or issuer and subject, stands; None if it counts no more."""
    if isinstance(who, int):
        named = accounts.c.id == who
    else:
        named = (accounts.c.issuer == who[0]) & (accounts.c.subject == who[1])
    found = await connection.execute(
        select(*_COLUMNS, accounts.c.password_changed_at).where(
            named, accounts.c.disabled_at.is_(None)
        )
    )
    row = found.one_or_none()
    if row is None:
        return None
    *columns, changed_at = row
    return Standing(_account_of(columns).principal, changed_at)


async def set_password(
    connection: AsyncConnection, known: Credentials, password_hash: str, *, is_new: bool
) -> Account | None:
    """Keep the hash in the place of the known one; None if another has taken that place.

    The known one took long to check: whoever knows a password that has been changed meanwhile
    must not have the last word. If the password is a new one, tokens from before count no more.
    """
    values: dict[str, object] = {"password_hash": password_hash}
    if is_new:
        values["password_changed_at"] = func.clock_timestamp()
    same = accounts.c.password_hash.is_not_distinct_from(known.password_hash)
    return await _change(connection, known.account.id, values, same)


async def disable_account(
    connection: AsyncConnection, account_id: int, by: int | None = None
) -> Account:
    """Disable the account for good; one that is disabled stays so. The account `by` asks for it.

    The links to the calendar of whom it speaks for open nothing any more.

    Raises `UnknownAccount`; and `OwnAccount` or `LastAdministrator`, as somebody must be left
    who can add others.
    """
    if account_id == by:
        raise OwnAccount(field="account_id")
    # Locked: of two who disable each other, the second sees what the first has done.
    administrators = await connection.scalars(
        select(accounts.c.id)
        .where(accounts.c.role == Role.ADMINISTRATOR, accounts.c.disabled_at.is_(None))
        .order_by(accounts.c.id)
        .with_for_update(key_share=True)
    )
    if administrators.all() == [account_id]:
        raise LastAdministrator(field="account_id")
    since = func.coalesce(accounts.c.disabled_at, func.now())
    changed = await _change(connection, account_id, {"disabled_at": since})
    if changed is None:
        raise UnknownAccount(f"There is no account {account_id}.", field="account_id")
    await connection.execute(
        delete(calendar_links).where(
            or_(
                calendar_links.c.rider_id == changed.rider_id,
                calendar_links.c.driver_id == changed.driver_id,
            )
        )
    )
    return changed


async def _change(
    connection: AsyncConnection,
    account_id: int,
    values: dict[str, object],
    *such: ColumnElement[bool],
) -> Account | None:
    changed = await connection.execute(
        update(accounts)
        .where(accounts.c.id == account_id, *such)
        .values(values)
        .returning(*_COLUMNS)
    )
    row = changed.one_or_none()
    return None if row is None else _account_of(row)


# What belongs to whom ----------------------------------------------------------------------------


class Owners(NamedTuple):
    """Whose a booking is, or a series, which has no driver."""

    rider_id: int
    driver_id: int | None = None

    def include(self, principal: Principal) -> bool:
        """Whether the principal is one of them."""
        if principal.role is Role.RIDER:
            return self.rider_id == principal.rider_id
        return principal.role is Role.DRIVER and self.driver_id == principal.driver_id


async def owners_of_booking(
    connection: AsyncConnection, booking_id: int, *, lock: bool = False
) -> Owners | None:
    """Whose it is, if there is one; with `lock` it stays so until the transaction ends."""
    statement = select(bookings.c.rider_id, bookings.c.driver_id).where(bookings.c.id == booking_id)
    if lock:
        # Before the booking, as everybody does.
        await lock_drivers_of(connection, bookings.c.id == booking_id)
        statement = statement.with_for_update(key_share=True)
    row = (await connection.execute(statement)).one_or_none()
    return None if row is None else Owners(*row)


async def owners_of_series(
    connection: AsyncConnection, series_id: int, *, lock: bool = False
) -> Owners | None:
    """Whose it is, if there is one. It stays so in any case, so there is nothing to lock."""
    del lock
    rider_id = await connection.scalar(
        select(booking_series.c.rider_id).where(booking_series.c.id == series_id)
    )
    return None if rider_id is None else Owners(rider_id)


async def owners_of_entry(
    connection: AsyncConnection, entry_id: int, *, lock: bool = False
) -> Owners | None:
    """Whose entry of the waiting list it is, if there is one; that never changes either."""
    del lock
    rider_id = await connection.scalar(
        select(waiting_list.c.rider_id).where(waiting_list.c.id == entry_id)
    )
    return None if rider_id is None else Owners(rider_id)


# How much one rider may have booked ahead --------------------------------------------------------


async def within_hours[T](
    connection: AsyncConnection,
    rider_id: int,
    hours_max: float,
    work: Callable[[AsyncConnection], Awaitable[T]],
) -> T:
    """Do the work, unless the rider has more than `hours_max` hours booked ahead by it.

    Two requests of one rider come one after the other here, as the first thing they do is to
    lock the rider's row; the sum is that of a snapshot taken after the lock. (So it is under
    READ COMMITTED. SERIALIZABLE runs one of them again; REPEATABLE READ sees neither.) What does
    not make it more is not refused: somebody who is over the limit may still move a booking.

    Raises `UnknownRider`, `OverLimit`, and what `work` raises.
    """
    locked = await connection.scalar(
        # FOR NO KEY UPDATE: a dispatcher who books for the same rider need not wait.
        select(riders.c.id).where(riders.c.id == rider_id).with_for_update(key_share=True)
    )
    if locked is None:
        raise UnknownRider(f"There is no rider {rider_id}.", field="rider_id")
    before = await booked_ahead(connection, rider_id)
    result = await work(connection)
    after = await booked_ahead(connection, rider_id)
    if after > before and after > hours_max * _HOUR:
        raise OverLimit(
            f"A rider may have {hours_max:g} hours booked ahead or waited for;"
            f" with this it would be {after / _HOUR:.4g}.",
            field="predicted_end",
        )
    return result


async def booked_ahead(connection: AsyncConnection, rider_id: int) -> timedelta:
    """How long the rider's trips are, taken together, that are held or confirmed and not over.

    With those that they wait for: an offer is made in somebody else's transaction, which
    knows no limit, and whoever has it need only confirm.
    """
    longest_before = func.now(type_=DateTime(timezone=True)) - literal(LONGEST, Interval)
    booked = func.coalesce(func.sum(predicted_ends - starts), literal(timedelta(), Interval))
    total: timedelta | None = await connection.scalar(
        select(booked + waited_for(rider_id)).where(
            bookings.c.rider_id == rider_id,
            to_come,
            not_(lapsed),
            predicted_ends > func.now(),
            begins > longest_before,
        )
    )
    return total or timedelta()


# Links for calendar programs ---------------------------------------------------------------------


class Feed(NamedTuple):
    """Whose calendar it is: a rider's or a driver's."""

    rider_id: int | None
    driver_id: int | None


async def link_calendar(connection: AsyncConnection, feed: Feed, token_hash: bytes) -> None:
    """Have the token open the feed; the one that did so before does not any more.

    Raises `UnknownRider` or `UnknownDriver`.
    """
    if feed.rider_id is not None:
        await reads.rider(connection, feed.rider_id)
        column = calendar_links.c.rider_id
    else:
        await reads.driver(connection, feed.driver_id or 0)
        column = calendar_links.c.driver_id
    statement = insert(calendar_links).values(token_hash=token_hash, **feed._asdict())
    await connection.execute(
        statement.on_conflict_do_update(
            index_elements=[column],
            set_={"token_hash": statement.excluded.token_hash, "created_at": func.now()},
        )
    )


async def linked_calendar(connection: AsyncConnection, token_hash: bytes) -> Feed:
    """The feed that the token opens. Raises `UnknownLink`."""
    found = await connection.execute(
        select(calendar_links.c.rider_id, calendar_links.c.driver_id).where(
            calendar_links.c.token_hash == token_hash
        )
    )
    row = found.one_or_none()
    if row is None:
        raise UnknownLink(field="token")
    return Feed(*row)

"""`taxi account`: who may use the service, for whoever runs it.

It works on the database itself: the first administrator has nobody to be made by.
"""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from datetime import timedelta

import rich_click as click
from sqlalchemy.ext.asyncio import AsyncConnection

from api.bodies.accounts import PASSWORD_CHARS_MIN
from api.cli.home import server_url, strategy_options, token_secret
from api.cli.remote import ID
from api.passwords import Passwords
from api.tokens import mint
from booking.accounts import Account, Role
from booking.errors import EmailTaken, InvalidInput, LastAdministrator, NotFound
from booking.postgres import accounts, schema
from booking.postgres.database import Database
from booking.postgres.ledger import add_rider

_HOUR = timedelta(hours=1)
_OPTIONS = {
    "email": "--email",
    "account_id": "--email",
    "rider_id": "--rider",
    "driver_id": "--driver",
    "name": "--name",
}

email_option = click.option("--email", required=True, help="Whose.")


@click.group("account")
def command() -> None:
    """Add accounts, disable them, and make tokens for them."""


@command.command("add")
@strategy_options
@email_option
@click.option("--role", required=True, type=click.Choice([str(each) for each in Role]))
@click.option("--rider", "rider_id", type=ID, help="The rider that it is for.")
@click.option("--name", help="The name of a rider who is not there yet.")
@click.option("--driver", "driver_id", type=ID, help="The driver that it is for.")
@click.option("--issuer", help="The external issuer by which they sign in.")
@click.option("--subject", help="As whom they sign in there.")
def add(
    prevention: str,
    allocator: str,
    email: str,
    role: str,
    rider_id: int | None,
    name: str | None,
    driver_id: int | None,
    issuer: str | None,
    subject: str | None,
) -> None:
    """Add an account.

    The password is that in TAXI_PASSWORD, or is asked for; there is none for somebody who
    signs in by an external issuer.
    """
    if bool(issuer) != bool(subject):
        raise InvalidInput("They go together.", field="--issuer, --subject")
    if "@" not in email:
        raise InvalidInput("It is not an e-mail address.", field="--email")
    if role == Role.RIDER and rider_id is None and name is None:
        raise InvalidInput("The account of a rider needs one of them.", field="--rider, --name")
    external = (issuer, subject) if issuer and subject else None
    hashed = None if external else asyncio.run(Passwords().hash(_password()))

    async def work(connection: AsyncConnection) -> Account:
        rider = rider_id
        if rider is None and name is not None:
            rider = (await add_rider(connection, name)).id
        return await accounts.add_account(
            connection,
            email,
            Role(role),
            password_hash=hashed,
            rider_id=rider,
            driver_id=driver_id,
            external=external,
        )

    added = _on_the_database(prevention, allocator, work)
    click.echo(f"Account {added.id} of {added.email} is there: {added.role}.")


@command.command("disable")
@strategy_options
@email_option
def disable(prevention: str, allocator: str, email: str) -> None:
    """Disable an account for good; within a few seconds its tokens are good for nothing."""

    async def work(connection: AsyncConnection) -> Account:
        found = await accounts.account_of(connection, email)
        return await accounts.disable_account(connection, found.id)

    disabled = _on_the_database(prevention, allocator, work)
    click.echo(f"Account {disabled.id} of {disabled.email} is disabled.")


@command.command("token")
@strategy_options
@email_option
@click.option(
    "--hours",
    type=click.FloatRange(0.01, 8_760),
    default=12.0,
    show_default=True,
    help="How long it lasts.",
)
def token(prevention: str, allocator: str, email: str, hours: float) -> None:
    """Print a token for an account, such as for TAXI_TOKEN: its password is not asked for.

    Whoever holds the secret that the service signs with can do so.
    """
    found = _on_the_database(
        prevention, allocator, lambda connection: accounts.account_of(connection, email)
    )
    if found.disabled_at is not None:
        raise InvalidInput(f"The account of {found.email} is disabled.", field="--email")
    secret = token_secret()
    if not secret:
        raise InvalidInput("It must be that of the service.", field="TAXI_TOKEN_SECRET")
    click.echo(mint(secret, found.id, hours * _HOUR))


def _password() -> str:
    """That in `TAXI_PASSWORD`, or what somebody types."""
    given = os.environ.get("TAXI_PASSWORD")
    if not given and not sys.stdin.isatty():
        raise InvalidInput(
            "It is not set, and no terminal is there to ask at.", field="TAXI_PASSWORD"
        )
    if not given:
        given = str(click.prompt("Password", hide_input=True, confirmation_prompt=True))
    if len(given) < PASSWORD_CHARS_MIN:
        raise InvalidInput(
            f"It must have {PASSWORD_CHARS_MIN} characters at least.", field="TAXI_PASSWORD"
        )
    return given


def _on_the_database(
    prevention: str, allocator: str, work: Callable[[AsyncConnection], Awaitable[Account]]
) -> Account:
    """What `work` makes of the database, which is set up if it is not there yet.

    Raises `InvalidInput`, naming the option, and what `schema.prepare` raises.
    """
    with server_url() as server:
        url = schema.prepare(server, prevention, allocator)
        try:
            return asyncio.run(_transact(url, work))
        except (InvalidInput, NotFound, EmailTaken, LastAdministrator) as error:
            where = _OPTIONS.get(error.field or "", error.field)
            raise InvalidInput(error.message, field=where) from None


async def _transact(url: str, work: Callable[[AsyncConnection], Awaitable[Account]]) -> Account:
    database = Database(url, pool_size=1)
    try:
        return await database.transact(work)
    finally:
        await database.close()

"""`taxi serve`: the service, on the embedded PostgreSQL or on the one in `DATABASE_URL`."""

import asyncio
import contextlib
import errno
import logging.config
import os
import socket
import tempfile
import threading
import time
from datetime import timedelta
from typing import Any, override

import httpx
import rich_click as click
import uvicorn
from rich.console import Console
from uvicorn.supervisors import Multiprocess

from api import logs
from api.access import is_loopback
from api.app import create_app
from api.cli.demo import EMAILS, Demo, refuse_demo_accounts, seed, what_to_try
from api.cli.home import server_url, strategy_options, token_secret
from api.settings import Settings, as_environment, read_settings, variable_of
from api.tokens import mint
from booking.accounts import Account, Role
from booking.errors import InvalidInput, TaxiError
from booking.postgres.schema import prepare

_PORT = 8_000
_PORTS_TRIED = 20
_READY_S_MAX = 60.0

console = Console(stderr=True, highlight=False, soft_wrap=True)


class PortInUse(TaxiError):
    """Another program listens on that port."""


@click.command("serve")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    help=f"Port to listen on, 0 for any.  [default: {_PORT}, or the next that is free]",
)
@click.option(
    "--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes."
)
@strategy_options
@click.option("--demo", is_flag=True, help="Fill an empty database with a small fleet.")
@click.option(
    "--log-level",
    type=click.Choice(("debug", "info", "warning", "error")),
    envvar="TAXI_LOG_LEVEL",
    default="warning",
    show_default=True,
    help="From which level on something is logged; `info` has a line for each request.",
)
@click.option(
    "--log",
    "log_style",
    type=click.Choice(logs.STYLES),
    envvar="TAXI_LOG",
    default="auto",
    show_default=True,
    help="How the log is written: as text at a terminal, as JSON anywhere else.",
)
def command(
    host: str,
    port: int | None,
    workers: int,
    prevention: str,
    allocator: str,
    demo: bool,
    log_level: str,
    log_style: str,
) -> None:
    """Serve the API until stopped by Ctrl-C.

    Settings of the environment: DATABASE_URL, and TAXI_POOL_SIZE, TAXI_WAITING_MAX,
    TAXI_WAIT_S_MAX, TAXI_STATEMENT_S_MAX, TAXI_REQUESTS_MAX, TAXI_DRAIN_S,
    TAXI_STOP_S_MAX, TAXI_CALENDAR, TAXI_ROSTER, TAXI_CITY_ZONE, TAXI_OSRM_URL,
    TAXI_OFFER_S, TAXI_IDEMPOTENCY_HOURS, TAXI_EVENTS_DAYS, TAXI_STREAMS_MAX,
    TAXI_WEBHOOK_ANSWER_S_MAX, TAXI_WEBHOOK_PRIVATE, TAXI_TOKEN_SECRET, TAXI_TOKEN_HOURS,
    TAXI_OIDC_ISSUER, TAXI_OIDC_AUDIENCE, TAXI_RIDER_HOURS_MAX, TAXI_REQUESTS_PER_MIN,
    TAXI_SIGN_INS_PER_MIN, TAXI_HOME.
    """
    log = logs.config(log_level, log_style)
    logging.config.dictConfig(log)
    if demo and not is_loopback(host):
        raise InvalidInput(
            "Everybody knows its passwords, so it listens on this machine alone: leave out"
            " --demo, or --host.",
            field="--demo",
        )
    with contextlib.closing(_listen(host, port)) as listener:
        with console.status("Starting PostgreSQL"), contextlib.ExitStack() as stack:
            server = stack.enter_context(server_url(keep_alive=True))
            url = prepare(server, prevention, allocator)
            if not is_loopback(host):
                asyncio.run(refuse_demo_accounts(url))
            accounts = asyncio.run(seed(url, prevention)) if demo else []
            running = stack.pop_all()
        with running:
            chosen = {
                "database_url": url,
                "prevention": prevention,
                "allocator": allocator,
                "token_secret": token_secret(),
            }
            settings = read_settings(
                os.environ | {variable_of(field): value for field, value in chosen.items()}
            )
            create_app(settings)  # for the sake of a clear error, before any worker starts
            address = f"http://{_shown(host)}:{listener.getsockname()[1]}"
            shown = _demo(settings, accounts) if demo else None
            threading.Thread(target=_announce, args=(address, shown), daemon=True).start()
            _serve(settings, listener, workers, log)
    console.print("Stopped.")


def _serve(settings: Settings, listener: socket.socket, workers: int, log: dict[str, Any]) -> None:
    os.environ.update(as_environment(settings))
    config = uvicorn.Config(
        "api.app:from_environment",
        factory=True,
        workers=workers,
        log_config=log,
        access_log=False,
        timeout_graceful_shutdown=settings.stop_s_max,
        reset_contextvars=True,  # or a request would be taken for part of the one before it
    )
    if workers == 1:
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])
        return
    with tempfile.TemporaryDirectory(prefix="taxi-metrics-") as shared_by_workers:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = shared_by_workers
        _Workers(config, sockets=[listener]).run()


class _Workers(Multiprocess):
    """Worker processes, whose door is closed once all of them have closed it."""

    @override
    def terminate_all(self) -> None:
        # Each has the socket as well, and serves on for a while. Were it kept open here, it
        # would take connections when nobody is left to serve them.
        for each in self.sockets:
            each.close()
        super().terminate_all()


def _listen(host: str, port: int | None) -> socket.socket:
    """A listening socket, on `port` or else on the first free one from the usual port on."""
    candidates = range(_PORT, _PORT + _PORTS_TRIED) if port is None else (port,)
    for candidate in candidates:
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            return socket.create_server((host, candidate), family=family, backlog=2_048)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                continue
            raise InvalidInput(
                f"Cannot listen on {host}:{candidate} ({error.strerror or error}).", field="--host"
            ) from None
    which = f"{candidates[0]}" if port is not None else f"{_PORT} to {candidates[-1]}"
    raise PortInUse(
        f"Port {which} is in use by another program; choose one by --port, or --port 0 for any.",
        field="--port",
    )


def _shown(host: str) -> str:
    if host in {"0.0.0.0", "::"}:  # noqa: S104  # compared, not listened on
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _demo(settings: Settings, accounts: list[Account]) -> Demo:
    """What is printed for whoever tries the service. Raises `InvalidInput`."""
    if not settings.token_secret:
        raise InvalidInput(
            "It signs in by passwords, so it needs TAXI_TOKEN_SECRET.", field="--demo"
        )
    dispatcher = next((each for each in accounts if each.role is Role.DISPATCHER), None)
    if dispatcher is None:
        raise InvalidInput(
            f"The account of {EMAILS[Role.DISPATCHER]} is disabled here.", field="--demo"
        )
    lasts = timedelta(hours=settings.token_hours)
    return Demo(accounts, mint(settings.token_secret, dispatcher.id, lasts))


def _announce(address: str, demo: Demo | None) -> None:
    """Say that the service is up, once it answers."""
    give_up_at = time.monotonic() + _READY_S_MAX
    with httpx.Client(base_url=address, trust_env=False, timeout=5) as client:
        while time.monotonic() < give_up_at:
            with contextlib.suppress(httpx.HTTPError):
                if client.get("/ready").is_success:
                    plainly = f"Serving on {address}  (API page: {address}/docs)"
                    with contextlib.suppress(OSError):  # it serves, whoever cannot be told so
                        click.echo(what_to_try(client, address, demo) if demo else plainly)
                    return
            time.sleep(0.05)
    console.print(f"[yellow]The service does not answer on {address} yet.[/]")

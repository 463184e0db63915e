"""`taxi serve`: the service, on the embedded PostgreSQL or on the one in `DATABASE_URL`."""

import asyncio
import contextlib
import errno
import os
import socket
import tempfile
import threading
import time

import httpx
import rich_click as click
import uvicorn
from rich.console import Console
from uvicorn.supervisors import Multiprocess

from api.app import create_app
from api.cli.demo import seed, what_to_try
from api.cli.home import server_url, strategy_options
from api.settings import Settings, as_environment, read_settings, variable_of
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
@click.option("--log-level", default="warning", show_default=True, help="Of the server's log.")
def command(
    host: str,
    port: int | None,
    workers: int,
    prevention: str,
    allocator: str,
    demo: bool,
    log_level: str,
) -> None:
    """Serve the API until stopped by Ctrl-C.

    Settings of the environment: DATABASE_URL, and TAXI_POOL_SIZE, TAXI_WAITING_MAX,
    TAXI_WAIT_S_MAX, TAXI_STATEMENT_S_MAX, TAXI_CALENDAR, TAXI_ROSTER,
    TAXI_IDEMPOTENCY_HOURS, TAXI_HOME.
    """
    with contextlib.closing(_listen(host, port)) as listener:
        with console.status("Starting PostgreSQL"), contextlib.ExitStack() as stack:
            server = stack.enter_context(server_url(keep_alive=True))
            url = prepare(server, prevention, allocator)
            if demo:
                asyncio.run(seed(url, prevention))
            running = stack.pop_all()
        with running:
            chosen = {"database_url": url, "prevention": prevention, "allocator": allocator}
            settings = read_settings(
                os.environ | {variable_of(field): value for field, value in chosen.items()}
            )
            create_app(settings)  # for the sake of a clear error, before any worker starts
            address = f"http://{_shown(host)}:{listener.getsockname()[1]}"
            threading.Thread(target=_announce, args=(address, demo), daemon=True).start()
            _serve(settings, listener, workers, log_level)
    console.print("Stopped.")


def _serve(settings: Settings, listener: socket.socket, workers: int, log_level: str) -> None:
    os.environ.update(as_environment(settings))
    config = uvicorn.Config(
        "api.app:from_environment",
        factory=True,
        workers=workers,
        log_level=log_level,
        access_log=False,
        timeout_graceful_shutdown=10,
    )
    if workers == 1:
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])
        return
    with tempfile.TemporaryDirectory(prefix="taxi-metrics-") as shared_by_workers:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = shared_by_workers
        Multiprocess(config, sockets=[listener]).run()


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


def _announce(address: str, demo: bool) -> None:
    """Say that the service is up, once it answers."""
    give_up_at = time.monotonic() + _READY_S_MAX
    with httpx.Client(base_url=address, trust_env=False, timeout=5) as client:
        while time.monotonic() < give_up_at:
            with contextlib.suppress(httpx.HTTPError):
                if client.get("/ready").is_success:
                    plainly = f"Serving on {address}  (API page: {address}/docs)"
                    click.echo(what_to_try(client, address) if demo else plainly)
                    return
            time.sleep(0.05)
    console.print(f"[yellow]The service does not answer on {address} yet.[/]")

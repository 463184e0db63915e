"""What a stall of the service looks like to closed and to open arrivals.

    python -m loadtest.comparison.stall

A stand-in for the service carries so many requests a second and then freezes,
once. It is asked the same by Locust three times: by few closed users, by many,
and by open arrivals at a rate below what it can carry. Only the open arrivals
see what a rider would have seen; the closed users stop asking while nobody
answers. The name for this is *coordinated omission* (Gil Tene, "How NOT to
Measure Latency", <https://www.infoq.com/presentations/latency-response-time/>).

`docs/07-measuring.md` shows the recorded result, `docs/results/stall.json`, once
`taxi figures` has written it there.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import rich_click as click
from rich.console import Console
from rich.table import Table

from booking.errors import TaxiError
from loadtest import machine
from loadtest.history import Request, percentiles_ms, read_history

_SCENARIO = Path(__file__).parents[1] / "scenarios" / "spread_out.py"
_LOCUST_S_MAX = 60.0
_HEAD_END = b"\r\n\r\n"


class LocustFailed(TaxiError):
    """Locust did not run."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The stand-in carries `capacity` requests a second and freezes for `stall_s`.

    `rate` is that of the open arrivals. Each run takes `seconds`, and the stall
    begins when a third of them is over.
    """

    seconds: int = 10
    stall_s: float = 1.0
    capacity: int = 500
    rate: int = 250
    few: int = 5
    many: int = 50


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What one kind of arrivals saw."""

    arrivals: str
    requests: int
    met_the_stall: int
    """Those that were due before the stall was over, and answered only after it."""
    latency_ms: dict[str, float]
    """p50, p90, p99 and the maximum, from the intended start."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The same stall, seen by each kind of arrivals."""

    plan: Plan
    machine: dict[str, Any]
    runs: list[Run]


class StallingService:
    """A stand-in for the service that knows one driver, and freezes once.

    It answers every booking with success, `capacity` a second, one after
    another. `freeze_after_s` after the first of them it does nothing at all for
    `stall_s`; `stalled` is when, as seconds since 1970.
    """

    def __init__(self, capacity: int, freeze_after_s: float, stall_s: float) -> None:
        self.stalled: tuple[float, float] | None = None
        self._service_s = 1 / capacity
        self._freeze_after_s = freeze_after_s
        self._stall_s = stall_s
        self._bookings = 0
        self._free_at = 0.0

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Serve from a thread; yields the address."""
        loop = asyncio.new_event_loop()
        server = loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            server.close()
            loop.run_until_complete(_end_tasks(loop))
            loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(_HEAD_END)
                await reader.readexactly(_content_length(head))
                status, body = await self._answer(head)
                text = json.dumps(body).encode()
                writer.write(
                    f"HTTP/1.1 {status} OK\r\nContent-Type: application/json\r\n"
                    f"Content-Length: {len(text)}\r\n\r\n".encode()
                )
                writer.write(text)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has gone
        finally:
            writer.close()

    async def _answer(self, head: bytes) -> tuple[int, dict[str, Any]]:
        if head.startswith(b"GET /drivers"):
            return 200, {"items": [{"id": 1}], "next_cursor": None}
        if head.startswith(b"GET /riders"):
            return 200, {"items": [{"id": number} for number in range(1, 9)], "next_cursor": None}
        self._bookings += 1
        number = self._bookings
        loop = asyncio.get_running_loop()
        if number == 1:
            loop.call_later(self._freeze_after_s, self._freeze)
        self._free_at = max(loop.time(), self._free_at) + self._service_s
        await asyncio.sleep(self._free_at - loop.time())
        return 201, {"id": number, "driver_id": 1}

    def _freeze(self) -> None:
        began_s = time.time()
        time.sleep(self._stall_s)  # in the event loop, on purpose
        self.stalled = (began_s, time.time())


def measure(plan: Plan, progress: Callable[[str], None] = lambda _: None) -> Result:
    """Let each kind of arrivals meet the same stall. Raises `LocustFailed`."""
    closed = {f"closed, {users} users": ("-u", f"{users}") for users in (plan.few, plan.many)}
    rate = ("--arrivals", "open", "--rate", f"{plan.rate}", "--gaps", "uniform")
    runs: list[Run] = []
    described = machine.describe(["locust", "gevent"])
    for arrivals, options in (*closed.items(), (f"open, {plan.rate} a second", ("-u", "1", *rate))):
        progress(arrivals)
        requests, stalled = observe(plan, options)
        runs.append(_run(arrivals, requests, stalled))
    return Result(plan=plan, machine=described, runs=runs)


def observe(plan: Plan, options: tuple[str, ...]) -> tuple[list[Request], tuple[float, float]]:
    """What Locust noted with these options, and when the stand-in was frozen.

    Raises `LocustFailed`.
    """
    service = StallingService(plan.capacity, plan.seconds / 3, plan.stall_s)
    with tempfile.TemporaryDirectory() as directory, service.serving() as address:
        command = [
            *(sys.executable, "-m", "locust", "-f", str(_SCENARIO), "--host", address),
            *("--headless", "--only-summary", "--seconds", f"{plan.seconds}", "-r", "100"),
            *("--drivers", "1", "--history", directory, "--exit-code-on-error", "0", *options),
        ]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=plan.seconds + _LOCUST_S_MAX,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise LocustFailed("Locust did not come to an end.") from None
        if done.returncode or service.stalled is None:
            told = done.stderr.strip().rpartition("\n")[2]
            raise LocustFailed(f"Locust exited with {done.returncode}: {told}")
        return read_history(Path(directory)), service.stalled


def met(requests: list[Request], stalled: tuple[float, float]) -> list[Request]:
    """Those that were due before the stall was over, and answered only after it."""
    _, ended_s = stalled
    return [
        each
        for each in requests
        if each.intended_s < ended_s and each.answered_s is not None and each.answered_s >= ended_s
    ]


def _run(arrivals: str, requests: list[Request], stalled: tuple[float, float]) -> Run:
    latencies_s = [
        each.answered_s - each.intended_s for each in requests if each.answered_s is not None
    ]
    unanswered = len(requests) - len(latencies_s)
    if unanswered:
        # They are the slowest of all. Figures without them would be what this is about.
        raise LocustFailed(
            f"{unanswered} requests ({arrivals}) had no answer at the end of the run:"
            " it was too short for this stall, or the machine is too busy."
        )
    return Run(
        arrivals=arrivals,
        requests=len(requests),
        met_the_stall=len(met(requests, stalled)),
        latency_ms=percentiles_ms(latencies_s),
    )


def markdown(recorded: dict[str, Any]) -> str:
    """A recorded result as a table, and what must be known to read it."""
    result = msgspec.convert(recorded, Result)
    plan, about = result.plan, result.machine
    conditions = (
        f"Latencies in ms. The service carries {plan.capacity} requests a second and freezes once"
        f" for {plan.stall_s:g} s in a run of {plan.seconds} s. Measured {about['at'][:10]} on"
        f" {about['cpu']}, {about['cores']} cores, {about['system']}, load {about['load_1_min']} at"
        f" the start; {about['python']}, Locust {about['packages']['locust']}."
    )
    head = (
        "| arrivals | requests | met the stall | p50 | p90 | p99 | slowest |",
        "|---|" + "--:|" * 6,
    )
    rows = (f"| {' | '.join(cells(run))} |" for run in result.runs)
    return "\n".join((*head, *rows, "", conditions))


def cells(run: Run) -> list[str]:
    """A run's row."""
    latencies = (f"{run.latency_ms[name]:,.0f}" for name in ("p50", "p90", "p99", "max"))
    return [run.arrivals, f"{run.requests:,}", f"{run.met_the_stall:,}", *latencies]


@click.command()
@click.option(
    "--seconds", type=click.IntRange(2, 600), default=10, show_default=True, help="Of each run."
)
@click.option(
    "--stall-s",
    type=click.FloatRange(0.1, 10),
    default=1.0,
    show_default=True,
    help="How long the service freezes.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write every figure to this file.",
)
def main(seconds: int, stall_s: float, json_file: Path | None) -> None:
    """Show what one stall of the service looks like to closed and to open arrivals."""
    if stall_s > seconds / 3:
        raise click.BadParameter(
            f"it must be at most a third of --seconds, here {seconds / 3:.1f}: the stall begins"
            " after a third of the run, and the line that it leaves must be gone by the end.",
            param_hint="--stall-s",
        )
    console = Console(highlight=False)
    try:
        with console.status("") as status:
            result = measure(Plan(seconds=seconds, stall_s=stall_s), status.update)
        console.print(_table(result))
        if json_file:
            text = msgspec.json.format(msgspec.json.encode(result), indent=2)
            json_file.write_bytes(text + b"\n")
    except TaxiError as error:
        raise click.ClickException(error.message) from None
    except OSError as error:
        raise click.ClickException(f"{error.filename}: {error.strerror}.") from None


def _table(result: Result) -> Table:
    table = Table(title="Latency from the intended start, ms", title_justify="left", box=None)
    table.add_column("arrivals", style="bold")
    for heading in ("requests", "met the stall", "p50", "p90", "p99", "slowest"):
        table.add_column(heading, justify="right")
    for run in result.runs:
        table.add_row(*cells(run))
    return table


def _content_length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0


async def _end_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Let the connections that are still open be closed."""
    others = asyncio.all_tasks(loop) - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


if __name__ == "__main__":
    main()

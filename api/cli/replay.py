"""`taxi replay`: real trips, driven through the running API as bookings."""

import asyncio
import secrets
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import rich_click as click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from api.cli.remote import json_option, url_option
from booking.drivers import check_zone
from loadtest.history import percentiles_ms
from loadtest.trips.files import Order, Trip, TripFile, in_order
from loadtest.trips.replay import Plan, Replay, Tally, Verification

_WIDTH = 80
_NAMED_IN_TEXT = 5
_INTERRUPTED = 130


@click.command("replay")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--zone",
    help="The zone of times that carry no offset, such as America/New_York."
    " The TLC's files need it.",
)
@click.option(
    "--drivers",
    required=True,
    type=click.IntRange(min=1),
    help="How many drivers the replay's own fleet has.",
)
@url_option
@click.option(
    "--clients",
    type=click.IntRange(1, 1_000),
    default=1,
    show_default=True,
    help="How many trips are on their way at once.",
)
@click.option(
    "--order",
    type=click.Choice([str(each) for each in Order]),
    default=str(Order.START),
    show_default=True,
    help="Trips by their start, as in the file, or shuffled by the seed.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="Decides the shuffled order, and who is named.",
)
@click.option("--named", is_flag=True, help="Each trip names a driver instead of taking any.")
@click.option(
    "--limit", "rows_max", type=click.IntRange(min=1), help="Read only so many rows of the file."
)
@click.option("--fleet", help="Name of the replay's fleet.  [default: a new one each time]")
@click.option(
    "--patience",
    "patience_s",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    help="Seconds for which a trip is sent again when turned away or not answered.",
)
@click.option("--verify", is_flag=True, help="Look up afterwards every booking acknowledged.")
@json_option
@click.option("--quiet", is_flag=True, help="No progress bar.")
def command(
    file: Path,
    zone: str | None,
    drivers: int,
    url: str,
    clients: int,
    order: str,
    seed: int,
    named: bool,
    rows_max: int | None,
    fleet: str | None,
    patience_s: float,
    verify: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Book every trip of FILE through the API and report what became of them.

    FILE is CSV or Parquet with the columns of the New York TLC's trip records.
    Each trip is booked for any free driver of a fleet that the replay makes for
    itself. By default trips come one after another in order of start: only then
    are as many drivers as trips at once enough.

    Exits with 0 if every trip was answered, be it by a refusal; with 1 if one
    was not, or if --verify misses a booking; with 130 when interrupted.
    """
    plan = Plan(
        url=url,
        fleet=fleet or _new_fleet(),
        drivers=drivers,
        zone="UTC" if zone is None else check_zone(zone),
        clients=clients,
        named=named,
        seed=seed,
        patience_s=patience_s,
    )
    trip_file = TripFile(file, None if zone is None else ZoneInfo(zone), rows_max)
    with _progress(quiet=quiet) as progress:
        task = progress.add_task("reading", total=None, told="")
        total, trips = in_order(trip_file, Order(order), seed)
        progress.update(task, total=total, description="replaying")
        replay = Replay(
            plan,
            remember=verify,
            on_settled=lambda tally: progress.update(
                task,
                completed=tally.settled,
                told=f"{tally.refusals:,} refused, {tally.failed:,} failed",
            ),
        )
        verification = asyncio.run(_drive(replay, trips, verify=verify))
    report = _report(trip_file, plan, order, replay.tally, verification)
    if as_json:
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    else:
        _print(report)
    return _status(replay.tally, verification)


async def _drive(replay: Replay, trips: Iterable[Trip], *, verify: bool) -> Verification | None:
    loop = asyncio.get_running_loop()

    def stop() -> None:
        replay.stop()
        loop.remove_signal_handler(signal.SIGINT)  # a second Ctrl-C does not wait

    loop.add_signal_handler(signal.SIGINT, stop)
    await replay.run(trips)
    if not verify or replay.tally.interrupted or replay.tally.gone:
        return None
    return await replay.verify()


def _status(tally: Tally, verification: Verification | None) -> int:
    if tally.interrupted:
        return _INTERRUPTED
    lost = verification is not None and (
        verification.error is not None
        or verification.missing_count > 0
        # Each trip is booked once at most, so those that failed explain no more than themselves.
        or verification.unacknowledged > tally.failed
    )
    return int(tally.failed > 0 or tally.gone or lost)


def _new_fleet() -> str:
    return f"replay {datetime.now(UTC):%Y-%m-%d %H:%M:%S} {secrets.token_hex(2)}"


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Progress]:
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[told]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, disable=quiet or not console.is_terminal, transient=True
    ) as progress:
        yield progress


def _report(
    file: TripFile, plan: Plan, order: str, tally: Tally, verification: Verification | None
) -> dict[str, Any]:
    """The report: the keys are documented in docs/replay.md."""
    answered = tally.accepted + tally.refusals
    return {
        "file": str(file.path),
        "url": plan.url,
        "fleet": plan.fleet,
        "order": order,
        "clients": plan.clients,
        "named": plan.named,
        "seed": plan.seed,
        "rows": file.rows,
        "malformed": file.malformed,
        "malformed_rows": [row._asdict() for row in file.malformed_named],
        "trips": file.trips,
        "accepted": tally.accepted,
        "refused": tally.refusals,
        "refused_by_reason": [
            {"type": kind, **asdict(each)}
            for kind, each in sorted(tally.refused.items(), key=lambda item: -item[1].count)
        ],
        "failed": tally.failed,
        "failures": [each._asdict() for each in tally.failures],
        "unsent": file.trips - tally.settled,
        "retries": tally.retries.total(),
        "retries_by_reason": dict(tally.retries.most_common()),
        "recalled": tally.recalled,
        "drivers": plan.drivers,
        "drivers_used": len(tally.drivers_used),
        "wall_s": round(tally.wall_s, 3),
        "bookings_per_s": _rate(tally.accepted, tally.wall_s),
        "answers_per_s": _rate(answered, tally.wall_s),
        "latency_ms": percentiles_ms(tally.latencies_s) or None,
        "settled_ms": percentiles_ms(tally.settled_s) or None,
        "interrupted": tally.interrupted,
        "service_gone": tally.gone,
        "verified": None if verification is None else asdict(verification),
    }


def _rate(count: int, wall_s: float) -> float:
    return round(count / wall_s, 1) if wall_s else 0.0


def _print(report: dict[str, Any]) -> None:
    console = Console(width=_WIDTH, highlight=False)
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value, remark in _lines(report):
        table.add_row(Text(name), value, Text(remark))
    console.print(table)
    _print_named(console, "Malformed", report["malformed"], report["malformed_rows"], "rule")
    _print_named(console, "Failed", report["failed"], report["failures"], "reason")
    if report["service_gone"]:
        console.print("The service does not answer any more, so the rest was not sent.")
    if report["interrupted"]:
        console.print("Interrupted: the rest was not sent.")


def _lines(report: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Name, figure and remark of each line of the text."""
    yield "rows read", f"{report['rows']:,}", ""
    yield "  malformed", f"{report['malformed']:,}", "named below" if report["malformed"] else ""
    yield "trips", f"{report['trips']:,}", f"fleet {report['fleet']!r}"
    yield "  accepted", f"{report['accepted']:,}", ""
    yield "  refused", f"{report['refused']:,}", ""
    for reason in report["refused_by_reason"]:
        first = ", ".join(str(line) for line in reason["lines"][:_NAMED_IN_TEXT])
        more = ", …" if reason["count"] > _NAMED_IN_TEXT else ""
        yield "", f"{reason['count']:,}", f"{reason['title']} (line {first}{more})"
    yield "  failed", f"{report['failed']:,}", "no answer to a booking" if report["failed"] else ""
    if report["unsent"]:
        yield "  not sent", f"{report['unsent']:,}", ""
    retries = "; ".join(f"{count:,}: {why}" for why, count in report["retries_by_reason"].items())
    yield "sent again", f"{report['retries']:,}", retries
    yield "drivers used", f"{report['drivers_used']:,}", f"of {report['drivers']:,}"
    yield "wall time", f"{report['wall_s']:,.1f}", "s"
    yield "bookings/s", f"{report['bookings_per_s']:,.1f}", "accepted"
    latency, settled = report["latency_ms"], report["settled_ms"]
    if latency:
        for name, value_ms in latency.items():
            again = f"; {settled[name]:,.1f} ms from the first sending" if report["retries"] else ""
            remark = f"ms from sending to answer{again}"
            yield f"latency {name}", f"{value_ms:,.1f}", remark
    verified = report["verified"]
    if verified is not None:
        yield "verified", f"{verified['found']:,}", "acknowledged bookings are there"
        missing = ", ".join(str(each) for each in verified["missing"][:_NAMED_IN_TEXT])
        yield "  missing", f"{verified['missing_count']:,}", f"id {missing}" if missing else ""
        yield "  not acked", f"{verified['unacknowledged']:,}", verified["error"] or ""


def _print_named(
    console: Console, heading: str, count: int, rows: list[dict[str, Any]], what: str
) -> None:
    for row in rows[:_NAMED_IN_TEXT]:
        console.print(Text(f"{heading}: line {row['line']}: {row[what]}"))
    if count > _NAMED_IN_TEXT:
        console.print(f"{heading}: and {count - _NAMED_IN_TEXT:,} more; --json names them.")

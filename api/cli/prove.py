"""`taxi prove`: every interleaving of a few sessions, on a real PostgreSQL."""

import asyncio
import os
from collections.abc import Iterator, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path

import asyncpg
import msgspec
import rich_click as click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from api.cli.home import server_url
from booking.errors import InvalidInput, TaxiError
from booking.postgres.database import Isolation, parse_url
from booking.postgres.schema import plainly_told, prepare, url_for
from booking.strategies import Act, strategies
from loadtest import prove, prove_docs
from loadtest.prove import LEVELS, Bench, Cell, Played, Subject
from loadtest.prove_scenarios import SCENARIOS, Scenario

_HEADINGS = {level: level.lower() for level in LEVELS}


class Interrupted(TaxiError):
    """PostgreSQL ended the proof."""


@click.command("prove")
@click.option("--recipes", "--recipe", "names", help="Only these, with commas between them.")
@click.option(
    "--isolation",
    "level_names",
    help="Only these levels, with commas between them: read committed, repeatable read,"
    " serializable.",
)
@click.option(
    "--sessions",
    type=click.Choice([str(number) for number in SCENARIOS]),
    default="2",
    show_default=True,
    help="How many sessions meet. Three take far longer.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the matrix to this file.",
)
@click.option(
    "--schedule",
    help="Run one schedule, and print it line by line: its number, or scenario:steps as in"
    " books_that_overlap:ABABABAB.",
)
@click.option(
    "--one-process",
    is_flag=True,
    help="With --schedule: the sessions share the memory of a process.",
)
def command(
    names: str | None,
    level_names: str | None,
    sessions: str,
    json_file: Path | None,
    schedule: str | None,
    one_process: bool,
) -> int:
    """Run every interleaving of a few sessions, for each recipe and isolation level.

    Exits with 1 if a recipe breaks its claim at the level it asks for.
    """
    subjects = _subjects(names)
    levels = _levels(level_names)
    if schedule is None:
        if one_process:
            raise InvalidInput("It goes with --schedule.", field="--one-process")
        return _matrix(subjects, levels, int(sessions), json_file)
    if json_file is not None:
        raise InvalidInput("It does not go with --schedule.", field="--json")
    if len(subjects) != 1 or len(levels) != 1:
        raise InvalidInput(
            "It needs one recipe and one level: --recipe NAME --isolation LEVEL.",
            field="--schedule",
        )
    return _one(subjects[0], levels[0], int(sessions), schedule, one_process=one_process)


def _split(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _subjects(text: str | None) -> list[Subject]:
    known = [each.name for each in strategies(Act.PREVENTION)]
    for name in (wanted := _split(text)):
        if name not in known:
            raise InvalidInput(
                f"There is no recipe {name!r}; there are {', '.join(known)}.", field="--recipes"
            )
    return prove.recipes(dict.fromkeys(wanted))


def _levels(text: str | None) -> list[Isolation]:
    known = {level.lower(): level for level in LEVELS}
    for name in _split(text):
        if name.lower() not in known:
            raise InvalidInput(
                f"There is no level {name!r}; there are {', '.join(known)}.", field="--isolation"
            )
    wanted = dict.fromkeys(known[name.lower()] for name in _split(text))
    return list(wanted or LEVELS)


def _matrix(
    subjects: Sequence[Subject], levels: list[Isolation], sessions: int, json_file: Path | None
) -> int:
    if json_file is not None and not json_file.parent.is_dir():
        raise InvalidInput(f"There is no folder {json_file.parent}.", field="--json")
    console = Console(highlight=False)
    with server_url() as url:
        cells = _cells(url, subjects, levels, sessions)
        with plainly_told(url):
            server = asyncio.run(prove.server_version(url))
    result = prove.proof(server, sessions, cells)
    if json_file is not None:
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    console.print(_table(result.cells, levels))
    console.print(f"{sum(c.interleavings for c in cells):,} interleavings; ▸ is the recipe's own.")
    broken = [cell for cell in cells if not cell.keeps_its_claim]
    for cell in broken:
        console.print(f"[bold red]{cell.recipe} breaks its claim:[/] {cell.claim}.")
    return 1 if broken else 0


def _cells(
    url: str, subjects: Sequence[Subject], levels: list[Isolation], sessions: int
) -> list[Cell]:
    cells: list[Cell] = []
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    steps = len(levels) * len(SCENARIOS[sessions])
    total = sum(steps * len(subject.ledgers(sessions)) for subject in subjects)
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)

        def tell(said: str) -> None:
            progress.update(task, description=said, advance=1)

        for subject in subjects:
            with _own_database(url, subject) as own_url:
                cells += asyncio.run(
                    prove.prove(own_url, subject, levels, sessions=sessions, tell=tell)
                )
    return cells


@contextmanager
def _own_database(url: str, subject: Subject) -> Iterator[str]:
    """A database for the proof alone, which is gone afterwards.

    Raises `Interrupted` for what goes wrong between us and the server.
    """
    base = parse_url(url).set(drivername="postgresql")
    base = base.set(database=f"{base.database}_prove_{os.getpid()}")
    named = base.render_as_string(hide_password=False)
    try:
        yield prepare(named, subject.name)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        raise Interrupted(f"PostgreSQL ended the proof of {subject.name}: {error}") from error
    finally:
        with plainly_told(url):
            asyncio.run(_drop(url, parse_url(url_for(named, subject.name)).database or ""))


async def _drop(url: str, name: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
    finally:
        await connection.close()


def _table(cells: Sequence[Cell], levels: list[Isolation]) -> Table:
    table = Table(
        Column("recipe", overflow="fold"),
        *(_HEADINGS[level] for level in levels),
        box=None,
        header_style="bold",
    )
    for name, found in prove_docs.rows(cells):
        table.add_row(name, *(_shown(found.get(level)) for level in levels))
    return table


def _shown(cell: Cell | None) -> Text:
    if cell is None:
        return Text()
    text = Text("▸ " if cell.own else "  ")
    for number, (said, bad) in enumerate(prove_docs.lines(cell)):
        style = "red" if bad else "green" if said == "safe" else "dim"
        text.append(("\n  " if number else "") + said, style=style)
    return text


def _one(
    subject: Subject, level: Isolation, sessions: int, schedule: str, *, one_process: bool
) -> int:
    scenarios = SCENARIOS[sessions]
    scenario, choices = _parsed(schedule, scenarios)
    ledgers = 1 if one_process else sessions
    if ledgers not in subject.ledgers(sessions):
        raise InvalidInput(f"{subject.name} does not rest on it.", field="--one-process")
    with server_url() as url, _own_database(url, subject) as own_url:
        played = asyncio.run(_play(own_url, subject, level, ledgers, sessions, scenario, choices))
    console = Console(highlight=False, soft_wrap=True, markup=False)
    number = f", schedule {played.number}" if played.number else ""
    console.print(f"{subject.name}, {level.lower()}{number}: {played.name}")
    for line in prove_docs.told(played):
        console.print(line)
    return 0


def _parsed(schedule: str, scenarios: Sequence[Scenario]) -> tuple[Scenario | None, str]:
    """The scenario and who takes each step; or no scenario, and a number."""
    if schedule.isdecimal() and int(schedule) > 0:
        return None, schedule
    name, colon, choices = schedule.partition(":")
    for scenario in scenarios:
        letters = "ABC"[: len(scenario.commands)]
        if colon and scenario.name == name and choices and not choices.strip(letters):
            return scenario, choices
    raise InvalidInput(
        "Give a number from 1, or scenario:steps with the scenario one of"
        f" {', '.join(scenario.name for scenario in scenarios)}, and the steps in letters.",
        field="--schedule",
    )


async def _play(
    url: str,
    subject: Subject,
    level: Isolation,
    ledgers: int,
    sessions: int,
    scenario: Scenario | None,
    choices: str,
) -> Played:
    async with prove.bench(url, subject, level, sessions=sessions, ledgers=ledgers) as bench:
        if scenario is not None:
            return await bench.follow(scenario, choices)
        return await _by_number(bench, SCENARIOS[sessions], int(choices))


async def _by_number(bench: Bench, scenarios: Sequence[Scenario], wanted: int) -> Played:
    # The order is that of a search, so those before it are run as well.
    last = 0
    async with aclosing(bench.schedules(scenarios)) as schedules:
        async for played in schedules:
            last = played.number
            if last == wanted:
                return played
    raise InvalidInput(f"There are {last} schedules.", field="--schedule")

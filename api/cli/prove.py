"""`taxi prove`: every interleaving of a few sessions, on a real PostgreSQL."""

import asyncio
import os
from collections.abc import Iterator, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile

import asyncpg
import msgspec
import rich_click as click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from api.cli import names
from api.cli.home import server_url
from booking.errors import InvalidInput, TaxiError
from booking.postgres.database import Isolation, dsn, parse_url
from booking.postgres.schema import plainly_told, prepare, url_for
from booking.strategies import Act, strategies
from loadtest import figures, machine
from loadtest.bench import databases
from loadtest.outputs import writing
from loadtest.proof import exhaustion, tables
from loadtest.proof.exhaustion import LEVELS, Bench, Cell, Played, Proof, Subject
from loadtest.proof.scenarios import SCENARIOS, Scenario

_HEADINGS = {level: level.lower() for level in LEVELS}


class Interrupted(TaxiError):
    """PostgreSQL ended the proof."""


@click.command("prove")
@click.option("--recipes", "--recipe", "recipe_names", help="Only these, with commas between them.")
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
    recipe_names: str | None,
    level_names: str | None,
    sessions: str,
    json_file: Path | None,
    schedule: str | None,
    one_process: bool,
) -> int:
    """Run every interleaving of a few sessions, for each recipe and isolation level.

    Exits with 1 if a recipe breaks its claim at the level it asks for.
    """
    known = [each.name for each in strategies(Act.PREVENTION)]
    subjects = exhaustion.recipes(names.chosen("--recipes", recipe_names, known))
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


def _levels(text: str | None) -> list[Isolation]:
    wanted = names.chosen("--isolation", text, _HEADINGS.values())
    return [level for level in LEVELS if not wanted or _HEADINGS[level] in wanted]


def _matrix(
    subjects: Sequence[Subject], levels: list[Isolation], sessions: int, json_file: Path | None
) -> int:
    if json_file is not None:
        if json_file.exists() and not json_file.is_file():
            raise InvalidInput(f"{json_file} is no ordinary file.", field="--json")
        with writing(json_file, "--json"):  # or all is run, and then there is no place for it
            NamedTemporaryFile(dir=json_file.parent).close()
    with server_url() as url:
        with plainly_told(url):
            server = asyncio.run(exhaustion.server_version(url))
        about = machine.describe(["sqlalchemy", "asyncpg"])
        cells = _cells(url, subjects, levels, sessions)
    _print(cells, levels)
    if json_file is not None:
        result = msgspec.json.encode(Proof(about, server, sessions, cells))
        with writing(json_file, "--json"), figures.replacing(json_file) as new:
            new.write_bytes(msgspec.json.format(result, indent=1) + b"\n")
    return 0 if all(cell.keeps_its_claim for cell in cells) else 1


def _print(cells: Sequence[Cell], levels: list[Isolation]) -> None:
    console = Console(highlight=False)
    console.print(_table(cells, levels))
    console.print(f"{sum(c.interleavings for c in cells):,} interleavings; ▸ is the recipe's own.")
    for cell in cells:
        if not cell.keeps_its_claim:
            shown = ", ".join(said for said, bad in tables.lines(cell) if bad)
            console.print(
                f"[bold red]{cell.recipe} breaks its claim,[/] {cell.claim}: {shown}.",
                soft_wrap=True,
            )


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
                    exhaustion.prove(own_url, subject, levels, sessions=sessions, tell=tell)
                )
    return cells


@contextmanager
def _own_database(url: str, subject: Subject) -> Iterator[str]:
    """A database for the proof alone, which is gone afterwards.

    Raises `Interrupted` for what goes wrong between us and the server.
    """
    named = dsn(url, f"{parse_url(url).database}_prove_{os.getpid()}")
    try:
        yield prepare(named, subject.name)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        raise Interrupted(f"PostgreSQL ended the proof of {subject.name}: {error}") from error
    finally:
        with plainly_told(url):
            asyncio.run(databases.drop(url, [url_for(named, subject.name)]))


def _table(cells: Sequence[Cell], levels: list[Isolation]) -> Table:
    table = Table(
        Column("recipe", overflow="fold"),
        *(_HEADINGS[level] for level in levels),
        box=None,
        header_style="bold",
    )
    for name, found in tables.rows(cells):
        table.add_row(name, *(_shown(found.get(level)) for level in levels))
    return table


def _shown(cell: Cell | None) -> Text:
    if cell is None:
        return Text()
    text = Text("▸ " if cell.own else "  ")
    for number, (said, bad) in enumerate(tables.lines(cell)):
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
    for line in tables.told(played):
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
    async with exhaustion.bench(url, subject, level, sessions=sessions, ledgers=ledgers) as bench:
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

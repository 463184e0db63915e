"""The matrix in words: for a chapter, for the terminal, and one schedule line by line."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from booking.bookings import Booking
from booking.postgres.database import Isolation
from loadtest.proof.exhaustion import LEVELS, Cell, Played, Proof, Subject
from loadtest.proof.scenarios import SCENARIOS, Row, Sign
from loadtest.proof.steps import Session, letter

_SAID = {
    Sign.DOUBLE_BOOKING: "double-booked",
    Sign.LOST: "lost a booking",
    Sign.GHOST: "kept what was refused",
    Sign.WRONG_REFUSAL: "refused wrongly",
    Sign.FAILED: "failed",
    Sign.DEADLOCK: "deadlocked",
    Sign.RETRY: "retried",
    Sign.GAVE_UP: "gave up",
}


def read(recorded: dict[str, Any]) -> Proof:
    """A proof from the JSON that was written of one."""
    return msgspec.convert(recorded, Proof)


def render_proof(recorded: dict[str, Any]) -> str:
    """The matrix as Markdown: a row for each recipe, a column for each isolation level."""
    proof = read(recorded)
    levels = [level for level in LEVELS if any(c.isolation == level for c in proof.cells)]
    lines = [
        f"| recipe | {' | '.join(level.lower() for level in levels)} |",
        f"|---|{'---|' * len(levels)}",
    ]
    for name, cells in rows(proof.cells):
        shown = [_markdown(cells[level]) if level in cells else "" for level in levels]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join([*lines, "", _explained(proof), ""])


def rows(cells: Sequence[Cell]) -> Iterator[tuple[str, dict[Isolation, Cell]]]:
    """The cells by recipe, and by how many processes there are where that matters."""
    both = {cell.recipe for cell in cells if cell.ledgers == 1}
    keys = dict.fromkeys((cell.recipe, cell.ledgers) for cell in cells)
    for recipe, ledgers in keys:
        processes = "one process" if ledgers == 1 else f"{ledgers} processes"
        name = f"{recipe}, {processes}" if recipe in both else recipe
        found = [cell for cell in cells if (cell.recipe, cell.ledgers) == (recipe, ledgers)]
        yield name, {_level(cell): cell for cell in found}


def lines(cell: Cell) -> list[tuple[str, bool]]:
    """What the cell shows, and of each whether it is an anomaly; the first says if all is well."""
    signs = cell.signs
    shown = [
        (f"{signs[sign]:,} {said}", sign in cell.forbidden)
        for sign, said in _SAID.items()
        if signs[sign]
    ]
    if not cell.anomalies:
        shown.insert(0, ("safe", False))
    return shown


def _level(cell: Cell) -> Isolation:
    return next(level for level in LEVELS if level == cell.isolation)


def _markdown(cell: Cell) -> str:
    said = ", ".join(f"**{text}**" if bad else text for text, bad in lines(cell))
    return f"{'▸ ' if cell.own else ''}{said} (of {cell.interleavings:,})"


def _explained(proof: Proof) -> str:
    about = proof.machine
    scenarios = SCENARIOS[proof.sessions]
    run = sum(outcome.schedules for cell in proof.cells for outcome in cell.outcomes)
    orders = sum(cell.interleavings for cell in proof.cells)
    packages = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    return (
        f"▸ marks the level that the recipe asks for. Counted are interleavings of"
        f" {proof.sessions} sessions in {len(scenarios)} scenarios that show a thing, of so many in"
        f" brackets. In all {orders:,}, of which {run:,} were run; the others differ from one of"
        f" those by swaps of steps that cannot notice each other. Under SERIALIZABLE, how often a"
        f" transaction is run again depends on how rows lie on pages. Recorded"
        f" {about['at'][:10]} by `taxi prove --sessions {proof.sessions}` on {proof.server},"
        f" {about['python']}, {packages}."
    )


def differences(recorded: Proof, cells: Sequence[Cell]) -> list[str]:
    """Where a cell shows other things than the recorded one: bad turned good, or good bad.

    Compared is which things each scenario shows, not how often: a recipe that takes one
    more statement has more interleavings, and is as safe as before. Under SERIALIZABLE
    only anomalies count. A cell that is not recorded differs from nothing, so that a new
    recipe can be tried; that none is missing is for `unrecorded` to say.
    """
    known = {_key(cell): cell for cell in recorded.cells}
    return [
        f"{_named(_key(cell))}, {name}:"
        f" recorded {_listed(before.get(name))}, found {_listed(shown)}"
        for cell in cells
        if _key(cell) in known
        for before in [_shown(known[_key(cell)])]
        for name, shown in _shown(cell).items()
        if before.get(name) != shown
    ]


def unrecorded(recorded: Proof, subjects: Iterable[Subject]) -> list[str]:
    """What is missing in a proof of these, and what is in it of others.

    A cell is missing also if it lacks a scenario, or holds another claim than the recipe
    makes today.
    """
    wanted = {
        (subject.name, level, ledgers): (subject.claim, level == subject.isolation)
        for subject in subjects
        for level in LEVELS
        for ledgers in subject.ledgers(recorded.sessions)
    }
    scenarios = {scenario.name for scenario in SCENARIOS[recorded.sessions]}
    there = {
        _key(cell): (cell.claim, cell.own)
        for cell in recorded.cells
        if {each.scenario for each in cell.outcomes if each.interleavings} == scenarios
    }
    return sorted({_named(key) for key, _ in wanted.items() ^ there.items()})


def _key(cell: Cell) -> tuple[str, str, int]:
    return cell.recipe, cell.isolation, cell.ledgers


def _named(key: tuple[str, str, int]) -> str:
    recipe, isolation, ledgers = key
    return f"{recipe}, {isolation.lower()}, {ledgers} ledgers"


def _shown(cell: Cell) -> dict[str, set[str]]:
    counts = {*Sign} if cell.isolation != "SERIALIZABLE" else {*cell.forbidden}
    return {each.scenario: {*each.signs} & {str(sign) for sign in counts} for each in cell.outcomes}


def _listed(signs: set[str] | None) -> str:
    if signs is None:
        return "no such scenario"
    return ", ".join(sorted(signs)) or "nothing"


def told(played: Played) -> Iterator[str]:
    """One schedule, line by line, with what each step saw; the sessions stand side by side."""
    yield str(played.scenario)
    yield ""
    for number, event in enumerate(played.run.events, start=1):
        indent = "    " * event.session
        yield f"{number:>3}  {indent}{letter(event.session)}: {event.statement}"
        waited = f"waits; after step {event.until}: " if event.until else ""
        seen = waited + event.saw
        if seen:
            yield f"     {indent}   → {seen}"
    yield ""
    for session in played.run.sessions:
        yield f"{letter(session.number)} was answered: {_answer(session)}"
    yield f"in the end: {'; '.join(map(_row, played.rows)) or 'no booking'}"
    yield f"this shows: {', '.join(sorted(played.signs)) or 'nothing wrong'}"


def _answer(session: Session) -> str:
    answer = session.answer
    if isinstance(answer, Booking):
        window = f"[{answer.start:%H:%M}, {answer.predicted_end:%H:%M})"
        return f"booking {answer.id}, {answer.state}, {window}"
    if answer is None:
        return "never"
    return f"{type(answer).__name__}: {str(answer).partition(chr(10))[0]}"


def _row(row: Row) -> str:
    return f"booking {row.id}, {row.state}, [{row.start:%H:%M}, {row.end:%H:%M})"

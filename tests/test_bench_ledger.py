"""The benchmark of the ledger: who has a turn when, and what counts as an answer."""

import asyncio
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from click.testing import CliRunner

from booking.bookings import BookingRequest
from booking.errors import BookingConflict, Contended
from booking.ledgers import Ledger
from booking.postgres.embedded import EmbeddedPostgres
from loadtest import machine
from loadtest.bench import advice, ledger, own_server
from loadtest.bench.ledger import CEILING, NothingAnswered, Plan, Result, Size

PLAN = Plan(
    {"small": Size(4, 2), "middling": Size(10, 2), "large": Size(20, 2)},
    measure_s=0.05,
    warm_up_s=0.01,
    repeats=2,
)


@pytest.fixture(scope="module")
def told() -> list[str]:
    """What came, in order."""
    return []


@pytest.fixture(scope="module")
def result(server: EmbeddedPostgres, told: list[str]) -> Result:
    describe = machine.describe

    def described(packages: Iterable[str]) -> dict[str, Any]:
        told.append("described")
        return describe(packages)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "describe", described)
        return ledger.measure(server.url, PLAN, lambda _share, text: told.append(text))


def test_everybody_has_a_turn_under_every_workload_before_anybody_has_a_second(
    result: Result, told: list[str]
) -> None:
    places = [f"{cell.workload}: {cell.contender}" for cell in result.cells]
    assert len(set(places)) == len(PLAN.workloads()) * len(ledger.contenders())
    turns = [text.split(", ") for text in told if text.endswith(f" of {PLAN.repeats}")]
    taken = [(", ".join(place), number) for *place, number in turns]
    # The order rotates, so the second repeat begins with the second.
    assert taken == [
        *((place, "1 of 2") for place in places),
        *((place, "2 of 2") for place in (*places[1:], places[0])),
    ]
    assert all(len(cell.runs) == PLAN.repeats for cell in result.cells)


def test_the_machine_is_described_before_it_is_loaded(result: Result, told: list[str]) -> None:
    assert result.machine["load_taken"] == "at the start"
    assert told.index("described") == 0


def test_only_what_has_no_rule_double_books(result: Result) -> None:
    for cell in result.cells:
        if not cell.contender.startswith("unconstrained"):
            assert cell.double_bookings == 0
    # The control: the audit does see what is double-booked.
    assert result.cell("high contention", CEILING).double_bookings > 0


def test_the_table_has_a_row_for_each_and_says_on_what(result: Result) -> None:
    table = ledger.markdown(msgspec.json.decode(msgspec.json.encode(result)))
    assert len([line for line in table.splitlines() if line.startswith("| ")]) == 1 + 16
    assert f"PostgreSQL {result.server['server_version']} (fsync off" in table


class Answering:
    """Answers as it is told, one after the other, and for ever as the last time."""

    def __init__(self, *answers: Exception | None) -> None:
        self._answers = itertools.chain(answers, itertools.repeat(answers[-1]))

    async def book(self, _request: BookingRequest) -> None:
        await asyncio.sleep(0.001)
        if (answer := next(self._answers)) is not None:
            raise answer


def load(*answers: Exception | None) -> ledger.Run:
    workload = PLAN.workloads()[0]
    answering = cast("Ledger", Answering(*answers))
    return asyncio.run(ledger.load(answering, workload, 0.01, seed=1))


def test_one_answer_is_enough_and_a_contended_request_is_none() -> None:
    for answer, counted in ((None, (1, 0)), (BookingConflict(), (0, 1))):
        run = load(answer, Contended())
        assert (run.booked, run.refused) == counted
        assert run.p50_ms == run.p99_ms >= 1
        assert run.requests_per_s > 0


def test_a_ledger_that_answers_nothing_has_no_figures() -> None:
    with pytest.raises(NothingAnswered):
        load(Contended())


@pytest.mark.parametrize("bookings", ["abc", "0", "999"])
def test_too_few_bookings_for_advice_are_refused(bookings: str) -> None:
    ran = CliRunner().invoke(advice.main, [bookings])
    assert ran.exit_code == 2
    assert "BOOKINGS" in ran.output


def test_the_server_of_a_benchmark_lies_where_it_is_removed(
    server_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_server, "PLACE", server_directory)
    with own_server.own_server():
        assert len(list(server_directory.glob("*/postgres/PG_VERSION"))) == 1
    assert list(server_directory.iterdir()) == []

"""Strategies are found by their files, and every file says what it should say."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import booking
from booking import detection
from booking.calendars import Calendar
from booking.errors import InvalidInput
from booking.ledgers import Claim
from booking.strategies import HEADINGS, Act, Strategy, find, sections, strategies
from tests.contracts import test_calendars

EVERY_STRATEGY = strategies()
BOOKING = Path(booking.__file__).parent


def _docstring(strategy: Strategy) -> str:
    return sys.modules[strategy.load().__module__].__doc__ or ""


def missing_headings(docstring: str) -> list[str]:
    """What is wrong with the headings of a strategy file."""
    found = sections(docstring)
    wrong = [heading for heading in HEADINGS if not found.get(heading)]
    if not wrong and tuple(found) != HEADINGS:
        wrong.append(f"in this order: {', '.join(found)}")
    return wrong


def test_every_file_is_a_strategy_and_every_strategy_a_file() -> None:
    for act in Act:
        files = {path.stem for path in (BOOKING / act).glob("[!_]*.py")}
        assert files
        assert {each.name for each in strategies(act)} == files


@pytest.mark.parametrize("strategy", EVERY_STRATEGY, ids=lambda each: f"{each.act}-{each.name}")
def test_every_strategy_has_its_four_headings_and_an_idea(strategy: Strategy) -> None:
    assert missing_headings(_docstring(strategy)) == []
    assert 10 < len(strategy.idea) < 200
    assert not strategy.idea.endswith(".")


@pytest.mark.parametrize(
    "broken",
    [
        (),
        (("Idea", "X."), ("What happens", "X."), ("Costs", "X.")),
        (("Idea", ""), ("What happens", "X."), ("Costs", "X."), ("Breaks when", "X.")),
        (("What happens", "X."), ("Idea", "X."), ("Costs", "X."), ("Breaks when", "X.")),
        (("Idea", "X."), ("What happens", "X."), ("Costs", "X."), ("Breaks When", "X.")),
    ],
    ids=["none", "one missing", "one empty", "out of order", "misspelt"],
)
def test_wrong_headings_are_noticed(broken: tuple[tuple[str, str], ...]) -> None:
    parts = [f"{title}\n{'-' * len(title)}\n{text}\n" for title, text in broken]
    assert missing_headings("\n".join(["Title.\n", *parts])) != []


def test_right_headings_are_not_complained_of() -> None:
    parts = [f"{title}\n{'-' * len(title)}\nX.\n" for title in HEADINGS]
    assert missing_headings("\n".join(["Title.\n", *parts])) == []


def test_only_what_writes_claims_anything() -> None:
    for strategy in EVERY_STRATEGY:
        if hasattr(strategy.load(), "record") or hasattr(strategy.load(), "allocate"):
            assert strategy.claim in set(Claim)
        else:
            assert strategy.claim is None


def test_strategies_come_in_order_of_act_and_name() -> None:
    acts = list(Act)
    keys = [(acts.index(each.act), each.name) for each in EVERY_STRATEGY]
    assert keys == sorted(keys)


def test_a_strategy_is_found_by_its_name() -> None:
    strategy = find(Act.DETECTION, "bisect_neighbours")
    assert strategy.load().__name__ == "BisectNeighbours"
    assert strategy in EVERY_STRATEGY


def test_an_unknown_name_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(InvalidInput, match="bisect_neighbors") as refused:
        find(Act.DETECTION, "bisect_neighbors")
    assert refused.value.field == "detection"
    for known in strategies(Act.DETECTION):
        assert known.name in refused.value.message


ADDED = '''"""Trial by addition.

Idea
----
Scan, under another name. A second sentence.

What happens
------------
Nothing new.

Costs
-----
The same.

Breaks when
-----------
The scan does.
"""

from booking.detection.linear_scan import LinearScan


class {class_name}(LinearScan):
    """The scan."""
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that is part of `booking/detection` for the length of a test."""
    monkeypatch.setattr(detection, "__path__", [*detection.__path__, str(tmp_path)])
    yield tmp_path
    for name in [path.stem for path in tmp_path.glob("*.py")]:
        sys.modules.pop(f"booking.detection.{name}", None)
        vars(detection).pop(name, None)


def test_a_file_that_is_added_is_found_with_no_other_edit(folder: Path) -> None:
    (folder / "added_on_trial.py").write_text(ADDED.format(class_name="AddedOnTrial"))
    names = [each.name for each in strategies(Act.DETECTION)]
    assert "added_on_trial" in names
    assert names == sorted(names)
    added = find(Act.DETECTION, "added_on_trial")
    assert added.idea == "Scan, under another name"
    new_calendar: type[Calendar] = added.load()
    for keeps in test_calendars.EXAMPLES:
        keeps(new_calendar())


def test_a_file_without_the_class_of_its_name_is_refused(folder: Path) -> None:
    (folder / "added_wrongly.py").write_text(ADDED.format(class_name="SomethingElse"))
    with pytest.raises(InvalidInput, match=r"added_wrongly\.py.*AddedWrongly"):
        find(Act.DETECTION, "added_wrongly")


def test_a_file_whose_name_begins_with_an_underscore_is_no_strategy(folder: Path) -> None:
    (folder / "_shared.py").write_text("x = 1\n")
    assert "_shared" not in [each.name for each in strategies(Act.DETECTION)]

"""The chapters tell the truth: their examples run, and their figures are the recorded ones."""

import doctest
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from api.cli.figures import command
from loadtest import figures
from loadtest.bench import tables

DOCS = figures.ROOT / "docs"
WITH_EXAMPLES = sorted(path for path in DOCS.rglob("*.md") if ">>> " in path.read_text())


def run_examples(path: Path) -> doctest.TestResults:
    return doctest.testfile(str(path), module_relative=False, encoding="utf-8")


@pytest.mark.parametrize("chapter", WITH_EXAMPLES, ids=[path.name for path in WITH_EXAMPLES])
def test_the_examples_of_a_chapter_do_what_it_says(chapter: Path) -> None:
    results = run_examples(chapter)
    assert results.attempted > 0
    assert results.failed == 0


def test_the_first_two_chapters_have_examples() -> None:
    names = {path.name for path in WITH_EXAMPLES}
    assert {"01-the-question.md", "02-time-windows.md"} <= names


def test_an_example_that_is_wrong_is_noticed(tmp_path: Path) -> None:
    chapter = tmp_path / "wrong.md"
    chapter.write_text("```python\n>>> 1 + 1\n3\n\n```\n")
    assert run_examples(chapter).failed == 1


def test_every_figure_in_the_documents_is_the_recorded_one() -> None:
    assert figures.stale() == [], "figures are stale: run `taxi figures`"


def test_chapter_3_has_its_figures() -> None:
    chapter = (DOCS / "03-detection.md").read_text()
    for name in ("detection", "detection bars"):
        assert f"<!-- figures: {name} -->" in chapter


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one document, one recorded result and its plot, none of them stale."""

    def render(recorded: dict[str, Any]) -> str:
        return f"| {recorded['figure']} |"

    def plot(recorded: dict[str, Any], path: Path, told: str) -> None:
        path.write_text(f"<svg><!-- {told} -->{recorded['figure']}</svg>")

    monkeypatch.setattr(figures, "RENDERERS", {"speed": render, "speed again": render})
    monkeypatch.setattr(figures, "PLOTS", {"speed": plot})
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    figures.record("speed", {"figure": 1}, tmp_path / figures.RESULTS)
    (tmp_path / "docs" / "chapter.md").write_text(
        "Before.\n\n<!-- figures: speed -->\n<!-- /figures -->\n\nBetween.\n\n"
        "<!-- figures: speed again -->\n\nOld.\n\n<!-- /figures -->\nBehind.\n"
    )
    (tmp_path / "README.md").write_text("Nothing to see here.\n")
    figures.write()
    return tmp_path


def test_figures_are_written_where_their_place_is(project: Path) -> None:
    assert (project / "docs" / "chapter.md").read_text() == (
        "Before.\n\n<!-- figures: speed -->\n\n| 1 |\n\n<!-- /figures -->\n\nBetween.\n\n"
        "<!-- figures: speed again -->\n\n| 1 |\n\n<!-- /figures -->\nBehind.\n"
    )
    assert figures.stale() == []


def test_another_result_makes_documents_and_plots_stale(project: Path) -> None:
    result = project / figures.RESULTS / "speed.json"
    result.write_text(json.dumps({"figure": 2}))
    plot = result.with_suffix(".svg")
    assert figures.stale() == [project / "docs" / "chapter.md", plot]
    assert figures.write() == [project / "docs" / "chapter.md", plot]
    assert figures.stale() == []
    assert "2" in plot.read_text()
    assert [path.name for path in project.rglob("*") if path.name.startswith(".")] == []


def test_a_figure_that_was_typed_is_stale(project: Path) -> None:
    chapter = project / "docs" / "chapter.md"
    chapter.write_text(chapter.read_text().replace("| 1 |", "| 9 |", 1))
    assert figures.stale() == [chapter]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("<!-- figures: nobody -->\n<!-- /figures -->\n", "nobody"),
        ("<!-- figures: speed -->\n", "counterpart"),
        ("<!-- /figures -->\n", "counterpart"),
        ("<!-- figures: speed -->\n<!-- figures: speed -->\n<!-- /figures -->\n", "counterpart"),
    ],
)
def test_a_marker_that_nobody_writes_to_is_refused(project: Path, wrong: str, said: str) -> None:
    (project / "README.md").write_text(wrong)
    with pytest.raises(figures.WrongMarker, match=rf"^README\.md: .*{said}"):
        figures.stale()


def test_what_came_of_a_quick_plan_says_so(project: Path) -> None:
    for plan, said in (({"is_quick": True}, 2), ({"is_quick": False}, 0), (None, 0)):
        figures.record("speed", {"figure": 1, "plan": plan}, project / figures.RESULTS)
        figures.write()
        assert (project / "docs" / "chapter.md").read_text().count(figures.QUICK) == said


def test_every_result_is_written_before_a_plot_is_drawn(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise tables.NoPlot

    monkeypatch.setattr(figures, "PLOTS", {"speed": fail})
    with pytest.raises(tables.NoPlot):
        figures.record_all({"speed": {"figure": 5}, "more": {"figure": 6}}, project / "new")
    assert sorted(path.name for path in (project / "new").iterdir()) == ["more.json", "speed.json"]


def test_without_a_result_there_are_no_figures(project: Path) -> None:
    (project / figures.RESULTS / "speed.json").unlink()
    with pytest.raises(figures.NotRecorded, match=r"speed\.json"):
        figures.stale()


@pytest.mark.usefixtures("project")
def test_the_command_checks_and_writes() -> None:
    result = figures.ROOT / figures.RESULTS / "speed.json"
    result.write_text(json.dumps({"figure": 3}))
    checked = CliRunner().invoke(command, ["--check"], standalone_mode=False)
    assert checked.return_value == 1
    assert "stale: docs/chapter.md" in checked.output
    written = CliRunner().invoke(command, [], standalone_mode=False)
    assert written.return_value == 0
    assert "written: docs/chapter.md" in written.output
    assert CliRunner().invoke(command, ["--check"], standalone_mode=False).return_value == 0


def test_what_was_recorded_is_never_half_written(project: Path) -> None:
    file = project / "docs" / "results" / "speed.json"

    def fail() -> None:
        with figures.replacing(file) as new:
            new.write_text("{")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert json.loads(file.read_text()) == {"figure": 1}
    assert [path.name for path in file.parent.iterdir() if path.name.startswith(".")] == []

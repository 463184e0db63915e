"""The chapters tell the truth: their examples run, and their figures are the recorded ones."""

import doctest
from pathlib import Path

import msgspec
import pytest

from loadtest import bench_docs

DOCS = bench_docs.DOCS
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


def test_the_table_of_chapter_3_is_the_recorded_result() -> None:
    chapter = bench_docs.CHAPTER.read_text()
    assert bench_docs.with_table(chapter, bench_docs.recorded()) == chapter, (
        "docs/03-detection.md is stale: run `taxi bench detection --write-docs`"
    )


def test_another_result_makes_the_table_stale() -> None:
    recorded = bench_docs.recorded()
    first, *rest = recorded.samples
    slower = msgspec.structs.replace(first, median_ns=first.median_ns * 2)
    changed = msgspec.structs.replace(recorded, samples=[slower, *rest])
    chapter = bench_docs.CHAPTER.read_text()
    assert bench_docs.with_table(chapter, changed) != chapter

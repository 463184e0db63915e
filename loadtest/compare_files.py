"""Where a comparison is kept: its plan, its cells as they come, and what is made of them."""

import shutil
from pathlib import Path
from typing import Any

import msgspec

from booking.errors import InvalidInput
from loadtest.compare_report import html, markdown
from loadtest.compare_results import Cell, Comparison, Contender, Plan


class Started(msgspec.Struct, frozen=True):
    """What was fixed when the comparison began."""

    plan: Plan
    contenders: tuple[Contender, ...]
    machine: dict[str, Any]
    postgres: dict[str, str]
    environment: dict[str, str]

    @property
    def about(self) -> dict[str, Any]:
        """What it runs on."""
        return {name: getattr(self, name) for name in ("machine", "postgres", "environment")}


class Files:
    """The files in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.json = folder / "comparison.json"
        self.markdown = folder / "comparison.md"
        self.html = folder / "comparison.html"
        self.evidence = folder / "evidence"
        self._started = folder / "started.json"
        self._cells = folder / "cells.jsonl"

    def begin(self, started: Started) -> None:
        """Begin anew; the cells of the comparison before stay beside, as `cells.jsonl.old`.

        Raises `InvalidInput` if the folder cannot be used.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self._cells.exists():
                self._cells.replace(self._cells.with_suffix(".jsonl.old"))
            shutil.rmtree(self.evidence, ignore_errors=True)
            _write(self._started, started)
        except OSError as error:
            raise InvalidInput(
                f"{self.folder} cannot be used: {error.strerror}.", field="--output"
            ) from None

    def resume(self) -> tuple[Started, list[Cell]]:
        """What was begun, and the cells there are. Raises `InvalidInput` if there is nothing."""
        try:
            started = msgspec.json.decode(self._started.read_bytes(), type=Started)
            lines = self._cells.read_bytes() if self._cells.exists() else b""
            # The last line may have been cut off in the middle of being written.
            whole = lines[: lines.rfind(b"\n") + 1]
            cells = msgspec.json.Decoder(Cell).decode_lines(whole)
        except FileNotFoundError:
            raise InvalidInput(
                f"There is no comparison in {self.folder} to go on with.", field="--resume"
            ) from None
        except msgspec.MsgspecError as error:
            raise InvalidInput(
                f"The comparison in {self.folder} cannot be read: {error}.", field="--resume"
            ) from None
        self._cells.write_bytes(whole)
        # What failed is tried again.
        return started, [cell for cell in cells if cell.error is None]

    def keep(self, cell: Cell) -> None:
        """Add a cell."""
        with self._cells.open("ab") as file:
            file.write(msgspec.json.encode(cell) + b"\n")

    def write(self, comparison: Comparison) -> None:
        """Write JSON, Markdown and the report."""
        _write(self.json, comparison)
        self.markdown.write_text(markdown(comparison))
        self.html.write_text(html(comparison))


def _write(file: Path, what: msgspec.Struct) -> None:
    file.write_bytes(msgspec.json.format(msgspec.json.encode(what), indent=2) + b"\n")

"""Where a comparison is kept: its plan, its cells as they come, and what is made of them."""

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from booking.errors import InvalidInput
from loadtest.comparison.report import html, markdown
from loadtest.comparison.results import Cell, Comparison, Contender, Plan

_CHANGES = ("at", "load_1_min")
"""What differs between two looks at one machine."""


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

    def check(self, about: Mapping[str, Any]) -> None:
        """Raise `InvalidInput` if what it would go on with, `about`, is not what it began with.

        Figures of both would stand in one table, under the name of the first.
        """
        began, now = _flat(self.about), _flat(about)
        for name in sorted(began.keys() | now.keys()):
            if began.get(name) != now.get(name):
                raise InvalidInput(
                    f"The comparison began with {name} {began.get(name, 'unset')}, and it is"
                    f" {now.get(name, 'unset')} now: begin anew.",
                    field="--resume",
                )


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

    @contextmanager
    def ours(self, *, new: bool) -> Iterator[None]:
        """Have the folder for ourselves as long as the block lasts; make it, for a `new` one.

        Raises `InvalidInput` if another comparison has it, or it cannot be used.
        """
        with self._usable():
            if new:
                self.folder.mkdir(parents=True, exist_ok=True)
            elif not self.folder.exists():
                raise self._nothing_there()
            descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidInput(
                f"Another comparison is at work in {self.folder}.", field="--output"
            ) from None
        else:
            yield
        finally:
            os.close(descriptor)  # and so the lock is let go of

    def begin(self, started: Started) -> None:
        """Begin anew; the cells of the comparison before stay beside, as `cells.jsonl.old`.

        Raises `InvalidInput` if the folder cannot be used, as all do that write to it.
        """
        with self._usable():
            if self._cells.exists():
                self._cells.replace(self._cells.with_suffix(".jsonl.old"))
            shutil.rmtree(self.evidence, ignore_errors=True)
            _write(self._started, started)

    def resume(self) -> tuple[Started, list[Cell]]:
        """What was begun, and the cells there are. Raises `InvalidInput` if there is nothing."""
        with self._usable():
            if not self._started.exists():
                raise self._nothing_there()
            lines = self._cells.read_bytes() if self._cells.exists() else b""
            # The last line may have been cut off in the middle of being written.
            whole = lines[: lines.rfind(b"\n") + 1]
            try:
                started = msgspec.json.decode(self._started.read_bytes(), type=Started)
                cells = msgspec.json.Decoder(Cell).decode_lines(whole)
            except msgspec.MsgspecError as error:
                raise InvalidInput(
                    f"The comparison in {self.folder} cannot be read: {error}.", field="--resume"
                ) from None
            if whole != lines:
                os.truncate(self._cells, len(whole))
        # What failed is tried again.
        return started, [cell for cell in cells if cell.error is None]

    def keep(self, cell: Cell) -> None:
        """Add a cell."""
        with self._usable(), self._cells.open("ab") as file:
            file.write(msgspec.json.encode(cell) + b"\n")

    def write(self, comparison: Comparison) -> None:
        """Write JSON, Markdown and the report."""
        with self._usable():
            _write(self.json, comparison)
            self.markdown.write_text(markdown(comparison))
            self.html.write_text(html(comparison))

    @contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InvalidInput(
                f"{self.folder} cannot be used: {error.strerror}.", field="--output"
            ) from None

    def _nothing_there(self) -> InvalidInput:
        return InvalidInput(
            f"There is no comparison in {self.folder} to go on with.", field="--resume"
        )


def _flat(about: Mapping[str, Any]) -> dict[str, str]:
    """Everything by its name, but for what differs anyway."""
    flat: dict[str, str] = {}
    for name, value in about.items():
        if isinstance(value, Mapping):
            flat |= _flat(value)
        elif name not in _CHANGES:
            flat[name] = f"{value}"
    return flat


def _write(file: Path, what: msgspec.Struct) -> None:
    file.write_bytes(msgspec.json.format(msgspec.json.encode(what), indent=2) + b"\n")

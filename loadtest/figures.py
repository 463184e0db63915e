"""Figures in documents: never typed, but written there from what was recorded.

A document has a place for them between two markers, each on a line of its own:

    <!-- figures: detection bars -->
    … whatever stands here is written anew …
    <!-- /figures -->

The name's first word says which file holds the result, here
`docs/results/detection.json`; `RENDERERS` says who makes Markdown of it. A plot
beside the result, `docs/results/detection.svg`, is drawn by whoever `PLOTS` names,
and carries the digest of the result it was drawn from.

`taxi figures` writes all of them, and a test fails when one is stale.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import msgspec

from booking.errors import TaxiError
from loadtest import bench_allocators, bench_docs, bench_ledger, compare_report, prove_docs, stall

ROOT = Path(__file__).parent.parent
RESULTS = Path("docs") / "results"

Renderer = Callable[[dict[str, Any]], str]
"""Makes Markdown of a recorded result."""
Plotter = Callable[[dict[str, Any], Path, str], None]
"""Draws a recorded result as SVG to a file, with a word about it in the file's description."""

RENDERERS: dict[str, Renderer] = {
    "detection": bench_docs.detection,
    "detection bars": bench_docs.bars,
    "allocation": bench_docs.allocation,
    "allocation bars": bench_docs.bars,
    "policies": bench_docs.policies,
    "allocators": bench_allocators.markdown,
    "allocators bars": bench_docs.bars,
    "ledger": bench_ledger.markdown,
    "ledger bars": bench_docs.bars,
    "comparison": compare_report.render_matrix,
    "proof": prove_docs.render_proof,
    "stall": stall.markdown,
}

PLOTS: dict[str, Plotter] = {
    "detection": bench_docs.detection_plot,
    "allocation": bench_docs.allocation_plot,
}

_PLACE = re.compile(
    r"^<!-- figures: (?P<name>[^>]*?) -->\n(?P<text>.*?)^<!-- /figures -->$",
    re.MULTILINE | re.DOTALL,
)
_MARKER = re.compile(r"^<!-- (?:figures: .*?|/figures) -->$", re.MULTILINE)


class NotRecorded(TaxiError):
    """There is no recorded result of that name."""


class WrongMarker(TaxiError):
    """A marker names nobody who could write there, or has lost its counterpart."""


def documents() -> list[Path]:
    """Every document that may have a place for figures."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def rendered(text: str) -> str:
    """`text` with every place for figures written anew.

    Raises `WrongMarker`, and `NotRecorded` where there is no result.
    """
    places = len(_PLACE.findall(text))
    if len(_MARKER.findall(text)) != 2 * places:
        raise WrongMarker("A `figures` marker has lost its counterpart.")
    return _PLACE.sub(lambda place: _write(place["name"]), text)


def stale() -> list[Path]:
    """The documents and plots that do not show what was recorded.

    Raises as `rendered` does.
    """
    documented = [path for path in documents() if rendered(_read(path)) != _read(path)]
    plots = [path for name, path in _plots() if _digest(name) not in _read(path)]
    return documented + plots


def write() -> list[Path]:
    """Write every document and plot anew from what was recorded; those that were stale.

    Raises as `rendered` does, and `bench_docs.NoPlot`; what was written by then stays.
    """
    changed = stale()
    for path in changed:
        if path.suffix == ".svg":
            draw(path.stem, recorded(path.stem), path)
        else:
            new = rendered(_read(path))
            with replacing(path) as file:
                file.write_text(new, encoding="utf-8")
    return changed


def recorded(name: str) -> dict[str, Any]:
    """The recorded result of that name. Raises `NotRecorded`."""
    return msgspec.json.decode(_file_of(name).read_bytes(), type=dict[str, Any])


def record(name: str, result: Any, directory: Path) -> None:
    """Write the result as indented JSON, and its plot, if it has one."""
    content = msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n"
    directory.mkdir(parents=True, exist_ok=True)
    with replacing(directory / f"{name}.json") as file:
        file.write_bytes(content)
    if name in PLOTS:
        plain: dict[str, Any] = msgspec.json.decode(content)
        draw(name, plain, directory / f"{name}.svg", content)


def draw(name: str, result: dict[str, Any], path: Path, content: bytes | None = None) -> None:
    """Draw the plot of that result. Raises `bench_docs.NoPlot`."""
    content = path.with_suffix(".json").read_bytes() if content is None else content
    with replacing(path) as file:
        PLOTS[name](result, file, _digest_of(content))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write to, which takes the place of `path` if all goes well: never half a file."""
    with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as made:
        new = Path(made.name)
    try:
        yield new
        new.chmod(path.stat().st_mode if path.exists() else 0o644)
        os.replace(new, path)  # noqa: PTH105  # reads as what it is: atomic
    finally:
        new.unlink(missing_ok=True)


def _write(name: str) -> str:
    if name not in RENDERERS:
        raise WrongMarker(
            f"Nobody writes figures called {name!r}; there are {', '.join(RENDERERS)}."
        )
    text = RENDERERS[name](recorded(name.split(maxsplit=1)[0])).strip()
    return f"<!-- figures: {name} -->\n\n{text}\n\n<!-- /figures -->"


def _plots() -> list[tuple[str, Path]]:
    return [
        (name, ROOT / RESULTS / f"{name}.svg")
        for name in PLOTS
        if (ROOT / RESULTS / f"{name}.json").exists()
    ]


def _file_of(name: str) -> Path:
    file = ROOT / RESULTS / f"{name}.json"
    if not file.exists():
        raise NotRecorded(f"{RESULTS / file.name} is missing: nothing was recorded yet.")
    return file


def _digest(name: str) -> str:
    return _digest_of(_file_of(name).read_bytes())


def _digest_of(content: bytes) -> str:
    return f"sha256 of the result: {hashlib.sha256(content).hexdigest()}"


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""

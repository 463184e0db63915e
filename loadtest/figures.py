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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import msgspec

from booking.errors import TaxiError
from loadtest.bench import allocators, dual_write, ledger, shedding
from loadtest.bench import tables as bench
from loadtest.bench.overrun import plots as overrun_plots
from loadtest.bench.overrun import tables as overrun
from loadtest.comparison import bars, report, stall
from loadtest.proof import tables as proof

ROOT = Path(__file__).parent.parent
RESULTS = Path("docs") / "results"

Renderer = Callable[[dict[str, Any]], str]
"""Makes Markdown of a recorded result."""
Plotter = Callable[[dict[str, Any], Path, str], None]
"""Draws a recorded result as SVG to a file, with a word about it in the file's description."""

RENDERERS: dict[str, Renderer] = {
    "detection": bench.detection,
    "detection bars": bench.bars,
    "allocation": bench.allocation,
    "allocation bars": bench.bars,
    "policies": bench.policies,
    "allocators": allocators.markdown,
    "allocators bars": bench.bars,
    "ledger": ledger.markdown,
    "ledger bars": bench.bars,
    "overrun": overrun.markdown,
    "dual_write": dual_write.markdown,
    "comparison": report.render_matrix,
    "comparison bars": bars.render,
    "profile": report.render_profile,
    "proof": proof.render_proof,
    "stall": stall.markdown,
    "shedding": shedding.markdown,
}

PLOTS: dict[str, Plotter] = {
    "detection": bench.detection_plot,
    "allocation": bench.allocation_plot,
    "overrun": overrun_plots.plot,
}

_PLACE = re.compile(
    r"^<!-- figures: (?P<name>[^>]*?) -->\n(?P<text>.*?)^<!-- /figures -->$",
    re.MULTILINE | re.DOTALL,
)
_MARKER = re.compile(r"^<!-- (?:figures: .*?|/figures) -->$", re.MULTILINE)


QUICK = "**Quick: not to quote.**"
"""Stands above what was measured by a plan that says `is_quick`."""


class NotRecorded(TaxiError):
    """There is no recorded result of that name."""


class WrongMarker(TaxiError):
    """A marker names nobody who could write there, or has lost its counterpart."""


def documents() -> list[Path]:
    """Every document that may have a place for figures."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def rendered(document: Path) -> str:
    """The document's text with every place for figures written anew.

    Raises `WrongMarker`, and `NotRecorded` where there is no result.
    """
    text = _read(document)
    where = document.relative_to(ROOT)
    places = len(_PLACE.findall(text))
    if len(_MARKER.findall(text)) != 2 * places:
        raise WrongMarker(f"{where}: a `figures` marker has lost its counterpart.")
    return _PLACE.sub(lambda place: _write(place["name"], where), text)


def stale() -> list[Path]:
    """The documents and plots that do not show what was recorded.

    Raises as `rendered` does.
    """
    documented = [path for path in documents() if rendered(path) != _read(path)]
    plots = [path for name, path in _plots() if _digest(name) not in _read(path)]
    return documented + plots


def write() -> list[Path]:
    """Write every document and plot anew from what was recorded; those that were stale.

    Raises as `rendered` does, and `bench.NoPlot`; what was written by then stays.
    """
    changed = stale()
    for path in changed:
        if path.suffix == ".svg":
            draw(path.stem, path)
        else:
            new = rendered(path)
            with replacing(path) as file:
                file.write_text(new, encoding="utf-8")
    return changed


def recorded(name: str) -> dict[str, Any]:
    """The recorded result of that name. Raises `NotRecorded`."""
    return msgspec.json.decode(_file_of(name).read_bytes(), type=dict[str, Any])


def record(name: str, result: Any, directory: Path) -> None:
    """Write the result as indented JSON, and its plot, if it has one. Raises `bench.NoPlot`."""
    record_all({name: result}, directory)


def record_all(results: Mapping[str, Any], directory: Path) -> None:
    """As `record`, for each. No plot is drawn before every result is written."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, result in results.items():
        with replacing(directory / f"{name}.json") as file:
            file.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    for name in results:
        if name in PLOTS:
            draw(name, directory / f"{name}.svg")


def draw(name: str, path: Path) -> None:
    """Draw the plot of the result that lies beside `path`. Raises `bench.NoPlot`."""
    content = path.with_suffix(".json").read_bytes()
    with replacing(path) as file:
        PLOTS[name](msgspec.json.decode(content), file, _digest_of(content))


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


def _write(name: str, where: Path) -> str:
    if name not in RENDERERS:
        raise WrongMarker(
            f"{where}: nobody writes figures called {name!r}; there are {', '.join(RENDERERS)}."
        )
    result = recorded(name.split(maxsplit=1)[0])
    text = RENDERERS[name](result).strip()
    if (result.get("plan") or {}).get("is_quick"):
        text = f"{QUICK}\n\n{text}"
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

"""Finds strategies by their files. There is no registry.

A file's name is its strategy's name, and the file defines a class of the same
name in CamelCase: `detection/bisect_neighbours.py` holds `BisectNeighbours`.
Adding a strategy is adding one file; the command line, the contract tests and
the comparison find it here.
"""

import importlib
import inspect
import pkgutil
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast

from booking.errors import InvalidInput

HEADINGS = ("Idea", "What happens", "Costs", "Breaks when")
"""Every strategy file's docstring has these four, in this order."""


class Act(StrEnum):
    """The acts that have strategies; each is a folder of `booking`."""

    DETECTION = "detection"
    PREVENTION = "prevention"
    ALLOCATION = "allocation"


@dataclass(frozen=True, slots=True)
class Strategy:
    """One strategy: its act, its name, what it claims, and the idea in a sentence."""

    act: Act
    name: str
    claim: str | None
    idea: str

    def load(self) -> type[Any]:
        """The class that the file defines."""
        return _load_class(self.act, self.name)


def strategies(act: Act | None = None) -> list[Strategy]:
    """Every strategy of `act`, or of all acts, in order of name within its act."""
    acts = Act if act is None else (act,)
    return [_describe(each, name) for each in acts for name in _names(each)]


def find(act: Act, name: str) -> Strategy:
    """The strategy called `name`; `InvalidInput`, with the names there are, if there is none."""
    known = _names(act)
    if name not in known:
        raise InvalidInput(
            f"There is no {act} strategy called {name!r}; there are {', '.join(known)}.",
            field=act,
        )
    return _describe(act, name)


def sections(docstring: str) -> dict[str, str]:
    """The text below each of a strategy file's headings (a line of its own, underlined)."""
    parts = re.split(r"^(\w[\w ]*)\n-{3,}\n", docstring, flags=re.MULTILINE)
    return {title: text.strip() for title, text in zip(parts[1::2], parts[2::2], strict=True)}


def _names(act: Act) -> list[str]:
    package = importlib.import_module(f"booking.{act}")
    return sorted(
        module.name
        for module in pkgutil.iter_modules(package.__path__)
        if not module.name.startswith("_")
    )


def _load_class(act: Act, name: str) -> type[Any]:
    module = importlib.import_module(f"booking.{act}.{name}")
    class_name = "".join(word.capitalize() for word in name.split("_"))
    try:
        return cast("type[Any]", getattr(module, class_name))
    except AttributeError:
        raise InvalidInput(
            f"booking/{act}/{name}.py must define a class called {class_name}.", field=act
        ) from None


def _describe(act: Act, name: str) -> Strategy:
    strategy = _load_class(act, name)
    module = inspect.getmodule(strategy)
    idea = sections(inspect.getdoc(module) or "").get("Idea", "")
    sentence = " ".join(idea.split()).partition(". ")[0].removesuffix(".")
    return Strategy(act, name, getattr(strategy, "claim", None), sentence)

"""Who may import what: the table of the house, held against every file.

The imports are read with `ast`, also those inside functions and under
`TYPE_CHECKING`: a dependency is one wherever it is written.
"""

import ast
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import booking

ROOT = Path(booking.__file__).parent.parent
PACKAGES = ("booking", "api", "loadtest", "migrations")
SCENARIOS = "loadtest/scenarios"

DOMAIN = tuple(f"booking.{path.stem}" for path in (ROOT / "booking").glob("[!_]*.py"))
STRUCTURES = ("intervaltree", "sortedcontainers", "bitarray", "superintervals")
"""Libraries of data structures, for the strategy files that are about one of them."""
SQL = (*DOMAIN, "booking.postgres", "sqlalchemy")
CONNECTION = "sqlalchemy.ext.asyncio"
"""A route hands the ledger a closure, whose argument is a connection."""
WEB = ("litestar", "litestar_offline_docs", "msgspec", "uvicorn", "prometheus_client")


@dataclass(frozen=True)
class Rule:
    """Files that match `pattern` may import the standard library and `allowed`, and no more.

    `defines` narrows them to the files that define a function of that name, and
    `lacks` to those that do not.
    `exceptions` are (file, module): what one file may import beyond its fellows.
    """

    pattern: str
    allowed: tuple[str, ...]
    exceptions: tuple[tuple[str, str], ...] = ()
    defines: str | None = None
    lacks: str | None = None

    def files(self, root: Path) -> list[Path]:
        return [
            path
            for path in sorted(root.glob(self.pattern))
            if (self.defines is None or self.defines in _functions(path))
            and (self.lacks is None or self.lacks not in _functions(path))
        ]

    def offences(self, root: Path) -> list[str]:
        return [
            f"{file} imports {module}"
            for file in (path.relative_to(root) for path in self.files(root))
            for module in imported(root, file)
            if not self._may(file.as_posix(), module)
        ]

    def _may(self, file: str, module: str) -> bool:
        here = (*self.allowed, *(extra for where, extra in self.exceptions if where == file))
        return module.partition(".")[0] in sys.stdlib_module_names or any(
            module == each or module.startswith(f"{each}.") for each in here
        )


RULES = (
    Rule("booking/*.py", DOMAIN),
    Rule("booking/detection/*.py", (*DOMAIN, *STRUCTURES, "booking.detection.interval_tree")),
    Rule(
        "booking/allocation/*.py",
        (*DOMAIN, *STRUCTURES, "booking.detection", "booking.allocation.walk_the_fleet"),
        lacks="allocate",
    ),
    Rule("booking/allocation/*.py", SQL, defines="allocate"),
    Rule(
        "booking/prevention/*.py",
        (*SQL, "booking.prevention"),  # a recipe may grow from another
        exceptions=(("booking/prevention/one_process.py", "booking.detection"),),  # its memory
    ),
    Rule(
        "booking/postgres/*.py",
        SQL,
        exceptions=(
            ("booking/postgres/schema.py", "alembic"),  # runs the migrations
            ("booking/postgres/schema.py", "migrations"),  # and must find them
            ("booking/postgres/schema.py", "asyncpg"),  # tells its errors plainly as well
            ("booking/postgres/schema.py", "asyncpg"),  # tells its errors in plain words
        ),
    ),
    Rule(
        "api/*.py",
        ("booking", "api", *WEB, CONNECTION),
        exceptions=(
            ("api/idempotency.py", "sqlalchemy"),  # keys are kept in the same database
            ("api/osrm.py", "httpx"),  # asks a routing engine
            ("api/tokens.py", "jwt"),  # reads those of an external issuer
            ("api/tokens.py", "httpx"),  # asks that issuer for its keys
            ("api/passwords.py", "argon2"),  # keeps passwords
            ("api/ical.py", "icalendar"),  # writes what calendar programs read
            ("api/deliveries.py", "httpx"),  # brings messages to webhooks
            ("api/deliveries.py", "httpcore"),  # and to public addresses alone
            ("api/deliveries.py", "standardwebhooks"),  # signs them
            ("api/logs.py", "structlog"),  # writes the log
            ("api/logs.py", "opentelemetry"),  # and the trace in it
            ("api/tracing.py", "opentelemetry"),
        ),
    ),
    Rule("api/bodies/*.py", ("booking", "api.bodies", "api.patterns", "msgspec")),
    # Asks the service as others do: it knows what goes over the wire, and not who answers.
    Rule("api/client/*.py", ("booking", "api.bodies", "api.client", "msgspec", "httpx")),
    Rule("api/routes/*.py", ("booking", "api", *WEB, CONNECTION)),
    Rule("loadtest/scenarios/*.py", ("loadtest.scenarios", "locust")),
    Rule("migrations/**/*.py", ("migrations", "alembic", "sqlalchemy")),
)


def imported(root: Path, file: Path) -> Iterator[str]:
    """The full name of every module that the file imports."""
    for node in ast.walk(ast.parse((root / file).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = file.parts[: len(file.parts) - node.level] if node.level else ()
            module = ".".join((*above, *([node.module] if node.module else [])))
            # `from booking import drivers` imports booking.drivers.
            is_package = (ROOT / module.replace(".", "/")).is_dir()
            yield from (f"{module}.{a.name}" for a in node.names) if is_package else [module]


def _functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


def _name(rule: Rule) -> str:
    without = f"without {rule.lacks}" if rule.lacks else ""
    return f"{rule.pattern} {rule.defines or without}".strip()


@pytest.mark.parametrize("rule", RULES, ids=_name)
def test_nobody_imports_what_is_not_theirs(rule: Rule) -> None:
    assert rule.files(ROOT), f"no file matches {rule.pattern}: the rule holds nobody"
    assert rule.offences(ROOT) == []


@pytest.mark.parametrize("rule", RULES, ids=_name)
def test_every_exception_is_still_needed(rule: Rule) -> None:
    for file, module in rule.exceptions:
        assert any(f"{each}.".startswith(f"{module}.") for each in imported(ROOT, Path(file)))


def test_every_file_falls_under_a_rule() -> None:
    free = ("api/cli/", "loadtest/")  # the command line may use all there is, and so may the lab
    ruled = {path for rule in RULES for path in rule.files(ROOT)}
    unruled = [
        path.relative_to(ROOT)
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path not in ruled and path.read_text().count("import ")
    ]
    assert [file for file in unruled if not file.as_posix().startswith(free)] == []


def _who_mix_locust_with_the_rest(root: Path) -> list[Path]:
    """Files outside the scenarios that import one, or locust, which patches `socket` and `ssl`."""
    return [
        path.relative_to(root)
        for package in PACKAGES
        for path in (root / package).rglob("*.py")
        if path.parent != root / SCENARIOS
        and any(
            each == "locust" or each.startswith(("locust.", "loadtest.scenarios."))
            for each in imported(root, path.relative_to(root))
        )
    ]


def test_locust_scenarios_are_imported_by_nobody_else() -> None:
    assert _who_mix_locust_with_the_rest(ROOT) == []


PLANTED = (
    ("booking/drivers.py", "import sqlalchemy"),
    ("booking/bookings.py", "from booking.postgres import tables"),
    (
        "booking/rosters.py",
        "def f() -> None:\n    from booking.detection.linear_scan import LinearScan",
    ),
    ("booking/detection/linear_scan.py", "from booking import postgres"),
    ("booking/detection/linear_scan.py", "from ..postgres import tables"),
    ("booking/detection/linear_scan.py", "from booking.allocation.gap_index import GapIndex"),
    ("booking/allocation/gap_index.py", "import sqlalchemy.exc"),
    ("booking/allocation/ask_then_offer.py", "import litestar"),
    ("booking/prevention/row_lock.py", "import asyncpg"),
    ("booking/postgres/tables.py", "import alembic"),
    ("api/bodies/bookings.py", "from api import service"),
    ("api/client/transport.py", "from api.service import Service"),
    ("api/routes/bookings.py", "from loadtest.trips import replay"),
    ("api/app.py", "import rich"),
    ("loadtest/scenarios/rush_hour.py", "from booking import drivers"),
    ("loadtest/scenarios/_fleet.py", "from loadtest.trips import replay"),
    ("migrations/env.py", "from booking.postgres import tables"),
)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    return tmp_path


@pytest.mark.parametrize(("file", "line"), PLANTED)
def test_a_planted_import_is_found(copy: Path, file: str, line: str) -> None:
    assert [offence for rule in RULES for offence in rule.offences(copy)] == []
    planted = copy / file
    planted.write_text(planted.read_text() + f"\n{line}\n")
    offences = [offence for rule in RULES for offence in rule.offences(copy)]
    assert len(offences) == 1
    assert offences[0].startswith(f"{file} imports ")


def test_locust_outside_the_scenarios_is_found(copy: Path) -> None:
    planted = copy / "loadtest" / "planted.py"
    for line in ("import locust.env", "from loadtest.scenarios import rush_hour"):
        planted.write_text("import json\n")
        assert _who_mix_locust_with_the_rest(copy) == []
        planted.write_text(f"import json\n{line}\n")
        assert _who_mix_locust_with_the_rest(copy) == [Path("loadtest/planted.py")]


def test_a_rule_for_a_folder_that_is_gone_fails() -> None:
    with pytest.raises(AssertionError, match="no file matches"):
        test_nobody_imports_what_is_not_theirs(Rule("booking/detecting/*.py", DOMAIN))

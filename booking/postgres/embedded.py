"""A PostgreSQL of our own, in a directory, for as long as somebody uses it.

The first user starts the server, later ones join it, the last one out stops it.
Each holds a *shared* lock on a file; who gets it exclusively is alone. The
kernel drops the lock of a killed process, so nobody has to be believed about
having left.

Everything that belongs to the server lies in one folder: its data, its
password, its log. The folder is made beside its final place and renamed into
it, so there is never half a database to find.
"""

import fcntl
import hashlib
import logging
import os
import pwd
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

from booking.errors import TaxiError
from booking.postgres.binaries import (
    Account,
    Binaries,
    NoPostgres,
    choose,
    exclusive,
    find_binaries,
    run,
    runs_as,
)

__all__ = ["EmbeddedFailed", "EmbeddedPostgres", "NoPostgres", "find_binaries"]

ROLE = DATABASE = "taxi"

_log = logging.getLogger(__name__)

_DEFAULTS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # A refusal by constraint is an ERROR, and a load test has millions of them.
    "log_min_messages": "log",
    "log_checkpoints": "off",
}

# Below where Linux and macOS take the client ends of connections from: there, a
# client that keeps dialling a dead server may be given the server's own port.
_PORTS = range(20_000, 32_000)

_POLL_S = 0.25
_START_S_MAX = 300  # recovery after a crash may take its time
_STOP_S_MAX = 120
_BACK_OFF_S = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0)
_BACK_OFF_S_MAX = 10.0
_LOG_BYTES_MAX = 16_000_000
_LAST_LINES = 5
_NOTE = "place"
_ROOTS = [Path("/var/lib"), Path("/var/tmp")]  # noqa: S108  # root's, and for want of the other
_STATUS = 7  # the line of `postmaster.pid` that says starting, ready, stopping
_BUILTIN_LOCALES = 17  # from this version on: locales of PostgreSQL's own, initdb --sync-method


class EmbeddedFailed(TaxiError):
    """The embedded PostgreSQL could not be started."""


class EmbeddedPostgres:
    """A PostgreSQL server in `directory`, shared by everyone who enters it.

    `settings` are the server's own (`{"fsync": "off"}` for a test); they count
    for who starts it, not for who joins. It listens on 127.0.0.1 alone.

    Root cannot run PostgreSQL, so there it runs as `postgres` or `nobody`. If
    that user cannot enter `directory`, the data lies elsewhere and the file
    `place` in it says where.

    Valid once entered: `url` (`postgresql://taxi:PASSWORD@127.0.0.1:PORT/taxi`)
    and `binaries`, the folder of its programs. Entering raises `NoPostgres` or
    `EmbeddedFailed`.
    """

    url: str
    binaries: Path

    def __init__(
        self, directory: Path, *, settings: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self.directory = directory.resolve()  # one server, one name: see `_postmaster`
        self._settings = _DEFAULTS | {"shared_buffers": _shared_buffers()} | dict(settings)
        if _syncs_at_once():
            self._settings.setdefault("recovery_init_sync_method", "syncfs")
        self._account: Account | None = None
        self._place = self.directory
        self._major = 0
        self._users = -1

    @property
    def data(self) -> Path:
        """The folder with everything of the server's."""
        return self._place / "postgres"

    @property
    def pid(self) -> int | None:
        """The number of the server's process; None if it does not run."""
        lines = self._postmaster()
        return int(lines[0]) if lines else None

    @property
    def log(self) -> Path:
        """What the server has written since it was started."""
        return self.data / "server.log"

    def __enter__(self) -> Self:
        try:
            self._enter()
        except OSError as error:
            raise EmbeddedFailed(
                f"The embedded PostgreSQL cannot use {error.filename or self.directory}:"
                f" {error.strerror}."
            ) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave()

    @contextmanager
    def keep_alive(self) -> Iterator[None]:
        """Start the server again, on the same port, whenever it is found dead."""
        done = threading.Event()
        thread = threading.Thread(
            target=self._watch, args=(done,), name="embedded-postgres", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _enter(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        with exclusive(self.directory / "start.lock"):
            self._place = _noted_place(self.directory)
            self._account = _account(self._place)
            if not _can_enter(self._place, self._account):
                self._place = _other_place(self.directory)
        self._users = os.open(self._place / "users.lock", os.O_RDONLY | os.O_CREAT, 0o644)
        try:
            with exclusive(self._place / "start.lock"):
                fcntl.flock(self._users, fcntl.LOCK_SH)
                for left in self._place.glob("new-*"):  # by one who was interrupted
                    shutil.rmtree(left, ignore_errors=True)
                self.binaries, self._major, _ = self._choose_binaries()
                if not self.data.exists():
                    self._create()
                self._start()
            password = (self.data / "password").read_text()
        except BaseException:
            self._leave()
            raise
        self.url = f"postgresql://{ROLE}:{password}@127.0.0.1:{self._port()}/{DATABASE}"

    def _leave(self) -> None:
        """Give the lock back; stop the server if nobody else has one."""
        try:
            with exclusive(self._place / "start.lock"):
                fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._stop()
        except BlockingIOError:
            pass  # others are using it
        except OSError as error:
            _log.warning("The embedded PostgreSQL may be running on: %s", error)
        finally:
            os.close(self._users)

    # What the server is made of.

    def _choose_binaries(self) -> Binaries:
        """A PostgreSQL that the account can run and that reads the data there is."""
        version = self.data / "PG_VERSION"
        major = int(version.read_text()) if version.exists() else None
        found = choose(major, self._account)
        if runs_as(found.folder, self._account):
            return found
        return found._replace(folder=self._copy_out(found.folder.parent) / "bin")

    def _copy_out(self, source: Path) -> Path:
        """Copy the programs to where the account can read them."""
        target = self._place / source.name
        if not target.exists():
            with self._workshop() as workshop:
                copy = shutil.copytree(source, workshop / "copy", symlinks=True)
                for path in (copy, *copy.rglob("*")):
                    if not path.is_symlink():
                        # Whoever may run or enter it, everybody may now.
                        mode = path.stat().st_mode
                        path.chmod(mode | 0o444 | (0o111 if mode & 0o100 else 0))
                copy.rename(target)
        if not runs_as(target / "bin", self._account):
            raise EmbeddedFailed(
                f"{target} cannot be run by the user that PostgreSQL runs as: set"
                " DATABASE_URL to a server of your own, or do not run this as root."
            )
        return target

    def _create(self) -> None:
        """Make the data, complete with role, password and database, then show it."""
        with self._workshop() as workshop:
            data = workshop / "data"
            password = workshop / "password"
            password.touch(mode=0o600)
            password.write_text(secrets.token_urlsafe(24))
            if self._account:
                os.chown(password, *self._account)
            self._initdb(data, password)
            made = run(
                [self.binaries / "postgres", "--single", "-D", data, "postgres"],
                self._account,
                text=f"CREATE DATABASE {DATABASE};\n",
            )
            if made.returncode or "ERROR" in made.stderr:
                raise EmbeddedFailed(_explain("make its database", made.stderr))
            password.rename(data / "password")
            data.rename(self.data)
        _sync(self._place)

    def _initdb(self, data: Path, password: Path) -> None:
        args: list[str | Path] = [
            self.binaries / "initdb",
            f"--pgdata={data}",
            f"--username={ROLE}",
            f"--pwfile={password}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C",
        ]
        if self._major >= _BUILTIN_LOCALES:
            args += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
            args += ["--sync-method=syncfs"] if _syncs_at_once() else []
        if self._settings.get("fsync") == "off":
            args.append("--no-sync")
        made = run(args, self._account)
        if made.returncode:
            raise EmbeddedFailed(_explain("make its data", made.stderr))

    @contextmanager
    def _workshop(self) -> Iterator[Path]:
        """A folder of the account's, beside what is made in it."""
        workshop = Path(tempfile.mkdtemp(prefix="new-", dir=self._place))
        try:
            if self._account:
                os.chown(workshop, *self._account)
            yield workshop
        finally:
            shutil.rmtree(workshop, ignore_errors=True)

    # Starting and stopping; whoever calls these holds the start lock.

    def _start(self, *, move: bool = True, pause: Callable[[float], object] = time.sleep) -> None:
        """Make sure that the server answers; `move` to another port if its own is taken.

        Backends of a killed server can hold its memory for a moment: those are
        waited for, a bounded number of times.
        """
        said = ""
        for back_off_s in _BACK_OFF_S:
            if self._is_ready():
                return
            self._forget_stale_pid()
            said = self._launch()
            if not said:
                return
            if move and "could not bind" in said:
                _keep_port(self._place, _free_port())
            elif "still in use" in said or "already exists" in said:
                pause(back_off_s)
            else:
                break
        raise EmbeddedFailed(_explain("start", said))

    def _launch(self) -> str:
        """Start the server and wait for it; what it said if it did not start, else nothing.

        `pg_ctl` gives it a session of its own, so no Ctrl-C at the terminal reaches it.
        """
        self.log.unlink(missing_ok=True)
        settings = self._settings | {"port": str(self._port())}
        options = shlex.join(f"-c{key}={value}" for key, value in settings.items())
        started = run(
            [
                self.binaries / "pg_ctl",
                "start",
                "--wait",
                f"--timeout={_START_S_MAX}",
                f"--pgdata={self.data}",
                f"--log={self.log}",
                f"--options={options}",
            ],
            self._account,
        )
        if started.returncode == 0:
            return ""
        logged = self.log.read_text(errors="replace") if self.log.exists() else ""
        return logged or started.stderr or "it said nothing"

    def _stop(self) -> None:
        """Disconnect everybody and stop the server, if it runs."""
        if not self._postmaster():
            return
        stopped = run(
            [
                self.binaries / "pg_ctl",
                "stop",
                "--mode=fast",
                "--wait",
                f"--timeout={_STOP_S_MAX}",
                f"--pgdata={self.data}",
            ],
            self._account,
            own_session=True,  # an impatient second Ctrl-C does not spoil it
        )
        if stopped.returncode:
            _log.warning("The embedded PostgreSQL did not stop: %s", stopped.stderr.strip())

    def _is_ready(self) -> bool:
        """Whether the server answers; one that is about to start or stop is waited for."""
        deadline = time.monotonic() + _START_S_MAX
        while lines := self._postmaster():
            if len(lines) > _STATUS and lines[_STATUS].strip() == "ready":
                return True
            if time.monotonic() > deadline:
                raise EmbeddedFailed(_explain("become ready", "\n".join(lines)))
            time.sleep(0.05)
        return False

    def _postmaster(self) -> list[str]:
        """The lines of `postmaster.pid`, if that process is this server; else nothing.

        After a crash of the machine the number may be another process's, and a
        killed server may be a zombie that nobody has reaped. So its command
        line must name our data.
        """
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return []
        ours = lines and f"-D {self.data} " in _command_line(lines[0])
        return lines if ours else []

    def _forget_stale_pid(self) -> None:
        """Remove a `postmaster.pid` that names a living process which is not the server.

        PostgreSQL heals one whose process is gone, but would refuse to start for
        this one. It finds backends that are left over by their shared memory.
        """
        pid_file = self.data / "postmaster.pid"
        if pid_file.exists() and not self._postmaster():
            pid_file.unlink(missing_ok=True)

    def _port(self) -> int:
        path = self._place / "port"
        # A file cut short by a power failure is as good as none: any port will do.
        if not path.exists() or not path.read_text().strip().isdecimal():
            _keep_port(self._place, _free_port())
        return int(path.read_text())

    def _watch(self, done: threading.Event) -> None:
        attempt = 0
        while not done.wait(min(_POLL_S * 2**attempt, _BACK_OFF_S_MAX)):
            try:
                if self._postmaster():
                    attempt = 0
                    self._trim_log()
                    continue
                attempt += 1
                _log.warning("The embedded PostgreSQL is gone; starting it again (%d)", attempt)
                with exclusive(self._place / "start.lock"):
                    self._start(move=False, pause=done.wait)
            except (TaxiError, OSError) as error:
                _log.error("%s", error)

    def _trim_log(self) -> None:
        # The file is the account's: as root we follow no link that it may have put there.
        descriptor = os.open(self.log, os.O_WRONLY | os.O_NOFOLLOW)
        try:
            if os.fstat(descriptor).st_size > _LOG_BYTES_MAX:
                os.ftruncate(descriptor, 0)
        finally:
            os.close(descriptor)


def _account(place: Path) -> Account | None:
    """Who PostgreSQL runs as: ourselves, or for root the data's owner, or a user without rights."""
    if os.geteuid() != 0:
        return None
    data = place / "postgres"
    if data.exists() and data.stat().st_uid != 0:
        return Account(data.stat().st_uid, data.stat().st_gid)
    for name in ("postgres", "_postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(user.pw_uid, user.pw_gid)
    raise EmbeddedFailed(
        "PostgreSQL does not run as root, and here is neither a user `postgres` nor `nobody`:"
        " run this as somebody else, or set DATABASE_URL to a server of your own."
    )


def _noted_place(directory: Path) -> Path:
    """Where the server's folder is: in `directory`, unless a note there says otherwise."""
    note = directory / _NOTE
    if not note.exists():
        return directory
    place = Path(note.read_text().strip())
    if not place.is_absolute() or not place.is_dir():
        raise EmbeddedFailed(
            f"The data should lie where {note} says, but there is no such folder;"
            " put it back, or remove the file to begin anew."
        )
    return place


def _can_enter(directory: Path, account: Account | None) -> bool:
    return account is None or run(["test", "-x", directory], account).returncode == 0


def _other_place(directory: Path) -> Path:
    """A new folder that every user can enter, noted in `directory`."""
    # What is temporary stays so, as a test's directory.
    temporary = Path(tempfile.gettempdir())
    roots = [temporary] if directory.is_relative_to(temporary) else _ROOTS
    digest = hashlib.sha256(os.fsencode(directory)).hexdigest()[:12]
    root = next(root for root in roots if root.is_dir())
    place = Path(tempfile.mkdtemp(prefix=f"taxi-{digest}-", dir=root))
    place.chmod(0o755)
    new = directory / f"{_NOTE}.new"
    new.write_text(f"{place}\n")
    new.replace(directory / _NOTE)  # whole or not at all
    return place


def _shared_buffers() -> str:
    """An eighth of the machine's memory, within bounds; PostgreSQL takes it as it needs it."""
    memory_mb = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20
    return f"{min(max(memory_mb // 8, 128), 1_024)}MB"


def _syncs_at_once() -> bool:
    """Whether `syncfs` can replace an `fsync` of each of a thousand files: seconds, else.

    It is as safe where it reports failed writes: on Linux from 5.8 on.
    """
    system = os.uname()
    version = tuple(int(number) for number in re.findall(r"\d+", system.release)[:2])
    return system.sysname == "Linux" and version >= (5, 8)


def _free_port() -> int:
    """A loopback port that nobody listens on."""
    candidates = list(_PORTS)
    secrets.SystemRandom().shuffle(candidates)
    for port in candidates:
        with socket.socket() as probe:
            # As PostgreSQL does: connections that are closing down do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise EmbeddedFailed(f"No port from {_PORTS.start} to {_PORTS.stop - 1} is free.")


def _keep_port(place: Path, port: int) -> None:
    new = place / "port.new"
    new.write_text(str(port))
    new.replace(place / "port")


def _command_line(pid: str) -> str:
    """The arguments of a process, each followed by a space; empty if there is no such process."""
    try:
        return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).replace("\0", " ")
    except OSError:
        if Path("/proc/self/cmdline").exists():
            return ""
    listed = subprocess.run(
        ["/bin/ps", "-ww", "-o", "args=", "-p", pid], capture_output=True, check=False
    )
    return os.fsdecode(listed.stdout).strip() + " "


def _sync(folder: Path) -> None:
    """Make a rename in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explain(what: str, said: str) -> str:
    lines = [re.sub(r"^[\d-]+ [\d:.]+ \w+ \[\d+\] ", "", line) for line in said.splitlines()]
    last = " | ".join(line.strip() for line in lines[-_LAST_LINES:] if line.strip())
    return f"The embedded PostgreSQL could not {what}: {last}"

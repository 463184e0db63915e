"""The command `taxi`, run without an import of everything each time.

Each command has a process of its own, forked from one that has all modules loaded already:
a second saved, some hundred times. What starts a service, or is to get a signal, is a
process from the beginning and is started by `TAXI` instead.
"""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from api.cli import COMMANDS, main

TAXI = str(Path(sys.executable).parent / "taxi")
_TIMEOUT_S = 240

LOADED = multiprocessing.get_context("forkserver")
LOADED.set_forkserver_preload([__name__, "api.app", *(f"api.cli.{name}" for name in COMMANDS)])
"""What makes processes that have all modules of the product."""


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What became of `taxi` with these arguments, and these in its environment besides ours."""
    with TemporaryDirectory() as folder:
        said, complained = Path(folder, "stdout"), Path(folder, "stderr")
        process = LOADED.Process(
            target=_command, args=(arguments, os.environ | environment, said, complained)
        )
        process.start()
        process.join(_TIMEOUT_S)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(["taxi", *arguments], _TIMEOUT_S)
        return subprocess.CompletedProcess(
            ["taxi", *arguments], process.exitcode, said.read_text(), complained.read_text()
        )


def _command(
    arguments: tuple[str, ...], environment: dict[str, str], said: Path, complained: Path
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for number, path in ((0, Path(os.devnull)), (1, said), (2, complained)):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT
        os.dup2(os.open(path, flags, 0o600), number)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115  # as a process begins
    sys.argv = ["taxi", *arguments]
    main()

"""`taxi`, the one command line. Each command is a file here and is loaded when it is called."""

import errno
import importlib
import os
import signal
import sys
from types import FrameType
from typing import override

import rich_click as click
from rich.console import Console
from rich.markup import escape

from booking.errors import InvalidInput, TaxiError

COMMANDS = (
    "serve",
    "account",
    "book",
    "confirm",
    "cancel",
    "agenda",
    "bookings",
    "events",
    "replay",
    "demand",
    "strategies",
    "audit",
    "bench",
    "compare",
    "prove",
    "figures",
    "db",
)


class _Lazy(click.RichGroup):
    """A group that imports a command's file when the command is wanted."""

    @override
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    @override
    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"api.cli.{cmd_name}").command
        return command


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="taxi-booking")
def taxi() -> None:
    """A taxi booking system that never double-books."""


def _as_ctrl_c(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


_CANNOT_WRITE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


def main() -> None:
    """Run the command line. What goes wrong is one line on stderr, and no traceback.

    Exits with 0 when all is well, 1 when the command did its work and found
    something wrong, or could not write what it had to say, 2 for wrong input, 3 when it
    could not do its work, and 130 when it was interrupted.
    """
    # Whatever stops a command must also let it stop the database that it started.
    for ends in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ends, _as_ctrl_c)
    try:
        status = taxi(standalone_mode=False)
        sys.stdout.flush()  # here, where it can still be said that it failed
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except TaxiError as error:
        where = f"{error.field}: " if error.field else ""
        _complain(where + error.message)
        sys.exit(2 if isinstance(error, InvalidInput) else 3)
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        # What is left in the buffer would fail once more when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _complain(f"{error.filename or 'The output'} cannot be written: {error.strerror}.")
        sys.exit(1)
    sys.exit(status if isinstance(status, int) else 0)


def _complain(message: str) -> None:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"[bold red]taxi:[/] {escape(message)}")

"""Places that somebody names for a result to be written to."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from booking.errors import InvalidInput


@contextmanager
def writing(place: Path, option: str) -> Iterator[None]:
    """Raise `InvalidInput`, naming the option, if the file or directory cannot be written."""
    try:
        yield
    except OSError as error:
        raise InvalidInput(
            f"{place} cannot be written: {error.strerror or error}.", field=option
        ) from None

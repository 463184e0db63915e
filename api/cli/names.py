"""Options that take several names, with commas between them."""

from collections.abc import Iterable

from booking.errors import InvalidInput


def chosen(option: str, text: str | None, known: Iterable[str]) -> list[str]:
    """The names in `text`, each once, in the order given; none if the option was not given.

    Capitals do not matter: a name is returned as it is `known`. Raises `InvalidInput`
    for a name that is not, and for a text without any: whoever writes `--option ","`
    has not asked for everything.
    """
    if text is None:
        return []
    spelling = {name.lower(): name for name in known}
    there = ", ".join(spelling.values())
    names = dict.fromkeys(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise InvalidInput(f"Name at least one of {there}.", field=option)
    for name in names:
        if name.lower() not in spelling:
            raise InvalidInput(f"There is no {name!r}; there are {there}.", field=option)
    return list(dict.fromkeys(spelling[name.lower()] for name in names))

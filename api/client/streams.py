"""Server-sent events, as they come."""

from collections.abc import AsyncIterator
from typing import NamedTuple

import httpx


class Message(NamedTuple):
    """One of a stream; `id` is the last that was given, also if it came with none."""

    id: str
    data: str


async def messages(response: httpx.Response) -> AsyncIterator[Message]:
    """The messages of a stream of server-sent events; comments come as empty ones.

    <https://html.spec.whatwg.org/multipage/server-sent-events.html>
    """
    id_, data = "", list[str]()
    async for line in _lines(response):
        name, _, value = line.partition(":")
        if not line:
            yield Message(id_, "\n".join(data))
            data = []
        elif name == "id":
            id_ = value.removeprefix(" ")
        elif name == "data":
            data.append(value.removeprefix(" "))


async def _lines(response: httpx.Response) -> AsyncIterator[str]:
    """The lines of a body, as they come. The library would also end some within a text of JSON."""
    rest = b""
    async for chunk in response.aiter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.rstrip(b"\r").decode()

"""How a request gets to the service, and its answer back.

A connection that breaks leaves a client in doubt whether it has booked. So
every command goes under an idempotency key, and is sent again under that key
until it is answered or patience runs out: it is carried out once at most.
What is merely asked is sent again as well.
"""

import asyncio
import os
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from time import perf_counter
from typing import Self
from uuid import uuid4

import httpx
import msgspec
from msgspec import Struct

from api.bodies.common import Page
from api.bodies.operations import Status
from api.client.answers import Answer, problem_in, retry_after_s, summary_of, to_be_sent_again
from api.client.errors import PROBLEMS, NoAnswer, NoService, ProblemAnswer
from api.client.streams import messages
from booking.errors import InvalidInput

PAGE_ITEMS = 1_000
"""Items that are asked for at once; the service gives no more."""

_KEY_CHARS_MAX = 255
_PORT_MAX = 65_535
_FIRST_PAUSE_S = 0.1
_PAUSE_S_MAX = 5.0
_QUIET_S_MAX = 45.0
"""A stream of events is cut off if nothing at all comes for so long; three times its heartbeat."""

_JITTER = 0.25
"""A pause is longer by up to this share of it, so that those who failed together part."""

Pause = Callable[[str, float], Awaitable[None]]
"""`await pause(reason, wait_s)` is called before a request is sent again."""

_encode = msgspec.json.Encoder().encode

_REASONS: Mapping[type[Exception], str] = {
    httpx.ConnectError: "cannot connect",
    httpx.ConnectTimeout: "no connection in time",
    httpx.TimeoutException: "no answer in time",
    httpx.TransportError: "connection lost",
}


class _Again(Exception):  # no error: it is asked again
    """The service does not answer now."""


async def _sleep(_reason: str, wait_s: float) -> None:
    await asyncio.sleep(wait_s)


class Transport:
    """The service at `base_url`; to be entered by `async with`.

    A request waits for its answer `request_s_max` seconds at most. It is sent
    again, for `patience_s` in all, when there is no connection, when it breaks
    or is too slow, on 429, 502, 503 and 504, and while an earlier sending of
    the same command still runs; `Retry-After` is heeded. `pause` waits in
    between, and may raise to break off. `token` says who asks; without one, that in the
    environment does, `TAXI_TOKEN`.

    The methods raise `ProblemAnswer` for what the service refuses, `NoAnswer`
    when patience runs out, `NoService` when something else answers, and
    `InvalidInput` for what cannot be sent.
    """

    def __init__(
        self,
        base_url: str,
        *,
        patience_s: float = 30.0,
        request_s_max: float = 15.0,
        connections_max: int = 10,
        pause: Pause = _sleep,
        token: str | None = None,
    ) -> None:
        self.base_url = base_url
        self._patience_s = patience_s
        self._pause = pause
        try:
            # A proxy of the environment would be asked for what is on this machine.
            self._http = httpx.AsyncClient(
                base_url=base_url,
                limits=httpx.Limits(max_connections=connections_max),
                timeout=request_s_max,
                trust_env=False,
                headers=_authorization(token or os.environ.get("TAXI_TOKEN")),
            )
        except httpx.InvalidURL as error:
            raise InvalidInput(f"It is not an address: {error}.", field="base_url") from None
        if (self._http.base_url.port or 0) > _PORT_MAX:
            raise InvalidInput(f"A port is at most {_PORT_MAX}.", field="base_url")

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def check_service(self) -> None:
        """Raise `NoService` unless the service answers, at once and without patience."""
        heard = await self._try("GET", "/health", {})
        if isinstance(heard, str):
            raise NoService(
                f"No booking service answers at {self.base_url} ({heard})."
                " Is `taxi serve` running there?"
            )
        if heard.status_code == HTTPStatus.SERVICE_UNAVAILABLE and problem_in(heard):
            return  # it is there, and says in its own words that it is busy
        try:
            self._decoded(heard, Status)
        except ProblemAnswer:
            raise self._another(heard) from None

    async def send(
        self,
        method: str,
        path: str,
        *,
        body: Struct | None = None,
        params: Mapping[str, str | int | bool] | None = None,
        key: str | None = None,
        version: int | None = None,
        patience_s: float | None = None,
    ) -> Answer:
        """Send a request until it is answered, be it by a refusal.

        For what no other method is for. `patience_s` takes the place of the
        client's own. Raises as the class says, but for `ProblemAnswer`.
        """
        headers = {} if key is None else {"Idempotency-Key": _checked(key)}
        if version is not None:
            headers["If-Match"] = f'"{version}"'
        content = None
        if body is not None:
            content = _encode(body)
            headers["Content-Type"] = "application/json"
        patience_s = self._patience_s if patience_s is None else patience_s
        began = perf_counter()
        pause_s = _FIRST_PAUSE_S
        while True:
            sent = perf_counter()
            heard = await self._try(method, path, headers, content, params)
            now = perf_counter()
            if isinstance(heard, str):
                reason, wait_s = heard, pause_s
            elif not to_be_sent_again(heard):
                return Answer(heard, now - sent, now - began)
            else:
                reason, wait_s = summary_of(heard), max(pause_s, retry_after_s(heard))
            wait_s *= 1 + random.random() * _JITTER  # noqa: S311  # no secret
            if now - began + wait_s > patience_s:
                raise NoAnswer(self.base_url, now - began, reason, key)
            await self._pause(reason, wait_s)
            pause_s = min(2 * pause_s, _PAUSE_S_MAX)

    async def _follow[T](
        self, shape: type[T], path: str, after: str | None, **params: int | None
    ) -> AsyncGenerator[T]:
        given = {name: value for name, value in params.items() if value is not None}
        last, silent_since, pause_s = after, None, _FIRST_PAUSE_S
        while True:
            reason = "the stream ended"
            try:
                async with self._stream(path, given, last) as response:
                    async for message in messages(response):
                        silent_since, pause_s = None, _FIRST_PAUSE_S
                        last = message.id or last
                        if message.data:
                            yield msgspec.json.decode(message.data, type=shape)
            except _Again as again:
                reason = str(again)
            except httpx.TransportError as error:
                reason = next(text for kind, text in _REASONS.items() if isinstance(error, kind))
            now = perf_counter()
            silent_since = silent_since or now
            if now - silent_since + pause_s > self._patience_s:
                raise NoAnswer(self.base_url, now - silent_since, reason, None)
            await self._pause(reason, pause_s * (1 + random.random() * _JITTER))  # noqa: S311  # no secret
            pause_s = min(2 * pause_s, _PAUSE_S_MAX)

    @asynccontextmanager
    async def _stream(
        self, path: str, params: Mapping[str, int], last: str | None
    ) -> AsyncIterator[httpx.Response]:
        headers = {} if last is None else {"Last-Event-ID": last}
        timeout = httpx.Timeout(self._http.timeout.connect, read=_QUIET_S_MAX)
        async with self._http.stream(
            "GET", path, params=params, headers=headers, timeout=timeout
        ) as response:
            if not response.is_success:
                await response.aread()
                if to_be_sent_again(response):
                    raise _Again(summary_of(response))
                self._decoded(response, Status)  # raises the problem
            yield response

    async def _try(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        content: bytes | None = None,
        params: Mapping[str, str | int | bool] | None = None,
    ) -> httpx.Response | str:
        """The answer, or the reason why there is none."""
        try:
            return await self._http.request(
                method, path, headers=headers, content=content, params=params
            )
        except httpx.UnsupportedProtocol:
            raise NoService(f"{self.base_url} is not an http address.") from None
        except httpx.TransportError as error:
            return next(text for kind, text in _REASONS.items() if isinstance(error, kind))
        except httpx.DecodingError:
            raise NoService(f"What answers at {self.base_url} cannot be read.") from None

    async def _get[T](self, shape: type[T], path: str, **params: str | int | bool | None) -> T:
        given = {name: value for name, value in params.items() if value is not None}
        return self._decoded((await self.send("GET", path, params=given)).response, shape)

    async def _each[T](
        self, shape: type[Page[T]], path: str, **params: str | int | bool | None
    ) -> AsyncIterator[T]:
        cursor = None
        while True:
            page = await self._get(shape, path, limit=PAGE_ITEMS, cursor=cursor, **params)
            for item in page.items:
                yield item
            if page.next_cursor is None:
                return
            cursor = page.next_cursor

    async def _command[T](
        self,
        shape: type[T],
        path: str,
        body: Struct | None,
        *,
        version: int | None = None,
        key: str | None = None,
    ) -> T:
        key = str(uuid4()) if key is None else key
        answer = await self.send("POST", path, body=body, key=key, version=version)
        return self._decoded(answer.response, shape)

    def _decoded[T](self, response: httpx.Response, shape: type[T]) -> T:
        """The body of a success; else raises the problem, or `NoService`."""
        if response.is_success:
            try:
                return msgspec.json.decode(response.content, type=shape)
            except (msgspec.DecodeError, UnicodeDecodeError):
                pass  # no booking service answers so
        problem = problem_in(response)
        if problem is None:
            raise self._another(response)
        raise PROBLEMS.get(response.status_code, ProblemAnswer)(problem)

    def _another(self, response: httpx.Response) -> NoService:
        return NoService(
            f"What answers at {self.base_url} is not the booking service ({summary_of(response)})."
        )


def _authorization(token: str | None) -> dict[str, str]:
    if not token:
        return {}
    if not (token.isascii() and token.isprintable()):
        raise InvalidInput("It is not a token.", field="TAXI_TOKEN")
    return {"Authorization": f"Bearer {token}"}


def _checked(key: str) -> str:
    if not (key.isascii() and key.isprintable() and 1 <= len(key) <= _KEY_CHARS_MAX):
        raise InvalidInput(
            f"A key is 1 to {_KEY_CHARS_MAX} printable characters of ASCII.",
            field="Idempotency-Key",
        )
    return key

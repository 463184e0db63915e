"""Passwords, kept as hashes by Argon2id (RFC 9106), which is slow on purpose.

The work is done in a thread, so that the event loop goes on, and by few at a time: each takes
64 MiB and a few hundredths of a second of a processor, which whoever tries passwords by the
thousand would otherwise take from everybody.
"""

import asyncio
import unicodedata
from collections.abc import Callable

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from booking.errors import TooManyRequests

_AT_ONCE = 2
_WAITING_MAX = 50


class Passwords:
    """Makes and checks hashes, with Argon2's parameters as its library recommends them now."""

    def __init__(self, hasher: PasswordHasher | None = None) -> None:
        self._hasher = hasher or PasswordHasher()
        self._turn = asyncio.Semaphore(_AT_ONCE)
        self._waiting = 0
        self._nobodys: str | None = None

    async def hash(self, password: str) -> str:
        """The hash to be kept. Raises `TooManyRequests`."""
        return await self._in_a_thread(lambda: self._hasher.hash(_normal(password)))

    async def matches(self, password_hash: str | None, password: str) -> bool:
        """Whether the hash is that of the password.

        Without a hash it takes as long to say no, so that nobody sees from the time who has an
        account. Raises `TooManyRequests`.
        """
        if self._nobodys is None:
            self._nobodys = await self.hash("nobody has this password")
        compared = self._nobodys if password_hash is None else password_hash
        same = await self._in_a_thread(lambda: self._verify(compared, _normal(password)))
        return same and password_hash is not None

    def is_outdated(self, password_hash: str) -> bool:
        """Whether the hash was made with other parameters than one would be now."""
        return self._hasher.check_needs_rehash(password_hash)

    def _verify(self, password_hash: str, password: str) -> bool:
        try:
            return self._hasher.verify(password_hash, password)
        except (VerificationError, InvalidHashError):
            return False

    async def _in_a_thread[T](self, work: Callable[[], T]) -> T:
        if self._waiting >= _WAITING_MAX:
            raise TooManyRequests("Too many passwords are being checked; try again shortly.")
        self._waiting += 1
        try:
            async with self._turn:
                return await asyncio.to_thread(work)
        finally:
            self._waiting -= 1


def _normal(password: str) -> str:
    """One form for what looks the same, however it was typed (NIST SP 800-63B-4, 3.1.1.2)."""
    return unicodedata.normalize("NFKC", password)

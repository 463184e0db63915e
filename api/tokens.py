"""Tokens: who speaks, as a JSON Web Token says it (RFC 7519).

The service's own are made and read by Litestar's back end, with HMAC and `TAXI_TOKEN_SECRET`.
Those of an external issuer (OpenID Connect) are read with its public keys, which are fetched
from it. Each kind has its own algorithms, pinned here: what a token says of its own algorithm
decides nothing, or whoever knows a public key could sign with it.

What was read is remembered, and so is, for a few seconds, how the account stands. A request
whose token is known costs two look-ups in memory.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from time import monotonic, time

import httpx
import jwt
import msgspec
from litestar.exceptions import NotAuthorizedException
from litestar.security.jwt import Token

from api.access import is_loopback
from api.settings import SECRET_BYTES_MIN, Settings
from booking.accounts import Principal
from booking.errors import InvalidInput, IssuerSilent, NoPasswords, NotSignedIn, TaxiError
from booking.postgres import accounts
from booking.postgres.accounts import Standing
from booking.postgres.database import Database

ISSUER = "taxi-booking"
"""Who issues the service's own tokens, and for whom."""

_ALGORITHM = "HS256"
_ASYMMETRIC = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]
_ASYMMETRIC += ["ES256", "ES384", "ES512", "EdDSA"]
_CLAIMS = ["exp", "iat", "iss", "aud", "sub"]
_STANDING_S = 3.0
"""How long it is believed how an account stands: so long a disabled one may go on."""
_REMEMBERED_MAX = 10_000
"""Tokens, and accounts, that are remembered at most."""
_CLOCK_SKEW_S = 10
_ISSUER_S_MAX = 5.0
_FETCH_INTERVAL_S = 30.0
"""How long an issuer's keys are not fetched again, whatever keys tokens name."""
_SILENT_S = 10.0
"""The same for an issuer that did not answer."""
_KEYS_S = 300.0
"""How old keys may be before they are fetched anew, while those go on to count."""
_KEYS_S_MAX = 3_600.0
"""How old they may be at all, where the issuer does not answer."""

_SILENCE = (jwt.PyJWTError, httpx.HTTPError, msgspec.MsgspecError, ValueError)
"""What goes wrong when keys are fetched."""

Who = int | tuple[str, str]
"""An account by its number, or by issuer and subject."""


@dataclass(frozen=True, slots=True)
class _Read:
    """What a token says, once it is known to be genuine."""

    who: Who
    issued_s: float
    expires_s: float
    """Both in seconds since 1970."""


@dataclass(frozen=True, slots=True)
class _Known:
    """How an account stood, and until when that is believed, by the monotonic clock."""

    standing: Standing | None
    until_s: float


def mint(secret: str, account_id: int, lasts: timedelta, issued_at: datetime | None = None) -> str:
    """A token of the service's own for an account: for whoever holds the secret."""
    issued_at = issued_at or datetime.now(UTC)
    token = Token(exp=issued_at + lasts, iat=issued_at, sub=str(account_id), iss=ISSUER, aud=ISSUER)
    return token.encode(secret, _ALGORITHM)


class Tokens:
    """Makes tokens, and knows who one speaks for. `database` is asked how accounts stand.

    Raises `InvalidInput`, naming the variable, if there is no way to sign in, or a wrong one.
    """

    def __init__(self, settings: Settings, database: Database) -> None:
        self._secret = _checked(settings)
        self._lasts = timedelta(hours=settings.token_hours)
        self._database = database
        self._issuer = (
            Issuer(settings.oidc_issuer, settings.oidc_audience) if settings.oidc_issuer else None
        )
        self._read: dict[str, _Read] = {}
        self._known: dict[Who, _Known] = {}
        self._asking: dict[Who, asyncio.Task[_Known]] = {}

    def issue(self, account_id: int, looked_at: datetime) -> tuple[str, timedelta]:
        """A token for the account, and how long it lasts. Raises as `check_issues` does.

        It is as old as the look at the account that it rests on: the check of a password may
        wait for its turn, and who changes it meanwhile ends this token as well.
        """
        self.check_issues()
        return mint(self._secret, account_id, self._lasts, looked_at), self._lasts

    def check_issues(self) -> None:
        """Raise `NoPasswords` where only an external issuer is trusted."""
        if not self._secret:
            raise NoPasswords

    def forget(self) -> None:
        """Ask anew how accounts stand: one has changed."""
        self._known.clear()

    async def principal_of(self, token: str) -> Principal:
        """Who the token speaks for.

        Raises `NotSignedIn` if it is not genuine or has expired, or if the account is
        disabled or has another password since; and `Unavailable`.
        """
        read = self._read.get(token)
        if read is None:
            read = await self._verify(token)
            _remember(self._read, token, read)
        if read.expires_s <= time():
            del self._read[token]
            raise NotSignedIn
        known = self._known.get(read.who)
        if known is None or known.until_s <= monotonic():
            known = await self._ask(read.who)
        if known.standing is None:
            raise NotSignedIn
        principal, count_from = known.standing
        # A token knows its birth in whole seconds.
        if count_from is not None and read.issued_s < int(count_from.timestamp()):
            raise NotSignedIn
        return principal

    async def while_good[T](self, token: str, messages: AsyncGenerator[T]) -> AsyncGenerator[T]:
        """The messages, until the token is good for nothing: it is looked at before each.

        Where it cannot be known they end as well, and whoever wants more asks again.
        """
        async with aclosing(messages):
            async for message in messages:
                try:
                    await self.principal_of(token)
                except TaxiError:
                    return
                yield message

    async def _verify(self, token: str) -> _Read:
        if self._issuer is not None and _issuer_in(token) == self._issuer.name:
            return await self._issuer.read(token)
        if not self._secret:
            raise NotSignedIn
        return _own(self._secret, token)

    async def _ask(self, who: Who) -> _Known:
        """How the account stands now; asked once, however many wait for it."""
        task = self._asking.get(who)
        if task is None:
            task = self._asking[who] = asyncio.create_task(self._asked(who))
            task.add_done_callback(lambda _: self._asking.pop(who, None))
        return await asyncio.shield(task)

    async def _asked(self, who: Who) -> _Known:
        standing = await self._database.transact(
            lambda connection: accounts.standing(connection, who), read_only=True
        )
        known = _Known(standing, monotonic() + _STANDING_S)
        _remember(self._known, who, known)
        return known


def _remember[K, V](memory: dict[K, V], key: K, value: V) -> None:
    """Keep it, and let the oldest go where there are too many."""
    memory.pop(key, None)
    while len(memory) >= _REMEMBERED_MAX:
        del memory[next(iter(memory))]
    memory[key] = value


def _own(secret: str, token: str) -> _Read:
    try:
        read = Token.decode(
            token, secret, _ALGORITHM, audience=ISSUER, issuer=ISSUER, require_claims=_CLAIMS
        )
        return _Read(int(read.sub), read.iat.timestamp(), read.exp.timestamp())
    except (NotAuthorizedException, ValueError):
        raise NotSignedIn from None


def _issuer_in(token: str) -> str | None:
    """Who the token says that it is from: to choose the keys by, not to be believed."""
    try:
        claims = jwt.decode(token, options={"verify_signature": False})
    except jwt.InvalidTokenError:
        return None
    issuer = claims.get("iss")
    return issuer if isinstance(issuer, str) else None


def _checked(settings: Settings) -> str:
    """The secret, once it is seen that somebody can sign in."""
    secret = settings.token_secret
    if secret and len(secret.encode()) < SECRET_BYTES_MIN:
        raise InvalidInput(
            f"It must have {SECRET_BYTES_MIN} bytes at least; make one by: openssl rand -hex 32",
            field="TAXI_TOKEN_SECRET",
        )
    if bool(settings.oidc_issuer) != bool(settings.oidc_audience):
        missing = "AUDIENCE" if settings.oidc_issuer else "ISSUER"
        raise InvalidInput(
            "The issuer and the audience go together; this one is missing.",
            field=f"TAXI_OIDC_{missing}",
        )
    if not secret and not settings.oidc_issuer:
        raise InvalidInput(
            "It must be given, or else TAXI_OIDC_ISSUER and TAXI_OIDC_AUDIENCE;"
            " make one by: openssl rand -hex 32",
            field="TAXI_TOKEN_SECRET",
        )
    return secret


# An external issuer ------------------------------------------------------------------------------


class _Discovery(msgspec.Struct):
    """What is needed of a discovery document."""

    issuer: str
    jwks_uri: str


class Issuer:
    """An issuer of OpenID Connect. Its keys are found by its discovery document.

    (OpenID Connect Discovery 1.0, section 4.) Its tokens must be for `audience`. Raises
    `InvalidInput` if the address is not one that can be trusted.

    A token may name any key, and anybody can send one. So a key that is known is never waited
    for, and for those that are not, however many, the keys are fetched once in a while.
    """

    def __init__(self, name: str, audience: str) -> None:
        self.name = name
        self._audience = audience
        self._client: jwt.PyJWKClient | None = None
        self._keys: dict[str, jwt.PyJWK] = {}
        """By the name that tokens have for them, their `kid`."""
        self._fetched_s = self._next_fetch_s = 0.0
        """By the monotonic clock: when they came, and from when on they may be fetched again."""
        self._fetching: asyncio.Task[None] | None = None
        self._silence: Exception | None = None
        """What went wrong the last time, if it did."""
        if not _is_trusted(name):
            raise InvalidInput("It must be an https address.", field="TAXI_OIDC_ISSUER")

    async def read(self, token: str) -> _Read:
        """What the token says. Raises `NotSignedIn`, or `IssuerSilent`."""
        try:
            key = await self._key(jwt.get_unverified_header(token).get("kid", ""))
            # In no thread: it is less work than the rest of the request.
            claims = jwt.decode(
                token,
                key,
                algorithms=_ASYMMETRIC,
                audience=self._audience,
                issuer=self.name,
                leeway=_CLOCK_SKEW_S,
                options={"require": _CLAIMS},
            )
        except jwt.PyJWTError:
            raise NotSignedIn from None
        return _Read((self.name, claims["sub"]), claims["iat"], claims["exp"])

    async def _key(self, kid: str) -> jwt.PyJWK:
        age_s = monotonic() - self._fetched_s
        key = self._keys.get(kid) if age_s < _KEYS_S_MAX else None
        if key is not None:
            if age_s > _KEYS_S:
                self._fetch()
            return key
        fetching = self._fetch()
        if fetching is not None:
            await asyncio.shield(fetching)
        if self._silence is not None:
            raise IssuerSilent from self._silence
        if kid not in self._keys:
            raise NotSignedIn
        return self._keys[kid]

    def _fetch(self) -> asyncio.Task[None] | None:
        """The fetch that is under way, or begins now; None if it is too early for one."""
        if self._fetching is None and monotonic() >= self._next_fetch_s:
            self._fetching = asyncio.create_task(self._fetched())
        return self._fetching

    async def _fetched(self) -> None:
        wait_s = _SILENT_S
        try:
            found = await asyncio.to_thread(self._ask)
        except _SILENCE as error:
            self._silence = error
        else:
            self._keys, self._silence = {str(key.key_id): key for key in found}, None
            self._fetched_s, wait_s = monotonic(), _FETCH_INTERVAL_S
        finally:
            self._next_fetch_s = monotonic() + wait_s
            self._fetching = None

    def _ask(self) -> list[jwt.PyJWK]:
        if self._client is None:
            address = f"{self.name.rstrip('/')}/.well-known/openid-configuration"
            answer = httpx.get(address, timeout=_ISSUER_S_MAX).raise_for_status()
            found = msgspec.json.decode(answer.content, type=_Discovery)
            if found.issuer != self.name or not _is_trusted(found.jwks_uri):
                raise ValueError(f"{address} is not the document of that issuer.")
            # Its own memory is asked under a lock that it holds while it fetches.
            self._client = jwt.PyJWKClient(
                found.jwks_uri, cache_jwk_set=False, timeout=_ISSUER_S_MAX
            )
        return self._client.get_signing_keys()


def _is_trusted(address: str) -> bool:
    """Whether nobody on the way to that address can put other keys in the place of its own."""
    try:
        url = httpx.URL(address)
    except httpx.InvalidURL:
        return False
    return url.scheme == "https" or (url.scheme == "http" and is_loopback(url.host))

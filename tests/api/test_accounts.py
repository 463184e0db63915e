"""Signing in, what a token is worth, how much one may have, and how often one may ask."""

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import os
import re
import subprocess
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from argon2 import PasswordHasher
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from litestar import Litestar
from sqlalchemy import Select
from sqlalchemy.ext.asyncio import AsyncConnection

from api import tokens as tokens_module
from api.bodies.accounts import AccountIn, CalendarLink, PasswordChange, SignIn, TokenOut
from api.cli.account import command as account_command
from api.cli.demo import PASSWORD as DEMO_PASSWORD
from api.cli.demo import seed
from api.cli.home import token_secret
from api.feed import Feed
from api.passwords import Passwords
from api.settings import read_settings
from api.tokens import Issuer
from booking.errors import InvalidInput, IssuerSilent, NotSignedIn, TaxiError
from booking.events import Cursor, EventFilter
from booking.postgres import accounts, schema
from booking.postgres.database import Database
from tests.api.household import (
    LOOPBACK,
    PASSWORD,
    SECRET,
    Household,
    add,
    asking,
    at,
    bearer,
    external,
    make,
    running,
    series,
)
from tests.commands import TAXI, run
from tests.conftest import ADMINISTRATOR_ID, AUTHORIZATION

pytestmark = pytest.mark.anyio

ISSUER_OF_OURS = "taxi-booking"


@pytest.fixture(scope="module")
async def app(own_url: str) -> AsyncIterator[Litestar]:
    limits = {"TAXI_SIGN_INS_PER_MIN": "1000", "TAXI_RIDER_HOURS_MAX": "2"}
    async with running(own_url, **limits) as running_app:
        yield running_app


@pytest.fixture
async def household(app: Litestar) -> Household:
    settled = Household(app)
    await settled.settle()
    return settled


async def sign_up(app: Litestar, email: str) -> dict[str, Any]:
    async with asking(app) as stranger:
        body = {"email": email, "password": PASSWORD, "name": "Ada"}
        answer = await stranger.post("/accounts", json=body)
        assert answer.status_code == 201, answer.text
        added: dict[str, Any] = answer.json()
        return added


async def sign_in(app: Litestar, email: str, password: str = PASSWORD) -> httpx.Response:
    async with asking(app) as stranger:
        return await stranger.post("/tokens", json={"email": email, "password": password})


# Signing in --------------------------------------------------------------------------------------


async def test_somebody_signs_up_signs_in_and_books_for_themselves(
    app: Litestar, household: Household
) -> None:
    account = await sign_up(app, "Ada@tests.example")
    assert (account["role"], account["disabled_at"]) == ("rider", None)
    answer = await sign_in(app, "aDA@tests.example")
    assert answer.headers["Cache-Control"] == "no-store"
    token = answer.json()
    assert (token["token_type"], token["expires_in"]) == ("Bearer", 12 * 3_600)
    own = {"Authorization": f"Bearer {token['access_token']}"}
    async with asking(app, own) as ada:
        assert (await ada.get("/me")).json() == account
        rider = await ada.get(f"/riders/{account['rider_id']}")
        assert rider.json()["name"] == "Ada"
        wish = {"start": at(3_000), "predicted_end": at(3_030)}
        booked = await ada.post("/bookings", json={"rider_id": account["rider_id"]} | wish)
        assert booked.status_code == 201
        for rider_id in (household.own["rider_id"], 2**52):
            other = await ada.post("/bookings", json={"rider_id": rider_id} | wish)
            assert other.json()["detail"] == f"There is no rider {rider_id}."
    async with asking(app) as stranger:
        body = {"email": "ADA@tests.example", "password": PASSWORD, "name": "Eve"}
        assert (await stranger.post("/accounts", json=body)).json()[
            "type"
        ] == "/problems/email-taken"


async def test_an_unknown_address_and_a_wrong_password_are_answered_alike(app: Litestar) -> None:
    await sign_up(app, "known@tests.example")
    disabled = await sign_up(app, "disabled@tests.example")
    async with asking(app, AUTHORIZATION) as administrator:
        await administrator.post(f"/accounts/{disabled['id']}/disable")
        body = {"role": "dispatcher"} | external("elsewhere@tests.example")
        await add(administrator, "/accounts", **body)
    answers = [
        await sign_in(app, "known@tests.example", "another password"),
        await sign_in(app, "unknown@tests.example"),
        await sign_in(app, "disabled@tests.example"),
        await sign_in(app, "elsewhere@tests.example", ""),
    ]
    assert {each.status_code for each in answers} == {401}
    assert len({each.content for each in answers}) == 1
    headers = [
        {
            name: value
            for name, value in each.headers.items()
            if "ratelimit" not in name and name != "x-request-id"
        }
        for each in answers
    ]
    assert all(each == headers[0] for each in headers)
    assert (await sign_in(app, "known@tests.example")).status_code == 200


async def test_an_unknown_address_is_as_much_work_as_a_wrong_password() -> None:
    class Counting(PasswordHasher):
        verified = 0

        def verify(self, *given: Any) -> Any:
            Counting.verified += 1
            return super().verify(*given)

    passwords = Passwords(Counting(time_cost=1, memory_cost=8, parallelism=1))
    known = await passwords.hash(PASSWORD)
    work = []
    for password_hash, password, right in (
        (None, PASSWORD, False),
        (None, "nobody has this password", False),
        (known, "another password", False),
        (known, PASSWORD, True),
    ):
        before = Counting.verified
        assert await passwords.matches(password_hash, password) is right
        work.append(Counting.verified - before)
    assert work == [1, 1, 1, 1]


async def test_a_hash_of_older_parameters_is_made_anew_when_somebody_signs_in(
    app: Litestar, own_url: str
) -> None:
    account = await sign_up(app, "old@tests.example")
    database = Database(own_url, pool_size=1)
    weak = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(PASSWORD)

    async def kept() -> str | None:
        found = await database.transact(lambda c: accounts.credentials(c, "old@tests.example"))
        return found and found.password_hash

    try:
        known = await database.transact(lambda c: accounts.credentials_of(c, account["id"]))
        await database.transact(lambda c: accounts.set_password(c, known, weak, is_new=False))
        assert (await sign_in(app, "old@tests.example", "wrong")).status_code == 401
        assert await kept() == weak
        assert (await sign_in(app, "old@tests.example")).status_code == 200
        anew = await kept()
        assert anew is not None
        assert not PasswordHasher().check_needs_rehash(anew)
        assert (await sign_in(app, "old@tests.example")).status_code == 200
        assert await kept() == anew
    finally:
        await database.close()


@pytest.mark.parametrize(
    ("changed", "status", "field"),
    [
        ({"password": "short"}, 422, "password"),
        ({"password": None}, 422, "password"),
        ({"email": "nobody"}, 422, "email"),
        ({"email": "new@tests.example\n"}, 422, "email"),
        ({"name": None}, 422, "name"),
        ({"role": "king"}, 422, "role"),
        ({"role": "administrator"}, 401, None),
        ({"rider_id": 1}, 401, None),
        ({"issuer": "https://issuer.example", "subject": "me"}, 401, None),
    ],
)
async def test_nobody_signs_up_as_more_than_a_rider(
    app: Litestar, changed: dict[str, Any], status: int, field: str | None
) -> None:
    body = {"email": "eve@tests.example", "password": PASSWORD, "name": "Eve"} | changed
    sent = {name: value for name, value in body.items() if value is not None}
    async with asking(app) as stranger:
        answer = await stranger.post("/accounts", json=sent)
    assert answer.status_code == status
    assert [each["field"] for each in answer.json().get("errors", [])] == ([field] if field else [])


# What a token is worth ---------------------------------------------------------------------------


def claims(**changed: Any) -> dict[str, Any]:
    now = datetime.now(UTC)
    said = {
        "sub": str(ADMINISTRATOR_ID),
        "iss": ISSUER_OF_OURS,
        "aud": ISSUER_OF_OURS,
        "iat": now - timedelta(seconds=5),
        "exp": now + timedelta(minutes=5),
    }
    return {name: value for name, value in (said | changed).items() if value is not None}


def unsigned(said: dict[str, Any]) -> str:
    return jwt.encode(said, None, algorithm="none")


def tampered() -> str:
    """A genuine token of nobody, with the claims of another."""
    head, _, signature = jwt.encode(claims(sub="1"), SECRET, algorithm="HS256").split(".")
    body = jwt.encode(claims(), SECRET, algorithm="HS256").split(".")[1]
    return f"{head}.{body}.{signature}"


FORGED = {
    "another secret": lambda: jwt.encode(claims(), SECRET[::-1], algorithm="HS256"),
    "no algorithm": lambda: unsigned(claims()),
    "another algorithm": lambda: jwt.encode(claims(), SECRET * 2, algorithm="HS512"),
    "other claims": tampered,
    "expired": lambda: jwt.encode(
        claims(exp=datetime.now(UTC) - timedelta(seconds=5)), SECRET, algorithm="HS256"
    ),
    "for ever": lambda: jwt.encode(claims(exp=None), SECRET, algorithm="HS256"),
    "another issuer": lambda: jwt.encode(claims(iss="somebody"), SECRET, algorithm="HS256"),
    "no issuer": lambda: jwt.encode(claims(iss=None), SECRET, algorithm="HS256"),
    "another audience": lambda: jwt.encode(claims(aud="calendar"), SECRET, algorithm="HS256"),
    "nobody": lambda: jwt.encode(claims(sub="12345678"), SECRET, algorithm="HS256"),
    "no number": lambda: jwt.encode(claims(sub="administrator"), SECRET, algorithm="HS256"),
    "no token": lambda: "x",
    "nothing": lambda: "",
}


@pytest.mark.parametrize("kind", FORGED)
async def test_a_token_that_is_not_genuine_is_worth_nothing(app: Litestar, kind: str) -> None:
    token = FORGED[kind]()
    for scheme in ("Bearer", "bearer", "Basic"):
        async with asking(app, {"Authorization": f"{scheme} {token}"}) as forger:
            answer = await forger.get("/accounts")
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert answer.json()["type"] == "/problems/not-signed-in"
            assert not token or token not in answer.text


async def test_the_control_a_genuine_one_is_worth_all_of_it(app: Litestar) -> None:
    token = jwt.encode(claims(), SECRET, algorithm="HS256")
    async with asking(app, {"Authorization": f"bearer {token}"}) as administrator:
        assert (await administrator.get("/accounts")).status_code == 200


async def test_a_token_expires_though_it_is_remembered(
    app: Litestar, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asking(app, bearer(ADMINISTRATOR_ID)) as administrator:
        assert (await administrator.get("/me")).status_code == 200
        later = datetime.now(UTC).timestamp() + 3_601
        monkeypatch.setattr(tokens_module, "time", lambda: later)
        assert (await administrator.get("/me")).status_code == 401


async def test_an_account_that_is_disabled_counts_no_more(
    household: Household, own_url: str, execute: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    account_id = household.own["account_id"]
    # In another process it is believed for a few seconds how an account stands; here for none.
    monkeypatch.setattr(tokens_module, "_STANDING_S", 0)
    async with (
        household.as_role("rider") as rider,
        household.as_role("driver") as driver,
        household.as_role("administrator") as administrator,
    ):
        assert (await rider.get("/me")).status_code == 200
        assert (await driver.get("/me")).status_code == 200
        made = await rider.post(f"/riders/{household.own['rider_id']}/calendar-link")
        another = await driver.post(f"/drivers/{household.own['driver_id']}/calendar-link")
        disabled = await administrator.post(f"/accounts/{account_id}/disable")
        assert disabled.json()["disabled_at"] is not None
        assert (await rider.get("/me")).status_code == 401
        # A link needs no account, and would go on telling.
        assert (await rider.get(made.json()["path"])).status_code == 404
        assert (await rider.get(another.json()["path"])).status_code == 200
        driver_account = (await driver.get("/me")).json()["id"]
        await execute(
            own_url, f"UPDATE accounts SET disabled_at = now() WHERE id = {driver_account}"
        )
        assert (await driver.get("/me")).status_code == 401
        assert (await household.as_role("nobody").get("/health")).status_code == 200


async def test_two_administrators_who_disable_each_other_leave_one(
    fresh_url: str, execute: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(fresh_url) as app, asking(app, AUTHORIZATION) as first:
        own = f"/accounts/{ADMINISTRATOR_ID}/disable"
        refused = await first.post(own)
        assert (refused.status_code, refused.json()["type"]) == (409, "/problems/own-account")
        another = await add(first, "/accounts", role="administrator", **external("b@tests.example"))
        await first.get("/me")
        async with asking(app, bearer(another)) as second:
            await second.get("/me")  # both are let in: it is believed how they stand
            answers = await asyncio.gather(
                first.post(f"/accounts/{another}/disable"), second.post(own)
            )
        assert sorted(each.status_code for each in answers) == [200, 409]
        (refused,) = [each for each in answers if each.status_code == 409]
        assert refused.json()["errors"][0]["field"] == "account_id"
        assert refused.json()["type"] == "/problems/last-administrator"
    # The control: two who look, and only then disable each other, leave nobody.
    await execute(fresh_url, "UPDATE accounts SET disabled_at = NULL")
    both_have_looked = asyncio.Barrier(2)
    real = AsyncConnection.scalars

    async def unlocked(self: AsyncConnection, statement: Any, *given: Any) -> Any:
        found = await real(self, statement, *given)
        await both_have_looked.wait()
        return found

    def without_lock(self: Select[Any], **_: Any) -> Select[Any]:
        return self

    monkeypatch.setattr(AsyncConnection, "scalars", unlocked)
    monkeypatch.setattr(Select, "with_for_update", without_lock)
    database = Database(fresh_url, pool_size=2)
    try:
        for each in await asyncio.gather(
            *(
                database.transact(lambda c, id_=id_: accounts.disable_account(c, id_))
                for id_ in (another, ADMINISTRATOR_ID)
            )
        ):
            assert each.disabled_at is not None
    finally:
        await database.close()


async def test_a_stream_ends_when_its_account_is_disabled(
    household: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, stream = asyncio.Event(), Feed.stream

    def noting(feed: Feed, wanted: EventFilter, after: Cursor) -> AsyncGenerator[Any]:
        opened.set()
        return stream(feed, wanted, after)

    monkeypatch.setattr(Feed, "stream", noting)
    async with (
        household.as_role("dispatcher") as dispatcher,
        household.as_role("administrator") as administrator,
        asyncio.timeout(20),
    ):
        account_id = (await dispatcher.get("/me")).json()["id"]
        following = asyncio.create_task(dispatcher.get("/events/stream"))
        await opened.wait()
        await administrator.post(f"/accounts/{account_id}/disable")
        number = household.own["booking_id"]
        assert (await administrator.post(f"/bookings/{number}/cancel")).status_code == 200
        # Without a look at the account it lasts for ever, and tells of what is done now.
        followed = await following
    assert followed.status_code == 200
    assert "data:" not in followed.text


async def test_a_new_password_ends_the_tokens_from_before(app: Litestar) -> None:
    account = await sign_up(app, "changing@tests.example")
    before = claims(sub=str(account["id"]), iat=datetime.now(UTC) - timedelta(seconds=10))
    headers = {"Authorization": f"Bearer {jwt.encode(before, SECRET, algorithm='HS256')}"}
    async with asking(app, headers) as changing:
        change = {"present_password": "no, another one", "new_password": PASSWORD[::-1]}
        wrong = await changing.post("/me/password", json=change)
        assert (wrong.status_code, wrong.json()["errors"][0]["field"]) == (422, "present_password")
        change["present_password"] = PASSWORD
        assert (await changing.post("/me/password", json=change)).status_code == 200
        assert (await changing.get("/me")).status_code == 401
    assert (await sign_in(app, "changing@tests.example")).status_code == 401
    assert (await sign_in(app, "changing@tests.example", PASSWORD[::-1])).status_code == 200


async def test_who_knows_a_password_from_before_is_not_let_in_by_asking_in_time(
    app: Litestar, own_url: str, execute: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    weak = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(PASSWORD)
    account_id = (await sign_up(app, "raced@tests.example"))["id"]
    of_it = f"WHERE id = {account_id}"
    matches = Passwords.matches
    # How the account stood is not believed for a while, as it is changed behind the service.
    monkeypatch.setattr(tokens_module, "_STANDING_S", 0)

    async def while_it_is_changed(self: Passwords, kept: str | None, password: str) -> bool:
        right = await matches(self, kept, password)
        # Until the next second has begun: a token knows its birth in whole ones.
        await asyncio.sleep(1.01 - time.time() % 1)
        await execute(
            own_url,
            f"UPDATE accounts SET password_hash = 'new', password_changed_at = now() {of_it}",
        )
        return right

    async def kept() -> str | None:
        database = Database(own_url, pool_size=1)
        try:
            found = await database.transact(lambda c: accounts.credentials_of(c, account_id))
        finally:
            await database.close()
        return found.password_hash

    monkeypatch.setattr(Passwords, "matches", while_it_is_changed)
    change = {"present_password": PASSWORD, "new_password": PASSWORD[::-1]}
    async with asking(app, bearer(account_id)) as changing:
        refused = await changing.post("/me/password", json=change)
    assert (refused.status_code, await kept()) == (422, "new")
    # A hash that is made anew must not bring the old password back either.
    await execute(own_url, f"UPDATE accounts SET password_hash = '{weak}' {of_it}")
    signed_in = await sign_in(app, "raced@tests.example")
    assert (signed_in.status_code, await kept()) == (200, "new")
    headers = {"Authorization": f"Bearer {signed_in.json()['access_token']}"}
    async with asking(app, headers) as late:
        assert (await late.get("/me")).status_code == 401


async def test_what_is_remembered_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens_module, "_REMEMBERED_MAX", 3)
    memory: dict[int, int] = {}
    for number in (1, 2, 3, 1, 4, 5):
        tokens_module._remember(memory, number, number)  # noqa: SLF001  # the bound itself
    assert list(memory) == [1, 4, 5]


# An external issuer ------------------------------------------------------------------------------


class LocalIssuer:
    """An issuer of OpenID Connect on loopback, with one key."""

    def __init__(self, address: str) -> None:
        self.name = address
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.asked = 0
        self.may_answer = threading.Event()
        self.may_answer.set()

    @property
    def documents(self) -> dict[str, Any]:
        public = jwt.algorithms.ECAlgorithm.to_jwk(self.key.public_key(), as_dict=True)
        return {
            "/.well-known/openid-configuration": {
                "issuer": self.name,
                "jwks_uri": f"{self.name}/keys",
            },
            "/keys": {"keys": [public | {"kid": "one", "use": "sig", "alg": "ES256"}]},
        }

    def token(self, key: Any = None, kid: str = "one", **changed: Any) -> str:
        said = claims(**{"sub": "ada", "iss": self.name, "aud": "taxi"} | changed)
        return jwt.encode(said, key or self.key, algorithm="ES256", headers={"kid": kid})

    def with_the_public_key_as_secret(self) -> str:
        """What a reader takes for genuine that believes the algorithm which a token names."""
        public = self.key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        said = claims(sub="ada", iss=self.name, aud="taxi")
        said |= {"iat": said["iat"].timestamp(), "exp": said["exp"].timestamp()}
        head = _base64(json.dumps({"alg": "HS256", "typ": "JWT", "kid": "one"}).encode())
        signed = f"{head}.{_base64(json.dumps(said).encode())}"
        return f"{signed}.{_base64(hmac.digest(public, signed.encode(), hashlib.sha256))}"


def _base64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


@contextmanager
def local_issuer() -> Iterator[LocalIssuer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.asked += 1
            issuer.may_answer.wait()
            content = json.dumps(issuer.documents[self.path]).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        issuer = LocalIssuer(f"http://127.0.0.1:{listener.server_port}")
        thread = threading.Thread(target=listener.serve_forever)
        thread.start()
        try:
            yield issuer
        finally:
            issuer.may_answer.set()
            listener.shutdown()
            thread.join()


async def test_the_tokens_of_an_external_issuer_are_those_of_accounts(
    own_url: str, app: Litestar, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with local_issuer() as issuer:
        trusted = {"TAXI_OIDC_ISSUER": issuer.name, "TAXI_OIDC_AUDIENCE": "taxi"}
        async with asking(app, AUTHORIZATION) as administrator:
            body = {"email": "ada@issuer.example", "issuer": issuer.name, "subject": "ada"}
            account_id = await add(administrator, "/accounts", role="dispatcher", **body)
        another_key = ec.generate_private_key(ec.SECP256R1())
        wrong = {
            "subject": issuer.token(sub="eve"),
            "audience": issuer.token(aud="somebody"),
            "issuer": issuer.token(iss="https://issuer.example"),
            "key": issuer.token(key=another_key),
            "kid": issuer.token(kid="two"),
            "expired": issuer.token(exp=datetime.now(UTC) - timedelta(minutes=1)),
            "public key": issuer.with_the_public_key_as_secret(),
            "unsigned": unsigned(claims(sub="ada", iss=issuer.name, aud="taxi")),
            "our secret": jwt.encode(
                claims(sub="ada", iss=issuer.name, aud="taxi"), SECRET, algorithm="HS256"
            ),
        }
        for with_secret in (True, False):
            own = {} if with_secret else {"TAXI_TOKEN_SECRET": ""}
            async with running(own_url, **trusted, **own) as service:
                headers = {"Authorization": f"Bearer {issuer.token()}"}
                async with asking(service, headers) as ada:
                    assert (await ada.get("/me")).json()["id"] == account_id
                    assert (await ada.get("/schedule", params=_day())).status_code == 200
                for kind, token in wrong.items():
                    async with asking(service, {"Authorization": f"Bearer {token}"}) as forger:
                        assert (await forger.get("/me")).status_code == 401, kind
                async with asking(service, AUTHORIZATION) as administrator:
                    alone = await administrator.get("/me")
                    assert (alone.status_code == 200) is with_secret
                signing_in = await sign_in(service, "ada@issuer.example")
                assert signing_in.status_code == (401 if with_secret else 409)
        assert issuer.asked <= 2 * 4, "keys are kept, and not fetched for each that is unknown"
    async with running(own_url, **trusted) as service:
        async with asking(service, {"Authorization": f"Bearer {issuer.token()}"}) as ada:
            answer = await ada.get("/me")
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
            assert answer.json()["type"] == "/problems/issuer-silent"
        async with asking(service, AUTHORIZATION) as administrator:
            assert (await administrator.get("/me")).status_code == 200


async def test_keys_that_strangers_make_up_keep_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    later_s, real = 0.0, time.monotonic
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(tokens_module, "monotonic", lambda: real() + later_s)
    with local_issuer() as there:
        issuer = Issuer(there.name, "taxi")

        async def refused(name: str) -> bool:
            with pytest.raises(NotSignedIn):
                await issuer.read(there.token(kid=name))
            return True

        await issuer.read(there.token())
        assert there.asked == 2, "the discovery document, and the keys"
        assert all([await refused(f"made up {number}") for number in range(20)])
        assert there.asked == 2, "it is too early to ask again"
        later_s = 31.0
        there.may_answer.clear()
        async with asyncio.timeout(20), asyncio.TaskGroup() as strangers:
            waiting = [strangers.create_task(refused(f"another {number}")) for number in range(20)]
            while there.asked == 2:  # noqa: ASYNC110  # it is in another thread
                await asyncio.sleep(0.01)
            await issuer.read(there.token(jti="new"))
            # The control: whoever names a key that is not known does wait.
            assert not any(each.done() for each in waiting)
            there.may_answer.set()
        assert there.asked == 3, "one fetch for them all"
    # The issuer is away: keys that are known go on to count, but not for ever.
    later_s = 31.0 + 301.0
    await issuer.read(there.token(jti="another"))
    later_s = 31.0 + 3_601.0
    with pytest.raises(IssuerSilent):
        await issuer.read(there.token(jti="late"))


def _day() -> dict[str, str]:
    return {"start": at(0), "end": at(60)}


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("TAXI_TOKEN_SECRET", "too short"),
        ("TAXI_TOKEN_SECRET", ""),
        ("TAXI_OIDC_ISSUER", "https://issuer.example"),
        ("TAXI_OIDC_AUDIENCE", "taxi"),
        ("TAXI_TOKEN_HOURS", "0"),
        ("TAXI_SIGN_INS_PER_MIN", "none"),
    ],
)
def test_there_is_no_service_without_a_way_to_sign_in(variable: str, value: str) -> None:
    environment = os.environ | {"DATABASE_URL": "postgresql://nobody/taxi", variable: value}
    with pytest.raises(InvalidInput) as wrong:
        make(environment)
    assert str(wrong.value.field).startswith(variable[:9])
    assert "too short" not in wrong.value.message
    make(environment | {variable: os.environ.get(variable, "")})


# How much, and how often -------------------------------------------------------------------------


async def with_ten_drivers(household: Household) -> str:
    fleet = f"fleet of {household.own['rider_id']}"
    async with household.as_role("dispatcher") as dispatcher:
        for _ in range(10):
            await add(dispatcher, "/drivers", name="Ada", fleet=fleet)
    return fleet


async def ten_at_once(household: Household, fleet: str) -> list[httpx.Response]:
    wish = {"rider_id": household.own["rider_id"], "fleet": fleet}
    wish |= {"start": at(5_000), "predicted_end": at(5_030)}
    async with household.as_role("rider") as rider:
        return await asyncio.gather(*(rider.post("/bookings", json=wish) for _ in range(10)))


async def cancel_all(household: Household) -> None:
    """Have the rider's time free."""
    async with household.as_role("rider") as rider:
        for each in (await rider.get("/bookings")).json()["items"]:
            await rider.post(f"/bookings/{each['id']}/cancel")


async def test_ten_at_once_do_not_get_more_than_one_rider_may_have(household: Household) -> None:
    fleet = await with_ten_drivers(household)
    await cancel_all(household)
    answers = await ten_at_once(household, fleet)
    refused = [each.json() for each in answers if each.status_code != 201]
    assert len(answers) - len(refused) == 4, "four times half an hour are two hours"
    assert {each["type"] for each in refused} == {"/problems/over-limit"}
    assert {each["status"] for each in refused} == {409}
    assert refused[0]["detail"] == (
        "A rider may have 2 hours booked ahead or waited for; with this it would be 2.5."
    )


async def test_the_control_without_the_lock_they_do(
    household: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = await with_ten_drivers(household)
    await cancel_all(household)
    all_have_looked = asyncio.Barrier(10)

    async def unlocked(connection: Any, rider_id: int, hours_max: float, work: Any) -> Any:
        before = await accounts.booked_ahead(connection, rider_id)
        await all_have_looked.wait()
        result = await work(connection)
        assert before + timedelta(minutes=30) <= timedelta(hours=hours_max)
        return result

    monkeypatch.setattr("api.idempotency.within_hours", unlocked)
    answers = await ten_at_once(household, fleet)
    assert [each.status_code for each in answers] == [201] * 10


async def test_the_limit_is_that_of_riders_whatever_they_ask_for(household: Household) -> None:
    await cancel_all(household)
    own = {name: household.own[name] for name in ("rider_id", "driver_id")}

    def wish(start: int, end: int, **more: Any) -> dict[str, Any]:
        return own | {"start": at(start), "predicted_end": at(end)} | more

    def new_time(start: int, end: int) -> dict[str, str]:
        return {"start": at(start), "predicted_end": at(end)}

    async def refused(answer: httpx.Response) -> bool:
        return answer.json().get("type") == "/problems/over-limit"

    async with household.as_role("rider") as rider, household.as_role("dispatcher") as dispatcher:
        booked = await add(rider, "/bookings", **wish(0, 60))
        held = await add(rider, "/bookings", **wish(60, 90, hold_s=600))
        assert await refused(await rider.post("/bookings", json=wish(90, 121, hold_s=600)))
        weekly = series(household.own, duration_s=960)
        assert await refused(await rider.post("/series", json=weekly))
        assert await refused(await rider.post("/series", json=weekly | {"on_conflict": "skip"}))
        longer = await rider.post(f"/bookings/{booked}/reschedule", json=new_time(200, 291))
        assert await refused(longer)
        moved = await rider.post(f"/bookings/{booked}/reschedule", json=new_time(200, 290))
        assert moved.status_code == 200
        assert await refused(await rider.post("/bookings", json=wish(400, 401)))
        # A dispatcher may give them more; they may then move it, and no more than that.
        assert (await dispatcher.post("/bookings", json=wish(500, 560))).status_code == 201
        moved = await rider.post(f"/bookings/{booked}/reschedule", json=new_time(300, 390))
        assert moved.status_code == 200
        assert (await rider.post(f"/bookings/{held}/confirm")).status_code == 200
        assert await refused(await rider.post("/bookings", json=wish(600, 601)))
        for number in (booked, held):
            assert (await rider.post(f"/bookings/{number}/cancel")).status_code == 200
        last = await add(rider, "/bookings", **wish(600, 660))
        assert (await rider.post(f"/bookings/{last}/cancel")).status_code == 200
        # What is waited for counts: it is offered in the transaction of somebody without limits.
        assert await refused(await rider.post("/waiting-list", json=wish(500, 561)))
        waits = await add(rider, "/waiting-list", **wish(500, 560))
        assert await refused(await rider.post("/bookings", json=wish(700, 701)))
        assert (await rider.post(f"/waiting-list/{waits}/withdraw")).status_code == 200
        assert (await rider.post("/bookings", json=wish(700, 760))).status_code == 201


async def test_who_asks_too_often_is_told_when_to_come_back(own_url: str) -> None:
    limits = {"TAXI_SIGN_INS_PER_MIN": "3", "TAXI_REQUESTS_PER_MIN": "5"}
    body = {"email": "unknown@tests.example", "password": PASSWORD}
    elsewhere = "203.0.113.8"
    async with running(own_url, **limits) as limited:
        household = Household(limited)
        await household.settle()
        async with asking(limited) as stranger, asking(limited, address=elsewhere) as other:
            statuses = [(await stranger.post("/tokens", json=body)).status_code for _ in range(3)]
            assert statuses == [401] * 3
            answer = await stranger.post("/tokens", json=body)
            assert answer.status_code == 429
            assert 1 <= int(answer.headers["Retry-After"]) <= 60
            assert answer.json()["type"] == "/problems/too-many-requests"
            assert answer.headers["Content-Type"] == "application/problem+json"
            assert (await stranger.post("/accounts", json={})).status_code == 422, "of its own"
            assert (await stranger.get("/health")).status_code == 200
            assert (await other.post("/tokens", json=body)).status_code == 401
        for role, at_last in (("rider", 429), ("dispatcher", 200), ("administrator", 200)):
            async with household.as_role(role) as client:
                # What is not theirs counts as well: so much for guessing.
                for number in range(5):
                    await client.get(f"/bookings/{number + 1}")
                assert (await client.get("/me")).status_code == at_last, role
        async with household.as_role("administrator", address=LOOPBACK) as local:
            metrics = (await local.get("/metrics")).text
            assert re.search(
                r'taxi_requests_total\{.*path="/tokens"[^}]*status_code="429"', metrics
            )


# Calendars ---------------------------------------------------------------------------------------


async def test_a_link_opens_one_calendar_and_nothing_else(household: Household) -> None:
    rider_id, driver_id = household.own["rider_id"], household.own["driver_id"]
    async with household.as_role("nobody") as program, household.as_role("rider") as rider:
        made = await rider.post(f"/riders/{rider_id}/calendar-link")
        link = made.json()["path"]
        assert made.headers["Cache-Control"] == "no-store"
        feed = await program.get(link)
        assert feed.headers["Content-Type"].startswith("text/calendar")
        assert feed.text.count("BEGIN:VEVENT") == 3
        assert (await program.get(f"/riders/{rider_id}/calendar.ics")).status_code == 401
        token = httpx.URL(link).params["token"]
        headers = {"Authorization": f"Bearer {token}"}
        assert (await program.get("/me", headers=headers)).status_code == 401
        unknown = await program.get("/calendar.ics", params={"token": token[::-1]})
        assert unknown.json()["type"] == "/problems/unknown-link"
        async with household.as_role("driver") as driver:
            theirs = (await driver.post(f"/drivers/{driver_id}/calendar-link")).json()["path"]
        assert (await program.get(theirs)).text.count("SUMMARY:Drive Alan") == 3
        anew = (await rider.post(f"/riders/{rider_id}/calendar-link")).json()["path"]
        assert (await program.get(link)).status_code == 404
        assert (await program.get(anew)).status_code == 200
        assert (await program.get(theirs)).status_code == 200


# What must not be seen ---------------------------------------------------------------------------


async def test_no_secret_is_in_a_log_or_shows_itself(
    app: Litestar, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    await sign_up(app, "quiet@tests.example")
    token = (await sign_in(app, "quiet@tests.example")).json()["access_token"]

    async def broken(*_: object) -> None:
        raise RuntimeError("on purpose")

    monkeypatch.setattr("api.routes.accounts.accounts.linked_calendar", broken)
    async with asking(app, {"Authorization": f"Bearer {token}"}) as quiet:
        assert (await quiet.get("/me")).status_code == 200
        failed = await quiet.get("/calendar.ics", params={"token": "of a link"})
        assert failed.status_code == 500
    assert "on purpose" in caplog.text, "with nothing logged, nothing is shown"
    for secret in (PASSWORD, token, SECRET, "of a link", "$argon2"):
        assert secret not in caplog.text
    settings = read_settings(os.environ | {"DATABASE_URL": "postgresql://u:p@h/d"})
    shown = repr(
        (
            settings,
            AccountIn("a@b.example", PASSWORD),
            SignIn("a@b.example", PASSWORD),
            PasswordChange(PASSWORD, PASSWORD),
            TokenOut(token, "Bearer", 1),
            CalendarLink(f"/calendar.ics?token={token}"),
        )
    )
    for secret in (PASSWORD, token, SECRET):
        assert secret not in shown


# The command line --------------------------------------------------------------------------------


def test_a_secret_is_made_once_and_nobody_else_can_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("TAXI_TOKEN_SECRET", "DATABASE_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TAXI_HOME", f"{tmp_path / 'home'}")
    secret = token_secret()
    assert len(secret) >= 32
    assert token_secret() == secret
    (kept,) = (tmp_path / "home").iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("DATABASE_URL", "postgresql://somebody/else")
    assert token_secret() == ""


def test_the_demo_is_for_this_machine_alone(fresh_url: str, execute: Any) -> None:
    off_loopback = ("serve", "--host", "0.0.0.0", "--port", "0")  # noqa: S104  # refused
    refused = run(*off_loopback, "--demo", DATABASE_URL=fresh_url)
    assert (refused.returncode, "--demo" in refused.stderr) == (2, True)
    asyncio.run(seed(fresh_url, schema.SHIPPED))
    refused = run(*off_loopback, DATABASE_URL=fresh_url)
    assert refused.returncode == 2
    assert "administrator@demo.example" in refused.stderr
    assert DEMO_PASSWORD not in refused.stderr
    asyncio.run(execute(fresh_url, "UPDATE accounts SET disabled_at = now() WHERE id < 9"))
    with subprocess.Popen(
        [TAXI, *off_loopback],
        env=os.environ | {"DATABASE_URL": fresh_url},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("Serving on ")
        process.terminate()


def test_the_first_administrator_is_made_at_the_terminal(
    fresh_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", fresh_url)
    monkeypatch.setenv("TAXI_PASSWORD", PASSWORD)
    email = ("--email", "first@tests.example")

    def account(*arguments: str) -> str:
        return CliRunner().invoke(account_command, arguments, catch_exceptions=False).output

    made = account("add", "--role", "administrator", *email)
    assert "first@tests.example is there: administrator" in made
    for arguments, said in (
        (("add", "--role", "dispatcher", *email), "--email: There is an account"),
        (("add", "--role", "driver", "--email", "a@b.example"), "--driver: "),
        (
            ("add", "--role", "driver", "--driver", "9", "--email", "a@b.example"),
            "--driver: There is no driver 9.",
        ),
        (("add", "--role", "rider", "--email", "nobody"), "--email: "),
        (("add", "--role", "rider", "--email", "a@b.example"), "--rider, --name: "),
        (("add", "--role", "rider", "--issuer", "https://issuer.example", *email), "--subject"),
        (("token", "--email", "nobody@tests.example"), "--email: There is no account"),
    ):
        with pytest.raises(TaxiError) as failed:
            account(*arguments)
        assert said in f"{failed.value.field}: {failed.value.message}"
    token = account("token", *email).strip()

    async def asked() -> tuple[int, int]:
        async with running(fresh_url) as app:
            async with asking(app, {"Authorization": f"Bearer {token}"}) as first:
                seen = (await first.get("/accounts")).status_code
            return seen, (await sign_in(app, "first@tests.example")).status_code

    assert asyncio.run(asked()) == (200, 200)
    assert "is disabled" in account("disable", "--email", "administrator@tests.example")
    with pytest.raises(InvalidInput, match="last administrator") as last:
        account("disable", *email)
    assert last.value.field == "--email"
    account("add", "--role", "administrator", "--email", "next@tests.example")
    assert "is disabled" in account("disable", *email)
    with pytest.raises(InvalidInput, match="is disabled"):
        account("token", *email)
    monkeypatch.setenv("TAXI_PASSWORD", "short")
    with pytest.raises(InvalidInput, match="12 characters"):
        account("add", "--role", "dispatcher", "--email", "second@tests.example")
    monkeypatch.delenv("TAXI_PASSWORD")
    with pytest.raises(InvalidInput, match="no terminal"):
        account("add", "--role", "dispatcher", "--email", "second@tests.example")

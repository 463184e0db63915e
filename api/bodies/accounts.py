"""What goes over the wire about accounts. None of it shows a password, also in a log."""

from typing import Annotated, Self

from msgspec import Meta, Struct

from api.bodies.common import ID_MAX, Id, Instant, Name, Page
from api.patterns import EMAIL, IN_WORDS, PRINTABLE
from booking.accounts import Account, Role
from booking.errors import InvalidInput

PASSWORD_CHARS_MIN = 12

Email = Annotated[
    str,
    Meta(
        min_length=3,
        max_length=254,
        pattern=EMAIL,
        examples=["ada@example.com"],
    ),
]
NewPassword = Annotated[
    str,
    Meta(
        min_length=PASSWORD_CHARS_MIN,
        max_length=128,
        description="No rule but its length.",
        examples=["a few words that you can remember"],
    ),
]
Password = Annotated[str, Meta(max_length=128, examples=["a few words that you can remember"])]
ExternalName = Annotated[str, Meta(min_length=1, max_length=255, pattern=PRINTABLE)]


class AccountIn(Struct, forbid_unknown_fields=True):
    """An account to be added.

    Anybody may sign up as a rider, by `email`, `password` and `name`, which makes the rider as
    well. Administrators add accounts of every role, for a `rider_id` or a `driver_id` that is
    there, and instead of a password by the `issuer` and `subject` that somebody signs in as.
    """

    email: Email
    password: NewPassword | None = None
    role: Role = Role.RIDER
    name: Name | None = None
    rider_id: Id | None = None
    driver_id: Id | None = None
    issuer: ExternalName | None = None
    subject: ExternalName | None = None

    def __repr__(self) -> str:
        return f"AccountIn(role={self.role}, …)"

    @property
    def is_sign_up(self) -> bool:
        """Whether anybody may ask for it."""
        return (
            self.role is Role.RIDER
            and self.rider_id is None
            and self.driver_id is None
            and self.issuer is None
            and self.subject is None
        )

    @property
    def external(self) -> tuple[str, str] | None:
        """Issuer and subject."""
        return (self.issuer, self.subject) if self.issuer and self.subject else None

    def check(self) -> None:
        """Raise `InvalidInput` unless it says whom it is for, and how they sign in."""
        for name, form in (("email", EMAIL), ("issuer", PRINTABLE), ("subject", PRINTABLE)):
            # The pattern lets a newline behind it pass, as Python reads it.
            if (getattr(self, name) or "").endswith("\n"):
                raise InvalidInput(IN_WORDS[form], field=name)
        if (self.issuer is None) != (self.subject is None):
            field = "subject" if self.subject is None else "issuer"
            raise InvalidInput("The issuer and the subject go together.", field=field)
        if self.password is not None and self.external:
            raise InvalidInput("Give a password or a subject, not both.", field="password")
        if self.password is None and not self.external:
            raise InvalidInput("It is required.", field="password")
        makes_a_rider = self.role is Role.RIDER and self.rider_id is None
        if makes_a_rider and self.name is None:
            raise InvalidInput("It is required: what the rider is called.", field="name")
        if self.name is not None and not makes_a_rider:
            raise InvalidInput("It is for a rider who is not there yet.", field="name")


class AccountOut(Struct):
    """An account."""

    id: Id
    email: str
    role: Role
    rider_id: Id | None
    driver_id: Id | None
    issuer: str | None
    subject: str | None
    created_at: Instant
    disabled_at: Instant | None

    @classmethod
    def of(cls, account: Account) -> Self:
        """As it goes over the wire."""
        return cls(
            account.id,
            account.email,
            account.role,
            account.rider_id,
            account.driver_id,
            account.issuer,
            account.subject,
            account.created_at,
            account.disabled_at,
        )


class AccountPage(Page[AccountOut]):
    """A part of the list of accounts."""

    items: list[AccountOut]


class SignIn(Struct, forbid_unknown_fields=True):
    """Who signs in."""

    email: Email
    password: Password

    def __repr__(self) -> str:
        return "SignIn(…)"


class TokenOut(Struct):
    """A token, to be sent as `Authorization: Bearer`, and for how many seconds it is good."""

    access_token: str
    token_type: str
    expires_in: Annotated[int, Meta(ge=1, le=ID_MAX)]

    def __repr__(self) -> str:
        return "TokenOut(…)"


class PasswordChange(Struct, forbid_unknown_fields=True):
    """The password that somebody has, and the one that they will have."""

    present_password: Password
    new_password: NewPassword

    def __repr__(self) -> str:
        return "PasswordChange(…)"


class CalendarLink(Struct):
    """Where a calendar program finds one feed, below the address of the service.

    Whoever has it can read that feed, and do nothing else.
    """

    path: str

    def __repr__(self) -> str:
        return "CalendarLink(…)"

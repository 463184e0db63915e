"""Why a request was not carried out (RFC 9457), and what each kind of problem means."""

from msgspec import UNSET, Struct, UnsetType


class FieldError(Struct):
    """One input that breaks a rule."""

    field: str
    rule: str


class Problem(Struct, omit_defaults=True, kw_only=True):
    """RFC 9457: why a request was not carried out."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldError] | UnsetType = UNSET


class ProblemType(Struct):
    """A kind of problem that this service answers with."""

    type: str
    title: str
    status: int


class ProblemTypes(Struct):
    """Every kind of problem."""

    items: list[ProblemType]

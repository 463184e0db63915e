"""What a statement touches, read from its text: which of two steps can notice the other.

Two neighbouring steps of different sessions may be swapped, with the same answers
and the same tables in the end, if neither can notice the other. Whoever wants every
interleaving then needs to run one order of the two, and may count both.

The reading errs on the side of too much. A function that is not known, a view, a
trigger: such a statement touches every table, and swaps with nothing.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from booking.postgres.database import Isolation

UNCHANGED = frozenset({"riders"})
"""Tables that no ledger's command writes. Whoever only looks there notices nobody."""

_HARMLESS = frozenset(
    [
        "array_agg",
        "bool_and",
        "bool_or",
        "cardinality",
        "cast",
        "clock_timestamp",
        "coalesce",
        "count",
        "date_trunc",
        "extract",
        "generate_series",
        "greatest",
        "isempty",
        "least",
        "length",
        "lower",
        "max",
        "min",
        "multirange",
        "now",
        "range_agg",
        "range_merge",
        "row_number",
        "to_timestamp",
        "tstzmultirange",
        "tstzrange",
        "unnest",
        "upper",
    ]
)
"""Functions that look at nothing but their arguments, or at the clock."""
_KEYWORDS = frozenset(
    [
        "all",
        "and",
        "any",
        "array",
        "as",
        "between",
        "by",
        "case",
        "conflict",
        "distinct",
        "do",
        "else",
        "except",
        "exists",
        "filter",
        "from",
        "in",
        "intersect",
        "interval",
        "into",
        "is",
        "join",
        "lateral",
        "limit",
        "materialized",
        "not",
        "nothing",
        "of",
        "on",
        "or",
        "order",
        "over",
        "returning",
        "row",
        "select",
        "set",
        "some",
        "then",
        "union",
        "update",
        "using",
        "values",
        "when",
        "where",
        "with",
    ]
)

_LITERAL = re.compile(r"'(?:[^']|'')*'")
_CALL = re.compile(r"([a-z_][\w.]*)\s*\(")
_WORD = re.compile(r"[a-z_]\w*")
_WRITTEN = re.compile(r"\b(insert into|update|delete from|merge into)\s+(?:only\s+)?([a-z_]\w*)")
_BY_ID = re.compile(r"\bwhere bookings\.id = \$(\d+)")
_INSERT_ALONE = re.compile(
    r"(?!.*\b(?:do update|for no key update|for update|for share)\b)insert", re.DOTALL
)
_LOCKED = re.compile(
    r"\bfor (no key update|update|key share|share)\b(?: of ([a-z_]\w*(?:, ?[a-z_]\w*)*))?"
)

_TABLES = """
    SELECT relname FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace
    WHERE nspname = 'public' AND relkind IN ('r', 'p')
"""
_REFERENCES = """
    SELECT conrelid::regclass::text, confrelid::regclass::text FROM pg_constraint
    WHERE contype = 'f'
"""
_OPAQUE = """
    SELECT relname FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace
    WHERE nspname = 'public' AND relkind IN ('v', 'm')
    UNION
    SELECT relname FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid
        JOIN pg_proc ON pg_proc.oid = tgfoid
    WHERE NOT tgisinternal AND proname NOT IN (
        'stamp_changed_in', 'stamp_booking',
        -- They write what no ledger's command reads: the trail, and who drove before.
        'note_booked', 'note_changed', 'note_deleted', 'keep_events', 'remember_driver'
    )
"""
_NOTHING: frozenset[str] = frozenset()
_BOOKINGS = "bookings"


@dataclass(frozen=True, slots=True)
class Footprint:
    """The tables that a step reads, locks so that others may do the same, and writes or locks.

    With `ends`, the transaction ends with the step: it lets go of what it held, and
    the others see what it wrote. With `begins`, the transaction's snapshot is
    taken in the step, and kept.
    """

    reads: frozenset[str] = _NOTHING
    shares: frozenset[str] = _NOTHING
    writes: frozenset[str] = _NOTHING
    ends: bool = False
    begins: bool = False

    @property
    def acts(self) -> bool:
        """Whether it does more than look."""
        return bool(self.ends or self.writes or self.shares)

    @property
    def idle(self) -> bool:
        """Whether nobody can notice the step, and it can notice nobody."""
        return not self.acts and not self.begins and self.reads <= UNCHANGED

    def after(self, earlier: "Footprint", *, ends: bool = False) -> "Footprint":
        """This step's, if `earlier` is what its transaction did before.

        A step that fails ends its transaction, and with it all that was held.
        """
        return replace(
            self,
            shares=self.shares | earlier.shares,
            writes=self.writes | earlier.writes,
            ends=self.ends or ends,
        )

    def __or__(self, other: "Footprint") -> "Footprint":
        return Footprint(
            self.reads | other.reads, self.shares | other.shares, self.writes | other.writes
        )


def independent(one: Footprint, other: Footprint, isolation: Isolation) -> bool:
    """Whether the two, of different sessions, may be swapped with nobody the wiser."""
    if one.idle or other.idle:
        return True
    if one.ends and other.ends:
        return False
    if isolation == "SERIALIZABLE":
        # What was read counts as well, and who commits first.
        return not (
            one.ends
            or other.ends
            or one.writes & (other.reads | other.writes | other.shares)
            or other.writes & (one.reads | one.shares)
        )
    if one.writes & (other.writes | other.shares) or other.writes & one.shares:
        return False
    return not (_shows(one, other, isolation) or _shows(other, one, isolation))


def _shows(end: Footprint, other: Footprint, isolation: Isolation) -> bool:
    """Whether what is committed by `end` can change what `other` sees."""
    if not end.ends:
        return False
    if isolation == "REPEATABLE READ" and (other.begins or not other.acts):
        return other.begins and bool(end.writes)
    return bool(end.writes & other.reads)


@dataclass(frozen=True)
class Catalogue:
    """What must be known of a database to read a statement's footprint."""

    tables: frozenset[str]
    references: Mapping[str, frozenset[str]]
    opaque: frozenset[str]
    _readings: dict[str, tuple[Footprint, int | None]] = field(default_factory=dict, compare=False)

    @classmethod
    async def read(cls, connection: Any) -> "Catalogue":
        """Ask the database, by a connection of asyncpg."""
        references: dict[str, frozenset[str]] = {}
        for source, target in await connection.fetch(_REFERENCES):
            references[source] = references.get(source, _NOTHING) | {target}
        return cls(
            frozenset(name for (name,) in await connection.fetch(_TABLES)),
            references,
            frozenset(name for (name,) in await connection.fetch(_OPAQUE)),
        )

    def footprint(
        self, statement: str, values: Sequence[Any] = (), rows: Sequence[int] = ()
    ) -> Footprint:
        """What the statement touches, or more.

        `rows` are the ids of bookings whose rows are told apart: who locks or changes
        one of them by its id leaves the others alone.
        """
        if statement not in self._readings:
            self._readings[statement] = self._read(statement.lower())
        whole, place = self._readings[statement]
        booking_id = values[place] if place is not None and place < len(values) else None
        if booking_id in rows:
            row = frozenset({f"{_BOOKINGS}#{rows.index(booking_id)}"})
            if whole.reads == whole.writes and "update bookings" not in statement.lower():
                return Footprint(row, whole.shares, row)  # it locks, and changes nothing
            return replace(whole, writes=whole.writes | row)
        every = frozenset(f"{_BOOKINGS}#{number}" for number in range(len(rows)))
        if _BOOKINGS in whole.writes and not _INSERT_ALONE.match(statement.lower()):
            return replace(whole, writes=whole.writes | every)
        return whole

    def _read(self, statement: str) -> tuple[Footprint, int | None]:
        """The footprint in whole tables; and which value is the booking's id, if it is by that."""
        text = _LITERAL.sub("''", statement)
        words = frozenset(_WORD.findall(text))
        named = words & self.tables
        calls = frozenset(_CALL.findall(text)) - _KEYWORDS - _HARMLESS - self.tables
        readable = text.lstrip().startswith(("select", "with", "insert", "update", "delete"))
        everything = Footprint(self.tables, self.tables, self.tables), None
        if not readable or calls or words & self.opaque:
            return everything
        shares, writes = self._locked(text, named)
        for verb, table in _WRITTEN.findall(_LOCKED.sub("", text)):
            if table == "set":  # of ON CONFLICT DO UPDATE SET
                continue
            if verb in {"delete from", "merge into"} or table not in self.tables:
                return everything
            writes |= {table}
            shares |= self.references.get(table, _NOTHING)
        by_id = _BY_ID.search(text) if named == {_BOOKINGS} and "or" not in words else None
        place = int(by_id[1]) - 1 if by_id and writes == named else None
        return Footprint(named, shares, writes), place

    def _locked(self, text: str, named: frozenset[str]) -> tuple[frozenset[str], frozenset[str]]:
        shares, writes = _NOTHING, _NOTHING
        for strength, of in _LOCKED.findall(text):
            # An alias after OF is no table: then it may be any of those that are named.
            tables = frozenset(of.replace(" ", "").split(",")) & self.tables or named
            if strength == "key share":
                shares |= tables
            else:
                writes |= tables
        return shares, writes

"""The forms that text must have, each with a sentence for whoever has missed it."""

from collections.abc import Mapping

# No NUL: PostgreSQL's text cannot hold it. Not all blank. No lookahead: those who generate
# requests from the pattern cannot follow one.
PRINTABLE = r"^[^\x00-\x1f\x7f]*[^\x00-\x20\x7f][^\x00-\x1f\x7f]*$"
WALL_CLOCK = r"^([01][0-9]|2[0-3]):[0-5][0-9]$"
CLOCK = r"^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)$"
PLACE = r"^-?[0-9]{1,2}(\.[0-9]{1,10})?,-?[0-9]{1,3}(\.[0-9]{1,10})?$"
EMAIL = r"^[^@\x00-\x20\x7f]+@[^@\x00-\x20\x7f]+$"
WITHOUT_NUL = r"^[^\x00]*$"
ENTITY_TAG = r'^(\*|"[0-9]{1,18}")$'
KEY = r"^[\x20-\x7e]+$"

IN_WORDS: Mapping[str, str] = {
    PRINTABLE: "It must hold more than blanks, and no control characters such as a line break.",
    WALL_CLOCK: "It must be hours and minutes from 00:00 to 23:59, such as 07:30.",
    CLOCK: "It must be hours and minutes from 00:00 to 24:00, such as 07:30.",
    PLACE: "It must be a latitude and a longitude in degrees, such as 52.52,13.405.",
    EMAIL: "It must be an address such as ada@example.com, without blanks.",
    WITHOUT_NUL: "It must not hold the character NUL.",
    ENTITY_TAG: 'It must be one ETag as it was given, with its quotes, such as "3"; or *.',
    KEY: "It must be letters, digits, signs and blanks of ASCII.",
}
"""What each pattern asks for."""

"""What a webhook may be, and when a message that was not accepted is sent again.

After the Standard Webhooks specification, <https://www.standardwebhooks.com>.
"""

import base64
import ipaddress
import re
import secrets
from collections.abc import Sequence

from booking.errors import InvalidInput

URL_CHARS_MAX = 2_000
_SECRET_BYTES = 32
# Host and port, and nothing that two readers of an address could read in two ways.
_URL = re.compile(r"(https?)://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?([/?][!-~]*)?")
_PORT_MAX = 65_535

RETRY_S: Sequence[float] = (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""The waits between the attempts, in seconds: five seconds first, a day at last.

As the specification proposes. A message that was not accepted after them all is given up.
"""
JITTER = 0.2
"""A wait is longer by up to this share of it, so that those who failed together part."""


def check_url(url: str) -> str:
    """The address, if messages may go there; else `InvalidInput`.

    What is sent says who rides when, so it goes over TLS, or does not leave this machine.
    """
    found = _URL.fullmatch(url)
    if found is None or "#" in url or len(url) > URL_CHARS_MAX:
        raise InvalidInput("It is no address such as https://host/path.", field="url")
    scheme, host, port, _ = found.groups()
    if port is not None and not 1 <= int(port[1:]) <= _PORT_MAX:
        raise InvalidInput(f"A port is 1 to {_PORT_MAX}.", field="url")
    if scheme == "http" and not _is_loopback(host):
        raise InvalidInput("It must be https; http goes to this machine only.", field="url")
    return url


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def new_secret() -> str:
    """A secret to sign messages with, as the specification writes it."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def wait_s(attempts: int, dice: float, schedule: Sequence[float] = RETRY_S) -> float | None:
    """Seconds until the next attempt after so many that failed; None if that was the last.

    `dice` is a random number in `[0, 1)`.
    """
    if attempts > len(schedule):
        return None
    return schedule[attempts - 1] * (1 + dice * JITTER)

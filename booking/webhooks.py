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
_WITHIN_IPV6 = ipaddress.ip_network("64:ff9b::/96")
"""Whose addresses lead to the IPv4 address in their last 32 bits (RFC 6052)."""

RETRY_S: Sequence[float] = (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""The waits between the attempts, in seconds: five seconds first, a day at last.

As the specification proposes. A message that was not accepted after them all is given up.
"""
JITTER = 0.2
"""A wait is longer by up to this share of it, so that those who failed together part."""


def check_url(url: str, *, private: bool = False) -> str:
    """The address, if messages may go there; else `InvalidInput`.

    What is sent says who rides when, so it goes over TLS, or does not leave this machine. Unless
    `private` addresses are allowed it goes to none: whoever may add a webhook could otherwise
    have the service ask what only its own network is to reach. What a name leads to is known
    when it is asked, and looked at then.
    """
    found = _URL.fullmatch(url)
    if found is None or "#" in url or len(url) > URL_CHARS_MAX:
        raise InvalidInput("It is no address such as https://host/path.", field="url")
    scheme, host, port, _ = found.groups()
    if port is not None and not 1 <= int(port[1:]) <= _PORT_MAX:
        raise InvalidInput(f"A port is 1 to {_PORT_MAX}.", field="url")
    address = _address_in(host)
    if not private and address is not None and not is_public(address):
        raise InvalidInput(
            "It must not lead to this machine or into a private network."
            " (TAXI_WEBHOOK_PRIVATE allows it.)",
            field="url",
        )
    if scheme == "http" and not (address is not None and address.is_loopback):
        raise InvalidInput("It must be https; http goes to this machine only.", field="url")
    return url


Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _address_in(host: str) -> Address | None:
    """The address that the host is; None for a name that may have any."""
    if host.lower() == "localhost":
        return ipaddress.IPv4Address("127.0.0.1")
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


def is_public(address: Address) -> bool:
    """Whether it is the same machine for whoever asks, and one only."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address in _WITHIN_IPV6:
            return is_public(ipaddress.IPv4Address(address.packed[-4:]))
    return address.is_global and not address.is_multicast


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

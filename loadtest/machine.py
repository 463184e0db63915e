"""What a result was measured on, so that nobody has to guess."""

import os
import platform
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

_VERSION = "server_version"


def describe(packages: Iterable[str]) -> dict[str, Any]:
    """The machine, the versions of Python and of `packages`, the time, and the load just now.

    To be asked before anything is measured: afterwards the load is that of the measurement.
    """
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "load_1_min": round(os.getloadavg()[0], 2),
        "load_taken": "at the start",
        "system": f"{platform.system()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": {package: version(package) for package in packages},
    }


def measured_on(about: Mapping[str, Any], server: Mapping[str, str] | None = None) -> str:
    """What must be known of `about`, as `describe` made it, to read figures; a sentence.

    `server` are the settings of a PostgreSQL, its `server_version` among them. Older
    results do not know when their load was taken.
    """
    load = " ".join(filter(None, (str(about["load_1_min"]), about.get("load_taken"))))
    versions = [about["python"]]
    if server is not None:
        settings = ", ".join(
            f"{name} {value}" for name, value in server.items() if name != _VERSION
        )
        versions.append(f"PostgreSQL {server[_VERSION]}" + (f" ({settings})" if settings else ""))
    versions += [f"{name} {version}" for name, version in about["packages"].items()]
    return (
        f"Measured {about['at'][:10]} on {about['cpu']}, {about['cores']} cores,"
        f" {about['system']}, load {load}; {', '.join(versions)}."
    )


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or "unknown"

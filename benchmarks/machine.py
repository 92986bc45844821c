"""Describes the machine and the time of a measurement."""

from __future__ import annotations

import os
import platform
import re
import sys
import sysconfig
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from qsync.broker.store_info import StoreInfo
from qsync.version import __version__


def describe(store: StoreInfo, store_at: str, command: str) -> dict[str, Any]:
    """Return what a reader must know to compare the results of two runs."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "qsync": __version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "python_pgo": built_with_pgo(),
        "redis_py": version("redis"),
        "store": f"{store.product} {'.'.join(map(str, store.version or ('unknown',)))}",
        "store_at": store_at,
        **hardware(),
    }


def hardware() -> dict[str, Any]:
    """Return the CPU, cores, memory and system, and the load before the run."""
    memory_kib = _search("/proc/meminfo", r"MemTotal:\s*(\d+)")
    return {
        "cpu": _search("/proc/cpuinfo", r"model name\s*:\s*(.+)")
        or platform.processor() or sys.platform,
        "cores": os.cpu_count(),
        "memory_gib": round(int(memory_kib) / 2**20, 1) if memory_kib else None,
        "load_before": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()}",
    }  # fmt: skip


def built_with_pgo() -> bool:
    """Return whether this Python was built with profile-guided optimisation, which makes it about a
    third faster.

    Debian and Ubuntu use this optimisation, but do not list it in the arguments of configure. The
    function recognises their builds by the install scheme `deb_system`.
    """
    arguments = str(sysconfig.get_config_var("CONFIG_ARGS") or "")
    return "--enable-optimizations" in arguments or "deb_system" in sysconfig.get_scheme_names()


def _search(path: str, pattern: str) -> str | None:
    try:
        match = re.search(pattern, Path(path).read_text())
    except OSError:
        return None
    return match[1].strip() if match else None

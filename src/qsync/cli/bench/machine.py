"""What was measured, on what, and when."""

from __future__ import annotations

import os
import platform
import sys
import sysconfig
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from qsync.broker.shell import Facts
from qsync.version import __version__


def describe(store: Facts, where: str, command: str) -> dict[str, Any]:
    """What somebody needs to know who compares figures with those of another run."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "qsync": __version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "python_pgo": built_with_pgo(),
        "redis_py": version("redis"),
        "store": f"{store.product} {'.'.join(map(str, store.version or ('unknown',)))}",
        "store_at": where,
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()}",
    }


def built_with_pgo() -> bool:
    """Whether this Python was built by its profile, which makes it about a third faster.

    Debian and Ubuntu do so without saying it in the arguments of configure; they are known by the
    scheme that they add for their own packages.
    """
    arguments = str(sysconfig.get_config_var("CONFIG_ARGS") or "")
    return "--enable-optimizations" in arguments or "deb_system" in sysconfig.get_scheme_names()


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or sys.platform

"""Starts Debian's PostgreSQL for the example, in its own folder and without TCP."""

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

FOLDER = Path(tempfile.gettempdir(), f"django-shop-{os.getuid()}")
"""Folder for the data and for the socket, whose path must be short."""


def account() -> str | None:
    """Return the account that runs the server if the current user is root, which may not run it."""
    return "postgres" if os.getuid() == 0 else None


def program(name: str) -> str:
    """Return the path of a PostgreSQL program; most of these are not on the PATH on Debian."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    path = str(found[-1]) if found else shutil.which(name)
    if path is None:
        raise SystemExit(f"{name} is not installed: apt-get install postgresql")
    return path


def start() -> subprocess.Popen[bytes]:
    """Start the server, with the data from the last run if there is any; return when it answers."""
    user = account()
    FOLDER.mkdir(mode=0o700, exist_ok=True)
    if user is not None:
        shutil.chown(FOLDER, user, user)
    data = FOLDER / "data"
    if not data.exists():
        subprocess.run(  # noqa: S603
            [program("initdb"), "-D", data, "-A", "trust"],
            cwd="/", user=user, stdout=subprocess.DEVNULL, check=True,
        )  # fmt: skip
    server = subprocess.Popen(  # noqa: S603
        [program("postgres"), "-D", data, "-k", FOLDER, "-c", "listen_addresses="],
        cwd="/",
        user=user,
        stderr=subprocess.DEVNULL,
        process_group=0,  # Ctrl-C reaches only the site, which stops the server
    )
    ready = [program("pg_isready"), "-q", "-h", FOLDER]
    while subprocess.run(ready, check=False).returncode != 0:  # noqa: S603
        if server.poll() is not None:
            raise SystemExit(f"PostgreSQL does not start; is it running in {FOLDER} already?")
        time.sleep(0.1)
    return server

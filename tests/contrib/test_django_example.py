"""Runs examples/django_shop with the commands in its README, from a request to the result."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.browser import Visit, chromium
from tests.support.postgres import needs_postgres
from tests.support.web_process import WebProcess

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "django_shop"

VARIANTS = [
    ("sqlite", "on_commit"),
    pytest.param(
        "postgresql",
        "outbox",
        marks=needs_postgres,
    ),
]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Yield a copy of the example under a short path, to which PostgreSQL's account has access."""
    folder = Path(tempfile.mkdtemp(prefix="shop-", dir="/tmp"))
    folder.chmod(0o755)
    ignored = shutil.ignore_patterns("__pycache__", ".qsync", "shop.db")
    shutil.copytree(EXAMPLE, folder / "site", ignore=ignored)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def commands(readme: str, database: str) -> list[tuple[dict[str, str], str]]:
    """Return the README's commands for a database: their environment, and their arguments to
    `python`."""
    found = re.findall(r"^\$ ((?:[A-Z_]+=\w+ )?)python manage\.py (.*)$", readme, re.M)
    chosen = [
        (dict([given.strip().split("=")]) if given else {}, f"manage {words}")
        for given, words in found
    ]
    return [one for one in chosen if one[0].get("SHOP_DATABASE", "sqlite") == database]


@pytest.mark.parametrize(("database", "enqueue"), VARIANTS)
def test_example_from_the_request_to_the_result_in_the_browser(
    folder: Path, database: str, enqueue: str
) -> None:
    (given, site), (_, worker) = commands((EXAMPLE / "README.md").read_text(), database)
    environment = {"QSYNC_URL": "", "TMPDIR": str(folder), "SHOP_ENQUEUE": enqueue, **given}
    with contextlib.ExitStack() as stack:

        def start(words: str) -> WebProcess:
            log = folder / f"{words.split()[1]}.log"
            process = WebProcess(folder / "site", log, *shlex.split(words), **environment)
            return stack.enter_context(process)

        web = start(f"{site} 127.0.0.1:{{port}}").wait_ready()
        serving = start(worker)
        serving.says("is ready")
        with chromium() as browser:
            visit = Visit(browser, web.url)
            visit.go("/")
            visit.click("Buy a lamp")
            visit.says("One lamp is on its way.")
            visit.go("/admin/queue/")
            visit.page.get_by_label("Username").fill("staff")
            visit.page.get_by_label("Password").fill("staff")
            visit.click("Log in")
            visit.go("/admin/queue/tasks?queue=default&state=completed")
            visit.says("shop.tasks.pack")
            visit.go("/admin/queue/tasks?queue=mail&state=completed")
            visit.says("shop.tasks.send_receipt")
            visit.check()
            visit.close()
        serving.stop()
        web.stop()

"""The plugin in separate pytest sessions: with the programs of docs/testing.md, with other test
runners, and with mistakes that users make."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from tests.support.stores import Store

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "testing.md").read_text("utf-8")

Run = Callable[..., str]

SETTINGS = """
[pytest]
qsync_app = shop.tasks:app
filterwarnings = error
asyncio_default_fixture_loop_scope = function
"""

DJANGO = {
    "shop_django/__init__.py": "",
    "shop_django/models.py": """
from django.db import models

class Order(models.Model):
    product = models.CharField(max_length=40)
""",
    "shop_django/tasks.py": """
from qsync.contrib.django import app
from shop_django.models import Order

@app.task(retention=60)
def count() -> int:
    return Order.objects.count()
""",
    "settings.py": """
SECRET_KEY = "of the tests"
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
INSTALLED_APPS = ["qsync.contrib.django", "shop_django"]
QSYNC = {"URL": "redis://127.0.0.1:1", "PREFIX": "shop"}
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
""",
}


def programs() -> dict[str, str]:
    """Return the programs on the page, by the file names in their first lines."""
    blocks = re.findall(r"^```python\n# (\S+\.py)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return dict(blocks)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a function that runs a Python command in a folder with some files and returns its
    output."""

    def run(*words: str, files: dict[str, str], code: int = 0, **environment: str) -> str:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        variables = {name: os.environ[name] for name in os.environ if name[:6] != "PYTEST"}
        done = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=tmp_path,
            env={
                **variables,
                **(ALONE if "pytest_qsync" in words else {}),
                "PYTHONPATH": str(tmp_path),
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


PYTEST = ("pytest", "-q", "-p", "pytest_qsync")
ALONE = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
"""Plugins take seconds to load, so each run loads only those that it tests."""


def test_pytest_finds_the_plugin_by_its_entry_point() -> None:
    [found] = entry_points(group="pytest11", name="qsync")
    assert found.value == "pytest_qsync"


def test_plain_pytest_finds_the_program_of_the_page(tmp_path: Path) -> None:
    [(name, settings)] = re.findall(
        r"^```toml\n# (\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL
    )
    files = {**programs(), name: settings}
    for path in ("shop/tasks.py", "tests/test_buy.py", name):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(files[path])
    unset = ("PYTHONPATH", "PYTHONSAFEPATH")
    variables = {
        name: value
        for name, value in os.environ.items()
        if name not in unset and name[:6] != "PYTEST"
    }
    plain = (str(Path(sys.executable).parent / "pytest"), "-q", "-p", "pytest_asyncio.plugin")
    done = subprocess.run(
        [*plain, "-p", "pytest_qsync"],
        cwd=tmp_path, env={**variables, **ALONE}, capture_output=True, text=True, timeout=100,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_a_session_imports_qsync_only_for_a_fixture_which_needs_an_app(run: Run) -> None:
    test = """
import sys

def test_plugin_is_not_imported_without_the_fixture():
    assert "qsync" not in sys.modules

def test_with(qsync_sync): ...
"""
    out = run("pytest", "-q", "-p", "no:cacheprovider", files={"test_it.py": test}, code=1)
    assert "1 passed, 1 error" in out
    assert "no app under test: set qsync_app" in out


def test_the_tests_of_the_page_pass(run: Run) -> None:
    pytest.importorskip("pytest_asyncio")
    files = {name: text for name, text in programs().items() if "django" not in name}
    assert {"shop/tasks.py", "tests/test_crash.py", "tests/test_inline.py"} < files.keys()
    files |= {"pytest.ini": SETTINGS}
    assert "7 passed" in run(
        *PYTEST,
        "-p",
        "pytest_asyncio.plugin",
        "-p",
        "xdist.plugin",
        "-n",
        "2",
        "tests",
        files=files,
    )
    assert "OK" in run("unittest", "tests/test_case.py", files=files)


def test_the_django_test_of_the_page_passes(run: Run) -> None:
    pytest.importorskip("django")
    files = {name: text for name, text in programs().items() if "django" in name}
    out = run(
        "django", "test", "tests_django", files=files | DJANGO, DJANGO_SETTINGS_MODULE="settings"
    )
    assert "Ran 1 test" in out


def test_anyio_runs_async_tests(run: Run) -> None:
    test = """
import unittest
import pytest
from qsync.testing import QsyncMixin
from shop.tasks import app, send, sent

@pytest.fixture
def anyio_backend():
    return "asyncio"

@pytest.mark.anyio
async def test_send(qsync):
    await send.enqueue(7)
    await qsync.drain()
    assert sent == [7]

class TestAsync(QsyncMixin, unittest.IsolatedAsyncioTestCase):
    qsync_app = app

    async def test_send(self):
        await send.enqueue(8)
        await self.qsync.drain()
        assert sent[-1] == 8

class TestWithoutApp(QsyncMixin, unittest.TestCase):
    @unittest.expectedFailure
    def test_it(self): ...
"""
    files = {"shop/tasks.py": programs()["shop/tasks.py"], "test_it.py": test}
    files["pytest.ini"] = SETTINGS.replace("asyncio_default_fixture_loop_scope = function\n", "")
    out = run(*PYTEST, "-p", "anyio.pytest_plugin", files=files, code=1)
    assert "2 passed, 1 failed" in out or "1 failed, 2 passed" in out
    assert "TestWithoutApp: name the app under test in the attribute qsync_app" in out


def test_an_app_that_cannot_be_loaded_is_an_error(run: Run) -> None:
    files = {"test_it.py": "def test_it(qsync_sync): ...\n"}
    files["pytest.ini"] = "[pytest]\nqsync_app = nowhere:app\n"
    assert "qsync_app: module 'nowhere' wa" in run(*PYTEST, files=files, code=1)


def test_another_store_is_used_and_left_clean(run: Run, own_store: Store) -> None:
    test = """
from shop.tasks import app, remind, sent

def test_remind(qsync_sync):
    remind.enqueue_sync(7)
    qsync_sync.advance(days=1)
    qsync_sync.drain()
    assert 7 in sent
"""
    ini = "[pytest]\nqsync_app = shop.tasks:app\n"
    files = {"shop/tasks.py": programs()["shop/tasks.py"], "test_it.py": test, "pytest.ini": ini}
    run(*PYTEST, files=files, QSYNC_TEST_URL=own_store.url)
    assert [key for key in own_store.command("KEYS", "*") if b":server:" not in key] == []
    own_store.command("SADD", "production:queues", "mail")
    files["pytest.ini"] += f"qsync_test_url = {own_store.url}\n"
    out = run(*PYTEST, files=files, code=1)
    assert "has queues of the prefix 'production', so it is not for tests alone" in out

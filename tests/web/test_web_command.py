"""`qsync dashboard` as a process: its addresses, access checks and output."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx
import pytest

from qsync import Qsync, Task
from tests.support.dashboard import SAME
from tests.support.stores import HOST, Store

TOKEN = "a-token-of-24-characters"


class Process:
    """A running dashboard and its output."""

    def __init__(self, process: subprocess.Popen[str], url: str, first: str) -> None:
        self.process, self.url, self.first = process, url, first

    def get(self, path: str, **headers: str) -> httpx.Response:
        return httpx.get(self.url + path, headers=headers)

    def stop(self, sent: signal.Signals = signal.SIGTERM) -> str:
        """Stop the dashboard; return the rest of its output."""
        self.process.send_signal(sent)
        return self.process.communicate(timeout=20)[0]


@contextmanager
def running(*args: str, folder: Path, **env: str) -> Iterator[Process]:
    process = subprocess.Popen(
        command(*args), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, **env}, cwd=folder,
    )  # fmt: skip
    try:
        first = _line(process.stdout)
        found = re.search(r"http://\S+", first)
        assert found, first + process.communicate(timeout=20)[0]
        yield Process(process, found[0], first)
    finally:
        process.kill()
        process.communicate()


def _line(stream: IO[str] | None) -> str:
    assert stream is not None
    return stream.readline()


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "qsync", "dashboard", *args]


def refused(*args: str, folder: Path, **env: str) -> tuple[int, str]:
    """Return the exit code and output of a dashboard that does not start."""
    ended = subprocess.run(
        command(*args), capture_output=True, text=True, timeout=60, check=False, cwd=folder,
        env={**os.environ, "QSYNC_URL": "", **env},
    )  # fmt: skip
    return ended.returncode, ended.stdout + ended.stderr


def test_dashboard_listens_on_loopback_and_is_read_only_by_default(
    valkey: Store, prefix: str, tmp_path: Path
) -> None:
    with Qsync(valkey.url, prefix=prefix) as app, app.client() as client:
        client.enqueue(Task("t", {"n": 1}, id="a"))
    env = {"QSYNC_URL": valkey.url, "QSYNC_PREFIX": prefix}
    with running("--port", "0", folder=tmp_path, **env) as it:
        assert it.url.startswith("http://127.0.0.1:")
        assert "read-only" in it.first
        assert "Next →" not in it.get("/").text
        assert it.get("/health").json()["queues"] == 1
        assert it.get("/task?id=a").status_code == 200
        answer = it.get("/", Host="evil.example")
        assert (answer.status_code, "with --allow-host." in answer.text) == (421, True)
        assert it.get("/").headers.get("server") is None
        headers = {**SAME, "Origin": it.url}
        form = {"queue": "default"}
        answer = httpx.post(f"{it.url}/queue/pause", data=form, headers=headers)
        assert answer.status_code == 403
        assert answer.text == "Read-only: qsync dashboard --allow-actions enables changes.\n"
        port = it.url.rpartition(":")[2]
        code, said = refused("--port", port, folder=tmp_path, QSYNC_URL=valkey.url)
        assert (code, "cannot listen on 127.0.0.1" in said) == (1, True)
        assert it.stop() == ""
        assert it.process.returncode == 0


def test_remote_dashboard_requires_token_and_never_prints_it(
    valkey: Store, prefix: str, tmp_path: Path
) -> None:
    code, said = refused("--host", "0.0.0.0", folder=tmp_path, QSYNC_URL=valkey.url)  # noqa: S104 - it refuses
    assert (code, "QSYNC_DASHBOARD_TOKEN" in said) == (2, True)
    code, said = refused("--token", "tooshort", folder=tmp_path, QSYNC_URL=valkey.url)
    assert (code, "tooshort" in said, "at least 16" in said) == (2, False, True)
    env = {"QSYNC_URL": valkey.url, "QSYNC_PREFIX": prefix, "QSYNC_DASHBOARD_TOKEN": TOKEN}
    args = ("--host", "0.0.0.0", "--port", "0", "--allow-actions")  # noqa: S104 - with a token
    with running(*args, folder=tmp_path, **env) as it:
        it.url = it.url.replace("0.0.0.0", HOST)  # noqa: S104 - asked for here
        assert it.get("/").status_code == 401
        assert it.get("/static/style.css").status_code == 401
        assert it.get("/", Authorization="Bearer wrong").status_code == 401
        assert it.get("/", Authorization=f"Bearer {TOKEN}").status_code == 200
        assert TOKEN not in it.first + it.stop(signal.SIGINT)


def test_dashboard_shows_several_prefixes_behind_one_token(
    valkey: Store, prefix: str, tmp_path: Path
) -> None:
    second, third = f"{prefix}-b", f"{prefix}-c"
    for name, id in ((prefix, "first"), (second, "second"), (third, "third")):
        with Qsync(valkey.url, prefix=name) as app, app.client() as client:
            client.enqueue(Task("t", id=id))
    env = {
        "QSYNC_URL": valkey.url, "QSYNC_PREFIX": prefix, "QSYNC_DASHBOARD_TOKEN": TOKEN,
        "QSYNC_DASHBOARD_ALSO": f"{second} eu={third}@{valkey.url}",
    }  # fmt: skip
    args = ("--port", "0", "--root-path", "/ops", "--allow-actions")
    with running(*args, folder=tmp_path, **env) as it:
        assert (second in it.first, third in it.first) == (True, True)
        base, headers = it.url.removesuffix("/ops"), {"Authorization": f"Bearer {TOKEN}"}
        sites = {"": "first", f"/store/{second}": "second", "/store/eu": "third"}
        for path, id in sites.items():
            assert httpx.get(f"{base}{path}/task?id={id}").status_code == 401
            with httpx.Client(headers=headers) as browser:
                page = browser.get(f"{base}{path}/task?id={id}")
                assert (page.status_code, f">{id}<" in page.text) == (200, True)
                for address, status in (
                    ("task?id=none", 404), ("static/style.css", 200), ("none", 404)
                ):  # fmt: skip
                    assert browser.get(f"{base}{path}/{address}").status_code == status, address
                switch = page.text.partition('class="wide sites"')[2].partition("</nav>")[0]
                links = re.findall(r'href="([^"]+)"[^>]*>([^<]+)</a>', switch)
                assert links == [
                    ("/ops/", prefix), (f"/ops/store/{second}/", second), ("/ops/store/eu/", "eu"),
                ]  # fmt: skip
                assert switch.count('aria-current="true"') == 1
                assert f'action="/ops{path}/task/delete"' in page.text
                assert 'action="/ops/language"' in page.text
                sent = browser.post(
                    f"{base}{path}/task/delete", headers={**SAME, "Origin": base},
                    data={"id": id, "queue": "default", "state": "pending", "sure": "yes"},
                )  # fmt: skip
                assert sent.status_code == 303, sent.text
                assert sent.headers["location"].startswith(f"/ops{path}/")
                assert browser.get(f"{base}{path}/task?id={id}").status_code == 404
    for wrong, said in (
        (prefix, f"--also {prefix}: {prefix} is already used; choose another name: NAME={prefix}"),
        ("a b", "--also a b: name"),
        ("b@nowhere:1", "--also b: "),
    ):
        code, text = refused("--also", wrong, folder=tmp_path, QSYNC_URL=valkey.url,
                             QSYNC_PREFIX=prefix)  # fmt: skip
        assert (code, said in text) == (2, True), text


def test_dashboard_behind_proxy_works_at_path_and_host_name(
    valkey: Store, prefix: str, tmp_path: Path
) -> None:
    env = {"QSYNC_URL": valkey.url, "QSYNC_PREFIX": prefix}
    args = ("--port", "0", "--root-path", "/ops", "--allow-host", "ops.example")
    with running(*args, folder=tmp_path, **env) as it:
        base = it.url.removesuffix("/ops")
        answer = httpx.get(f"{base}/dead", headers={"Host": "ops.example"})
        assert (answer.status_code, 'href="/ops/queues"' in answer.text) == (200, True)


def test_payloads_are_masked_by_a_function_of_the_working_directory(
    valkey: Store, prefix: str, tmp_path: Path
) -> None:
    (tmp_path / "shop_masks.py").write_text("def hide(type, payload):\n    return f'of {type}'\n")
    with Qsync(valkey.url, prefix=prefix) as app, app.client() as client:
        client.enqueue(Task("pay", "4111", id="a"))
    env = {"QSYNC_URL": valkey.url, "QSYNC_PREFIX": prefix}
    with running("--port", "0", "--mask", "shop_masks:hide", folder=tmp_path, **env) as it:
        text = it.get("/task?id=a").text
        assert ("of pay" in text, "4111" in text) == (True, False)


@pytest.mark.parametrize(
    ("args", "part"),
    [((), "no store is given"), (("--url", "http://x"), "http:// is not a scheme"),
     (("--url", "redis://x", "--prefix", "a b"), "prefix"),
     (("--url", "redis://x", "--mask", "json"), "MODULE:FUNCTION"),
     (("--url", "redis://x", "--mask", "nope:f"), "ModuleNotFoundError"),
     (("--url", "redis://x", "--mask", "json:__name__"), "not a function")],
)  # fmt: skip
def test_wrong_options_are_reported_in_one_line(
    args: tuple[str, ...], part: str, tmp_path: Path
) -> None:
    code, said = refused(*args, folder=tmp_path)
    assert (code, part in said, said.count("\n")) == (2, True, 1), said

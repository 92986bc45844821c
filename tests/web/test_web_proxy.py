"""The dashboard behind a proxy that terminates TLS, and the effect of signing out."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from starlette.requests import Request

from qsync.web import create_app
from qsync.web.auth import COOKIE, MAX_SESSIONS, TokenAccess
from tests.support.dashboard import SAME, visiting
from tests.support.inspector_driver import bed
from tests.support.stores import Store
from tests.web.test_web_command import TOKEN, Process, refused, running

HTTPS = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.7"}


def sign_in(it: Process, token: str = TOKEN, **headers: str) -> httpx.Response:
    data = {"token": token}
    origin = f"http://{httpx.URL(it.url).netloc.decode()}"
    headers = {**SAME, "Origin": origin, **headers}
    return httpx.post(f"{it.url}/login", data=data, headers=headers)


def test_cookies_are_secure_behind_a_trusted_proxy_only(
    valkey: Store, prefix: str, tmp_path: Path
) -> None:
    env = {"QSYNC_URL": valkey.url, "QSYNC_PREFIX": prefix, "QSYNC_DASHBOARD_TOKEN": TOKEN}
    args = ("--port", "0", "--allow-actions")
    with running(*args, "--trust-proxy", "127.0.0.0/8", folder=tmp_path, **env) as it:
        assert "; Secure" not in sign_in(it).headers["set-cookie"]
        answer = sign_in(it, **HTTPS)
        assert "; Secure" in answer.headers["set-cookie"]
        cookie = answer.headers["set-cookie"].partition(";")[0]
        headers = {**SAME, **HTTPS, "Cookie": cookie, "Host": "localhost"}
        changed = httpx.post(f"{it.url}/queue/pause", data={"queue": "q"}, headers=headers)
        assert changed.status_code == 303
        assert "qsync_flash" in changed.headers["set-cookie"]
        assert "; Secure" in changed.headers["set-cookie"]
        ended = httpx.post(f"{it.url}/logout", data={"x": ""}, headers=headers)
        assert "; Secure" in ended.headers["set-cookie"]
    with running(*args, folder=tmp_path, **env) as it:
        assert "; Secure" not in sign_in(it, **HTTPS).headers["set-cookie"]


def test_wrong_tokens_lock_out_one_user_of_a_trusted_proxy(
    valkey: Store, prefix: str, tmp_path: Path
) -> None:
    env = {"QSYNC_URL": valkey.url, "QSYNC_PREFIX": prefix, "QSYNC_DASHBOARD_TOKEN": TOKEN}
    args = ("--port", "0", "--trust-proxy", "127.0.0.1")
    with running(*args, folder=tmp_path, **env) as it:
        for number in range(5):
            # The value sent by the client comes first and is not trusted.
            forged = {"X-Forwarded-For": f"192.0.2.{number}, 203.0.113.7"}
            assert sign_in(it, "x" * 30, **forged).status_code == 401
        assert sign_in(it, **{"X-Forwarded-For": "203.0.113.7"}).status_code == 429
        assert sign_in(it, **{"X-Forwarded-For": "203.0.113.8"}).status_code == 303


def test_untrusted_forwarded_address_is_ignored_and_named_once_in_the_log(
    valkey: Store, prefix: str, tmp_path: Path
) -> None:
    env = {"QSYNC_URL": valkey.url, "QSYNC_PREFIX": prefix, "QSYNC_DASHBOARD_TOKEN": TOKEN}
    with running("--port", "0", folder=tmp_path, **env) as it:
        for number in range(5):
            forged = {"X-Forwarded-For": f"203.0.113.{number}"}
            assert sign_in(it, "x" * 30, **forged).status_code == 401
        assert sign_in(it, **{"X-Forwarded-For": "203.0.113.9"}).status_code == 429
        printed = it.stop()
    assert printed.count("--trust-proxy 127.0.0.1") == 1


@pytest.mark.parametrize("given", ["*", "proxy.example", "10.0.0.1/8", "", "10.0.0.0/40"])
def test_trusted_proxy_without_an_address_is_refused(given: str, tmp_path: Path) -> None:
    code, text = refused("--url", "redis://x", "--trust-proxy", given, folder=tmp_path)
    assert code == 2
    assert f"--trust-proxy {given}" in text
    assert "10.0.0.0/8" in " ".join(text.split())


async def test_signing_out_ends_only_that_session(valkey: Store, prefix: str) -> None:
    async with bed(valkey.url, prefix) as made:
        app = create_app(made.inspector, token=TOKEN)
        async with app, visiting(app) as ann, visiting(app) as bob, visiting(app) as thief:
            for user in (ann, bob):
                await user.post("/login", data={"token": TOKEN}, headers=SAME)
            assert ann.cookies[COOKIE] != bob.cookies[COOKIE]
            thief.cookies.set(COOKIE, ann.cookies[COOKIE])
            assert (await thief.get("/")).status_code == 200
            headers = {**SAME, "Content-Type": "application/x-www-form-urlencoded"}
            await ann.post("/logout", headers=headers)
            assert (await thief.get("/")).status_code == 401, "a copy of the cookie is useless"
            assert (await bob.get("/")).status_code == 200
        again = create_app(made.inspector, token=TOKEN)
        async with again, visiting(again) as client:
            client.cookies.set(COOKIE, thief.cookies[COOKIE])
            assert (await client.get("/")).status_code == 401, "after a restart too"


async def test_sessions_are_bounded() -> None:
    access = TokenAccess(TOKEN)
    values = [access.session() for _ in range(MAX_SESSIONS + 1)]

    async def admitted(value: str) -> bool:
        headers = [(b"cookie", f"{COOKIE}={value}".encode())]
        return isinstance(await access.admit(Request({"type": "http", "headers": headers})), str)

    assert [await admitted(values[n]) for n in (0, 1, -1)] == [False, True, True]

"""URLs of stores, and errors that do not quote these URLs."""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from redis.asyncio.connection import SSLConnection as AsyncSSLConnection

from qsync import ConfigError, Qsync, QsyncError, Task
from qsync.broker import redis_clients
from qsync.web.attempts import check_trace_url
from qsync.web.language import check_language
from qsync.web.roles import check_role
from tests.support.stores import Store

CANARY = "s3cr3tX"


@pytest.mark.parametrize(
    ("url", "shown", "settings"),
    [
        ("redis://u:p[s]@h:1/2", "redis://h:1/2", {"username": "u", "password": "p[s]", "db": 2}),
        ("redis://:p%40%2F%23@h", "redis://h:6379", {"password": "p@/#"}),
        ("redis://:a@b@h", "redis://h:6379", {"password": "a@b"}),
        ("redis://h?db=3&username=u&password=p", "redis://h:6379/3",
         {"db": 3, "username": "u", "password": "p"}),
        ("  REDIS://h\n", "redis://h:6379", {}),
        ("valkey://u:p@h:1", "redis://h:1", {"username": "u", "password": "p"}),
        ("valkeys://h", "rediss://h:6379", {}),
        ("valkey+cluster://a,b:2", "redis+cluster://a:6379,b:2", {}),
        ("valkeys+sentinel://a/main", "rediss+sentinel://a:26379/main", {}),
        ("redis://[::1]:7/1", "redis://[::1]:7/1", {"db": 1}),
        ("unix://u:p@/tmp/a%20b.sock?db=4", "unix:///tmp/a b.sock?db=4",
         {"username": "u", "password": "p", "db": 4, "path": "/tmp/a b.sock"}),
        ("redis://h?socket_connect_timeout=1.5&client_name=mine&socket_keepalive=no",
         "redis://h:6379",
         {"socket_connect_timeout": 1.5, "client_name": "mine", "socket_keepalive": False}),
        ("rediss://h?ssl_cert_reqs=none", "rediss://h:6379", {"ssl_cert_reqs": "none"}),
    ],
)  # fmt: skip
def test_url_is_parsed_into_an_address(url: str, shown: str, settings: dict[str, object]) -> None:
    address = redis_clients.parse(url)
    assert str(address) == shown
    assert address.settings == settings


def test_sentinel_options_are_separate_and_tls_is_shared() -> None:
    address = redis_clients.parse(
        "rediss+sentinel://u:p@h/main?ssl_cert_reqs=none&ssl_ciphers=HIGH"
        "&sentinel_username=su&sentinel_password=sp&sentinel_ssl_cert_reqs=optional"
    )
    assert address.finder == {
        "ssl": True, "ssl_cert_reqs": "optional", "ssl_ciphers": "HIGH", "username": "su",
        "password": "sp",
    }  # fmt: skip
    assert "sp" not in repr(address)
    assert redis_clients.parse("redis+sentinel://u:p@h/main").finder == {"ssl": False}
    assert redis_clients.parse("rediss+sentinel://h/main?sentinel_ssl=false").finder == {
        "ssl": False
    }
    mixed = redis_clients.parse(
        "redis+sentinel://h/main?sentinel_ssl=1&sentinel_ssl_cert_reqs=none"
    )
    assert not mixed.tls
    assert mixed.finder == {"ssl": True, "ssl_cert_reqs": "none"}


WRONG = [
    ("redis://h?nonsense=1", "unknown option 'nonsense'; the options are db, username"),
    ("redis://h?passwrd=x", "unknown option 'passwrd'; did you mean password"),
    ("redis://h?PASSWORD=x", "unknown option 'PASSWORD'; did you mean password"),
    ("rediss://h?ssl_ca_cert=x", "unknown option 'ssl_ca_cert'; did you mean ssl_ca_certs"),
    ("redis://h?socket_timeout=3", "socket_timeout: qsync sets this option itself"),
    ("redis://h?db=x", "db: must be a database number"),
    ("redis://h?db=-1", "db: must be"),
    ("redis://h?db=", "db: has no value"),
    ("redis://h?password", "password: has no value; write password=VALUE"),
    ("redis://h/1?db=1", "db: appears twice"),
    ("redis://u@h?username=v", "username: appears twice"),
    ("redis://h?client_name=a%20b", "client_name: must be ASCII text without spaces"),
    ("redis://h?socket_connect_timeout=0", "socket_connect_timeout: must be a number of seconds"),
    ("redis://h?socket_connect_timeout=nan", "socket_connect_timeout: must be"),
    ("redis://h?socket_keepalive=perhaps", "socket_keepalive: must be true or false"),
    ("redis://h?ssl_cert_reqs=none", "ssl_cert_reqs: requires rediss://"),
    ("redis+cluster://h?ssl_ca_certs=x", r"ssl_ca_certs: requires rediss\+cluster://"),
    ("unix:///s?ssl_ca_certs=x", "ssl_ca_certs: cannot be combined with unix://"),
    ("unix:///s?socket_keepalive=1", "socket_keepalive: cannot be combined with unix://"),
    ("unix://tmp/x", "begins with a third slash: unix:///path"),
    ("unix:///" + "x" * 120, "at most 107 bytes"),
    ("rediss://h?ssl_cert_reqs=CERT_NO", "ssl_cert_reqs: must be one of none, optional, required"),
    ("rediss://h?ssl_check_hostname=2", "ssl_check_hostname: must be true or false"),
    ("rediss://h?ssl_cert_reqs=none&ssl_check_hostname=1", "ssl_check_hostname: a host name"),
    ("rediss://h?ssl_ca_certs=/no/ca.pem", "ssl_ca_certs: there is no such file"),
    ("rediss://h?ssl_ca_certs=/etc", "ssl_ca_certs: contains no certificate"),
    ("rediss://h?ssl_ca_path=/no/cas", "ssl_ca_path: there is no such directory"),
    ("rediss://h?ssl_ca_data=rubbish", "ssl_ca_data: contains no certificate"),
    ("rediss://h?ssl_keyfile=/no/key", "ssl_keyfile: requires ssl_certfile"),
    ("rediss://h?ssl_certfile=/no/cert", "ssl_certfile: there is no such file"),
    ("rediss://h?ssl_password=x", "ssl_password: requires ssl_certfile"),
    ("rediss://h?ssl_min_version=1", "ssl_min_version: must be TLSv1.2 or TLSv1.3"),
    ("rediss://h?ssl_ciphers=NONE-SUCH", "ssl_ciphers: names no cipher"),
    ("rediss://h?ssl_include_verify_flags=NO", "ssl_include_verify_flags: must be names"),
    ("redis://h?sentinel_password=x", r"sentinel_password: requires redis\+sentinel://"),
    ("redis+sentinel://h/m?sentinel_ssl_ca_certs=x", "sentinel_ssl_ca_certs: requires rediss"),
    ("rediss+sentinel://h/m?sentinel_ssl_ca_certs=/no", "sentinel_ssl_ca_certs: there is no such"),
    ("redis+sentinel://h/a%20b", "a service name has"),
    ("redis+cluster://u:p@a,u:p@b", "write credentials once"),
    ("redis+cluster://a,", "lacks a host"),
    ("redis://a,b", r"require redis\+cluster:// or redis\+sentinel://"),
    ("redis://h o", "its host is not host:port"),
    ("redis://[::x]", "its host is not host:port"),
    ("http://h", "http:// is not a scheme of a store; use e.g. redis://localhost:6379"),
    ("redis:/h", "it does not begin with a scheme; use e.g. redis://localhost:6379"),
]


@pytest.mark.parametrize(("url", "says"), WRONG, ids=[url[:60] for url, _ in WRONG])
def test_wrong_url_error_names_the_option(url: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Qsync(url)


def test_certificate_and_key_files_are_checked(tmp_path: Path) -> None:
    from tests.broker.test_tls import OPENSSL, make_certificate

    if OPENSSL is None:
        pytest.skip("needs openssl")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        make_certificate(tmp_path / name, "DNS:h")
    a, b = tmp_path / "a", tmp_path / "b"
    url = f"rediss://h?ssl_certfile={a}/certificate.pem"
    with pytest.raises(ConfigError, match="ssl_certfile: has no private key; pass ssl_keyfile"):
        redis_clients.parse(url)
    with pytest.raises(ConfigError, match="ssl_keyfile: does not match the certificate"):
        redis_clients.parse(f"{url}&ssl_keyfile={b}/key.pem")
    with pytest.raises(ConfigError, match="ssl_keyfile: there is no such file"):
        redis_clients.parse(f"{url}&ssl_keyfile={b}/keys.pem")
    with pytest.raises(ConfigError, match="ssl_keyfile: is not a private key"):
        redis_clients.parse(f"{url}&ssl_keyfile={a}/certificate.pem")
    redis_clients.parse(f"{url}&ssl_keyfile={a}/key.pem&ssl_ca_certs={b}/certificate.pem")
    both = tmp_path / "both.pem"
    both.write_text((a / "certificate.pem").read_text() + (a / "key.pem").read_text())
    redis_clients.parse(f"rediss://h?ssl_certfile={both}")


def test_wrong_password_of_tls_key_is_an_error(tmp_path: Path) -> None:
    import subprocess

    from tests.broker.test_tls import OPENSSL, make_certificate

    if OPENSSL is None:
        pytest.skip("needs openssl")
    if "ssl_password" not in inspect.signature(AsyncSSLConnection.__init__).parameters:
        pytest.skip("needs redis-py with ssl_password for asyncio")
    certificate = make_certificate(tmp_path, "DNS:h")
    locked = tmp_path / "locked.pem"
    subprocess.run(
        [OPENSSL, "pkcs8", "-topk8", "-in", tmp_path / "key.pem", "-out", locked,
         "-passout", "pass:right"],
        check=True, capture_output=True,
    )  # fmt: skip
    url = f"rediss://h?ssl_certfile={certificate}&ssl_keyfile={locked}"
    redis_clients.parse(f"{url}&ssl_password=right")
    for given_password in ("", f"&ssl_password={CANARY}"):
        with pytest.raises(
            ConfigError, match="ssl_password: does not decrypt the private key"
        ) as no:
            redis_clients.parse(url + given_password)
        assert CANARY not in str(no.value)


schemes = st.sampled_from(
    [
        "redis",
        "rediss",
        "unix",
        "redis+cluster",
        "rediss+sentinel",
        "valkey",
        "embedded",
        "http",
        "",
    ]
)
separators = st.sampled_from(["://", ":/", ":", "//", ""])
pieces = st.sampled_from(
    [CANARY, "user", ":", "@", "/", "?", "#", "&", "=", "password=", "passwrd=", "PASSWORD=", ",",
     "host", "6379", "[", "]", "%", "%zz", "db=1", "ssl_cert_reqs=", " ", ";", "sentinel_password="]
)  # fmt: skip


@given(scheme=schemes, separator=separators, parts=st.lists(pieces, max_size=10))
@example(scheme="rediss+sentinel", separator=":/", parts=["/", CANARY])
def test_no_error_about_a_url_shows_what_may_be_a_password(
    scheme: str, separator: str, parts: list[str]
) -> None:
    """The password may be anywhere in the URL; only the part at the position of the host counts as
    the host."""
    url = f"{scheme}{separator}{''.join(parts)}"
    try:
        redis_clients.parse(url)
    except ConfigError as error:
        before, slashes, rest = url.partition("://")
        authority = re.split("[/?#]", rest)[0] if slashes and before == scheme else ""
        hosts = [host.partition(":")[0] for host in authority.rpartition("@")[2].split(",")]
        if CANARY not in "".join(hosts):
            assert CANARY not in str(error)


@pytest.mark.parametrize(
    "url",
    [
        "u:{}@host", "redis:/u:{}@h", "redis:u:{}@h", "redis//u:{}@h", "redis://u:{}", "{}@h:1",
        "redis://h?passwrd={}", "redis://h?PASSWORD={}", "redis://h?pass_word={}",
        "redis://h?password=a&{}", "redis://h?password=a&{}=b", "redis://h?{}", "redis://h?{}=1",
        "redis://u:a/{}@h", "redis://u:a?{}@h", "redis://u:a#{}@h", "redis://u:a/{}",
        "redis://u:{}@h/x", "redis://u:{}@h:port", "redis://u:{}@h?nonsense=1",
        "redis://h?db={}", "redis://h/{}", "redis://u:{}@[h", "redis://u:{}@h?ssl_cert_reqs=none",
        "rediss://u:{}@h?ssl_cert_reqs={}", "rediss://h?ssl_ca_certs=/{}", "rediss://h?ssl_ca_data={}",
        "rediss://h?ssl_ciphers={}", "redis+cluster://u:{}@a,u:{}@b", "redis+cluster://u:{}@a,b:x",
        "redis+cluster://u:{}@a/3", "redis+sentinel://u:{}@h", "redis+sentinel://u:p@h/{} x",
        "redis+sentinel://h/m?sentinel_passwd={}", "redis+sentinel://h/m?sentinel_pasword={}",
        "unix://u:{}@tmp/x", "unix://{}", "unix://u:{}@", "unix:///x?passwrd={}",
        "embedded:///x?password={}", "embedded://u:{}@h", "embedded:///x#{}", "embedded:/{}",
        "embedded://u:a/{}@h",
        "http://u:{}@h", "redis://u:{}@h?socket_connect_timeout={}", "redis://u:{}@h,i",
        "redis://h?sentinel_password={}", "redis://h?username={}&username=x",
    ],
)  # fmt: skip
def test_misspelt_url_error_hides_the_password(url: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Qsync(url.replace("{}", CANARY))
    told = "".join(traceback.format_exception(raised.value, chain=True))
    assert CANARY not in str(raised.value)
    lines = [line for line in told.splitlines() if "Error" in line]
    assert not any(CANARY in line for line in lines)


@pytest.mark.parametrize(
    "url", ["redis://h?hunter", "redis://u:p@h?a=b&hunter", "redis://h/?hunter"]
)
def test_part_of_a_password_without_a_digit_is_not_shown(url: str) -> None:
    with pytest.raises(ConfigError, match="unknown option") as raised:
        Qsync(url)
    assert "hunter" not in str(raised.value)


def test_password_with_brackets_is_accepted(prefix: str) -> None:
    with Store("valkey", config={"requirepass": "a[b]c"}) as locked:
        url = locked.url.replace("redis://", "redis://:a[b]c@")
        with Qsync(url, prefix=prefix) as app:
            assert app.ping() > 0


MISPLACED: list[Callable[[str], object]] = [
    lambda url: Qsync("redis://h", prefix=url),
    lambda url: Task("t", queue=url),
    lambda url: check_trace_url(url),
    lambda url: Qsync("redis://h").periodic(cron="0 9 * * *", tz=url),
    lambda url: Qsync("redis://h").periodic(cron=url),
    lambda url: check_role(cast("Any", url)),
    lambda url: check_language(url),
    lambda url: Task("t", queue=cast("Any", {"nested": url})),
]


@pytest.mark.parametrize("misplaced", MISPLACED)
@pytest.mark.parametrize("url", ["redis://u:{}@h:1/2", "https://u:{}@h/x", "rediss://h?passwrd={}"])
def test_url_in_place_of_another_value_hides_the_password(
    misplaced: Callable[[str], object], url: str
) -> None:
    with pytest.raises(QsyncError) as raised:
        misplaced(url.format(CANARY))
    assert CANARY not in str(raised.value)
    assert f"{url.partition('://')[0]}://..." in str(raised.value)

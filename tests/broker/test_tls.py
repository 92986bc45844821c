"""With rediss://, clients and servers use encrypted connections and verify the store's
certificate."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis.sentinel

from qsync import ConfigError, Mux, Qsync, StoreUnavailable, TaskInfo
from qsync.broker import redis_clients
from qsync.diagnostics.doctor import Doctor
from qsync.task import Task
from tests.conftest import Colour
from tests.support.server import until
from tests.support.stores import HOST, Store, Value, available, free_port

OPENSSL = shutil.which("openssl")

pytestmark = [
    pytest.mark.skipif(not available("redis"), reason="needs a Redis built with TLS"),
    pytest.mark.skipif(OPENSSL is None, reason="needs openssl"),
]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a self-signed certificate for 127.0.0.1; its key is in the same folder."""
    return make_certificate(tmp_path_factory.mktemp("tls"), f"IP:{HOST}")


def make_certificate(folder: Path, name: str) -> Path:
    """Create a self-signed certificate with its key in the same folder; return its path."""
    subprocess.run(
        [
            OPENSSL or "openssl", "req", "-x509", "-days", "2", "-subj", "/CN=qsync",
            "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-addext", f"subjectAltName={name}",
            "-keyout", folder / "key.pem", "-out", folder / "certificate.pem",
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder / "certificate.pem"


def tls_config(port: int, certificate: Path) -> dict[str, Value]:
    """Return the settings for a store that accepts TLS on this port."""
    return {
        "tls-port": port,
        "tls-cert-file": str(certificate),
        "tls-key-file": str(certificate.parent / "key.pem"),
        "tls-ca-cert-file": str(certificate),
        "tls-auth-clients": "no",
    }


@pytest.fixture(scope="module")
def address(certificate: Path) -> Iterator[str]:
    """Yield the address of a store that accepts TLS."""
    port = free_port()
    with Store("redis", config=tls_config(port, certificate)):
        yield f"rediss://{HOST}:{port}"


def test_task_and_result_pass_over_tls(address: str, certificate: Path, prefix: str) -> None:
    mux = Mux()

    @mux.handle("add")
    async def add(task: TaskInfo) -> int:
        return sum(task.value(list[int]))

    async def main() -> int:
        app = Qsync(f"{address}?ssl_ca_certs={certificate}", prefix=prefix, mux=mux)
        async with app, app.async_client() as client, app.server():
            handle = await client.enqueue(Task("add", [1, 2], retention=60))
            return await handle.result(timeout=10)

    assert asyncio.run(main()) == 3


@pytest.fixture(scope="module")
def other_authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the certificate of an authority that signed none of the other certificates in these
    tests."""
    return make_certificate(tmp_path_factory.mktemp("other"), f"IP:{HOST}")


@pytest.mark.parametrize("query", ["", "?ssl_ca_certs={other}"])
def test_untrusted_certificate_is_an_error_at_once(
    address: str, other_authority: Path, colour: Colour, prefix: str, query: str
) -> None:
    """The error is raised immediately, even if the caller has patience left, and says what to
    do."""
    client = colour.client(address + query.format(other=other_authority), prefix, patience=60)
    with pytest.raises(ConfigError, match=r"(?i)certificate verify failed.*ssl_ca_certs="):
        colour.do(client.enqueue(Task("add", [1, 2])))


def test_certificate_of_another_host_is_an_error_at_once(
    address: str, certificate: Path, colour: Colour, prefix: str
) -> None:
    url = f"{address.replace(HOST, 'localhost')}?ssl_ca_certs={certificate}"
    with pytest.raises(ConfigError, match=r"(?i)mismatch.*ssl_check_hostname=false"):
        colour.do(colour.client(url, prefix, patience=60).enqueue(Task("add", [1, 2])))
    unchecked = colour.client(f"{url}&ssl_check_hostname=false", prefix)
    assert colour.do(unchecked.enqueue(Task("add", [1, 2]))).created


@contextlib.contextmanager
def answering(data: bytes) -> Iterator[str]:
    """Yield the host and port of a server that sends these bytes on each connection."""

    def answer(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                with listener.accept()[0] as connection, contextlib.suppress(OSError):
                    connection.recv(65536)
                    connection.sendall(data)

    with socket.create_server((HOST, 0)) as listener:
        thread = threading.Thread(target=answer, args=[listener])
        thread.start()
        yield f"{HOST}:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_port_without_tls_is_an_error_at_once(colour: Colour, prefix: str) -> None:
    with answering(b"-ERR unknown command\r\n") as port:
        client = colour.client(f"rediss://{port}", prefix, patience=60)
        with pytest.raises(ConfigError, match="the port does not speak TLS"):
            colour.do(client.enqueue(Task("add", [1, 2])))


@pytest.mark.parametrize("url", ["redis://{}", "redis+cluster://{}", "redis+sentinel://{}/main"])
def test_answer_of_another_protocol_is_an_error_at_once(
    colour: Colour, prefix: str, url: str
) -> None:
    for answer, advice in (
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "an HTTP server"),
        (b"SSH-2.0-OpenSSH_9.9\r\n", "an SSH server"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "speaks TLS: use rediss"),
        (b"220 mail.example.com\r\n", "check host and port"),
    ):
        with answering(answer) as port:
            client = colour.client(url.format(port), prefix, patience=60)
            with pytest.raises(ConfigError, match=f"not in the Redis protocol.*{advice}"):
                colour.do(client.enqueue(Task("add", [1, 2])))


def test_error_for_a_plain_url_of_a_tls_port_suggests_rediss(
    address: str, colour: Colour, prefix: str
) -> None:
    port = address.partition("//")[2]
    for url, scheme in (
        (f"redis://{port}", "rediss://"),
        (f"redis+cluster://{port}", r"rediss\+cluster://"),
        (f"redis+sentinel://{port}/main", r"rediss\+sentinel://"),
    ):
        client = colour.client(url, prefix, patience=0)
        hint = f"closed the connection before it answered.*requires TLS, use {scheme}"
        with pytest.raises(StoreUnavailable, match=hint):
            colour.do(client.enqueue(Task("add", [1, 2])))


def test_doctor_and_server_suggest_rediss_for_a_tls_port(
    address: str, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = address.replace("rediss", "redis")

    async def main() -> None:
        [finding] = await Doctor(redis_clients.parse(url), prefix=prefix).examine()
        assert "requires TLS, use rediss://" in finding.text
        start = asyncio.create_task(Qsync(url, prefix=prefix).server().start())
        await until(lambda: "requires TLS, use rediss://" in caplog.text)
        start.cancel()
        await asyncio.gather(start, return_exceptions=True)

    asyncio.run(main())


def test_silent_port_is_reported_as_a_possible_tls_port(
    store: Store, colour: Colour, prefix: str
) -> None:
    """A store treats the start of a TLS handshake as an incomplete command and does not reply."""
    url = store.url.replace("redis://", "rediss://") + "?socket_connect_timeout=0.3"
    client = colour.client(url, prefix, patience=0, read_timeout=0.3)
    with pytest.raises(StoreUnavailable, match="does the port speak TLS"):
        colour.do(client.enqueue(Task("add", [1, 2])))


async def test_server_logs_tls_error_at_start(address: str, prefix: str) -> None:
    with pytest.raises(ConfigError, match="ssl_ca_certs="):
        await Qsync(address, prefix=prefix).server().start()


def test_command_reports_tls_error_in_one_line(address: str) -> None:
    words = [sys.executable, "-m", "qsync", "stats", "--url", address]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.rstrip().endswith("name the file of its CA with ssl_ca_certs=")


def test_cluster_with_untrusted_certificate_is_an_error_at_once(
    certificate: Path, other_authority: Path, colour: Colour, prefix: str
) -> None:
    port = free_port()
    config = {**tls_config(port, certificate), "cluster-enabled": "yes", "tls-cluster": "yes"}
    with Store("redis", config=config) as store:
        store.command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        url = f"rediss+cluster://{HOST}:{port}?ssl_ca_certs="
        client = colour.client(f"{url}{other_authority}", prefix, patience=60)
        with pytest.raises(ConfigError, match="verify failed"):
            colour.do(client.enqueue(Task("add", [1, 2])))
        client = colour.client(f"{url}{certificate}", prefix)
        assert colour.do(client.enqueue(Task("add", [1, 2]))).created


def test_client_certificate_is_sent_to_a_store_that_requests_it(
    certificate: Path, colour: Colour, prefix: str
) -> None:
    port = free_port()
    key = certificate.parent / "key.pem"
    with Store("redis", config={**tls_config(port, certificate), "tls-auth-clients": "yes"}):
        url = f"rediss://{HOST}:{port}?ssl_ca_certs={certificate}"
        with pytest.raises(ConfigError, match=r"ssl_certfile="):
            colour.do(colour.client(url, prefix, patience=60).enqueue(Task("add", [1, 2])))
        own = colour.client(f"{url}&ssl_certfile={certificate}&ssl_keyfile={key}", prefix)
        assert colour.do(own.enqueue(Task("add", [1, 2]))).created


@pytest.fixture(scope="module")
def guarded(certificate: Path) -> Iterator[str]:
    """Start a primary and its Sentinel that accept only TLS; yield the URL without options."""
    port, watcher_port = free_port(), free_port()
    with Store("redis", config=tls_config(port, certificate)):
        config = {
            **tls_config(watcher_port, certificate),
            "tls-replication": "yes",
            "sentinel": [f"monitor main {HOST} {port} 1"],
        }
        with Store("redis", args=["--sentinel"], config=config):
            yield f"rediss+sentinel://{HOST}:{watcher_port}/main"


def test_tls_of_the_url_reaches_the_sentinels_too(
    guarded: str, certificate: Path, colour: Colour, prefix: str
) -> None:
    client = colour.client(f"{guarded}?ssl_ca_certs={certificate}", prefix)
    assert colour.do(client.enqueue(Task("add", [1, 2]))).created


def test_sentinels_have_separate_tls_options(
    guarded: str, certificate: Path, other_authority: Path, colour: Colour, prefix: str
) -> None:
    client = colour.client(
        f"{guarded}?ssl_ca_certs={certificate}&sentinel_ssl_ca_certs={other_authority}", prefix
    )
    with pytest.raises(ConfigError, match=r"a Sentinel: .*verify failed.*sentinel_ssl_"):
        colour.do(client.enqueue(Task("add", [1, 2])))
    client = colour.client(
        f"{guarded}?ssl_cert_reqs=none&sentinel_ssl_ca_certs={certificate}"
        "&sentinel_ssl_cert_reqs=required",
        prefix,
    )
    assert colour.do(client.enqueue(Task("add", [1, 2]))).created


def test_a_client_made_by_sentinel_keeps_the_tls_of_the_sentinels(
    guarded: str, certificate: Path, prefix: str
) -> None:
    port = int(guarded.partition("//")[2].split(":")[1].split("/")[0])
    tls = {"ssl": True, "ssl_ca_certs": str(certificate)}
    finder: Any = redis.sentinel.Sentinel([(HOST, port)], sentinel_kwargs=tls, **tls)
    with Qsync(finder.master_for("main"), prefix=prefix) as app, app.client() as client:
        assert client.enqueue(Task("add", [1, 2])).created

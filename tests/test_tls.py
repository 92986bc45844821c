"""rediss://: clients and servers on an encrypted connection, to a store that they can trust."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from qsync import Mux, Qsync, StoreUnavailable, TaskInfo
from qsync.task import Task
from tests.stores import HOST, Store, available, free_port

OPENSSL = shutil.which("openssl")

pytestmark = [
    pytest.mark.skipif(not available("redis"), reason="needs redis, which was built with TLS"),
    pytest.mark.skipif(OPENSSL is None, reason="needs openssl"),
]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of 127.0.0.1, signed by itself; its key is beside it."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            OPENSSL or "openssl", "req", "-x509", "-days", "2", "-subj", "/CN=qsync",
            "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-addext", f"subjectAltName=IP:{HOST}",
            "-keyout", folder / "key.pem", "-out", folder / "certificate.pem",
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder / "certificate.pem"


@pytest.fixture(scope="module")
def address(certificate: Path) -> Iterator[str]:
    """Where a store answers to those who speak TLS."""
    port = free_port()
    config = {
        "tls-port": port,
        "tls-cert-file": str(certificate),
        "tls-key-file": str(certificate.parent / "key.pem"),
        "tls-ca-cert-file": str(certificate),
        "tls-auth-clients": "no",
    }
    with Store("redis", config=config):
        yield f"rediss://{HOST}:{port}"


def test_a_task_goes_to_a_server_and_its_result_comes_back(
    address: str, certificate: Path, prefix: str
) -> None:
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


def test_a_store_whose_certificate_nobody_vouches_for_gets_nothing(
    address: str, prefix: str
) -> None:
    with (
        Qsync(address, prefix=prefix, patience=0) as app,
        pytest.raises(StoreUnavailable, match=r"(?i)certificate verify failed"),
    ):
        app.client().enqueue(Task("add", [1, 2]))

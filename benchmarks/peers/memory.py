"""Reads the store's memory usage without a Redis client, which a peer may not have."""

import re
import socket
from urllib.parse import urlsplit


def used_memory(url: str) -> int:
    """Return the store's `used_memory` without the buffers of its clients, in bytes."""
    text = _info(url)
    used, clients = (
        int(re.findall(rf"(?m)^{name}:(\d+)", text)[0])
        for name in ("used_memory", "mem_clients_normal")
    )
    return used - clients


def _info(url: str) -> str:
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        # Send an inline command, then QUIT, so that the store closes the connection after its
        # reply.
        connection.sendall(b"INFO memory\r\nQUIT\r\n")
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    return answer.decode()

"""A client's map from a cluster's slots to its nodes. No I/O.

A client learns the map from any node that replies, and applies the corrections that nodes send
(MOVED). The client asks again if a node does not reply or the cluster is down. So a node that is
down delays only the calls for its own keys.
"""

from __future__ import annotations

import binascii
from collections.abc import Callable, Sequence
from typing import Any, Final

from qsync.backoff import spread
from qsync.broker import redis_errors
from qsync.broker.address import Address

Node = tuple[str, int]

SLOTS: Final = 16384
"""Number of slots in a cluster."""

ASK_MAP: Final = ("CLUSTER", "SLOTS")
"""Command whose reply `SlotMap.learn` reads."""


def slot_of(key: str) -> int:
    """Return the slot of a key: the CRC-16 (XMODEM) of the key's hash tag, or of the whole key if
    it has no hash tag."""
    _, _, rest = key.partition("{")
    tag, brace, _ = rest.partition("}")
    hashed = tag if brace and tag else key
    return binascii.crc_hqx(hashed.encode(), 0) % SLOTS


def name_of(node: Node | None) -> str:
    """Return `host:port` of a node; empty for None."""
    return ":".join(map(str, node or ()))


class SlotMap:
    """The nodes of a cluster and their slots; thread-safe, since each change is one assignment."""

    def __init__(
        self, startup: Sequence[Node], remap: Callable[[Node], Node] | None = None
    ) -> None:
        """`remap` translates a node's own address into the address that this client must use."""
        self._startup = tuple(startup)
        self._remap = remap
        self._holders: list[Node | None] = []
        """Nodes by slot number; empty until the map is learned."""
        self.primaries: tuple[Node, ...] = ()
        self._known: tuple[Node, ...] = ()
        self._doubted: frozenset[Node] = frozenset()
        """Nodes that have not replied since the map was learned."""

    @classmethod
    def of(cls, address: Address) -> SlotMap | None:
        """Return an empty map for a cluster; None for a store of another kind."""
        if address.kind != "cluster":
            return None
        return cls(address.nodes, address.finder.get("address_remap"))

    def holder(self, key: str) -> Node | None:
        """Return the node that holds a key; None if the map must be fetched first."""
        if not self._holders:
            return None
        node = self._holders[slot_of(key)]
        return None if node in self._doubted else node

    def best_guess(self, key: str) -> Node:
        """Return the node that holds a key, suspect or not, or raise SlotNotCoveredError."""
        node = self._holders[slot_of(key)] if self._holders else None
        if node is None:
            msg = f"no node of the cluster holds the slot of {key}"
            raise redis_errors.SlotNotCoveredError(msg)
        return node

    def candidates(self) -> list[Node]:
        """Return the nodes to ask for the map, in random order, suspect ones last."""
        nodes = list(dict.fromkeys((*self._known, *self._startup)))
        return sorted(nodes, key=lambda node: (node in self._doubted, spread(0, 1)))

    def learn(self, reply: Any, asked: Node) -> Exception | None:
        """Store the map from a node's reply.

        If the reply is an error or has no valid map, the node becomes suspect, and the error is
        returned.
        """
        try:
            self._learn(reply, asked)
        except redis_errors.LIBRARY_ERRORS as error:
            self.mark_suspect(asked)
            return error
        return None

    def _learn(self, reply: Any, asked: Node) -> None:
        if isinstance(reply, BaseException):
            raise reply
        holders: list[Node | None] = [None] * SLOTS
        known: dict[Node, None] = {}
        primaries: dict[Node, None] = {}
        for first, last, *nodes in reply:
            places = [self._node(host, port, asked) for host, port, *_ in nodes]
            holders[first : last + 1] = [places[0]] * (last + 1 - first)
            primaries[places[0]] = None
            known.update(dict.fromkeys(places))
        if not primaries:
            msg = f"{asked[0]}:{asked[1]} knows no node that holds slots of the cluster"
            raise redis_errors.ClusterDownError(msg)
        self.primaries, self._known = tuple(primaries), tuple(known)
        self._holders, self._doubted = holders, frozenset()

    def mark_suspect(self, node: Node) -> None:
        """Mark a node that did not reply as suspect, since its keys may have moved."""
        self._doubted |= {node}

    def redirect(self, reply: Any, asked: Node) -> Node | None:
        """Handle a reply that may be a redirection; update the map if a slot has moved.

        Returns the node to send the command to instead, or None.
        """
        if isinstance(reply, redis_errors.MovedError):
            moved = self._node(reply.host, reply.port, asked)
            if self._holders:
                self._holders[reply.slot_id] = moved
            return moved
        if isinstance(reply, redis_errors.AskError):
            return self._node(reply.host, reply.port, asked)
        if isinstance(reply, redis_errors.ClusterDownError):
            self._doubted = frozenset(self._known)
        elif is_silence(reply):
            self.mark_suspect(asked)
        return None

    def _node(self, host: bytes | str | None, port: int, asked: Node) -> Node:
        """Return the node that a reply names. If the reply has no host, the host is that of the
        node that was asked."""
        text = host.decode() if isinstance(host, bytes) else host
        node = (asked[0] if text in (None, "", "?") else str(text)), int(port)
        return node if self._remap is None else self._remap(node)


def is_silence(reply: Any) -> bool:
    """Return whether a node gave no reply: it was unreachable or timed out."""
    errors = redis_errors.LIBRARY_ERRORS
    return isinstance(reply, errors) and not isinstance(reply, redis_errors.ResponseError)

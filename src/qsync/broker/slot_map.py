"""Which node of a cluster holds which slot, as far as a client knows. No I/O.

A client learns the map from any node that answers, follows the corrections that nodes send (MOVED),
and asks again when a node does not answer or the cluster is down. So a node that is away holds up
the calls for its own keys alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import redis.exceptions as failures
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from qsync.backoff import spread
from qsync.broker.address import Address
from qsync.broker.error_mapping import LIBRARY_ERRORS

Node = tuple[str, int]

ASK_MAP: Final = ("CLUSTER", "SLOTS")
"""The command whose reply `SlotMap.learn` takes."""

REDIRECTIONS: Final = 5
"""How often a cluster may redirect one try of a call."""


class SlotMap:
    """The nodes of a cluster and their slots. Threads may share it: each change is one step."""

    def __init__(
        self, startup: Sequence[Node], remap: Callable[[Node], Node] | None = None
    ) -> None:
        """`remap` translates the addresses that nodes tell into those that they have here."""
        self._startup = tuple(startup)
        self._remap = remap
        self._holders: list[Node | None] = []
        """By slot; empty until the map is learned."""
        self.primaries: tuple[Node, ...] = ()
        self._known: tuple[Node, ...] = ()
        self._doubted: frozenset[Node] = frozenset()
        """Nodes that did not answer since the map was learned."""

    @classmethod
    def of(cls, address: Address) -> SlotMap | None:
        """The map of a cluster, yet to be learned; None for another store."""
        if address.kind != "cluster":
            return None
        return cls(address.nodes, address.finder.get("address_remap"))

    def holder(self, key: str) -> Node | None:
        """The node that holds a key; None: learn the map first."""
        if not self._holders:
            return None
        node = self._holders[key_slot(key.encode())]
        return None if node in self._doubted else node

    def best_guess(self, key: str) -> Node:
        """The node that holds a key, doubted or not; SlotNotCoveredError when there is none."""
        node = self._holders[key_slot(key.encode())] if self._holders else None
        if node is None:
            msg = f"no node of the cluster holds the slot of {key}"
            raise failures.SlotNotCoveredError(msg)
        return node

    def candidates(self) -> list[Node]:
        """The nodes to ask for the map, in this order: those that are doubted come last."""
        nodes = list(dict.fromkeys((*self._known, *self._startup)))
        return sorted(nodes, key=lambda node: (node in self._doubted, spread(0, 1)))

    def learn(self, reply: Any, asked: Node) -> None:
        """Take the map from a node's reply; raises the error that it is."""
        if isinstance(reply, BaseException):
            raise reply
        holders: list[Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        known: dict[Node, None] = {}
        primaries: dict[Node, None] = {}
        for first, last, *nodes in reply:
            places = [self._node(host, port, asked) for host, port, *_ in nodes]
            holders[first : last + 1] = [places[0]] * (last + 1 - first)
            primaries[places[0]] = None
            known.update(dict.fromkeys(places))
        if not primaries:
            msg = f"{asked[0]}:{asked[1]} knows no node that holds slots of the cluster"
            raise failures.ClusterDownError(msg)
        self.primaries, self._known = tuple(primaries), tuple(known)
        self._holders, self._doubted = holders, frozenset()

    def doubt(self, node: Node) -> None:
        """A node did not answer: its keys may be elsewhere by now."""
        self._doubted |= {node}

    def redirect(self, reply: Any, asked: Node) -> Node | None:
        """Note what a node's reply says about the map.

        Returns the node to ask instead and at once, or None.
        """
        if isinstance(reply, failures.MovedError):
            moved = self._node(reply.host, reply.port, asked)
            if self._holders:
                self._holders[reply.slot_id] = moved
            return moved
        if isinstance(reply, failures.AskError):
            return self._node(reply.host, reply.port, asked)
        if isinstance(reply, failures.ClusterDownError):
            self._doubted = frozenset(self._known)
        elif is_silence(reply):
            self.doubt(asked)
        return None

    def _node(self, host: bytes | str | None, port: int, asked: Node) -> Node:
        """A node as a reply names it: without a host it is at that of the node that was asked."""
        text = host.decode() if isinstance(host, bytes) else host
        node = (asked[0] if text in (None, "", "?") else str(text)), int(port)
        return node if self._remap is None else self._remap(node)


def is_silence(reply: Any) -> bool:
    """Whether this is no reply of a node: it could not be reached, or did not answer in time."""
    return isinstance(reply, LIBRARY_ERRORS) and not isinstance(reply, failures.ResponseError)

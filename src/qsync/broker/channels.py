"""The sharded channels of one connection: what to send, and what its replies mean. No I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import Any, Final, Literal, NamedTuple

SUBSCRIBE: Final = "SSUBSCRIBE"
UNSUBSCRIBE: Final = "SUNSUBSCRIBE"
PING: Final = "PING"


class Heard(NamedTuple):
    """What a connection heard of one channel.

    on       the subscription began
    off      the store ended it, since the slot has moved; `Channels.commands` tries it again
    refused  the store refused it: `error`
    ended    a message: the task `id` ended; on a channel that wakes a server it is no id
    """

    kind: Literal["on", "off", "refused", "ended"]
    channel: str
    id: str = ""
    error: Exception | None = None


class Channels:
    """The channels of one connection.

    Each command names one channel and has one reply, in order, so that an error is known to
    be about that channel.
    """

    def __init__(self) -> None:
        self.confirmed: set[str] = set()
        """Channels whose messages arrive."""
        self._targets: set[str] = set()
        """Channels that are subscribed once all commands are answered."""
        self._unanswered: deque[tuple[str, str]] = deque()

    def commands(self, wanted: Collection[str]) -> list[tuple[str, str]]:
        """Return the commands after which exactly these channels are subscribed."""
        surplus = self._targets.difference(wanted)
        missing = set(wanted) - self._targets
        commands = [(UNSUBSCRIBE, channel) for channel in sorted(surplus)]
        commands += [(SUBSCRIBE, channel) for channel in sorted(missing)]
        self.confirmed -= surplus
        self._targets = set(wanted)
        self._unanswered += commands
        return commands

    def ping(self) -> tuple[str]:
        """Return the command that asks whether the node is there."""
        self._unanswered.append((PING, ""))
        return (PING,)

    def hear(self, reply: Any) -> Heard | None:
        """Take a reply or a message; None when it says nothing about a channel."""
        if isinstance(reply, Exception):
            return self._refused(reply)
        if not isinstance(reply, list):
            self._answered(PING, "")  # PONG, while no channel is subscribed
            return None
        kind, channel = reply[0], bytes(reply[1]).decode()
        if kind == b"smessage":
            return Heard("ended", channel, bytes(reply[2]).decode())
        if kind == b"ssubscribe":
            self._answered(SUBSCRIBE, channel)
            if channel not in self._targets:
                return None
            self.confirmed.add(channel)
            return Heard("on", channel)
        if kind == b"sunsubscribe":
            if self._unanswered and self._unanswered[0] == (UNSUBSCRIBE, channel):
                self._unanswered.popleft()
                return None
            self.confirmed.discard(channel)
            self._targets.discard(channel)
            return Heard("off", channel)
        self._answered(PING, "")
        return None

    def _refused(self, error: Exception) -> Heard | None:
        command, channel = self._unanswered.popleft() if self._unanswered else (PING, "")
        if command != SUBSCRIBE:
            return None
        self._targets.discard(channel)
        return Heard("refused", channel, error=error)

    def _answered(self, command: str, channel: str) -> None:
        """Forget a command, and those before it, whose replies were taken for something else."""
        if (command, channel) in self._unanswered:
            while self._unanswered.popleft() != (command, channel):
                pass

"""The sharded channels of one connection: the commands to send and the replies to them. No I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import Any, Final, Literal, NamedTuple

from qsync.broker.call import text_of

SUBSCRIBE: Final = "SSUBSCRIBE"
UNSUBSCRIBE: Final = "SUNSUBSCRIBE"
PING: Final = "PING"


class ChannelEvent(NamedTuple):
    """An event of one channel.

    on       the subscription began
    off      the store ended the subscription, since the slot has moved; `Channels.commands`
             subscribes again
    refused  the store refused the subscription with `error`
    ended    a message: the task `id` ended; on a channel that wakes a server, `id` is not a task id
    """

    kind: Literal["on", "off", "refused", "ended"]
    channel: str
    id: str = ""
    error: Exception | None = None


class Channels:
    """The channels of one connection.

    Each command names one channel and replies come in order, so that an error can be matched to its
    channel.
    """

    def __init__(self) -> None:
        self.confirmed: set[str] = set()
        """Channels whose subscription the store has confirmed."""
        self._targets: set[str] = set()
        """Channels that will be subscribed once the store has replied to all commands."""
        self._unanswered: deque[tuple[str, str]] = deque()

    def commands(self, targets: Collection[str]) -> list[tuple[str, str]]:
        """Return the commands that subscribe to exactly these channels."""
        surplus = self._targets.difference(targets)
        missing = set(targets) - self._targets
        commands = [(UNSUBSCRIBE, channel) for channel in sorted(surplus)]
        commands += [(SUBSCRIBE, channel) for channel in sorted(missing)]
        self.confirmed -= surplus
        self._targets = set(targets)
        self._unanswered += commands
        return commands

    def ping(self) -> tuple[str]:
        """Return the command that checks whether the node replies."""
        self._unanswered.append((PING, ""))
        return (PING,)

    def parse(self, reply: Any) -> ChannelEvent | None:
        """Process a reply or a message; return None if it is not an event of a channel."""
        if isinstance(reply, Exception):
            return self._refused(reply)
        if not isinstance(reply, list):
            self._answered(PING, "")  # PONG while no channel is subscribed
            return None
        kind, channel = reply[0], text_of(bytes(reply[1]))
        if kind == b"smessage":
            return ChannelEvent("ended", channel, text_of(bytes(reply[2])))
        if kind == b"ssubscribe":
            self._answered(SUBSCRIBE, channel)
            if channel not in self._targets:
                return None
            self.confirmed.add(channel)
            return ChannelEvent("on", channel)
        if kind == b"sunsubscribe":
            if self._unanswered and self._unanswered[0] == (UNSUBSCRIBE, channel):
                self._unanswered.popleft()
                return None
            self.confirmed.discard(channel)
            self._targets.discard(channel)
            return ChannelEvent("off", channel)
        self._answered(PING, "")
        return None

    def _refused(self, error: Exception) -> ChannelEvent | None:
        command, channel = self._unanswered.popleft() if self._unanswered else (PING, "")
        if command != SUBSCRIBE:
            return None
        self._targets.discard(channel)
        return ChannelEvent("refused", channel, error=error)

    def _answered(self, command: str, channel: str) -> None:
        """Remove a command from `_unanswered`, and all earlier ones too, since replies come in
        order."""
        if (command, channel) in self._unanswered:
            while self._unanswered.popleft() != (command, channel):
                pass

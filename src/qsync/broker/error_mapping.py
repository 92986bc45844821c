"""Classify errors of redis-py and the store, and translate them into qsync's exceptions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from types import TracebackType
from typing import Any, Final

from qsync.bounds import full_text
from qsync.broker import redis_errors
from qsync.broker.address import Address
from qsync.broker.call import Call
from qsync.errors import ConfigError, QsyncError, QueueFull, SchemaMismatch, StoreUnavailable


class mapped_errors:
    """Convert library errors in the block to qsync's exceptions for the store at `address`.

    Before that, `on_error` is called with the library's error. An `async with` block awaits the
    result of this call.
    """

    def __init__(
        self, address: Address, on_error: Callable[[BaseException], Any] | None = None
    ) -> None:
        self._address = address
        self._on_error = on_error

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, redis_errors.LIBRARY_ERRORS):
            if self._on_error is not None:
                self._on_error(error)
            raise unavailable(error, self._address) from error

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, redis_errors.LIBRARY_ERRORS):
            if self._on_error is not None:
                await self._on_error(error)
            raise unavailable(error, self._address) from error


class Fault(Enum):
    """What an error from the store means for the caller."""

    TRANSIENT = "try again"
    FULL = "out of memory"
    DENIED = "credentials or rights"
    BOUND = "the queue has reached a bound"
    SCHEMA = "data of another version"
    TLS = "no trust between client and store"
    WRONG_STORE = "not the kind of store that the URL says"
    UNSUPPORTED = "a command that the store does not have"
    UNEXPECTED = "ours"


_OTHER_PROTOCOL: Final = "the answer is not in the Redis protocol"
"""Beginning of the error message if the first reply on a new connection is in another protocol."""

_CLOSED: Final = "it closed the connection before it answered"
"""Beginning of the error message if the other side closed a new connection without a reply."""

_CLOSED_TEXTS: Final = re.compile(
    "closed by server|connection (lost|closed|reset|aborted)|reset by peer|broken pipe"
    "|EOF occurred|shutdown while in progress", re.IGNORECASE,
)  # fmt: skip
"""Errors of redis-py and the system for a connection that the other side has closed."""

_WRONG_STORE_TEXTS: Final = (
    "Cluster mode is not enabled", "cluster support disabled", "unknown command 'SENTINEL'",
    "DB index is out of range", "the Sentinels watch no service", _OTHER_PROTOCOL,
)  # fmt: skip
"""Errors from a store whose kind differs from the one in the URL, e.g. a single node instead of a
cluster."""

_UNSUPPORTED: Final = re.compile("unknown (redis )?command", re.IGNORECASE)
"""Error from a store that lacks a command; managed stores hide commands in this way."""

_PROTOCOL_ADVICE: Final = (
    (r'got "\\x15"', "the port speaks TLS: use rediss:// in place of redis://"),
    ('got "H"', "the answer is from an HTTP server; check host and port"),
    ('got "S"', "the answer is from an SSH server; check host and port"),
    ("", "check host and port"),
)
"""Pairs of an error pattern and the advice to show when the server speaks another protocol."""

_COMMAND_ADVICE: Final = (("'client", "leave out client_name"),)
"""Pairs of an error pattern and the advice to show when a command is missing or forbidden."""

_TLS: Final = re.compile(
    r"\[SSL: [^\]]*(CERTIFICATE_VERIFY_FAILED|WRONG_VERSION|UNSUPPORTED_PROTOCOL|UNRECOGNIZED_NAME"
    r"|NO_\w*CIPHER|NO_PROTOCOLS|HTTP_REQUEST|ALERT_(?!INTERNAL_ERROR|USER_CANCELL?ED)\w+)"
)
"""TLS handshake errors that would occur again on a retry with the same settings."""

_TLS_ADVICE: Final = (
    ("mismatch|not valid for", "connect with a host name from the certificate, or set "
     "ssl_check_hostname=false"),
    ("expired|not yet valid", "renew the certificate, or correct the clock"),
    ("VERIFY_FAILED", "name the file of its CA with ssl_ca_certs="),
    ("WRONG_VERSION|HTTP_REQUEST", "the port does not speak TLS: use its TLS port, or redis://"),
    ("CERTIFICATE_REQUIRED|HANDSHAKE_FAILURE|BAD_CERTIFICATE|UNKNOWN_CA|CERTIFICATE_UNKNOWN",
     "pass a client certificate that the store trusts with ssl_certfile= and ssl_keyfile="),
)  # fmt: skip
"""Pairs of an error pattern and its advice; the first match is used."""

_TRANSIENT_CODES: Final = (
    "LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "BUSY", "MISCONF", "NOREPLICAS",
    "TRYAGAIN", "UNKILLABLE", "MOVED", "ASK", "NOSCRIPT", "NOQUORUM", "INPROG", "UNBLOCKED",
)  # fmt: skip


_SCHEMA: Final = re.compile(r"SCHEMA (\d+) (\d+)")
"""Error from a script whose queue has another data layout; the error names both layouts."""


_BOUND: Final = re.compile(r"FULL (max_tasks|max_bytes) (\d+) (\d+) (\d+)")
"""Error that the store returns for an enqueue that would exceed a bound. The error names the bound,
its value, the current count, and how many tasks fit."""


def of_new_connection(error: Exception) -> Exception:
    """Return the error of a new connection; explain it if the first reply is missing or invalid.

    Other errors are returned unchanged, e.g. a refused connection or password.
    """
    text = str(error)
    if isinstance(error, redis_errors.InvalidResponse):
        return redis_errors.InvalidResponse(f"{_OTHER_PROTOCOL}: {text}")
    lost = isinstance(error, redis_errors.ConnectionError | OSError) and _CLOSED_TEXTS.search(text)
    if not lost or _CLOSED in text or _TLS.search(text):
        return error
    return redis_errors.ConnectionError(f"{_CLOSED} ({text})")


@contextmanager
def opening() -> Iterator[None]:
    """Translate errors with `of_new_connection`, for a block that opens a connection."""
    try:
        yield
    except Exception as error:
        explained = of_new_connection(error)
        if explained is error:
            raise
        raise explained from error


def classify(error: BaseException) -> Fault:
    """Classify an error of redis-py or the store by what the caller can do about it."""
    text = str(error)
    if isinstance(error, redis_errors.OutOfMemoryError) or text.startswith("OOM"):
        return Fault.FULL
    if any(words in text for words in _WRONG_STORE_TEXTS):
        return Fault.WRONG_STORE
    if _UNSUPPORTED.search(text):
        return Fault.UNSUPPORTED
    if _TLS.search(text):
        return Fault.TLS
    denied = (
        redis_errors.AuthenticationError,
        redis_errors.AuthorizationError,
        redis_errors.NoPermissionError,
        redis_errors.AuthenticationWrongNumberOfArgsError,
    )
    if isinstance(error, denied) or text.startswith(("NOPERM", "NOAUTH", "WRONGPASS")):
        return Fault.DENIED
    transient = (
        redis_errors.ConnectionError, redis_errors.TimeoutError, redis_errors.ReadOnlyError,
        redis_errors.ClusterError, redis_errors.TryAgainError, redis_errors.AskError,
        redis_errors.NoScriptError, redis_errors.RedisClusterException, OSError, EOFError,
    )  # fmt: skip
    if isinstance(error, transient) or text.startswith(_TRANSIENT_CODES):
        return Fault.TRANSIENT
    if _SCHEMA.match(text):
        return Fault.SCHEMA
    if _BOUND.match(text):
        return Fault.BOUND
    if isinstance(error, RuntimeError) and text.endswith("the handler is closed"):
        return Fault.TRANSIENT
    if "ACL failure in script" in text or "The user executing the script can't" in text:
        return Fault.DENIED
    if "max number of clients" in text or "Script killed" in text:
        return Fault.TRANSIENT
    return Fault.UNEXPECTED


def is_unsupported(error: BaseException | None) -> bool:
    """Return whether the error means that the store does not have the command."""
    return error is not None and classify(error) is Fault.UNSUPPORTED


def lacks_command(error: QsyncError) -> bool:
    """Return whether the error means that the store lacks a command or forbids it to the user.

    Errors about the user or password do not count, although the store then refuses all commands.
    """
    cause = error.__cause__
    if cause is None or is_unsupported(cause):
        return cause is not None
    is_login = isinstance(cause, redis_errors.AuthenticationError) or str(cause).startswith(
        ("NOAUTH", "WRONGPASS")
    )
    return classify(cause) is Fault.DENIED and not is_login


def translate(error: BaseException, call: Call[Any], address: Address) -> QsyncError:
    """Return qsync's exception for an error that the store returned for a call."""
    name = call.script.name
    match classify(error):
        case Fault.FULL:
            return QueueFull(f"{name}: the store at {address} is out of memory: {error}")
        case Fault.BOUND:
            return _beyond_bound(str(error), call)
        case Fault.SCHEMA:
            return SchemaMismatch(_mismatch(str(error), call, address))
        case Fault.UNEXPECTED:
            return QsyncError(f"{name}: the store at {address} answered {error}")
    return _refused(f"{name}: ", error, address)


def _queue_of(call: Call[Any]) -> str:
    return call.keys[0].partition("}")[0].lstrip("{").rpartition(":")[2]


def _beyond_bound(text: str, call: Call[Any]) -> QueueFull:
    bound, limit, count, room = _BOUND.findall(text)[0]
    queue = _queue_of(call)
    return QueueFull(
        full_text(queue, bound, int(limit), int(count)),
        queue=queue, bound=bound, limit=int(limit), count=int(count), room=int(room),
    )  # fmt: skip


def _mismatch(text: str, call: Call[Any], address: Address) -> str:
    there, known = _SCHEMA.findall(text)[0]
    queue = _queue_of(call)
    return (
        f"{call.script.name}: the data of queue {queue} at {address} have layout {there}, and this "
        f"version of qsync knows layouts up to {known}: use a version that supports it"
    )


def unavailable(error: BaseException, address: Address) -> QsyncError:
    """Return qsync's exception for a command without a usable reply."""
    return _refused("", error, address)


def _refused(name: str, error: BaseException, address: Address) -> QsyncError:
    shown = _shown(error, address)
    match classify(error):
        case Fault.DENIED:
            advice = _advice(shown, _COMMAND_ADVICE)
            return ConfigError(f"{name}the store at {address} refuses: {shown}{advice}")
        case Fault.UNSUPPORTED:
            advice = _advice(shown, _COMMAND_ADVICE)
            return ConfigError(f"{name}the store at {address} lacks a command: {shown}{advice}")
        case Fault.TLS:
            advice = _advice(shown, _TLS_ADVICE)
            return ConfigError(f"{name}TLS with the store at {address} failed: {shown}{advice}")
        case Fault.WRONG_STORE:
            if _OTHER_PROTOCOL in shown:
                shown += _advice(shown, _PROTOCOL_ADVICE)
            return ConfigError(f"{name}the store at {address} does not match the URL: {shown}")
    return StoreUnavailable(f"{name}the store at {address} is not available: {shown}")


def _advice(text: str, advices: Sequence[tuple[str, str]]) -> str:
    """Return the first advice whose pattern matches the text, ready to be appended to the text."""
    return next((f"; {do}" for words, do in advices if re.search(words, text, re.IGNORECASE)), "")


def _shown(error: BaseException, address: Address) -> str:
    text = str(error)
    if isinstance(error, redis_errors.MovedError) and address.kind != "cluster":
        return f"it is a node of a cluster (MOVED {text}); use redis+cluster://"
    if isinstance(error, TimeoutError | redis_errors.TimeoutError):
        text = text or "no answer in time"
        if address.tls:
            text += f"; does the port speak TLS? If not, use {_other_scheme(address)}://"
        return text
    if _CLOSED in text and "path" not in address.settings:
        condition = "does not use" if address.tls else "requires"
        return f"{text}; if the port {condition} TLS, use {_other_scheme(address)}://"
    return text or type(error).__name__


def _other_scheme(address: Address) -> str:
    """Return the address's URL scheme with TLS, or without it if the address already uses TLS."""
    return ("redis" if address.tls else "rediss") + (
        "" if address.kind == "node" else f"+{address.kind}"
    )


def is_demoted(replies: Sequence[Any]) -> bool:
    """Return whether the node is no longer the primary, so that the address must be looked up."""
    for reply in replies:
        if isinstance(reply, Exception) and (  # checked first: few replies are errors
            isinstance(reply, redis_errors.ReadOnlyError | redis_errors.MasterDownError)
            or str(reply).startswith("READONLY")
        ):
            return True
    return False

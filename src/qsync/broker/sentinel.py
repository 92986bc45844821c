# mypy: disable-error-code="no-untyped-call"
# (redis-py leaves many of its constructors without types)
"""Sentinel support: find the primary, and pool connections to it.

redis-py's own Sentinel pools raise an error when all connections are in use. redis-py's search for
the primary raises "No master found" for every failure and hides the cause. The classes here wait
for a connection and report the cause. (Blocking brokers have their own pools.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.backoff
import redis.exceptions as failures
import redis.sentinel
from redis.asyncio.retry import Retry as AsyncRetry
from redis.retry import Retry

from qsync.broker import redis_errors
from qsync.broker.address import Address
from qsync.broker.error_mapping import Fault, classify, of_new_connection

SENTINEL_TIMEOUT: Final = 1.0
"""Timeout for connecting to a Sentinel and for its reply, in seconds; after a timeout, the next
Sentinel is asked."""


class AsyncSentinelPool(
    redis.asyncio.sentinel.SentinelConnectionPool, redis.asyncio.BlockingConnectionPool
):
    """A pool of connections to the primary; callers wait for a free connection."""


class Finder(redis.sentinel.Sentinel):
    """Asks the Sentinels which node is the primary."""

    def __init__(self, address: Address) -> None:
        settings = _settings(address, Retry(redis.backoff.NoBackoff(), 0))
        self.forced_host: Any = settings.pop("force_master_ip", None)
        others = settings.pop("min_other_sentinels", 0)
        super().__init__(list(address.nodes), others, sentinel_kwargs=settings)

    def discover_master(self, service_name: str) -> tuple[str, int]:
        """Return the host and port of the primary; raise an error that says why there is none."""
        answers: list[Any] = []
        for sentinel in self.sentinels:
            try:
                answers.append(sentinel.sentinel_masters())
            except redis_errors.LIBRARY_ERRORS as error:
                answers.append(of_new_connection(error))
                continue
            state = answers[-1].get(service_name)
            if state and self.check_master_state(state, service_name):
                self.sentinels: list[Any] = _first(sentinel, self.sentinels)
                return self.forced_host or state["ip"], state["port"]
        raise not_found(service_name, answers)


class AsyncFinder(redis.asyncio.sentinel.Sentinel):
    """Asks the Sentinels which node is the primary."""

    def __init__(self, address: Address) -> None:
        settings = _settings(address, AsyncRetry(redis.backoff.NoBackoff(), 0))
        self.forced_host: Any = settings.pop("force_master_ip", None)
        others = settings.pop("min_other_sentinels", 0)
        super().__init__(list(address.nodes), others, sentinel_kwargs=settings)

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        """Return the host and port of the primary; raise an error that says why there is none."""
        answers: list[Any] = []
        for sentinel in self.sentinels:
            try:
                answers.append(await sentinel.sentinel_masters())
            except redis_errors.LIBRARY_ERRORS as error:
                answers.append(of_new_connection(error))
                continue
            state = answers[-1].get(service_name)
            if state and self.check_master_state(state, service_name):
                self.sentinels: list[Any] = _first(sentinel, self.sentinels)
                return self.forced_host or state["ip"], state["port"]
        raise not_found(service_name, answers)


def _settings(address: Address, retry: Any) -> dict[str, Any]:
    return {
        "socket_timeout": SENTINEL_TIMEOUT,
        "socket_connect_timeout": SENTINEL_TIMEOUT,
        "protocol": 2,
        "retry": retry,
        **address.finder,
    }


def _first(sentinel: Any, sentinels: Sequence[Any]) -> list[Any]:
    """Return the Sentinels in the order in which to ask them; the one that last knew the primary
    comes first."""
    return [sentinel, *(other for other in sentinels if other is not sentinel)]


def not_found(service: str, answers: Sequence[Any]) -> Exception:
    """Return an error that explains why no Sentinel named a primary.

    `answers` holds a reply or an error per Sentinel.
    """
    errors = [answer for answer in answers if isinstance(answer, Exception)]
    if len(errors) == len(answers):
        by_fault = {classify(error): error for error in reversed(errors)}
        if (denied := by_fault.get(Fault.DENIED)) is not None:
            return failures.AuthenticationError(
                f"a Sentinel answers {denied}; set its user and password with "
                "sentinel_username= and sentinel_password= in the URL"
            )
        if (mistaken := by_fault.get(Fault.TLS)) is not None:
            return failures.ConnectionError(
                f"a Sentinel: {mistaken}; TLS options for Sentinels begin with sentinel_ssl_"
            )
    elif not errors and not any(service in masters for masters in answers):
        names = sorted({name for masters in answers for name in masters})
        watched = f"only {', '.join(names[:10])}" if names else "nor any other"
        return failures.ConnectionError(f"the Sentinels watch no service {service!r}, {watched}")
    said = sorted({f"{type(error).__name__}: {error}" for error in errors})
    return redis.sentinel.MasterNotFoundError(
        f"the Sentinels name no primary of {service!r}" + "".join(f"; {text}" for text in said)
    )

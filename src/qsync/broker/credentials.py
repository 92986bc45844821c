"""Credentials that a provider supplies for each connection, such as short-lived tokens."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Protocol

from qsync.broker import redis_errors
from qsync.broker.address import Address
from qsync.errors import ConfigError


class CredentialProvider(Protocol):
    """A provider of credentials, as in redis-py and valkey-py; it need not inherit from their base
    classes.

    If the provider also has `async def get_credentials_async`, asyncio connections await that
    method instead.
    """

    def get_credentials(self) -> tuple[str, ...]:
        """Return `(password,)` or `(user, password)` for a new connection."""


class CheckedProvider:
    """Asks a provider for credentials; an error that it raises becomes an error of the connection.

    As with an unreachable store, qsync tries again until the patience of the call ends.
    """

    def __init__(self, provider: CredentialProvider) -> None:
        self.provider = provider

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CheckedProvider) and self.provider is other.provider

    def __hash__(self) -> int:
        return hash(id(self.provider))

    def get_credentials(self) -> tuple[str, ...]:
        """Return the credentials of the provider."""
        try:
            credentials = self.provider.get_credentials()
        except Exception as error:
            raise _failed(error) from error
        return _checked(credentials)

    async def get_credentials_async(self) -> tuple[str, ...]:
        """Return the credentials of the provider; await them if the provider is async."""
        ask: Callable[[], Awaitable[Any]] | None = getattr(
            self.provider, "get_credentials_async", None
        )
        if ask is None:
            return self.get_credentials()
        try:
            credentials = await ask()
        except Exception as error:
            raise _failed(error) from error
        return _checked(credentials)


def _failed(error: Exception) -> Exception:
    return redis_errors.ConnectionError(f"credential_provider: {type(error).__name__}: {error}")


def _checked(credentials: Any) -> tuple[str, ...]:
    if (
        isinstance(credentials, tuple | list)
        and 1 <= len(credentials) <= 2
        and all(isinstance(part, str | bytes) for part in credentials)
    ):
        return tuple(credentials)
    return _refuse(credentials)


def _refuse(returned: object) -> tuple[str, ...]:
    """Raise an error that shows only the type of the returned value, which may be secret."""
    raise redis_errors.AuthenticationError(
        f"credential_provider: get_credentials() returned {type(returned).__name__}, "
        "not (password,) or (user, password) as text"
    )


def with_provider(address: Address, provider: object) -> Address:
    """Return the address with a provider of credentials; raise ConfigError if it cannot use one."""
    if not callable(getattr(provider, "get_credentials", None)):
        kind = type(provider).__name__
        raise ConfigError(f"credential_provider: {kind} has no method get_credentials()")
    for name in ("username", "password", "credential_provider"):
        if name in address.settings:
            raise ConfigError(
                f"credential_provider: the store at {address} has a {name} already; pass only one"
            )
    checked: Any = CheckedProvider(provider)  # type: ignore[arg-type]
    return replace(address, settings={**address.settings, "credential_provider": checked})


def without_provider(address: Address) -> Address:
    """Return the address without its provider of credentials, for comparison with another
    address."""
    settings = {k: v for k, v in address.settings.items() if k != "credential_provider"}
    return replace(address, settings=settings)

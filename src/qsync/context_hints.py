"""Errors for `with` instead of `async with`, and the reverse."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from qsync.errors import ConfigError


class AsyncOnly:
    """Base class of classes that `async with` closes; `with` raises ConfigError."""

    if not TYPE_CHECKING:  # hidden from type checkers, which report the wrong form themselves

        def __enter__(self) -> NoReturn:
            raise ConfigError(f"{type(self).__name__}: use `async with` instead of `with`")

        def __exit__(self, *_: object) -> None:
            pass


class BlockingOnly:
    """Base class of classes that `with` closes; `async with` raises ConfigError."""

    if not TYPE_CHECKING:  # hidden from type checkers, which report the wrong form themselves

        async def __aenter__(self) -> NoReturn:
            name = type(self).__name__
            raise ConfigError(f"{name}: use `with`, or `async with app.async_client()`")

        async def __aexit__(self, *_: object) -> None:
            pass

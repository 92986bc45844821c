"""The errors of redis-py, which is imported when the first broker is made.

Importing redis-py takes longer than importing all other modules that a client needs, so qsync
imports it only for the first broker. Modules that are imported together with qsync name an error as
an attribute of this module (`redis_errors.ResponseError`; `from ... import` would import redis-py
immediately). The pools, their connections, the listeners and `sentinel` import redis-py at their
head, because they need more of redis-py, or need its errors for every reply. All of these modules
are imported only when a broker connects. `redis_clients` imports redis-py in the functions that
make clients.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redis.exceptions import AskError as AskError
    from redis.exceptions import AuthenticationError as AuthenticationError
    from redis.exceptions import (
        AuthenticationWrongNumberOfArgsError as AuthenticationWrongNumberOfArgsError,
    )
    from redis.exceptions import AuthorizationError as AuthorizationError
    from redis.exceptions import ClusterDownError as ClusterDownError
    from redis.exceptions import ClusterError as ClusterError
    from redis.exceptions import ConnectionError as ConnectionError
    from redis.exceptions import InvalidResponse as InvalidResponse
    from redis.exceptions import MasterDownError as MasterDownError
    from redis.exceptions import MovedError as MovedError
    from redis.exceptions import NoPermissionError as NoPermissionError
    from redis.exceptions import NoScriptError as NoScriptError
    from redis.exceptions import OutOfMemoryError as OutOfMemoryError
    from redis.exceptions import ReadOnlyError as ReadOnlyError
    from redis.exceptions import RedisClusterException as RedisClusterException
    from redis.exceptions import ResponseError as ResponseError
    from redis.exceptions import SlotNotCoveredError as SlotNotCoveredError
    from redis.exceptions import TimeoutError as TimeoutError
    from redis.exceptions import TryAgainError as TryAgainError

    LIBRARY_ERRORS: tuple[type[Exception], ...]
    """Errors that redis-py raises. asyncio raises ValueError for a reply that exceeds its buffer,
    and uvloop raises RuntimeError for a write to a connection that was just reset."""
else:

    def __getattr__(name: str) -> Any:
        """Import all errors of redis-py when one is first used; later uses do not call this
        function."""
        if name.startswith("__"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from redis import exceptions

        errors = {
            key: value
            for key, value in vars(exceptions).items()
            if isinstance(value, type) and issubclass(value, Exception)
        }
        errors["LIBRARY_ERRORS"] = (
            exceptions.RedisError, exceptions.RedisClusterException, OSError, EOFError, ValueError,
            RuntimeError,
        )  # fmt: skip
        globals().update(errors)
        try:
            return errors[name]
        except KeyError:
            raise AttributeError(f"redis-py has no error {name!r}") from None

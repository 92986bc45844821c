"""The options of a store's address, with a check for each.

Options come as text from a URL or as values from a client object; both kinds go through these
checks. A failed check raises a ValueError whose message begins with the option's name and never
shows the value, which may be a secret.
"""

from __future__ import annotations

import contextlib
import math
import re
import ssl
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

_TRUE: Final = ("1", "true", "t", "yes", "y", "on")
_FALSE: Final = ("0", "false", "f", "no", "n", "off")
_CERT_REQS: Final = ("none", "optional", "required")
_TLS_VERSIONS: Final = {
    "771": ssl.TLSVersion.TLSv1_2, "1.2": ssl.TLSVersion.TLSv1_2, "tlsv1.2": ssl.TLSVersion.TLSv1_2,
    "772": ssl.TLSVersion.TLSv1_3, "1.3": ssl.TLSVersion.TLSv1_3, "tlsv1.3": ssl.TLSVersion.TLSv1_3,
}  # fmt: skip


def _text(value: Any) -> Any:
    if isinstance(value, str | bytes) and value:
        return value
    raise ValueError("must be non-empty text")


def _secret(value: Any) -> Any:
    if isinstance(value, str | bytes | int | float) and not isinstance(value, bool):
        return value
    raise ValueError("must be text")


def _client_name(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"[!-~]+", value):
        return value
    raise ValueError("must be ASCII text without spaces")


def _database(value: Any) -> int:
    if re.fullmatch(r"\d{1,9}", str(value)) and not isinstance(value, bool):
        return int(value)
    raise ValueError("must be a database number, 0 or higher")


def _seconds(value: Any) -> float:
    with contextlib.suppress(TypeError, ValueError):
        if not isinstance(value, bool) and 0 < float(value) < math.inf:
            return float(value)
    raise ValueError("must be a number of seconds above 0")


def _flag(value: Any) -> bool:
    text = str(value).lower()
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    raise ValueError("must be true or false")


def _cert_reqs(value: Any) -> str:
    text = value.name.removeprefix("CERT_").lower() if isinstance(value, ssl.VerifyMode) else value
    if text in _CERT_REQS:
        return str(text)
    raise ValueError(f"must be one of {', '.join(_CERT_REQS)}")


def _min_version(value: Any) -> ssl.TLSVersion:
    text = str(int(value)) if isinstance(value, int) else str(value)
    if text.lower() in _TLS_VERSIONS:
        return _TLS_VERSIONS[text.lower()]
    raise ValueError("must be TLSv1.2 or TLSv1.3")


def _verify_flags(value: Any) -> list[ssl.VerifyFlags]:
    names = value.strip("[]").split(",") if isinstance(value, str) else value
    try:
        return [
            ssl.VerifyFlags[x.strip()] if isinstance(x, str) else ssl.VerifyFlags(x) for x in names
        ]
    except (KeyError, TypeError, ValueError):
        raise ValueError("must be names of ssl.VerifyFlags, separated by commas") from None


def _keepalive_options(value: Any) -> Any:
    if isinstance(value, Mapping):
        return value
    raise ValueError("must be a mapping")


OPTIONS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "db": _database,
    "username": _text,
    "password": _secret,
    "client_name": _client_name,
    "socket_connect_timeout": _seconds,
    "socket_keepalive": _flag,
    "ssl_ca_certs": _text,
    "ssl_ca_path": _text,
    "ssl_ca_data": _text,
    "ssl_certfile": _text,
    "ssl_keyfile": _text,
    "ssl_password": _secret,
    "ssl_cert_reqs": _cert_reqs,
    "ssl_check_hostname": _flag,
    "ssl_min_version": _min_version,
    "ssl_ciphers": _text,
    "ssl_include_verify_flags": _verify_flags,
    "ssl_exclude_verify_flags": _verify_flags,
}
"""Checks for the options that a URL may have in its query, by name."""

SENTINEL: Final = "sentinel_"
"""Prefix of options for the connections to the Sentinels."""

SENTINEL_OPTIONS: Final[Mapping[str, Callable[[Any], Any]]] = {
    f"{SENTINEL}ssl": _flag,
    **{
        SENTINEL + name: check
        for name, check in OPTIONS.items()
        if name in ("username", "password") or name.startswith("ssl_")
    },
}

_OURS: Final = (
    "socket_timeout", "protocol", "retry_on_timeout", "retry_on_error", "health_check_interval",
    "max_connections", "timeout", "decode_responses", "encoding", "encoding_errors",
    "socket_read_size", "lib_name", "lib_version",
)  # fmt: skip
"""Options of redis-py that qsync sets itself."""


def check(name: str, value: Any) -> Any:
    """Convert the value of an option; raise ValueError if the option does not accept it."""
    try:
        return {**OPTIONS, **SENTINEL_OPTIONS}[name](value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def unknown(name: str, *, has_value: bool, after_secret: bool) -> str:
    """Return the error message for an unknown option.

    The message hides a name that may be part of a password, since an unescaped & ends a password
    early. A name is hidden if it has characters that option names do not have. A name that does not
    resemble an option is also hidden if it has no value or follows a password.
    """
    if name in _OURS:
        return f"{name}: qsync sets this option itself; remove it"
    import difflib  # imported here, since few programs misspell an option

    known = [*OPTIONS, *SENTINEL_OPTIONS]
    close = difflib.get_close_matches(name.lower(), known, 1, 0.7)
    is_name = re.fullmatch(r"[A-Za-z_]{1,40}", name) and (has_value or close)
    shown = repr(name) if is_name else "in its query"
    if close:
        return f"unknown option {shown}; did you mean {close[0]}?"
    if after_secret:
        return "its query has an unknown option after a password; write & as %26 in a password"
    return f"unknown option {shown}; the options are {', '.join(OPTIONS)}"


def check_tls(settings: Mapping[str, Any], before: str = "") -> None:
    """Raise ValueError if these TLS settings cannot work with any store.

    The check reads the files that the settings name, but does not connect to the store. `before` is
    a prefix for option names in errors.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for name, kind in (
        ("ssl_ca_certs", "cafile"),
        ("ssl_ca_path", "capath"),
        ("ssl_ca_data", "cadata"),
    ):
        if name in settings:
            with _naming(before + name, "contains no certificate in PEM format"):
                if name == "ssl_ca_path" and not Path(settings[name]).is_dir():
                    raise NotADirectoryError
                context.load_verify_locations(**{kind: settings[name]})
    _check_certificate(context, settings, before)
    if "ssl_ciphers" in settings:
        with _naming(f"{before}ssl_ciphers", "names no cipher that OpenSSL supports"):
            context.set_ciphers(settings["ssl_ciphers"])
    if settings.get("ssl_cert_reqs") == "none" and settings.get("ssl_check_hostname"):
        msg = f"{before}ssl_check_hostname: a host name cannot be checked with ssl_cert_reqs=none"
        raise ValueError(msg)


def _check_certificate(context: ssl.SSLContext, settings: Mapping[str, Any], before: str) -> None:
    certificate, key = settings.get("ssl_certfile"), settings.get("ssl_keyfile")
    if certificate is None:
        for name in ("ssl_keyfile", "ssl_password"):
            if name in settings:
                raise ValueError(f"{before}{name}: requires {before}ssl_certfile")
        return
    with _naming(f"{before}ssl_certfile"):
        text = Path(certificate).read_text(errors="replace")
    if key is None:
        if "PRIVATE KEY-----" not in text:
            msg = f"{before}ssl_certfile: has no private key; pass {before}ssl_keyfile as well"
            raise ValueError(msg)
    else:
        with _naming(f"{before}ssl_keyfile"):
            Path(key).read_bytes()
    password = settings.get("ssl_password", "")  # with None, OpenSSL would prompt at the terminal
    try:
        context.load_cert_chain(certificate, key, str(password))
    except ssl.SSLError as error:
        name, problem = "ssl_certfile", "is not a certificate in PEM format"
        if error.reason == "KEY_VALUES_MISMATCH":
            name, problem = "ssl_keyfile", "does not match the certificate"
        elif (
            "PASS" in (error.reason or "")
            or "DECRYPT" in (error.reason or "")
            or ("ENCRYPTED" in Path(key or certificate).read_text(errors="replace"))
        ):
            name, problem = "ssl_password", "does not decrypt the private key"
        elif "BEGIN CERTIFICATE" in text:
            name, problem = "ssl_keyfile", "is not a private key in PEM format"
        raise ValueError(f"{before}{name}: {problem}") from None


@contextlib.contextmanager
def _naming(name: str, otherwise: str = "cannot be used") -> Iterator[None]:
    """Turn file errors into a ValueError that names the option instead of the file."""
    try:
        yield
    except FileNotFoundError:
        raise ValueError(f"{name}: there is no such file") from None
    except NotADirectoryError:
        raise ValueError(f"{name}: there is no such directory") from None
    except PermissionError:
        raise ValueError(f"{name}: no permission to read the file") from None
    except (OSError, ValueError):  # ssl.SSLError is an OSError
        raise ValueError(f"{name}: {otherwise}") from None

"""Loads the app that a command line names: MODULE:APP."""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from qsync.app import Qsync
from qsync.errors import QsyncError
from qsync.mux import Mux
from qsync.value_text import shorten


class TargetError(Exception):
    """Raised if the command line does not name an app. The message states the reason in one
    line."""


def load(target: str) -> Qsync:
    """Load the app `module:attribute` from the working directory or from `sys.path`.

    The attribute, whose name may contain dots, must be an app, or a function without parameters
    that returns an app. Raises TargetError; its cause is the exception that the user's code raised,
    if there was one.
    """
    if "@" in target or "://" in target:  # do not show the target, which may contain a password
        raise TargetError("a URL is not an app; pass MODULE:APP here, and the URL as --url")
    name, colon, attribute = target.partition(":")
    if not colon or not name or not attribute:
        raise TargetError(f"{target}: not of the form MODULE:APP, e.g. shop.tasks:app")
    if name.endswith(".py") or "/" in name:
        module_name = _module_of(name)
        msg = f"{target}: pass the module name, not its file, e.g. {module_name}:{attribute}"
        raise TargetError(msg + _where(module_name))
    here = os.getcwd()  # noqa: PTH109 - sys.path holds texts
    if here not in sys.path:
        sys.path.insert(0, here)
    module = _import(name)
    target_value = _attribute(module, target, attribute)
    if isinstance(target_value, Qsync):
        return target_value
    if not callable(target_value) or inspect.isclass(target_value):
        msg = f"{target} is {_kind(target_value)}, neither a Qsync nor a function that returns one"
        if isinstance(target_value, Mux):
            msg += f"; write app = Qsync(mux={attribute}), and pass {name}:app"
        raise TargetError(msg)
    returned = _make(target_value, target)
    if not isinstance(returned, Qsync):
        msg = f"{target}() returned {_kind(returned)}, not a Qsync"
        if isinstance(returned, Mux):
            msg += "; return Qsync(mux=...)"
        raise TargetError(msg)
    return returned


def _module_of(file: str) -> str:
    """Return the import name of a file, without a leading `src` folder that is not a package."""
    parts = file.removesuffix(".py").strip("./").split("/")
    if parts[0] == "src" and len(parts) > 1 and not Path("src", "__init__.py").exists():
        del parts[0]
    return ".".join(parts)


def _where(module: str) -> str:
    """Return a hint if the module is in the folder `src` of the working directory."""
    top = Path("src", module.partition(".")[0])
    if module.startswith("src.") or not (top.is_dir() or top.with_suffix(".py").exists()):
        return ""
    return "; it is in the folder src: install the project, or set PYTHONPATH=src"


def _import(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        # For `shop.tasks`, `shop` itself may be missing; any other missing name is a module that
        # `shop.tasks` imports.
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            where = f"there is none in {os.getcwd()} or on sys.path"  # noqa: PTH109 - as above
            msg = f"module {error.name!r} was not found: {where}{_where(name)}"
            raise TargetError(msg) from None
        raise TargetError(_failed(f"importing {name}", error)) from error
    except (Exception, SystemExit) as error:
        raise TargetError(_failed(f"importing {name}", error)) from error


def _attribute(module: ModuleType, target: str, path: str) -> Any:
    target_value: Any = module
    for name in path.split("."):
        try:
            target_value = getattr(target_value, name)
        except AttributeError:
            apps = [key for key, value in vars(module).items() if isinstance(value, Qsync)]
            hint = f"; {module.__name__} has {', '.join(apps)}" if apps else _mux_hint(module)
            msg = f"{target}: {_kind(target_value)} has no attribute {name!r}{hint}"
            raise TargetError(msg) from None
        except Exception as error:
            raise TargetError(_failed(f"{target}: reading {name}", error)) from error
    return target_value


def _mux_hint(module: ModuleType) -> str:
    """Return a hint if the module has a Mux but no app."""
    names = [key for key, value in vars(module).items() if isinstance(value, Mux)]
    return f"; {module.__name__} has a Mux: write app = Qsync(mux={names[0]})" if names else ""


def _make(factory: Any, target: str) -> Any:
    try:
        inspect.signature(factory).bind()
    except (TypeError, ValueError):
        msg = f"{target} is {_kind(factory)} that needs arguments; a factory must take none"
        raise TargetError(msg) from None
    if inspect.iscoroutinefunction(factory):
        raise TargetError(f"{target} is an async function; a factory must be a plain function")
    try:
        return factory()
    except Exception as error:
        raise TargetError(_failed(f"calling {target}", error)) from error


def _failed(action: str, error: BaseException) -> str:
    """Return one line that states the failure, its cause and where it happened."""
    if isinstance(error, QsyncError):
        return f"{action}: {error}"
    if isinstance(error, SyntaxError):
        return f"{action}: {error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    place = f" (at {frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    text = " ".join(str(error).split())
    return f"{action}: {type(error).__name__}: {text}{place}"


def _kind(value: object) -> str:
    if isinstance(value, ModuleType):
        return f"module {value.__name__!r}"
    if inspect.isclass(value):
        return f"class {value.__name__}"
    if inspect.isroutine(value):
        return f"function {shorten(getattr(value, '__name__', '?'))}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"

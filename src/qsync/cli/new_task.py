"""Builds the task that the arguments of `qsync task enqueue` describe."""

from __future__ import annotations

import difflib
import re
import sys
from typing import Any

import msgspec

from qsync.app import Qsync
from qsync.errors import InvalidTask
from qsync.task import PAYLOAD_LIMIT, Task


def payload_of(text: str | None) -> Any:
    """Parse the payload from --json; return b"" if the option is missing."""
    if text is None:
        return b""
    try:
        data = sys.stdin.buffer.read(4 * PAYLOAD_LIMIT) if text == "-" else text.encode()
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        how = "quote it for the shell: '{...}'"
        if re.search(r"[{,]\s*['A-Za-z_]", text):
            how = "keys and strings need double quotes: '{\"customer\": 7}'"
        raise InvalidTask(f"--json: not JSON: {error}; {how}") from None


def task_of(type: str, payload: Any, options: dict[str, Any], app: Qsync | None) -> Task:
    """Build the task; raise InvalidTask if the payload does not match the app's function."""
    if app is None:
        return Task(type, payload, **options)
    function = app.functions.get(type)
    if function is not None:
        function = function.options(**options)
        if payload == b"":
            return function.build()
        if isinstance(payload, list):
            return function.build(*payload)
        if isinstance(payload, dict):
            return function.build(**payload)
        raise InvalidTask(f"--json: task {type} needs its arguments as an object or as a list")
    batch = app.batches.get(type)
    if batch is not None:
        return batch.options(**options).build(payload)
    for builder in app._connections.builders:
        task = builder.build(type, payload)
        if task is not None:
            headers = {**(task.headers or {}), **(options.get("headers") or {})}
            return task.replace(**{**options, "headers": headers or None})
    types = app.server().mux.types
    if type not in types:
        close = difflib.get_close_matches(type, types, 1)
        meant = f"; did you mean {close[0]}?" if close else ""
        raise InvalidTask(f"the app has no task {type}{meant}")
    return Task(type, payload, **options)

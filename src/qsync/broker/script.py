"""The Lua scripts, read once from their files.

The header of a script names its includes, its keys, its arguments and the fields of its reply:

    -- include: clock wake_server
    -- KEYS[1] tasks     hash   id -> message
    -- ARGV[1] now       int us
    -- REPLY[1] ids      list
    -- REPLY[2] more     flag   whether there is more to do

The code uses `KEYS.tasks` and `ARGV.now`, which the loader replaces with `KEYS[1]` and `ARGV[1]`,
so the names cost the store nothing. `reply({ ids = ids, more = true })` builds the reply: a list in
the order of the header, in which a missing field is 0, '' or {} depending on its type. In Python,
`Script.reply` returns the fields by name.

On each call, the store creates the functions of the includes again. A line `-- here: wake_server`
in the body places an include in the block that needs it, so that other calls do not pay for it.

A script whose header has the line `-- variants: plain flow` has two variants. Queues without flow
control run the plain variant, which has none of the keys and none of the cost of flow control.
In scripts and includes, lines that belong to only one variant are marked:

    -- flow KEYS[13] limited  zset  ids by order tag
    -- flow:
    park(id)
    -- plain:
    take(id)
    -- end flow

The flow variant has the keys and arguments of the plain variant, followed by its own. A script with
one variant is loaded with the lines of the flow variant. If its header has the line `-- plain
variant of: enqueue`, it is loaded with the plain lines, and `enqueue` runs in its place for queues
with flow control.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from importlib.abc import ResourceLoader

_FOLDER: Final = Path(__file__).with_name("lua")
_LOADER: Final = cast("ResourceLoader", __spec__.loader)
"""Loader of this module. The loader can read the scripts even if qsync runs from a zip archive."""

_SLOT: Final = re.compile(r"^-- (KEYS|ARGV|REPLY)\[(\d+)\] (\w+) +(\S+)", re.MULTILINE)
_INCLUDE: Final = re.compile(r"^-- include: (.+)$", re.MULTILINE)
_HERE: Final = re.compile(r"^ *-- here: (.+)\n", re.MULTILINE)
_NAMED: Final = re.compile(r"\b(KEYS|ARGV)\.(\w+)")
_CALLED: Final = re.compile(r"(?<!function )(?<![\w.])(\w+)[({]")
_PASSED: Final = re.compile(r"(?<![\w.])pcall\((\w+),")
_FUNCTION: Final = re.compile(r"^local function (\w+)\(.*?^end\n", re.MULTILINE | re.DOTALL)

_VARIANTS: Final = "-- variants: plain flow\n"
_PLAIN_OF: Final = re.compile(r"^-- plain variant of: (\w+)$", re.MULTILINE)
_BLOCK: Final = re.compile(
    r"^ *-- flow:\n(.*?)(?:^ *-- plain:\n(.*?))?^ *-- end flow\n", re.MULTILINE | re.DOTALL
)
_FLOW_LINE: Final = re.compile(r"^-- flow (KEYS|ARGV|REPLY|include)(.*\n)", re.MULTILINE)
_PLAIN_LINE: Final = re.compile(r"^-- plain (KEYS|ARGV|REPLY|include)(.*\n)", re.MULTILINE)

_FIELD: Final = {
    "flag": "fields.{0} and 1 or 0",
    "int": "fields.{0} or 0",
    "list": "fields.{0} or {{}}",
    "text": "fields.{0} or ''",
    "bytes": "fields.{0} or ''",
}
"""Functions that decode a field of a reply, by its type in the header."""


@dataclass(frozen=True, slots=True)
class Script:
    """A script as the store runs it: includes and code, without comment lines."""

    name: str
    text: str
    sha: str
    keys: tuple[str, ...]
    timed: bool = False
    """Whether the first argument is `now`, which is a time, or empty for the store's clock."""
    reply_fields: tuple[str, ...] = ()
    is_plain: bool = False
    """Whether this is the plain variant of a script that also has a flow variant."""
    allow_oom: bool | None = None
    flow_name: str = ""
    """Name of the script that has the flow variant; empty if this script has it."""

    def flow(self) -> Script:
        """Return the flow variant of a plain script."""
        return load(self.flow_name or self.name, allow_oom=self.allow_oom, flow=True)

    def reply(self, values: list[Any]) -> dict[str, Any]:
        """Return the values of a reply by the names of their fields."""
        return dict(zip(self.reply_fields, values, strict=True))


def read(path: str) -> str:
    """Return the text of a file, `<verb>.lua` or `include/<name>.lua`.

    `load` reads every file through this function, so that a test can plant a mistake in a file.
    """
    text = _texts().get(path)
    return _LOADER.get_data(str(_FOLDER / path)).decode() if text is None else text


@cache
def _texts() -> dict[str, str]:
    """Read all files when one is first needed; return their contents by path.

    An upgrade may replace the files while a process runs, and a script must not be assembled from
    files of two versions. The result is empty if the files are in an archive.
    """
    return {
        path.relative_to(_FOLDER).as_posix(): path.read_text("utf-8")
        for path in _FOLDER.rglob("*.lua")
    }


def variant(text: str, *, flow: bool) -> str:
    """Return the text of a file with only the lines of the flow variant, or of the plain
    variant."""
    text = _BLOCK.sub(lambda found: found[1] if flow else found[2] or "", text)
    own, other_lines = (_FLOW_LINE, _PLAIN_LINE) if flow else (_PLAIN_LINE, _FLOW_LINE)
    return own.sub(r"-- \1\2", other_lines.sub("", text))


def has_variants(name: str) -> bool:
    """Return whether a script has a plain and a flow variant."""
    return _VARIANTS in read(f"{name}.lua")


def plain_of(name: str) -> str:
    """Return the name of the script whose flow variant replaces this script; empty if there is
    none."""
    match = _PLAIN_OF.search(read(f"{name}.lua"))
    return match[1] if match else ""


@cache
def load(name: str, *, allow_oom: bool | None = None, flow: bool = False) -> Script:
    """Read a script, in its flow variant if `flow` is true or there is no other variant.

    `allow_oom` overrides that flag of the file.
    """
    flow_name = plain_of(name)
    is_plain = not flow and (has_variants(name) or bool(flow_name))
    shebang, body = variant(read(f"{name}.lua"), flow=not is_plain).split("\n", 1)
    if allow_oom is not None:
        shebang = "#!lua flags=allow-oom" if allow_oom else "#!lua"
    slots = _slots(name, body)
    placed = {piece for pieces in _HERE.findall(body) for piece in pieces.split()}
    includes = {
        piece: variant(read(f"include/{piece}.lua"), flow=not is_plain) for piece in _includes(body)
    }
    first = [text for piece, text in includes.items() if piece not in placed]
    body = _HERE.sub(lambda line: "".join(includes[piece] for piece in line[1].split()), body)
    code = "\n".join(map(_code, [*first, _constructor(slots["REPLY"]), body]))
    text = f"{shebang}\n{_numbered(name, _used(code), slots)}"
    sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
    keys, args, reply = map(tuple, slots.values())
    return Script(
        name, text, sha, keys, args[:1] == ("now",), reply, is_plain, allow_oom, flow_name
    )


def _slots(name: str, body: str) -> dict[str, dict[str, str]]:
    """Return the types of the named slots of a header, by name, in the order of the header."""
    slots: dict[str, dict[str, str]] = {"KEYS": {}, "ARGV": {}, "REPLY": {}}
    for kind, number, slot, type in _SLOT.findall(body):
        slots[kind][slot] = type
        if int(number) != len(slots[kind]):
            msg = f"{name}.lua: {kind}[{number}] {slot} is slot {len(slots[kind])} of its header"
            raise ValueError(msg)
    return slots


def _includes(body: str) -> Iterator[str]:
    for line in _INCLUDE.findall(body):
        yield from line.split()


def _constructor(reply: dict[str, str]) -> str:
    """Return the Lua function that puts the fields of a reply in order."""
    fields = ", ".join(_FIELD[type].format(field) for field, type in reply.items())
    return f"local function reply(fields)\n  return {{ {fields} }}\nend\n"


def _code(source: str) -> str:
    """Remove comment lines, so that they are not sent to the store."""
    return "\n".join(line for line in source.splitlines() if not line.lstrip().startswith("--"))


def _used(code: str) -> str:
    """Remove unused functions, because the store would create each of them again on each call."""
    called = {*_CALLED.findall(code), *_PASSED.findall(code)}
    used = _FUNCTION.sub(lambda found: found[0] if found[1] in called else "", code)
    return used if used == code else _used(used)


def _numbered(name: str, code: str, slots: dict[str, dict[str, str]]) -> str:
    """Replace the names of keys and arguments with their numbers."""
    numbers = {
        f"{kind}.{slot}": f"{kind}[{index}]"
        for kind in ("KEYS", "ARGV")
        for index, slot in enumerate(slots[kind], start=1)
    }

    def number(match: re.Match[str]) -> str:
        try:
            return numbers[match[0]]
        except KeyError:
            msg = f"{name}.lua: its header does not name {match[0]}, which it uses"
            raise ValueError(msg) from None

    return _NAMED.sub(number, code)

"""Which tasks the demo has, how many of each, and what their results must be."""

from __future__ import annotations

import hashlib
import os
import stat
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

SIZE: Final = 64 * 1024
"""Bytes of a block; files are hashed block by block."""

QUEUES: Final = {"critical": 6, "default": 3, "shared": 2, "lower": 1}
"""The queues of the demo and their weights."""

ALGORITHMS: Final = (
    "sha256", "blake2b", "sha3_256", "sha512", "blake2s",
    "sha384", "sha3_512", "sha224", "sha3_384", "sha3_224",
)  # fmt: skip


class Kind(NamedTuple):
    """A row of the tables: tasks of one type."""

    name: str
    queue: str
    shows: str


KINDS: Final = {
    kind.name: kind
    for kind in (
        Kind("hash", "default", "async def, on the event loop"),
        Kind("thread", "default", "def, in a thread"),
        Kind("process", "default", "def, in a process of its own"),
        Kind("tenant", "shared", "one tenant floods a queue, one does not"),
        Kind("parent", "critical", "enqueues ten tasks"),
        Kind("child", "critical", "enqueued by a task"),
        Kind("typed", "critical", "arguments and result typed, awaited"),
        Kind("slow", "default", "waits until a server is killed, and longer"),
        Kind("flaky", "default", "fails twice, then succeeds"),
        Kind("hopeless", "default", "fails three times, then dead"),
        Kind("scheduled", "critical", "due at a time"),
        Kind("unique", "lower", "enqueued by 8 callers at once"),
        Kind("late", "default", "due after its deadline: never starts"),
        Kind("cancel", "critical", "takes an hour, cancelled"),
        Kind("tick", "critical", "periodic, each second"),
        Kind("poison", "critical", "kills its own process"),
    )
}

HASHING: Final = ("hash", "thread", "process", "tenant", "child")
"""The kinds that hash blocks."""


class Block(NamedTuple):
    """A part of a file, and how it is to be hashed."""

    path: str
    offset: int
    algorithm: str

    @property
    def key(self) -> str:
        """What it is called in the manifest."""
        return f"{self.algorithm} {self.offset} {self.path}"


def digest_of(block: Block) -> str:
    """The digest; `unreadable` when the file cannot be read, whoever tries."""
    try:
        with Path(block.path).open("rb", buffering=0) as file:
            file.seek(block.offset)
            data = file.read(SIZE)
    except OSError:
        return "unreadable"
    return hashlib.new(block.algorithm, data, usedforsecurity=False).hexdigest()


Stamp = tuple[int, int]
"""Size and time of the last change of a file."""


def installation() -> dict[str, Stamp]:
    """The files of this Python, its standard library and site-packages; compiled ones left out."""
    paths = sysconfig.get_paths()
    found: dict[str, Stamp] = {}
    for top in dict.fromkeys(
        paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")
    ):
        for folder, folders, names in os.walk(top):
            # The first two have others beside the third and fourth, which may be somebody else's.
            skipped = {"__pycache__", "site-packages", "dist-packages"}
            folders[:] = sorted(name for name in folders if name not in skipped)
            for path in sorted(os.path.join(folder, name) for name in names):  # noqa: PTH118 - many
                stamp = stamp_of(path)
                if stamp is not None and path.isprintable():
                    found[path] = stamp
    return found


def stamp_of(path: str) -> Stamp | None:
    """None for what is no regular file of its own, or not there any more."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return (found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None


def blocks_of(files: dict[str, Stamp], count: int) -> list[Block]:
    """So many blocks: all files with one algorithm after another, or a part spread over all."""

    def all_blocks() -> Iterator[Block]:
        for algorithm in ALGORITHMS:
            for path, (size, _) in files.items():
                for offset in range(0, max(size, 1), SIZE):
                    yield Block(path, offset, algorithm)

    once = sum(max(1, -(-size // SIZE)) for size, _ in files.values())
    if count >= once:
        return list(islice(all_blocks(), count))
    first = list(islice(all_blocks(), once))
    return [first[at * once // count] for at in range(count)]


@dataclass(frozen=True)
class Plan:
    """How many tasks there are of each kind, besides ticks and one poison."""

    blocks: dict[str, list[Block]]
    """What the kinds that hash have to hash; `flood` and `small` are the two tenants."""
    typed: int
    flaky: int
    hopeless: int
    scheduled: int
    unique: int
    late: int
    spread: float
    """Seconds within which scheduled tasks are due, and typed ones are enqueued."""


CHILDREN: Final = 10
CALLERS: Final = 8
WAITING, RUNNING = 8, 4
"""Of the cancelled tasks: so many are not due yet, so many run."""
SLOW: Final = 40
"""Few enough for one server to have slots for all that two were running."""
WHEN: Final = 0.35
"""The part of the bulk after which slow tasks come, and a server is killed."""


def plan_for(blocks: Sequence[Block]) -> Plan:
    """Share the blocks among the kinds, and scale the rest to it."""
    total = len(blocks)
    sizes = {
        "process": total // 50,
        "flood": total // 10,
        "small": max(10, total // 400),
        "child": max(3, total // 1000) * CHILDREN,
        "thread": total // 5,
    }
    rest = iter(blocks)
    shares = {name: list(islice(rest, size)) for name, size in sizes.items()}
    shares["hash"] = list(rest)

    def scaled(number: int, least: int) -> int:
        return max(least, min(number, number * total // 20_000))

    return Plan(
        blocks=shares,
        typed=scaled(300, 50), flaky=scaled(300, 30),
        hopeless=scaled(30, 5), scheduled=scaled(300, 50), unique=scaled(50, 10),
        late=scaled(30, 5), spread=max(1.5, min(3.0, total / 6000)),
    )  # fmt: skip

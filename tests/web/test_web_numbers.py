"""In random states, every number on every page equals a count of keys in the store."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any

import pytest

from qsync import Task, codec
from qsync.broker import ops, type_ops
from qsync.broker.op_values import Completion
from qsync.fingerprint import fingerprint_of
from qsync.formatting import size
from qsync.limit import limit_rule
from qsync.message import Failure, decode_message
from qsync.state import TaskState
from qsync.type_counts import OUTCOMES, TypeCounts, encode_report
from qsync.type_rolls import report_field
from qsync.web import create_app
from qsync.web.names import COUNTERS
from tests.support.counters import with_counted
from tests.support.dashboard import visiting
from tests.support.inspector_driver import Bed, bed
from tests.support.invariants import whole_entries
from tests.support.stores import Store

QUEUES = ("alpha", "beta", "gamma")
SEEDS = (1, 2, 3)
HOUR_US = 3_600_000_000
ERRORS = ("ValueError: a", "KeyError: b")
WHOLE = re.compile(r"\d{1,3}(,\d{3})*")
STATES = {state.value: state for state in TaskState}


@dataclass(frozen=True)
class Cell:
    """A number on a page, and its meaning."""

    row: str
    label: str
    text: str


class Numbers(HTMLParser):
    """Collects the numbers in table cells, tiles and tabs."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[Cell] = []
        self._caption, self._row, self._label, self._column = "", "", "", 0
        self._tile = ""
        self._into: list[str] | None = None
        self._end: tuple[str, str] = ("", "")

    def handle_starttag(self, tag: str, found: list[tuple[str, str | None]]) -> None:
        attributes = dict(found)
        if tag == "table":
            self._caption = ""
        elif tag == "tr":
            self._row, self._column = attributes.get("data-key") or "", 0
        elif tag in ("caption", "td", "th"):
            self._column += tag == "td"
            self._label = attributes.get("data-label") or f"{self._caption}/{self._column}"
            is_number = "number" in (attributes.get("class") or "")
            self._collect(tag, "number" if tag == "td" and is_number else tag)
        elif tag == "a" and "tile" in (attributes.get("class") or ""):
            self._tile = (attributes.get("class") or "").split()[-1]
        elif tag == "div" and "tile" in (attributes.get("class") or ""):
            self._tile = ""
        elif tag == "a" and "state=" in (attributes.get("href") or ""):
            self._tile = (attributes.get("href") or "").partition("state=")[2].partition("&")[0]
        elif tag == "b" and self._tile:
            self._collect("b", "tile")

    def _collect(self, tag: str, kind: str) -> None:
        self._into, self._end = [], (tag, kind)

    def handle_data(self, data: str) -> None:
        if self._into is not None:
            self._into.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag == "a":
            self._tile = ""
        if self._into is None or tag != self._end[0]:
            return
        text, kind = " ".join("".join(self._into).split()), self._end[1]
        self._into = None
        if kind == "caption":
            self._caption = text
        elif kind == "th":
            self._row = self._row or text
        elif kind == "tile":
            self.cells.append(Cell("tile", self._tile, text))
            self._tile = ""
        elif kind == "number":
            self.cells.append(Cell(self._row, self._label, text))


class Truth:
    """Counts the keys of a store."""

    def __init__(self, client: Any, prefix: str) -> None:
        self.client, self.prefix = client, prefix

    def key(self, queue: str, name: str) -> str:
        return f"{{{self.prefix}:{queue}}}:{name}"

    def states(self, queue: str) -> Counter[str]:
        """Return the number of tasks by state."""
        found = Counter({
            state: self.client.zcard(self.key(queue, state))
            for state in STATES if state != "cancelled"
        })  # fmt: skip
        ended = self.client.zrange(self.key(queue, "completed"), 0, -1)
        cancels = self.client.hkeys(self.key(queue, "cancels"))
        found["cancelled"] = len({*ended} & {*cancels})
        found["completed"] -= found["cancelled"]
        return found

    def total(self) -> Counter[str]:
        return sum((self.states(queue) for queue in QUEUES), Counter())

    def counter(self, queue: str, name: str, day: str = "") -> int:
        stats, meta = (self.client.hgetall(self.key(queue, held)) for held in ("stats", "meta"))
        return int(with_counted(stats, meta).get((name + day).encode(), 0))

    def keys(self, queue: str) -> Counter[str]:
        """Return the number of pending tasks by fairness key."""
        ids = self.client.zrange(self.key(queue, "pending"), 0, -1)
        members = self.client.hmget(self.key(queue, "keys"), ids) if ids else []
        return Counter(member.decode() for member in members if member)

    def failed(self, queue: str) -> Counter[str]:
        """Return the number of dead tasks by error."""
        ids = self.client.zrange(self.key(queue, "dead"), 0, -1)
        records = self.client.hmget(self.key(queue, "failures"), ids) if ids else []
        return Counter(codec.decode(record, Failure).error for record in records)

    def of_type(self, queue: str, state: str) -> Counter[str]:
        """Return the number of tasks in a state, by type."""
        ids = self.client.zrange(self.key(queue, state), 0, -1)
        messages = self.client.hmget(self.key(queue, "tasks"), ids) if ids else []
        return Counter(decode_message(message).type for message in messages)

    def reported(self, queue: str, type: str) -> tuple[int, int]:
        """Return how many runs of a type were reported as started, and how many as failed."""
        counts: Counter[int] = Counter()
        for report in self.client.hvals(self.key(queue, "type_reports")):
            counts.update(codec.decode(report).get(type, {}))
        return counts[0], counts[2] + counts[3]  # retried and dead

    def runs(self, queue: str) -> dict[str, int]:
        """Return the number of recorded runs by schedule."""
        found = self.client.hgetall(self.key(queue, "schedule_runs"))
        return {name.decode(): len(runs.split()) for name, runs in found.items() if name != b"!"}

    def waiting(self, queue: str, limit: str) -> int:
        names = ("limited", "waiters")
        dump = {
            name: dict(self.client.zrange(self.key(queue, name), 0, -1, withscores=True))
            for name in names
        }
        dump["limits"] = self.client.hgetall(self.key(queue, "limits"))
        entries = whole_entries(dump)
        return sum(entry.partition(b"\0")[0].decode() == limit for entry in entries)

    def in_use(self, queue: str, limit: str) -> str:
        taken = (self.client.hget(self.key(queue, "limits"), limit) or b"0 0").split()
        return f"{int(taken[0]) + int(taken[1])} of 2"


async def fill(made: Bed, chance: random.Random) -> None:
    """Bring the queues to a random state."""
    inspector = made.inspector
    for queue in QUEUES:
        await made.enqueue(Task("first"), queue=queue)
        rule = limit_rule("a test", concurrency=2)
        await inspector.set_limit("customer", rule, queue=queue)
        await inspector.pause_type("paused", queue=queue)
        await made.enqueue(*[Task("paused")] * chance.randint(0, 9), queue=queue)
        await made.enqueue(*[Task("t", limits=["customer:1"])] * chance.randint(0, 9), queue=queue)
        await made.lease(chance.randint(1, 40), queue=queue)
        for error in ERRORS:
            await made.dead(*[Task("t")] * chance.randint(0, 30), error=error, queue=queue)
        await made.enqueue(*[Task("t", retention=600)] * 40, queue=queue)
        held = (await made.lease(40, queue=queue))[: chance.randint(1, 40)]
        rows = [Completion(*one, HOUR_US, b"") for one in held]
        await made.broker.run(ops.complete(made.keys(queue), rows))
        await made.enqueue(
            *[Task("t", delay=600, retention=600, id=f"{queue}-{n}") for n in range(20)],
            queue=queue,
        )
        for n in range(chance.randint(0, 20)):
            await inspector.cancel(f"{queue}-{n}", queue=queue)
        await made.enqueue(
            *[Task("t", fairness_key=chance.choice(["acme", "bcme"])) for _ in range(90)],
            *[Task("t")] * chance.randint(0, 50),
            queue=queue,
        )
        for n in range(chance.randint(0, 3)):
            await inspector.put_schedule(f"s{n}", Task("t", queue=queue), every=3600 + n)
            for _ in range(chance.randint(0, 2)):
                await inspector.trigger(f"s{n}", queue=queue)
        row = TypeCounts(chance.randint(5, 5000), [chance.randint(0, 500) for _ in OUTCOMES])
        minute = int((await inspector.overview()).at.timestamp()) // 60
        report = {report_field(minute, "s"): encode_report({"t": row})}
        await made.broker.run(type_ops.report_types(made.keys(queue), report))
        if chance.random() < 0.5:
            await inspector.pause(queue, by="b", why="w")
    for n in range(chance.randint(0, 4)):
        await made.serve(f"server-{n}", queues=QUEUES, running=n)


def expected(truth: Truth, cell: Cell, queue: str, error: str) -> int | str | None:
    """Return the value that a cell must have according to the keys, or None if the cell's meaning
    is unknown."""
    kind, _, name = cell.row.partition("-")
    label = cell.label.lower()
    counters = {title: counter for counter, title in COUNTERS.items()}
    today = f":{int(truth.client.time()[0]) // 86_400}"
    if cell.label in ("tile", "bad"):  # the cell shows a latency or the number of servers
        servers = truth.client.zcard(f"{truth.prefix}:servers")
        return servers if WHOLE.fullmatch(cell.text) else None
    if kind == "tile":
        return (truth.states(queue) if queue else truth.total())[cell.label]
    if kind == "queue" and label in STATES:
        return truth.states(name)[label]
    if kind == "queue" and label == "tasks":
        return truth.failed(name)[error]
    if kind == "error":
        found = sum((truth.failed(each) for each in QUEUES), Counter[str]())
        groups = {fingerprint_of("t", text).id: number for text, number in found.items()}
        return groups[name] if label == "dead" else 0
    if cell.row in counters and label.startswith("counters/"):
        counter = counters[cell.row]
        number = truth.counter(queue, counter, today if label.endswith("1") else "")
        return size(number) if counter == "bytes" else number
    if cell.label in counters:
        names = [queue] if queue else QUEUES
        return sum(truth.counter(each, counters[cell.label], today) for each in names)
    if kind == "key":
        return truth.keys(queue)[name]
    if kind == "type" and label in ("backlog", "dead", "started", "failed"):
        started, failed = truth.reported(queue, name)
        waiting = truth.of_type(queue, "limited")[name] if name == "paused" else 0
        return {
            "backlog": truth.of_type(queue, "pending")[name] + waiting, "started": started,
            "dead": truth.of_type(queue, "dead")[name], "failed": failed,
        }[label]  # fmt: skip
    if kind == "limit":
        return truth.waiting(queue, name) if label == "waiting" else truth.in_use(queue, name)
    if kind == "server":
        fields = ("pid", "running", "concurrency")
        record = truth.client.hmget(f"{truth.prefix}:server:{name}", fields)
        pid, running, slots = (value.decode() for value in record)
        return int(pid) if label == "pid" else f"{running} of {slots}"
    return None


def unequal(truth: Truth, path: str, html: str, queue: str = "", error: str = "") -> Iterator[str]:
    """Yield each number on a page that does not match the keys, and each number whose meaning is
    unknown."""
    parser = Numbers()
    parser.feed(html)
    known = 0
    for cell in parser.cells:
        wanted = expected(truth, cell, queue, error)
        known += wanted is not None
        shown = int(cell.text.replace(",", "")) if WHOLE.fullmatch(cell.text) else cell.text
        if wanted != shown and (wanted is not None or isinstance(shown, int)):
            yield f"{path}: {cell}, but the keys say {wanted}"
    if not known:
        yield f"{path}: no number was found"


@pytest.mark.parametrize("seed", SEEDS)
async def test_numbers_on_pages_equal_counts_of_keys(valkey: Store, prefix: str, seed: int) -> None:
    async with bed(valkey.url, prefix) as made:
        await fill(made, random.Random(seed))
        wrong: list[str] = []
        async with create_app(made.inspector, auth="host", read_only=False) as app:
            with valkey.client() as client:
                async with visiting(app) as http:
                    await look(http, Truth(client, prefix), wrong)
    assert not wrong, "\n".join(wrong)


async def look(http: Any, truth: Truth, wrong: list[str]) -> None:
    """Read all pages, and add their wrong numbers to `wrong`."""

    async def page(path: str, queue: str = "", error: str = "") -> str:
        answer = await http.get(path)
        assert answer.status_code == 200, path
        wrong.extend(unequal(truth, path, answer.text, queue, error))
        return str(answer.text)

    for path in ("/", "/queues", "/tasks?state=pending", "/errors"):
        await page(path)
    wrong.extend(unequal_errors(truth, await page("/")))
    if truth.client.zcard(f"{truth.prefix}:servers"):
        await page("/servers")
    for text in ERRORS:
        if sum(truth.failed(queue)[text] for queue in QUEUES):
            await page(f"/error?id={fingerprint_of('t', text).id}", error=text)
    for queue in QUEUES:
        await page(f"/queue?queue={queue}", queue)
        await page(f"/limits?queue={queue}", queue)
        for state in STATES:
            if state == "dead":
                continue
            html = await page(f"/tasks?queue={queue}&state={state}", queue)
            number = truth.states(queue)[state]
            of = f" of {number:,} task{'s' if number != 1 else ''}</span>"
            if number and of not in html:
                wrong.append(f"{state} of {queue}: not{of}")
        await look_further(http, truth, wrong, queue)
    schedules = sum(truth.client.hlen(truth.key(queue, "stored_schedules")) for queue in QUEUES)
    html = (await http.get("/schedules")).text
    if schedules and f"{schedules} schedule{'s' if schedules != 1 else ''}</caption>" not in html:
        wrong.append(f"/schedules: not {schedules}")


DIED = r"{queue}</a>: ([\d,]+) tasks? died\b.*? acknowledged\.(?: (\d+) (?:different )?errors?\.)?"


def unequal_errors(truth: Truth, html: str) -> Iterator[str]:
    """Yield an error for each sentence about dead tasks that gives a wrong number of tasks or of
    errors."""
    for queue in QUEUES:
        failed = truth.failed(queue)
        found = re.search(DIED.format(queue=queue), html)
        number, errors = found.groups() if found else ("0", None)
        if number != f"{failed.total():,}":
            yield f"/: {number} tasks of {queue} died, but the keys say {failed.total()}"
        if failed.total() > 1 and errors != str(len(failed)):
            yield f"/: {errors} errors of {queue}, but the keys say {len(failed)}"


async def look_further(http: Any, truth: Truth, wrong: list[str], queue: str) -> None:
    """Read the pages of types, events, runs of schedules, dead tasks, servers and a search."""

    async def says(path: str, *wanted: str) -> str:
        answer = await http.get(path)
        text = " ".join(re.sub(r"<[^>]+>", " ", answer.text).split())
        wrong.extend(f"{path}: not {part}" for part in wanted if part not in text)
        return str(answer.text)

    path = f"/types?queue={queue}"
    wrong.extend(unequal(truth, path, await says(path), queue))
    started, failed = truth.reported(queue, "t")
    await says(f"/type?queue={queue}&type=t", f"Started {started:,} ", f"Failed {failed:,} ")
    actions = truth.client.xlen(truth.key(queue, "events"))
    await says(f"/events?queue={queue}", f" {actions:,} actions ")
    dead = truth.states(queue)["dead"]
    if dead:
        await says(f"/dead?queue={queue}", f"{min(dead, 50)} of {dead:,} task")
        of_t = truth.of_type(queue, "dead")["t"]
        await says(
            f"/search?q=queue:{queue}+state:dead+type:t&limit=100&sort=oldest",
            f"{of_t:,} match", f"Searched {dead:,} of {dead:,} tasks.",
        )  # fmt: skip
    for name, number in truth.runs(queue).items():
        text = await says(f"/schedule/runs?name={name}&queue={queue}")
        if text.count('data-label="Outcome"') != number:
            wrong.append(f"the number of runs of {name} in {queue} is not {number}")
    for id in truth.client.zrange(f"{truth.prefix}:servers", 0, -1):
        record = truth.client.hmget(
            f"{truth.prefix}:server:{id.decode()}", "running", "concurrency"
        )
        running, slots = (value.decode() for value in record)
        await says(f"/server?id={id.decode()}", f"{running} of {slots} busy")

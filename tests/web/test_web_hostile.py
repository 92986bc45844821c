"""Sixty hostile strings in every field of every record are shown as text and have no effect."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest

from qsync import Task, codec
from qsync.broker.schedule_records import ScheduleRecord
from qsync.keys import GlobalKeys, QueueKeys
from qsync.message import Message, Result, StoredOptions
from qsync.web.template_filters import escape_invisible
from tests.support.browser import Visit, chromium
from tests.support.dashboard import live
from tests.support.hostile_texts import TEXTS
from tests.support.inspector_driver import Bed, bed, failure
from tests.support.stores import Store

S = 1_000_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


def id_of(number: int) -> str:
    """Return the string as an id, without the characters that an id must not contain."""
    kept = re.sub(r"[^!-~]", "_", TEXTS[number])
    return f"{kept}{number}"[-128:]


async def fill(made: Bed, store: Store) -> None:
    """Write the strings wherever a client, a handler, a server or another program could write
    them."""
    keys, everywhere = QueueKeys(made.prefix, "default"), GlobalKeys(made.prefix)
    await made.enqueue(Task("t", id="fine", delay=60))
    with store.client() as client:
        for number, text in enumerate(TEXTS):
            _write_dead(client, keys, number, text)
        client.sadd(everywhere.queues, *TEXTS)
        server = {"host": TEXTS[0], "version": TEXTS[6], "python": TEXTS[9]}
        for text in TEXTS:
            queues = dict.fromkeys(("default", *TEXTS[:3]), 1)
            await made.serve(text, types=list(TEXTS), **{
                **server, "host": text, "queues": codec.encode(queues),
            })  # fmt: skip
            client.hset(keys.key("schedules"), f"={text}", _schedule(text))
            client.hset(keys.key("schedules"), f"!{text}",
                        f"{S} ".encode() + codec.encode((text, text)))  # fmt: skip
    await made.enqueue(*[Task("t", id=f"c{n}", retention=60) for n in range(3)])
    held = await made.lease()
    results = [codec.encode(list(TEXTS)), "\n".join(TEXTS).encode(errors="replace"), b"\xff\x00<b>"]
    for number, (one, result) in enumerate(zip(held, results, strict=True)):
        record = codec.encode(Result(result, is_value=number == 0))
        await made.complete([one], 60, record)
    await made.inspector.pause("default", by=TEXTS[6], why=TEXTS[0])


def _write_dead(client: Any, keys: QueueKeys, number: int, text: str) -> None:
    id = id_of(number)
    options = StoredOptions(headers={text: text}, fairness_key=text, lock=text)
    payload = codec.encode({text: [text]})
    message = codec.encode(
        Message(codec.VERSION, 1_700_000_000 * S, b"n" * 8, text, payload, True, 3, options)
    )
    client.hset(keys.key("tasks"), id, message)
    client.zadd(keys.key("dead"), {id: 1_700_000_000 * S + number})
    client.hset(keys.key("failures"), id, failure(f"{text}\n{text}"))
    client.hset(keys.key("tasks"), text, message)
    client.zadd(keys.key("dead"), {text: 1_600_000_000 * S + number})


def _schedule(text: str) -> bytes:
    return codec.encode(ScheduleRecord(type=text, text=text, missed=text, tz=text))


def test_hostile_texts_execute_nothing_and_break_no_policy(
    valkey: Store, prefix: str, browser: Any
) -> None:
    with live(valkey.url, prefix) as system:

        async def work() -> None:
            async with bed(valkey.url, prefix) as made:
                await fill(made, valkey)

        system.do(work())
        web = Visit(browser, system.open())
        texts = 0
        for path in pages():
            web.go(path)
            hits = web.page.evaluate("window.hits")
            assert (hits, web.wrong) == ([], []), path
            if path.startswith("/task?") and "id=c" not in path:
                texts += web.page.locator("pre.trace").count()
        assert texts == len(TEXTS), "each dead task was shown with its error"
        web.page.wait_for_url(
            "**/dead/run"
        )  # the last page continues automatically, and shows an error
        for path in ("/dead?queue=default&limit=100", "/servers", "/schedules", "/task?id=c0"):
            web.go(path)
            web.refresh()  # the script inserts more strings
        handlers = "[...document.querySelectorAll('*')].flatMap((e) => e.getAttributeNames())"
        names = set(web.page.evaluate(handlers))
        assert not {name for name in names if name.startswith("on") or name == "style"}
        web.check()
        # As a control, inject a script that must be blocked and recorded.
        web.page.evaluate(SCRIPT)
        web.page.wait_for_function("() => window.hits.length > 0")
        assert web.page.evaluate("window.hits")[0].startswith("CSP script-src")
        web.close()


SCRIPT = """document.body.append(
  Object.assign(document.createElement("script"), {textContent: "hit(0)"})
)"""


def pages() -> list[str]:
    tasks = [f"/task?{urlencode({'queue': 'default', 'id': id_of(n)})}" for n in range(len(TEXTS))]
    some = [
        urlencode({"queue": text, "type": text, "error": text, "id": text}, errors="replace")
        for text in TEXTS[::10]
    ]
    return [
        "/", "/queues", "/queue?queue=default", "/dead?queue=default&limit=100",
        "/tasks?queue=default&state=completed", "/servers", "/schedules",
        f"/server?{urlencode({'id': TEXTS[0]})}",
        *tasks, *(f"/task?id=c{n}" for n in range(3)),
        *(f"{path}?{query}" for query in some for path in ("/dead", "/find")),
        "/more?" + urlencode({"work": "run", "queue": "q", "cursor": TEXTS[9], "error": TEXTS[0]}),
    ]  # fmt: skip


def test_invisible_characters_are_shown() -> None:
    assert escape_invisible("a\u202eb\u2066\u200b\x00\x1b[1m\ufeff\x7f\ud800\u00a0") == (
        "a\\u202eb\\u2066\\u200b\\x00\\x1b[1m\\ufeff\\x7f\\ud800\\xa0"
    )
    assert escape_invisible("two\nlines\tПривет 日本語 🎉") == "two\nlines\tПривет 日本語 🎉"
    assert escape_invisible("\U000e0041") == "\\U000e0041"
    assert (escape_invisible(None), escape_invisible(3)) == ("", 3)

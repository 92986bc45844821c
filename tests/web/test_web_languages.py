"""The dashboard chooses a language for each request, and the catalogue of each language is
complete."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from qsync import ConfigError, Qsync, Task
from qsync.bounds import Bounds
from qsync.limit import LimitRule
from qsync.phrase import Ordinal, joined, phrase, plural_phrase
from qsync.schedule import Every, every_phrase
from qsync.state import TaskState
from qsync.web import create_app, translation
from qsync.web.charts import PER_SECOND, line_chart
from qsync.web.event_names import event_detail
from qsync.web.language import ENGLISH, LANGUAGES, check_language, language_of, preferred, use
from qsync.web.template_filters import escape_invisible, gettext, ngettext
from tests.support.dashboard import SAME, visiting
from tests.support.stores import Store
from tests.web.test_web_pages import filled, pages
from tools import messages

RUSSIAN = LANGUAGES["ru"]
NOWHERE = "redis://127.0.0.1:1"
PLACEHOLDER = re.compile(r"%(?:\((\w+)\)s|%)")


@pytest.mark.parametrize(
    ("header", "code"),
    [("ru", "ru"), ("ru-RU,ru;q=0.9,en;q=0.8", "ru"), ("en-GB, ru;q=0.9", "en"), ("RU-by", "ru"),
     ("fr, ru;q=0.2, en;q=0.1", "ru"), ("fr", None), ("", None), ("ru;q=0", None), ("*", None),
     ("ru;q=x, en;q=0.5", "en"), ("ru;q=0.5,en;q=0.5", "ru")],
)  # fmt: skip
def test_browser_language_is_the_one_with_the_highest_weight(header: str, code: str | None) -> None:
    found = preferred(header)
    assert (found and found.code) == code


def request_with(headers: dict[str, str], **scope: Any) -> Request:
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "GET", "path": "/", "headers": pairs, **scope})


def test_chosen_language_overrides_option_host_and_browser() -> None:
    browser = request_with({"accept-language": "ru"})
    served = request_with({"accept-language": "ru"}, **{"qsync.language": "en-us"})
    chosen = request_with({"accept-language": "en", "cookie": "qsync_language=ru"})
    unknown = request_with({"accept-language": "ru", "cookie": "qsync_language=xx"})
    assert language_of(browser, None) is RUSSIAN
    assert language_of(browser, ENGLISH) is ENGLISH
    assert language_of(served, None) is ENGLISH
    assert language_of(served, RUSSIAN) is RUSSIAN
    assert language_of(chosen, ENGLISH) is RUSSIAN
    assert language_of(unknown, None) is RUSSIAN
    assert language_of(request_with({}), None) is ENGLISH


def test_unknown_language_is_refused_at_once() -> None:
    assert check_language(None) is None
    with pytest.raises(ConfigError, match="language: unknown value 'de'; use 'en' or 'ru'"):
        create_app(Qsync(NOWHERE).inspector(), auth="host", language="de")


async def test_switch_keeps_the_language_without_script_and_without_access() -> None:
    queue = Qsync(NOWHERE, prefix="x")
    app = create_app(queue.inspector(), token="a-token-of-24-characters")
    async with visiting(app, headers=SAME) as client:
        page = await client.get("/tasks", headers={"Accept-Language": "ru"})
        assert '<html lang="ru">' in page.text
        assert "Введите токен" in page.text
        assert page.headers["vary"] == "Accept-Language, Cookie"
        done = await client.post("/language", data={"language": "en", "next": "/tasks?state=dead"})
        assert (done.status_code, done.headers["location"]) == (303, "/tasks?state=dead")
        page = await client.get("/tasks", headers={"Accept-Language": "ru"})
        assert '<html lang="en">' in page.text
        away = await client.post("/language", data={"language": "xx", "next": "https://evil.test/"})
        assert (away.headers["location"], "set-cookie" in away.headers) == ("/", False)
        foreign = await client.post(
            "/language", data={"language": "ru"}, headers={"Sec-Fetch-Site": "cross-site"}
        )
        assert foreign.status_code == 403
        other: httpx.Response = await client.put("/tasks")
        assert other.text == "Method not allowed.\n"


async def test_refusals_in_plain_text_are_in_the_language_of_the_browser() -> None:
    app = create_app(Qsync(NOWHERE, prefix="x").inspector(), language="ru")
    async with visiting(app, headers=SAME) as client:
        refused = await client.get("/")
        assert "Все запросы отклоняются" in refused.text
        assert (await client.post("/language", data={"language": "en"})).status_code == 403


ENGLISH_WORD = re.compile(r"[A-Za-z]{3,}")

SAME_IN_RUSSIAN = {
    "qsync", "UTC", "default", "mail", "msgpack", "JSON", "CSV", "GiB", "Debounce", "pid", "Pid",
    "JavaScript",
    "Python", "skip", "once", "all", "raise", "drop", "oldest", "cron", "max", "tasks", "true",
    "type", "state", "dead", "lines", "ValueError", "order", "has", "address",
}  # fmt: skip
"""Words that are not translated: names, formats and values in forms."""


SEARCH_WORDS = {*TaskState, "queue", "error", "key", "age", "args", "acme", "customer"}
"""Words of the search syntax."""


class EnglishWords(HTMLParser):
    """Collects the English words that a page shows, except in code, names and task data."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()
        self._skipped: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        classes = set((given.get("class") or "").split())
        is_code = tag in ("code", "pre", "script") or classes & {"mono", "id"}
        is_empty = tag in ("input", "meta", "link", "br", "path", "circle", "rect")
        if not is_empty and (self._skipped or is_code or given.get("lang") == "en"):
            self._skipped.append(tag)
        for name in ("title", "aria-label", "data-label", "data-counted"):
            self.handle_data(given.get(name) or "")

    def handle_endtag(self, tag: str) -> None:
        if self._skipped and self._skipped[-1] == tag:
            self._skipped.pop()

    def handle_data(self, data: str) -> None:
        if not self._skipped:
            self.found |= set(ENGLISH_WORD.findall(data)) - SAME_IN_RUSSIAN


async def test_pages_in_russian_have_no_english_and_no_escaped_spaces(
    valkey: Store, prefix: str
) -> None:
    async with filled(valkey, prefix, language="ru") as (client, bed):
        await bed.enqueue(*[Task("t", id=f"p{n}") for n in range(1200)])
        for path in [*pages(), "/task?id=p1", "/task?id=s1", "/task?id=a1", "/task?id=no", "/no",
                     "/schedule", "/limits?limit=t", "/tasks?queue=default&type=no"]:  # fmt: skip
            answer = await client.get(path)
            if answer.headers.get("content-type", "").startswith("text/html"):
                page = EnglishWords()
                page.feed(answer.text.replace(prefix, ""))
                known = SEARCH_WORDS if path.startswith("/search") else set()
                assert page.found <= known, path
                assert "\\xa0" not in answer.text, path
        form = await client.post("/queue/weight", headers=SAME, data={
            "queue": "default", "key": "k", "weight": "heavy"})  # fmt: skip
        assert (
            "weight: &#39;heavy&#39; — не число" in (await client.get("/queue?queue=default")).text
        )
        assert form.status_code == 303


def in_russian(write: Any, *args: Any, **values: Any) -> str:
    def run() -> str:
        use(RUSSIAN)
        return str(write(*args, **values))

    return asyncio.run(asyncio.to_thread(run))  # a thread has its own context


def test_numbers_durations_and_times_are_written_by_language() -> None:
    now = datetime.now(UTC)
    time = datetime(2026, 11, 29, 15, 4, 5, tzinfo=UTC)
    cases: list[tuple[Any, Any, str, str]] = [
        (translation.count, 1234567, "1,234,567", "1\u00a0234\u00a0567"),
        (translation.short_count, 12345, "12.3k", "12,3 тыс."),
        (translation.short_count, 7, "7", "7"),
        (translation.duration, 250, "4 min 10 s", "4 мин 10 с"),
        (translation.seconds, 1.5, "1.5 s", "1,5 с"),
        (translation.seconds, None, "none", "нет"),
        (translation.seconds, 0, "0 s", "0 с"),
        (translation.coarse, 190_800, "2 d", "2 д"),
        (translation.size, 1_300_000, "1.2 MiB", "1,2 МиБ"),
        (translation.percent, (3, 10), "30%", "30 %"),
        (translation.utc, time, "2026-11-29 15:04:05 UTC", "29.11.2026 15:04:05 UTC"),
        (translation.day_and_month, time, "29 Nov", "29 ноя"),
        (translation.relative, now + timedelta(seconds=7230), "in 2 h", "через 2 ч"),
        (translation.relative, now - timedelta(seconds=15_010), "4 h 10 min ago",
         "4 ч 10 мин назад"),
        (translation.relative, now, "now", "сейчас"),
        (translation.written, Ordinal(1520), "1,520th", "1\u00a0520"),
        (translation.written, timedelta(seconds=90), "1 min 30 s", "1 мин 30 с"),
        (translation.written, 0.5, "0.5", "0,5"),
        (translation.written, True, "True", "True"),
    ]  # fmt: skip
    for write, value, english, russian in cases:
        assert write(value) == english
        assert in_russian(write, value) == russian


def test_phrase_of_a_lower_layer_is_english_text_and_translated_on_pages() -> None:
    told = phrase("Read-only: %(option)s enables changes.", option=phrase("Token"))
    assert str(told) == "Read-only: Token enables changes."
    assert in_russian(escape_invisible, told) == "Только чтение: изменения включает Токен."
    both = joined([phrase("Token"), "100 %", phrase("none")], "; ")
    assert str(both) == "Token; 100 %; none"
    assert in_russian(translation.translated, both) == "Токен; 100 %; нет"
    many = plural_phrase(
        "%(num)s of %(all)s", "%(num)s of all %(all)s", 1200, all=timedelta(days=2)
    )
    assert str(many) == "1,200 of all 2 d"
    assert str(plural_phrase("one", "%(num)s", 1)) == "one"


def test_details_of_recorded_actions_are_read_from_their_english_text() -> None:
    phrases = [
        Every(90), Every(86_400), LimitRule(concurrency=2), Bounds(max_tasks=1),
        LimitRule(rate=10, per_us=1_500_000, burst=1, concurrency=2),
        LimitRule(rate=10, per_us=60_000_000, burst=2),
        LimitRule(rate=10, per_us=90_000_000, burst=2),
        LimitRule(rate=10, per_us=90_060_000_000, burst=2, concurrency=1),
        LimitRule(rate=10, per_us=365 * 86_400_000_000, burst=2),
        Bounds(max_tasks=1234, max_bytes=2**30, when_full="drop_oldest"), Bounds(max_bytes=7),
    ]  # fmt: skip
    for value in phrases:
        told = every_phrase(value.period_us / 1e6) if isinstance(value, Every) else value.phrase
        assert event_detail(str(value)) == str(value)
        assert in_russian(event_detail, str(value)) == in_russian(translation.translated, told)
        assert not re.search("[a-z]{4}", in_russian(event_detail, str(value)).split(",")[0])
    assert in_russian(event_detail, "dead") == "мёртвая"
    for own in ("", "moved to another host", "0 3 * * * (Europe/Moscow)", "2.5"):
        assert in_russian(event_detail, own) == own


def test_values_in_texts_are_escaped_but_not_the_digits_of_a_language() -> None:
    hostile = '"<b>\u202e'
    assert gettext("<code>%(name)s</code> 100%%", name=hostile) == (
        "<code>&#34;&lt;b&gt;\\u202e</code> 100%"
    )
    assert gettext('a "b"') == "a &#34;b&#34;"
    assert ngettext("%(num)s task", "%(num)s tasks", 1234) == "1,234 tasks"
    assert escape_invisible("1\u00a0234 a\u00a0b\u00a0") == "1\u00a0234 a\\xa0b\\xa0"


def test_catalogues_have_exactly_the_texts_of_the_sources_all_translated() -> None:
    template = messages.extracted()
    assert [messages.locale_of(path) for path in messages.catalogue_files()] == [
        code for code in LANGUAGES if code != "en"
    ]
    for path in messages.catalogue_files():
        catalog = messages.updated(path, template)
        hint = f"{path.name} is not up to date: make messages"
        assert path.read_bytes() == messages.text_of(catalog), hint
        assert path.with_suffix(".mo").read_bytes() == messages.compiled(catalog), hint
        assert [message.id for message in messages.untranslated(catalog)] == []
        for message in catalog:
            if message.id:
                check_placeholders(message.id, message.string, catalog.num_plurals)


def check_placeholders(texts: Any, translations: Any, forms: int) -> None:
    """Check that all plural forms exist, each with the placeholders of the English string."""
    single = isinstance(texts, str)
    english = placeholders(texts if single else texts[-1])
    given = [translations] if single else list(translations)
    assert len(given) == (1 if single else forms), texts
    for text in given:
        assert placeholders(text) == english, (texts, text)
        assert text == text.strip() or texts != texts.strip(), (texts, text)


def placeholders(text: str) -> list[str]:
    """Return the placeholders in a string. The string must not contain any other percent sign."""
    assert "%" not in PLACEHOLDER.sub("", text), text
    return sorted(set(PLACEHOLDER.findall(text)) - {""})


def test_values_of_a_chart_are_written_in_the_language_of_the_page() -> None:
    def steps() -> list[str]:
        values = [None, 1.5, 2.5, *[2000.0] * 120]
        chart = line_chart("Rate", [("a", "x", values)], unit=PER_SECOND, width=180, interval_s=5)
        return chart.steps

    try:
        for _ in range(2):  # the second chart uses cached texts
            use(ENGLISH)
            shown = steps()
            assert len(shown) == 60
            assert (shown[0], shown[-1]) == ("14 min 45 s ago: no data", "now: a 2,000/s")
            assert shown[19] == "10 min ago: a 2.5/s"
            use(RUSSIAN)
            assert steps()[19] == "10 мин назад: a 2,5/с"
            assert steps()[-1] == "сейчас: a 2\u00a0000/с"
    finally:
        use(ENGLISH)

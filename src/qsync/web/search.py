"""The search page, which searches the tasks of all queues and states, part by part."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from qsync.errors import InvalidTask
from qsync.inspector import SearchQuery, TaskRow, parse_search
from qsync.inspector.search import CHANGED, Verb
from qsync.inspector.search_query import KEYS, MAX_QUERY
from qsync.phrase import Phrase, phrase, phrase_of
from qsync.web.pages import Site, links
from qsync.web.query import DEFAULT_LIMIT, PAGE_SIZE, Fields, Sheet
from qsync.web.roles import given_role, lacking
from qsync.web.search_words import MATCHING, SELECTED, unread_note
from qsync.web.translation import marked

SCAN_S: Final = 0.5
"""Time after which a request stops searching, in seconds. To spare the store, the search pauses
after each part for as long as the part took."""

MAX_CURSOR: Final = 1000
MAX_SEARCHED: Final = 10**12

SORTS: Final[dict[str, str]] = {
    "": marked("in the order of their queue"),
    "newest": marked("newest first"),
    "oldest": marked("oldest first"),
    "type": marked("by type"),
    "queue": marked("by queue"),
    "attempts": marked("most attempts first"),
    "size": marked("largest first"),
}
"""Sort orders of a search. For `newest` and `oldest`, the store returns each part in that order."""

SORTED_MOST: Final = 1000
"""Maximum number of matches that are sorted; without a sort order there is no such limit."""

MATCHES_PER_PART: Final = 100
"""Maximum number of matches per part."""

_NEWEST_FIRST: Final = {"newest": True, "oldest": False}


@dataclass
class Found:
    """The tasks that a search has found so far."""

    rows: list[TaskRow] = field(default_factory=list)
    cursor: str | None = None
    total: int = 0
    scanned: int = 0
    unread: int = 0
    later: list[str] = field(default_factory=list)
    sheet: Sheet | None = None
    """Position of the page among the sorted matches; None if the matches are not sorted."""


async def show(site: Site, request: Request) -> Response:
    """Show the tasks that a search finds; a search for a task's id redirects to the task's page."""
    fields = Fields(request.query_params.multi_items())
    text = fields.text("q", MAX_QUERY + 1).strip()
    try:
        query = parse_for(site, text)
    except InvalidTask as error:
        return _page(site, request, fields, text, SearchQuery(), Found(), problem=phrase_of(error))
    cursor = fields.text("cursor", MAX_CURSOR) or None
    if cursor is None and (id := _lone_word(query)):
        rows = await _with_id(site, id)
        if len(rows) == 1:
            return RedirectResponse(links(request)("/task", queue=rows[0].queue, id=id), 303)
    result = Found()
    if query.terms:
        sort = fields.text("sort")
        limit = fields.number("limit", DEFAULT_LIMIT, 1, PAGE_SIZE)
        if sort in SORTS and sort:
            result = await _scan(site, query, SORTED_MOST, None, _NEWEST_FIRST.get(sort))
            rows = sort_rows(result.rows, sort)
            last = max(1, math.ceil(len(rows) / limit))
            number = fields.number("page", 1, 1, last)
            result.rows = rows[(number - 1) * limit : number * limit]
            result.sheet = Sheet(number, last, len(rows))
        else:
            result = await _scan(site, query, limit, cursor, None)
    return _page(site, request, fields, text, query, result)


async def show_keys(site: Site, request: Request) -> Response:
    """Show the keyboard shortcuts."""
    return site.page(request, "keys")


def parse_for(site: Site, text: str) -> SearchQuery:
    """Parse a search. Raise InvalidTask if the search looks for data that the dashboard hides."""
    query = parse_search(text)
    if site.mask is not None and query.filter is not None and query.filter.args:
        term = f"args.{query.filter.args[0][0]}:"
        raise InvalidTask(
            phrase(
                "Search term “%(term)s”. Payloads are masked here, so they cannot be searched.",
                term=term,
            )
        )
    return query


def _page(
    site: Site, request: Request, fields: Fields, text: str, query: SearchQuery, result: Found,
    problem: Phrase | str = "",
) -> Response:  # fmt: skip
    sort = fields.text("sort")
    sort = sort if sort in SORTS else ""
    limit = fields.number("limit", DEFAULT_LIMIT, 1, PAGE_SIZE)
    return site.page(
        request, "search", status=400 if problem else 200, q=text[:MAX_QUERY], query=query,
        found=result, problem=problem, help=KEYS, sorts=SORTS, sort=sort, limit=limit,
        given_limit=limit if limit != DEFAULT_LIMIT else None,
        chips=[(term.text, query.without(at)) for at, term in enumerate(query.terms)],
        verbs=_verbs_for(site, request, query), selected=SELECTED, matching=MATCHING,
        unread_note=unread_note,
        searched=min(result.total, fields.number("searched", 0, 0, MAX_SEARCHED) + result.scanned),
    )  # fmt: skip


def _verbs_for(site: Site, request: Request, query: SearchQuery) -> list[Verb]:
    """Return the changes that the user may make to the tasks that a search finds."""
    if site.is_read_only(request):
        return []
    deletes = lacking(given_role(request), "delete") is None
    return [verb for verb in _verbs(query) if deletes or verb != "delete"]


def _verbs(query: SearchQuery) -> list[Verb]:
    """Return the changes that are possible in at least one state that the search selects."""
    return [
        verb for verb, states in CHANGED.items() if not query.states or {*query.states} & {*states}
    ]


def _lone_word(query: SearchQuery) -> str:
    """Return the only word of a search, since it may be an id; "" if the search has other terms."""
    [term, *others] = query.terms or (None,)
    alone = term is not None and not others and not term.key and " " not in term.value
    return term.value if term is not None and alone else ""


async def _with_id(site: Site, id: str) -> list[TaskRow]:
    try:
        return await site.inspector.find(id)
    except InvalidTask:  # the word is not a valid id, so search for it as text
        return []


async def _scan(
    site: Site, query: SearchQuery, limit: int, cursor: str | None, newest_first: bool | None
) -> Found:
    """Search for about SCAN_S, or until `limit` tasks are found."""
    result, end = Found(), time.monotonic() + SCAN_S
    while True:
        began = time.monotonic()
        page = await site.inspector.search(
            query,
            limit=min(MATCHES_PER_PART, limit - len(result.rows)),
            cursor=cursor,
            newest_first=newest_first,
        )
        result.rows += page.tasks
        result.scanned, result.unread = result.scanned + page.scanned, result.unread + page.unread
        result.total, result.cursor, result.later = page.total, page.cursor, page.later
        cursor, now = page.cursor, time.monotonic()
        if cursor is None or len(result.rows) >= limit or now > end:
            return result
        await asyncio.sleep(now - began)


def sort_rows(rows: Sequence[TaskRow], sort: str) -> list[TaskRow]:
    """Sort the rows by one of the orders in SORTS."""
    keys: dict[str, Callable[[TaskRow], Any]] = {
        "newest": lambda row: -_time(row), "oldest": _time, "type": lambda row: row.type,
        "queue": lambda row: row.queue, "attempts": lambda row: -row.ended_attempts,
        "size": lambda row: -row.size,
    }  # fmt: skip
    return sorted(rows, key=keys[sort]) if sort in keys else list(rows)


def _time(row: TaskRow) -> float:
    time = row.died_at or row.ended_at or row.enqueued_at
    return time.timestamp() if time else 0.0

"""Streams the tasks that a search finds as CSV or JSON lines."""

from __future__ import annotations

import asyncio
import csv
import io
import logging
import time
from collections.abc import AsyncIterator, Sequence
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from qsync.errors import QsyncError
from qsync.formatting import csv_cell
from qsync.inspector import SearchPage, SearchQuery, TaskRow
from qsync.inspector.search_query import MAX_QUERY
from qsync.inspector.tasks import MAX_PAGE_SIZE
from qsync.web.pages import Site
from qsync.web.query import Fields
from qsync.web.search import parse_for
from qsync.web.translation import _

log: Final = logging.getLogger("qsync.web")

EXPORT_LIMIT: Final = 100_000
"""Maximum number of tasks in one export."""

FIELDS: Final = TaskRow.__struct_fields__

KINDS: Final = {
    "csv": ("text/csv; charset=utf-8", "tasks.csv"),
    "jsonl": ("application/jsonl; charset=utf-8", "tasks.jsonl"),
}


async def tasks(site: Site, request: Request) -> Response:
    """Export the tasks that a search finds, at most EXPORT_LIMIT of them."""
    fields = Fields(request.query_params.multi_items())
    kind = fields.text("format")
    if kind not in KINDS:
        return site.page(request, "error", status=404, title=_("Page not found"), text="")
    query = parse_for(site, fields.text("q", MAX_QUERY + 1))
    # Read the first part before the response begins, so that an error can still show a page.
    first = await site.inspector.search(query, limit=MAX_PAGE_SIZE)
    media_type, name = KINDS[kind]
    return StreamingResponse(
        _stream(site, query, first, kind), media_type=media_type,
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )  # fmt: skip


async def _stream(
    site: Site, query: SearchQuery, page: SearchPage, kind: str
) -> AsyncIterator[bytes]:
    """Yield the rows of all parts of the search; leave the store idle half of the time."""
    if kind == "csv":
        yield _csv_lines([FIELDS])
    remaining = EXPORT_LIMIT
    try:
        while True:
            rows, began = page.tasks[:remaining], time.monotonic()
            yield _csv_rows(rows) if kind == "csv" else _json_lines(rows)
            remaining -= len(rows)
            if page.cursor is None or not remaining:
                return
            page = await site.inspector.search(query, limit=MAX_PAGE_SIZE, cursor=page.cursor)
            await asyncio.sleep(min(1.0, time.monotonic() - began))
    except QsyncError as error:  # abort the response, so that the file does not look complete
        log.warning("export: %s", error)
        raise


def _csv_rows(rows: Sequence[TaskRow]) -> bytes:
    cells = [msgspec.to_builtins(row, enc_hook=str) for row in rows]
    return _csv_lines([[csv_cell(row[name]) for name in FIELDS] for row in cells])


def _csv_lines(lines: Sequence[Sequence[str]]) -> bytes:
    out = io.StringIO()
    csv.writer(out, lineterminator="\r\n").writerows(lines)
    return out.getvalue().encode()


def _json_lines(rows: Sequence[TaskRow]) -> bytes:
    return b"".join(msgspec.json.encode(row, enc_hook=str) + b"\n" for row in rows)

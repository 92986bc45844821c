"""Insert table rows in batches: one call and one transaction for up to 100 tasks."""

import sqlite3
from dataclasses import dataclass
from typing import Any

from qsync import InvalidTask, Qsync, SkipRetry, TaskInfo

app = Qsync()
database = sqlite3.connect(":memory:", check_same_thread=False)
database.execute("create table visits (id text primary key, page text, seconds real)")


@dataclass
class Visit:
    page: str
    seconds: float


@app.batch("visit", max_size=100, max_wait=0.5)
def insert_visits(tasks: list[TaskInfo]) -> list[Any]:
    rows: list[tuple[str, str, float]] = []
    outcomes: list[SkipRetry | None] = []
    for task in tasks:
        try:
            visit = task.value(Visit)
        except InvalidTask as error:  # only this task dies; the others are inserted
            outcomes.append(SkipRetry(str(error)))
        else:
            rows.append((task.id, visit.page, visit.seconds))
            outcomes.append(None)
    with database:  # a database error fails all tasks of the call
        database.executemany("insert or ignore into visits values (?, ?, ?)", rows)
    return outcomes


async def note(page: str, seconds: float) -> None:
    await insert_visits.enqueue({"page": page, "seconds": seconds})

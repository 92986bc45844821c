"""manage.py qsync_worker runs the project's tasks and keeps the handlers' database connections
fresh."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from qsync import Client, Qsync, Task, TaskNotFound
from qsync.contrib.outbox import Outbox
from tests.support.postgres import Postgres, needs_postgres
from tests.support.stores import Store, free_port, wait_until

ROOT = Path(__file__).parents[2]
SHOP = "tests.support.django_shop.tasks"


def environment(valkey: Store, database: Postgres | None, **more: str) -> dict[str, str]:
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.support.django_settings",
        "SHOP_STORE": valkey.url,
        "SHOP_DATABASE": "/nowhere" if database is None else str(database.folder),
        "SHOP_USER": "nobody" if database is None else database.user,
        **more,
    }


@contextmanager
def working(environment: dict[str, str], *options: str) -> Iterator[subprocess.Popen[str]]:
    """Run a worker of the project, which must exit with code 0 at the end of the block."""
    worker = subprocess.Popen(
        [sys.executable, "-m", "django", "qsync_worker", *options],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield worker
    finally:
        worker.send_signal(signal.SIGTERM)
        said, _ = worker.communicate(timeout=30)
    assert worker.returncode == 0, said


@pytest.fixture
def client(valkey: Store) -> Iterator[Client]:
    valkey.flush()
    with Qsync(valkey.url, prefix="django-worker") as app, app.client() as client:
        yield client


def run(client: Client, name: str) -> Any:
    task = Task(f"{SHOP}.{name}", {}, retry=0, retention=60)
    return client.enqueue(task).result(timeout=30)


def end_connections(database: Postgres) -> int:
    """End all other connections to the database, as a restart of the database does; return their
    number."""
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        rows = connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        ).fetchall()
        wait_until(lambda: _others(connection) == 0)
    return len(rows)


def _others(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute(
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    ).fetchone()
    return 0 if row is None else int(row[0])


@needs_postgres
@pytest.mark.parametrize("persistent", ["", "1"], ids=["closed at the end", "persistent"])
def test_handlers_continue_after_the_database_closed_their_connections(
    valkey: Store, database: Postgres, client: Client, persistent: str
) -> None:
    place = environment(valkey, database, SHOP_PERSISTENT=persistent)
    names = ["number_in_thread", "number_on_loop", "number_in_process"]
    with working(place, "--threads", "1", "--task-processes", "1"):
        before = [[run(client, name) for _ in range(2)] for name in names]
        for pair in before:
            assert len(set(pair)) == (1 if persistent else 2)
        assert end_connections(database) == (len(names) if persistent else 0)
        after = [run(client, name) for name in names]
    assert not set(after) & {number for pair in before for number in pair}


@needs_postgres
def test_worker_sends_outbox_rows_left_by_a_crash(
    valkey: Store, database: Postgres, client: Client
) -> None:
    place = environment(valkey, database, SHOP_ENQUEUE="outbox")
    subprocess.run(
        [sys.executable, "-m", "django", "migrate", "--verbosity", "0"],
        cwd=ROOT, env=place, check=True, timeout=60,
    )  # fmt: skip
    with Qsync(valkey.url, prefix="django-worker") as app:
        outbox = Outbox(app)
        row = outbox._make_row(Task(f"{SHOP}.pack", {"product": "tea"}, retention=60))
    with psycopg.connect(database.dsn) as connection:
        connection.execute(
            "INSERT INTO qsync_outbox (id, queue, message, created_at) "
            "VALUES (%s, %s, %s, now() - interval '1 minute')",
            (row.id, row.queue, row.message),
        )
    handle = client.handle(row.id)
    port = free_port()
    with working(place, "--health-port", str(port), "--processes", "2"):

        def ran() -> Any:
            with suppress(TaskNotFound):
                return handle.info().state == "completed"
            return False

        wait_until(ran, timeout=40)
        assert handle.result(timeout=5) == "one tea"
        metrics = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        oldest = re.search(r"^qsync_outbox_oldest_seconds (\d+\.\d+)$", metrics, re.MULTILINE)
        assert oldest is not None
        assert 60 <= float(oldest[1]) < 120, "the count is from before the relay sent the row"
        assert "\nqsync_outbox_rows 1.0\n" in metrics
    with psycopg.connect(database.dsn) as connection:
        assert connection.execute("SELECT count(*) FROM qsync_outbox").fetchone() == (0,)


def test_worker_serves_the_queues_of_its_options_in_several_processes(
    valkey: Store, client: Client
) -> None:
    options = ["--processes", "2", "--queues", "mail=3,default=1", "--concurrency", "7"]
    with (
        working(environment(valkey, None), *options),
        Qsync(valkey.url, prefix="django-worker") as app,
    ):
        servers = wait_until(lambda: _servers(app, 2), timeout=30)
        task = Task(f"{SHOP}.pack", {"product": "tea"}, queue="mail", retention=60)
        assert client.enqueue(task).result(timeout=30) == "one tea"
    assert [sorted(one.queues) for one in servers] == [["default", "mail"]] * 2


def _servers(app: Qsync, count: int) -> list[Any]:
    import asyncio

    async def read() -> list[Any]:
        async with app.inspector() as inspector:
            return list(await inspector.servers())

    found = asyncio.run(read())
    return found if len(found) == count else []


def command(valkey: Store, *options: str, **more: str) -> subprocess.CompletedProcess[str]:
    return manage(valkey, "qsync_worker", *options, **more)


def manage(valkey: Store, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "django", *words],
        cwd=ROOT,
        env=environment(valkey, None, **more),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("options", "more", "code", "text"),
    [
        (["--help"], {}, 0, "manage.py qsync_worker --processes 4 --queues mail=3,default=1"),
        (["--help"], {}, 0, "[default: QUEUES of the setting QSYNC, else `default` and all QUEUES"),
        (["shop.tasks:app"], {}, 2, "Got unexpected extra argument(s) (shop.tasks:app)"),
        (["--queues", "mail=x"], {}, 2, "--queues: 'mail=x' is not of the form NAME"),
        ([], {"SHOP_ENQUEUE": "later"}, 1, "QSYNC: ENQUEUE: 'later' is neither"),
    ],
)
def test_worker_command_accepts_its_options(
    valkey: Store, options: list[str], more: dict[str, str], code: int, text: str
) -> None:
    done = command(valkey, *options, **more)
    assert done.returncode == code, done.stderr
    assert text in " ".join((done.stdout + done.stderr).split())


def test_check_command_shows_a_wrong_setting_that_stops_the_import_of_tasks(valkey: Store) -> None:
    done = manage(valkey, "check", SHOP_ENQUEUE="later")
    assert done.returncode == 1
    assert "ERRORS:\n?: (qsync.E003) QSYNC: ENQUEUE: 'later' is neither" in done.stderr
    assert "Traceback" not in done.stderr
    done = manage(valkey, "showmigrations", SHOP_ENQUEUE="later")
    assert done.returncode == 1
    assert "Traceback" in done.stderr, "the error is not hidden"
    assert "ENQUEUE: 'later' is neither" in done.stderr.splitlines()[-1]


def test_worker_is_not_started_by_a_call_from_python(project: Qsync) -> None:
    from django.core.management import CommandError, call_command

    with pytest.raises(CommandError, match=r"run it as manage\.py qsync_worker"):
        call_command("qsync_worker")

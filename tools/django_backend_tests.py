"""Runs Django's own tests of task backends with QsyncBackend in place of Django's backends.

    python -m tools.django_backend_tests FOLDER

FOLDER is `tests/tasks` in Django's source, which `pip download --no-binary :all: django` fetches,
or `tests/tests` in the repository of its backport, django-tasks. The tool itself downloads nothing.

The tests cover Django's two backends: DummyBackend only records tasks, and ImmediateBackend runs
them within `enqueue`. For these tests, QsyncBackend therefore gets the additional features of both:
a list of the enqueued tasks, and an `enqueue` that runs a server until the task has ended.
NOT_APPLICABLE lists the tests that are specific to Django's backends, each with the reason.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import unittest
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final

MODULES: Final = (
    "test_tasks",
    "test_dummy_backend",
    "test_immediate_backend",
    "test_custom_backend",
)

IN_PLACE: Final = "ImmediateBackend runs tasks within enqueue; qsync runs them on a server"

NOT_APPLICABLE: Final[Mapping[str, str]] = {
    "DummyBackendTestCase.test_refresh_result": "the test changes DummyBackend's list",
    "DummyBackendTestCase.test_refresh_result_async": "the test changes DummyBackend's list",
    "ImmediateBackendTestCase.test_cannot_get_result": "QsyncBackend has results",
    "ImmediateBackendTestCase.test_cannot_refresh_result": "QsyncBackend has results",
    "ImmediateBackendTestCase.test_get_result_from_different_request": "QsyncBackend has results",
    "ImmediateBackendTestCase.test_cannot_pass_run_after": "QsyncBackend supports run_after",
    "ImmediateBackendTestCase.test_throws_keyboard_interrupt": IN_PLACE,
}
"""Tests that do not apply to QsyncBackend, by design, with the reasons."""

ADMIN: Final = [
    f"django.contrib.{name}" for name in ("auth", "contenttypes", "messages", "sessions")
]
"""Apps that the admin needs, because the URLs of the backport's tests include it."""

TIMEOUT_S: Final = 20.0


def set_up(tests: str) -> None:
    """Configure Django with a new store and an in-memory database."""
    import django
    from django.conf import settings

    backport = not _has_tasks()
    settings.configure(
        SECRET_KEY="of the tests",  # noqa: S106 - of no site
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        INSTALLED_APPS=[
            *(["django.contrib.admin", *ADMIN, "django_tasks"] if backport else []),
            "qsync.contrib.django", tests.partition(".")[0],
        ],
        QSYNC={"URL": "embedded://", "PREFIX": "django-tests", "ENQUEUE": "now"},
        ROOT_URLCONF=f"{tests.partition('.')[0]}.urls",
        USE_TZ=True,
    )  # fmt: skip
    django.setup()
    package = "django_tasks" if backport else "django.tasks"
    noting, running = backends()
    import_module(f"{package}.backends.dummy").DummyBackend = noting
    import_module(f"{package}.backends.immediate").ImmediateBackend = running


def _has_tasks() -> bool:
    try:
        import_module("django.tasks")
    except ModuleNotFoundError:
        return False
    return True


def backends() -> tuple[type[Any], type[Any]]:
    """Return two subclasses of QsyncBackend, with the features of DummyBackend and of
    ImmediateBackend that the tests use."""
    from qsync.contrib.django import QsyncBackend

    class Noting(QsyncBackend):
        def __init__(self, alias: str, params: Mapping[str, Any]) -> None:
            super().__init__(alias, params)
            self.results: list[Any] = []

        def enqueue(self, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
            result = super().enqueue(task, args, kwargs)
            self.results.append(result)
            return result

        def clear(self) -> None:
            self.results.clear()
            in_thread(purge)

    class Running(QsyncBackend):
        def enqueue(self, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
            in_thread(purge)
            self.options.setdefault("retry", 0)
            try:
                result = super().enqueue(task, args, kwargs)
            finally:
                del self.options["retry"]
            in_thread(lambda: serve_until_finished(result))
            return result

    return Noting, Running


async def purge() -> None:
    """Delete the tasks of earlier tests."""
    from qsync.contrib.django import app

    async with app.inspector() as inspector:
        for queue in (await inspector.overview()).queues:
            for state in ("pending", "scheduled", "retry", "completed", "dead"):
                async for _ in inspector.steps(inspector.purge, queue.name, state):
                    pass


async def serve_until_finished(result: Any) -> None:
    """Run a server until the task has ended."""
    from qsync.contrib.django import app

    async with app.server(queues=[result.task.queue_name]), asyncio.timeout(TIMEOUT_S):
        while not result.is_finished:
            await asyncio.sleep(0.005)
            await result.arefresh()


def in_thread(work: Callable[[], Any]) -> None:
    """Run async work in a thread, because tests may be sync or async."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def each_test(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    """Yield the tests of a suite."""
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from each_test(test)
        else:
            yield test


def main() -> int:
    """Run the tests; return the exit code."""
    if len(sys.argv) != 2 or not Path(sys.argv[1], "test_dummy_backend.py").exists():
        sys.stdout.write(__doc__ or "")
        return 2
    folder = Path(sys.argv[1]).resolve()
    inside = not (folder / "tasks.py").exists()  # the backport keeps its tasks in another folder
    package = f"{folder.parent.name}.{folder.name}" if inside else folder.name
    sys.path.insert(0, str(folder.parents[1] if inside else folder.parent))
    sys.modules.pop("tests", None)
    set_up(package)
    from django.test.runner import DiscoverRunner

    loader = unittest.TestLoader()
    found = [loader.loadTestsFromModule(import_module(f"{package}.{name}")) for name in MODULES]
    suite = unittest.TestSuite()
    left_out: dict[str, str] = {}
    for test in each_test(unittest.TestSuite(found)):
        name = test.id().removeprefix(f"{package}.").partition(".")[2]
        if name in NOT_APPLICABLE:
            left_out[name] = NOT_APPLICABLE[name]
        else:
            suite.addTest(test)
    runner = DiscoverRunner(verbosity=1)
    runner.setup_test_environment()
    databases = runner.setup_databases()
    try:
        outcome = runner.run_suite(suite)
    finally:
        runner.teardown_databases(databases)
        runner.teardown_test_environment()
    sys.stdout.write(f"{outcome.testsRun} run, {len(left_out)} do not apply:\n")
    for name, reason in left_out.items():
        sys.stdout.write(f"  {name}: {reason}\n")
    return 0 if outcome.wasSuccessful() else 1


if __name__ == "__main__":
    sys.exit(main())

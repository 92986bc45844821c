"""The limits that an app declares, and the queues whose tasks name them."""

from __future__ import annotations

from collections.abc import Iterable

from qsync.errors import ConfigError, InvalidTask, at_definition
from qsync.limit import LimitRule, check_limit_name, limit_name
from qsync.suggestions import did_you_mean
from qsync.task import DEFAULT, Task
from qsync.value_text import shorten


class DeclaredLimits:
    """The rules of `app.limit`, and the tasks of the app that name a limit."""

    def __init__(self) -> None:
        self.rules: dict[str, LimitRule] = {}
        self._per_queue: set[str] = set()
        """Limits that may be used in several queues, and count separately in each."""
        self._uses: dict[str, dict[str, str]] = {}
        """For each limit name and queue, the first task that names the limit."""

    def declare(self, name: str, rule: LimitRule, *, per_queue: bool) -> None:
        """Add a rule. Raise ConfigError if the name is invalid, taken, or used in two queues."""
        with at_definition():
            check_limit_name(name)
        if not isinstance(per_queue, bool):
            shown = shorten(per_queue)
            raise ConfigError(f"limit {name!r}: per_queue: {shown} is not True or False")
        if name in self.rules:
            raise ConfigError(f"limit {name!r}: the app already has a limit with this name")
        if not per_queue:
            self._check_queues(name, self._uses.get(name, {}))
        else:
            self._per_queue.add(name)
        self.rules[name] = rule

    def use(self, task: str, queue: str | None, names: Iterable[str]) -> None:
        """Record the limits of a task function; raise ConfigError if two queues would share a
        limit."""
        queue = queue or DEFAULT
        for name in names:
            uses = self._uses.setdefault(name, {})
            if name in self.rules and name not in self._per_queue:
                self._check_queues(name, {**uses, queue: task})
            uses.setdefault(queue, task)

    def check_queue(
        self, task: str, queue: str | None, names: Iterable[str], *, origin: str | None = None
    ) -> None:
        """Raise InvalidTask if a limit that the task names counts only another queue's tasks.

        If no task of the app is known to name the limit, it counts the tasks of the queue `origin`.
        """
        queue = queue or DEFAULT
        first = {} if origin is None else {origin: task}
        for name in names:
            uses = self._uses.get(name) or first
            if name in self.rules and name not in self._per_queue and uses and queue not in uses:
                raise InvalidTask(_two_queues(name, {**uses, queue: task}))

    def check_task(self, task: Task, queue: str) -> None:
        """Raise InvalidTask if the task names a limit that counts only another queue's tasks.

        If no task function names the limit, it counts the tasks of the first queue in which a task
        names it.
        """
        names = dict.fromkeys(map(limit_name, task.limits or ()))
        self.check_queue(task.type, queue, names)
        for name in names:
            if name in self.rules:
                self._uses.setdefault(name, {}).setdefault(queue, task.type)

    def check(self) -> None:
        """Raise ConfigError if a task function names a limit that the app does not declare."""
        for name, uses in self._uses.items():
            if name not in self.rules:
                raise ConfigError(self._undeclared(next(iter(uses.values())), name))

    def check_names(self, task: str, names: Iterable[str]) -> None:
        """Raise InvalidTask if the app declares limits, but not all of those that the options of a
        task name. An app without limits may only enqueue tasks, which another app declares."""
        for name in names:
            if self.rules and name not in self.rules:
                raise InvalidTask(self._undeclared(task, name))

    def _undeclared(self, task: str, name: str) -> str:
        msg = f"task {task!r}: limits: the app declares no limit {name!r}"
        if not self.rules:
            return f"{msg}; add app.limit({name!r}, ...)"
        return f"{msg}, only {', '.join(self.rules)}{did_you_mean(name, self.rules)}"

    def _check_queues(self, name: str, uses: dict[str, str]) -> None:
        if len(uses) > 1:
            raise ConfigError(_two_queues(name, uses))


def _two_queues(name: str, uses: dict[str, str]) -> str:
    tasks = " and ".join(f"task {task!r} of queue {queue!r}" for queue, task in uses.items())
    return (
        f"limit {name!r}: {tasks} use it, but a limit counts within one queue. Put the tasks into "
        "one queue, or declare the limit with per_queue=True to count in each queue separately"
    )

"""The tasks and periodic tasks of an app, which its decorators create from functions."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from datetime import timedelta
from functools import partial
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Literal,
    ParamSpec,
    TypeVar,
    Unpack,
    cast,
    overload,
)

from qsync.batch_function import BatchDecorator, BatchFunction
from qsync.bounds import Bounds, WhenFull, bounds_of
from qsync.connections import Connections
from qsync.declared_limits import DeclaredLimits
from qsync.errors import ConfigError, InvalidTask, at_definition
from qsync.keys import check_name
from qsync.limit import check_literal_keys, limit_rule
from qsync.mux import BATCH_SIZE, BATCH_WAIT_S, Middleware, Mux, check_middlewares
from qsync.retry_policy import ErrorClasses
from qsync.schedule import Missed, Periodic, schedule_of_decorator
from qsync.task import TaskInfo, check_type
from qsync.task_function import (
    HANDLER_OPTIONS,
    PERIODIC,
    ArgumentsDecorator,
    Decorator,
    PeriodicDecorator,
    TaskFunction,
    TaskOptions,
    check_options,
)
from qsync.times import Duration
from qsync.value_text import shorten

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

    from qsync.server.periodic import PeriodicTask

P = ParamSpec("P")
R = TypeVar("R")


class Registry:
    """The decorators of an app, and the objects that they have registered."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._mux = Mux()
        self.functions: dict[str, TaskFunction[..., Any, ..., Any]] = {}
        """Task functions by task type."""

        self.batches: dict[str, BatchFunction[Any]] = {}
        """Batch functions by task type."""

        self._declared = connections.declared = DeclaredLimits()
        self.bounds: dict[str, Bounds] = {}
        """Bounds of queues by name; servers store them when they start."""

        self._periodics: dict[str, PeriodicTask] = {}

    @overload
    def task(
        self, function: Callable[Concatenate[TaskInfo, P], Coroutine[Any, Any, R]], /
    ) -> TaskFunction[P, R, Concatenate[TaskInfo, P], Coroutine[Any, Any, R]]: ...

    @overload
    def task(
        self, function: Callable[Concatenate[TaskInfo, P], R], /
    ) -> TaskFunction[P, R, Concatenate[TaskInfo, P], R]: ...

    @overload
    def task(
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> TaskFunction[P, R, P, Coroutine[Any, Any, R]]: ...

    @overload
    def task(self, function: Callable[P, R], /) -> TaskFunction[P, R, P, R]: ...

    @overload
    def task(
        self,
        name: str | None = None,
        *,
        executor: Literal["process"] | None = None,
        middleware: Iterable[Middleware] = (),
        retry_for: ErrorClasses | None = None,
        dont_retry_for: ErrorClasses | None = None,
        **options: Unpack[TaskOptions],
    ) -> Decorator: ...

    def task(self, name: Any = None, **settings: Any) -> Any:
        """Make the decorated function a task: `fn.enqueue(...)` enqueues a task, and `fn(...)`
        calls the function.

        Use `@app.task`, or `@app.task(...)` with a name for the task type and options of Task,
        which become the defaults for each enqueue. `executor="process"` and `middleware` work as in
        `mux.handle`. The default name is the function's module and qualified name. For the main
        module of a program, it has the name by which a server would import the module (see
        `qsync.task_function`).

        `retry_for` limits retries to errors of these classes; with `()`, only a Retry that the
        handler raises is retried. After an error of a class in `dont_retry_for`, the task becomes
        dead immediately. A timeout counts as a TimeoutError. A `retry_delay` that is a `def
        (attempt, error)` stays with the function; any other policy is stored with each task.

        The payload is a map of the arguments by name. Arguments may be values that msgpack can
        encode, dataclasses, datetimes, UUIDs, decimals, enums, sets, paths, msgspec structs and
        pydantic models; the server checks them against the annotations. If the first parameter is
        annotated as TaskInfo, the server fills it in, and callers of `enqueue` leave it out.

        Raises ConfigError if the name is taken, the function is not a plain function, an annotation
        cannot be resolved or has a type that no payload can hold, or an option is wrong.
        """
        if name is not None and not isinstance(name, str):
            return self._add(self._make(name, None, settings))
        return lambda function: self._add(self._make(function, name, settings))

    def batch(
        self,
        name: str | None = None,
        *,
        max_size: int = BATCH_SIZE,
        max_wait: Duration = BATCH_WAIT_S,
        middleware: Iterable[Middleware] = (),
        retry_for: ErrorClasses | None = None,
        dont_retry_for: ErrorClasses | None = None,
        **options: Unpack[TaskOptions],
    ) -> BatchDecorator:
        """Register the decorated function as a batch function, which runs several tasks per call.

        The function takes a list of TaskInfo, and reads each payload with `task.value()` or
        `task.value(Type)`. `fn.enqueue(payload)` enqueues one task.

        max_size  maximum number of tasks per call, 1 to 10,000
        max_wait  how long the first task of a call waits for more, in seconds or as a timedelta;
                  at most an hour. A task does not wait if its deadline would pass during the wait

        The function returns None if all tasks are done, or a list with the result of each task, in
        the same order. An exception in the list fails only its task. An exception that the function
        raises, or a list of the wrong length, fails all tasks of the call. Each task has its own
        lease, attempts, retries, deadline and result. The timeout of the call is the shortest of
        the tasks' timeouts. A task that is cancelled while the call runs ends as cancelled when the
        call ends. The call itself is cancelled once all of its tasks are cancelled. A call uses one
        slot of `concurrency`. A task that was interrupted by a server crash runs in a call of its
        own.

        The other options work as in `task`, but the function runs on the event loop or in a thread,
        never in a process. Raises ConfigError if the name is taken, the function cannot be called
        with a list as its only argument, or an option is wrong.
        """
        with at_definition():
            _check_task_name(name)
            executor = cast("dict[str, Any]", options).get("executor")
            if executor is not None:
                msg = f"batch: executor={shorten(executor)} is not possible; a batch handler runs"
                raise ConfigError(f"{msg} on the event loop (async def) or in a thread (def)")
            check_options("batch", options, "name", "max_size", "max_wait")

        def register(function: Callable[[list[TaskInfo]], Any]) -> BatchFunction[Any]:
            with at_definition():
                batch = BatchFunction(
                    function, self._connections, name=name, max_size=max_size, max_wait=max_wait,
                    middleware=middleware, retry_for=retry_for, dont_retry_for=dont_retry_for,
                    options=options,
                )  # fmt: skip
            return self._add_batch(batch)

        return register

    def queue(
        self,
        name: str,
        *,
        max_tasks: int | None = None,
        max_bytes: int | None = None,
        when_full: WhenFull = "raise",
    ) -> None:
        """Set bounds on a queue. The servers of the app store them when they start.

        max_tasks  maximum number of waiting tasks: pending, limited, scheduled or waiting for a
                   retry; active tasks do not count
        max_bytes  maximum size of all messages in the queue, including those of active, completed
                   and dead tasks
        when_full  "raise": an enqueue that would exceed a bound raises QueueFull and stores
                   nothing; "drop_oldest": such an enqueue drops the oldest waiting tasks, those of
                   the lowest priority first

        Tasks that return to the queue (retried, recovered or handed back) are never refused. If no
        bound is passed, servers remove the bounds that an earlier version of the program set.
        Bounds that an operator sets (`qsync queue set`) override the program's. A queue with bounds
        has layout 2, so servers of versions without flow control do not serve it. Raises
        ConfigError if the app already sets the bounds of this queue, or a value is invalid.
        """
        with at_definition():
            check_name("queue", name)
            bounds = bounds_of(max_tasks=max_tasks, max_bytes=max_bytes, when_full=when_full)
        if name in self.bounds:
            raise ConfigError(
                f"queue {name!r}: the app already sets its bounds: {self.bounds[name]}; set all "
                "bounds of a queue in one call of app.queue"
            )
        if when_full != "raise" and bounds.max_tasks is None and bounds.max_bytes is None:
            raise ConfigError(
                f"queue {name!r}: when_full: {when_full!r} needs a bound; pass max_tasks or "
                f"max_bytes to app.queue({name!r}, ...)"
            )
        self.bounds[name] = bounds

    @overload
    def periodic(
        self,
        *,
        cron: str | None = None,
        every: float | timedelta | None = None,
        tz: str | ZoneInfo | None = None,
        missed: Missed = "skip",
        arguments: None = None,
        name: str | None = None,
        executor: Literal["process"] | None = None,
        middleware: Iterable[Middleware] = (),
        retry_for: ErrorClasses | None = None,
        dont_retry_for: ErrorClasses | None = None,
        **options: Unpack[TaskOptions],
    ) -> PeriodicDecorator: ...

    @overload
    def periodic(
        self,
        *,
        cron: str | None = None,
        every: float | timedelta | None = None,
        tz: str | ZoneInfo | None = None,
        missed: Missed = "skip",
        arguments: Mapping[str, Any],
        name: str | None = None,
        executor: Literal["process"] | None = None,
        middleware: Iterable[Middleware] = (),
        retry_for: ErrorClasses | None = None,
        dont_retry_for: ErrorClasses | None = None,
        **options: Unpack[TaskOptions],
    ) -> ArgumentsDecorator: ...

    def periodic(
        self,
        *unnamed: Any,
        cron: str | None = None,
        every: float | timedelta | None = None,
        tz: str | ZoneInfo | None = None,
        missed: Missed = "skip",
        arguments: Mapping[str, Any] | None = None,
        name: str | None = None,
        executor: Literal["process"] | None = None,
        middleware: Iterable[Middleware] = (),
        retry_for: ErrorClasses | None = None,
        dont_retry_for: ErrorClasses | None = None,
        **options: Unpack[TaskOptions],
    ) -> Any:
        """Make the app's servers enqueue the decorated function or task once at each tick.

        cron       expression of five fields, or of six with seconds first, in the time zone `tz`
        tz         name of an IANA time zone, or a ZoneInfo; UTC by default; only with `cron`
        every      period, in seconds or as a timedelta; ticks are at its multiples since 1970 UTC
        missed     tasks to enqueue for ticks that are over 30 s late because no server ran: none
                   ("skip"), one for all of them ("once") or one for each ("all")
        arguments  arguments that every tick passes to the function, by name
        name       name of the schedule for all servers; by default the name of the task

        A plain function becomes a task with this name; `executor`, `middleware` and the options
        work as in `task`. If the function is a task, the options override the task's. Raises
        ConfigError if the name is taken, a value is invalid, or a parameter has no value, and for
        `id`, `delay`, `deadline` and `process_at`, which would be the same at each tick.
        """
        with at_definition():
            schedule = schedule_of_decorator(unnamed, cron, every, tz)
        own = {
            "executor": executor,
            "middleware": check_middlewares(middleware),
            "retry_for": retry_for,
            "dont_retry_for": dont_retry_for,
        }

        def register(function: Any) -> Any:
            is_task = isinstance(function, TaskFunction)
            if is_task:
                self._check_periodic_task(function, own)
            task = function if is_task else self._make(function, name, own | options, *PERIODIC)
            with at_definition():
                used = _overridden(task, options) if is_task else task
                checked = self._check(
                    used, Periodic(name or task.name, schedule, missed), arguments
                )
            if not is_task:
                self._add(task)
            self._periodics[checked.periodic.name] = checked
            return task

        return register

    def _check_periodic_task(
        self, task: TaskFunction[..., Any, ..., Any], settings: dict[str, Any]
    ) -> None:
        misplaced = [
            name for name, value in settings.items()
            if value is not None and (name != "middleware" or value)
        ]  # fmt: skip
        if misplaced:
            raise ConfigError(f"{', '.join(misplaced)}: set them on {task!r} itself")
        if self._mux.find(task.name) is not task.handler:
            raise ConfigError(f"periodic: {task!r} belongs to another app")

    def limit(
        self,
        name: str,
        *,
        rate: int | None = None,
        per: Duration | None = None,
        burst: int | None = None,
        concurrency: int | None = None,
        per_queue: bool = False,
    ) -> None:
        """Declare a limit for tasks with `limits=[name]`, or `limits=["name:value"]`.

        rate         number of starts per period `per`, on all servers together
        per          the period, in seconds or as a timedelta
        burst        number of tasks that may start together after an idle period; default: a tenth
                     of `rate`, at least 1
        concurrency  number of tasks, on all servers together, that may run at the same time
        per_queue    if True, tasks of several queues may name the limit, which counts separately in
                     each queue

        The rule applies separately to each value of a name, such as `customer:42`. A task that may
        not start because of its limits waits in the state `limited`, keeps its place in the queue,
        and uses no slot. Servers publish the rules when they start; a rule that an operator has set
        with `qsync limit set` overrides the program's.

        Raises ConfigError if a value is invalid, the name is taken, or tasks of two queues name the
        limit. `server()` raises ConfigError if a task names an undeclared limit.
        """
        with at_definition():
            rule = limit_rule(
                f"limit {shorten(name)}", rate=rate, per=per, burst=burst, concurrency=concurrency
            )
        self._declared.declare(name, rule, per_queue=per_queue)

    @property
    def periodics(self) -> list[PeriodicTask]:
        """The periodic tasks, in the order in which they were defined."""
        return list(self._periodics.values())

    def _make(
        self, function: Any, name: str | None, settings: dict[str, Any], *others: str
    ) -> TaskFunction[..., Any, ..., Any]:
        options = dict(settings)
        with at_definition():
            _check_task_name(name)
            check_options("task", settings, "name", *others)
            task: TaskFunction[..., Any, ..., Any] = TaskFunction(
                function,
                self._connections,
                declared=self._declared,
                name=name,
                **{option: options.pop(option) for option in HANDLER_OPTIONS if option in options},
                options=cast("TaskOptions", options),
            )
            check_literal_keys(task.name, options, task._signature.single)
            return task

    def _add_batch(self, batch: BatchFunction[Any]) -> BatchFunction[Any]:
        self._declared.use(batch.name, batch.defaults.get("queue"), batch.limits.names)
        self._mux.add(batch.handler)
        self.batches[batch.name] = batch
        return batch

    def _add(self, task: TaskFunction[..., Any, ..., Any]) -> TaskFunction[..., Any, ..., Any]:
        self._declared.use(task.name, task.defaults.get("queue"), task.limits.names)
        self._mux.add(task.handler)
        self.functions[task.name] = task
        return task

    def _check(
        self,
        task: TaskFunction[..., Any, ..., Any],
        periodic: Periodic,
        arguments: Mapping[str, Any] | None,
    ) -> PeriodicTask:
        """Return the checked periodic task.

        Raise ConfigError if the task cannot be enqueued at each tick.
        """
        if arguments is not None and not isinstance(arguments, Mapping):
            raise ConfigError(f"arguments: {shorten(arguments)} is not a dict of names to values")
        values = {} if arguments is None else dict(arguments)
        for argument in values:
            if not isinstance(argument, str):
                raise ConfigError(f"arguments: the name {shorten(argument)} is not a string")
        for name in task.required:
            if name not in values:
                msg = f"parameter {name!r} gets no value; pass arguments={{{name!r}: ...}}"
                raise ConfigError(f"periodic {periodic.name!r}: {msg}")
        task.build(**values)  # checks them
        self._declared.use(task.name, task.defaults.get("queue"), task.limits.names)
        hint = ""
        for option in ("id", "delay", "deadline", "process_at"):
            if (value := task.defaults.get(option)) is not None:
                msg = f"periodic {periodic.name!r}: {option}: {shorten(value)} would be the same"
                if option == "deadline":
                    hint = "; late ticks are left out unless you set missed="
                raise ConfigError(f"{msg} for every tick; omit it{hint}")
        if periodic.name in self._periodics:
            raise ConfigError(
                f"periodic {periodic.name!r}: the name is taken; choose another name="
            )
        # Imported here, so that programs that only enqueue start sooner.
        from qsync.server.periodic import PeriodicTask

        return PeriodicTask(periodic, partial(task.build, **values) if values else task.build)


def _overridden(
    task: TaskFunction[..., Any, ..., Any], options: TaskOptions
) -> TaskFunction[..., Any, ..., Any]:
    """Return the task with the options of `@app.periodic`; raise InvalidTask if one is wrong."""
    check_literal_keys(task.name, options, task._signature.single)
    return task.options(**options)


def _check_task_name(name: object) -> None:
    """Raise ConfigError unless a name is None or 1 to 256 printable characters."""
    if callable(name):
        raise ConfigError(
            f"name: {shorten(name)} is a function; write the decorator with parentheses, e.g. "
            "@app.batch()"
        )
    try:
        if name is not None:
            check_type(name)
    except InvalidTask:
        msg = f"name: must be 1 to 256 printable characters, not {shorten(name)}"
        raise ConfigError(msg) from None

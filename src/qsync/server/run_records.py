"""Creates the record of a run's outcome, which the settler passes to the store."""

from __future__ import annotations

import asyncio
from typing import Any

from qsync.broker import op_values
from qsync.broker.op_values import Completion
from qsync.errors import ConfigError, Snooze
from qsync.server import outcome
from qsync.server.clock import boot_s
from qsync.server.config import Config
from qsync.server.failure_reports import Failures
from qsync.server.invoke import BoundHandler, Invoker, encode_result
from qsync.server.queue_state import LeasedTask
from qsync.server.stopping import Stopping
from qsync.task import PAYLOAD_LIMIT


class RunRecords:
    """Creates the records of a server's tasks, and reports failures."""

    def __init__(
        self, config: Config, invoker: Invoker, failures: Failures, stopping: Stopping
    ) -> None:
        self._invoker = invoker
        self._failures = failures
        self._stopping = stopping
        self._retry_delay = config.retry_delay
        self._result_limit = config.result_limit or PAYLOAD_LIMIT

    def too_late(self, leased: LeasedTask) -> Any:
        """Return the record for a task that may no longer start; None if it may start."""
        leased.begun_s = now = boot_s()
        if now >= leased.expires:
            # If another server has got the task in the meantime, the store ignores this record.
            return op_values.HandedBack(leased.id, leased.token)
        if leased.message.options is not None and leased.past_deadline():
            self._failures.died(leased, outcome.TOO_LATE)
            return outcome.past_deadline(leased, leased.queue.store_time_us())
        return None

    def done(self, leased: LeasedTask, value: Any, way: BoundHandler) -> Any:
        """Return the record for a handler that returned."""
        options = leased.message.options
        if options is None or options.retention_us is None:
            return Completion(leased.id, leased.token)
        begun_us = leased.begun_us(leased.queue.store_time_us())
        result = encode_result(value, way.carry_result, self._result_limit, begun_us=begun_us)
        return Completion(leased.id, leased.token, options.retention_us, result)

    def stopped(self, leased: LeasedTask, error: BaseException, *, brief: bool = False) -> Any:
        """Return the record for a handler that raised; None if the lease is lost.

        With `brief`, no traceback is logged.
        """
        stop = leased.stop
        if stop == "lost":
            return None
        if stop == "cancelled":
            return leased.held
        if isinstance(error, Snooze):
            try:
                return self._snoozed(leased, error)
            except ConfigError as wrong:
                error = wrong
        cancelled = isinstance(error, asyncio.CancelledError)
        if stop == "shutdown" or (cancelled and stop is None and self._stopping.interrupted):
            return op_values.HandedBack(leased.id, leased.token, started=leased.has_started)
        if cancelled:
            timed_out = stop == "timeout"
            limit = self._stopping.limit_of(leased)
            error = outcome.timed_out(limit) if timed_out else outcome.gave_up_itself()
        now_us = leased.queue.store_time_us()
        rules = self._invoker.rules_of(leased.message.type)
        record = outcome.failed(leased, error, now_us, self._retry_delay, rules)
        self._failures.failed(leased, error, record, brief=brief)
        return record

    def _snoozed(self, leased: LeasedTask, error: Snooze) -> Any:
        """Return the record for a handler that asked to run later."""
        record = outcome.snoozed(leased, error, leased.queue.store_time_us())
        if type(record) is op_values.Killed:
            self._failures.died(leased, outcome.SNOOZED_TOO_LONG)
        else:
            self._failures.snoozed(leased, error)
        return record

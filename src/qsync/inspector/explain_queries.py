"""Reads from the store what the explanation of a task needs."""

from __future__ import annotations

import asyncio
from typing import Final

from qsync.broker import views
from qsync.errors import InvalidTask
from qsync.inspector.explain import Facts, duplicate_of, explain, not_found
from qsync.inspector.live_servers import _LiveServersMixin
from qsync.inspector.task_rows import look
from qsync.inspector.values import Explanation
from qsync.keys import check_id, holder_of_token
from qsync.new_task import new_nonce, new_task
from qsync.task import Task

MOST_MEASURE_S: Final = 5.0


class _ExplainMixin(_LiveServersMixin):
    """Explains why a task is not running yet."""

    async def explain(
        self, task: str | Task, *, queue: str = "default", measure: float = 0.0
    ) -> Explanation:
        """Explain why a task is not running yet, and when it will run.

        `task` is an id, or a Task that was rejected as a duplicate; a Task's own queue is
        used. The estimate for a pending task needs two readings of its queue: without an earlier
        one, the call waits `measure` seconds (0 to 5) for the second.
        """
        if not 0 <= measure <= MOST_MEASURE_S:
            msg = f"measure: {measure!r:.80} is not a number of seconds from 0 to {MOST_MEASURE_S}"
            raise InvalidTask(msg)
        if isinstance(task, Task):
            return await self._explain_duplicate(task, measure)
        return await self._explain(check_id(task), queue, measure)

    async def _explain(self, id: str, queue: str, measure: float) -> Explanation:
        keys = self._keys(queue)
        [shown] = await self._broker.run(views.get_tasks(keys, [id]))
        if shown is None:
            return not_found(id, queue)
        looked = await asyncio.to_thread(look, id, shown)  # in a thread: the message may be large
        holder = holder_of_token(shown.owner or "")
        call = views.pending_position(keys, id, lock=looked.options.lock or "", server=holder)
        located = await self._broker.run(call)
        rate = self._note_rate(queue, located.ended)
        if rate is None and located.rank and measure:
            await asyncio.sleep(measure)
            located = await self._broker.run(call)
            rate = self._note_rate(queue, located.ended)
        _, servers = await self._live()
        return explain(Facts(id, queue, looked, located, servers, rate))

    async def _explain_duplicate(self, task: Task, measure: float) -> Explanation:
        made = new_task(task, new_nonce())
        if task.id is not None:
            found = await self._explain(task.id, made.queue, measure)
            if found.state is not None:
                return duplicate_of(found)
        holder = None
        if made.lock:
            call = views.pending_position(self._keys(made.queue), "", lock=made.lock)
            holder = (await self._broker.run(call)).holder
        if holder is None:
            return not_found(task.id or "", made.queue)
        return duplicate_of(await self._explain(holder, made.queue, measure))

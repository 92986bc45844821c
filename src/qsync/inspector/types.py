"""Types of tasks in a queue: which are paused, pause and resume."""

from __future__ import annotations

from qsync.broker import type_ops
from qsync.broker.event_ops import recorded
from qsync.errors import InvalidTask
from qsync.inspector.base import Base
from qsync.inspector.task_rows import note_of, pause_of
from qsync.inspector.type_values import PausedType
from qsync.inspector.values import Change, Pause
from qsync.task import check_type


class _TypesMixin(Base):
    """Operations on types of tasks."""

    async def paused_types(self, queue: str = "default") -> list[PausedType]:
        """Return the paused types of a queue, sorted by name; at most 100 can be paused."""
        found = await self._broker.run(type_ops.paused_types(self._keys(queue)))
        return [paused_type(paused) for paused in found]

    async def pause_type(
        self, type: str, *, queue: str = "default", by: str = "", why: str = ""
    ) -> Change:
        """Start no more tasks of a type in a queue until `resume_type`; it survives restarts.

        Its pending tasks are set aside (state `limited`) when servers come to them, so that tasks
        of other types run. Running tasks go on, and tasks that a server has already fetched may
        still start. The outcome is `done` also for a paused type: `by` and `why` are replaced, the
        time is kept. The queue has layout 2 from then on. InvalidTask when 100 other types of the
        queue are paused: pause the queue instead.
        """
        keys = self._keys(queue)
        check_type(type)
        if not await self._is_queue(queue):
            return Change(outcome="not_found")
        call = type_ops.pause_type(keys, type, note_of(by or self._actor.by, why))
        event = self._actor.event("type.pause", type, why, by=by)
        if await self._broker.run(recorded(call, event)) is None:
            raise InvalidTask(
                f"type: {type!r} is one too many: {type_ops.PAUSED_MOST} types of {queue} are "
                "paused; resume one, or pause the queue"
            )
        return Change(outcome="done")

    async def resume_type(self, type: str, *, queue: str = "default") -> Change:
        """Let the tasks of a type start again, in their old order; `not_found` if not paused."""
        call = type_ops.resume_type(self._keys(queue), check_type(type))
        event = self._actor.event("type.resume", type)
        changed = await self._broker.run(recorded(call, event))
        return Change(outcome="done" if changed else "not_found")


def paused_type(paused: type_ops.PausedType) -> PausedType:
    """Return a paused type as the inspector shows it. Pure."""
    pause = pause_of(paused.note, paused.paused_at_us)
    return PausedType(
        type=paused.type, pause=pause or Pause(by="", why="", at=None), waiting=paused.waiting
    )

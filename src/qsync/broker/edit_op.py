"""The operation that replaces the message of a waiting or dead task. See `qsync.broker.ops`."""

from __future__ import annotations

import hashlib
from typing import Any, Literal, NamedTuple, cast

from qsync.broker.call import Call, queue_query
from qsync.broker.call_values import now_argument
from qsync.broker.enqueue_options import fairness_member
from qsync.broker.operator_ops import RerunRequest
from qsync.keys import QueueKeys


class EditOutcome(NamedTuple):
    """The outcome of an edit.

    ok         the task has the new message
    duplicate  nothing changed: another task, `holder`, has the lock of the dead task
    changed    nothing changed: the task is in another state, or has another message
    """

    outcome: Literal["ok", "duplicate", "changed"]
    holder: str = ""


def edit(
    keys: QueueKeys,
    id: str,
    state: str,
    *,
    seen: bytes,
    message: bytes,
    due: str = "",
    rerun: RerunRequest | None = None,
    now_us: int | None = None,
) -> Call[EditOutcome]:
    """Replace the message `seen` of a scheduled, retry or dead task.

    With `rerun` the task becomes pending now; else `due`, `+<us>`, changes when it is due.
    """
    digest = hashlib.sha1(seen, usedforsecurity=False).hexdigest()
    again = rerun or RerunRequest(id)
    args = (
        now_argument(now_us), "", id, state, digest, message, due, "" if rerun is None else "1",
        fairness_member(again.priority, again.fairness_key), again.lock, again.failure,
    )  # fmt: skip

    def decode(reply: dict[str, Any]) -> EditOutcome:
        outcome, holder = reply["outcome"].decode(), reply["holder"].decode()
        return EditOutcome(cast("Literal['ok', 'duplicate', 'changed']", outcome), holder)

    return queue_query("edit", keys, args, decode)

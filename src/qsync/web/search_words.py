"""Strings for the pages that change the tasks of a search."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from qsync.inspector.search import Verb
from qsync.state import TaskState
from qsync.web.bulk_actions import CANCELLED, DELETED, RE_QUEUED
from qsync.web.names import state_title
from qsync.web.translation import _, count, marked, ngettext

DONE: Final[dict[Verb, tuple[str, str]]] = {
    "retry": RE_QUEUED, "cancel": CANCELLED, "delete": DELETED,
}  # fmt: skip

DOING: Final[dict[Verb, str]] = {
    "retry": marked("Re-running tasks"),
    "cancel": marked("Cancelling tasks"),
    "delete": marked("Deleting tasks"),
}

SELECTED: Final[dict[Verb, str]] = {
    "retry": marked("Re-run selected"),
    "cancel": marked("Cancel selected"),
    "delete": marked("Delete selected"),
}

MATCHING: Final[dict[Verb, str]] = {
    "retry": marked("Re-run all that match…"),
    "cancel": marked("Cancel all that match…"),
    "delete": marked("Delete all that match…"),
}


def button(verb: Verb, number: int) -> str:
    """Return the text of the button that confirms a change."""
    match verb:
        case "retry":
            return ngettext("Re-run %(num)s task", "Re-run %(num)s tasks", number)
        case "cancel":
            return ngettext("Cancel %(num)s task", "Cancel %(num)s tasks", number)
        case _:
            return ngettext("Delete %(num)s task", "Delete %(num)s tasks", number)


def consequence(verb: Verb) -> str:
    """Return a sentence about what a change does to the tasks."""
    match verb:
        case "retry":
            return _("The tasks become pending; dead tasks get a fresh set of attempts.")
        case "cancel":
            return _("Running tasks are told to stop.")
        case _:
            return _("This deletes payloads, results and history, and cannot be undone.")


def unread_note(number: int) -> str:
    """Return a sentence about the tasks that are too large to be searched for arguments; "" if
    there are none."""
    if not number:
        return ""
    return ngettext(
        "%(num)s task over 16 KiB cannot be searched for arguments and stays as it is.",
        "%(num)s tasks over 16 KiB cannot be searched for arguments and stay as they are.",
        number,
    )


def by_state(numbers: Mapping[TaskState, int]) -> list[str]:
    """Return the number of tasks in each state, e.g. `Dead: 4,000`."""
    return [f"{state_title(state)}: {count(number)}" for state, number in numbers.items() if number]

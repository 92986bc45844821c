"""The form of a schedule in the admin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from django import forms

from qsync.contrib.django import schedule_store, task_choices
from qsync.contrib.django.models import Schedule
from qsync.contrib.django.project import project_app
from qsync.errors import InvalidTask
from qsync.keys import check_name
from qsync.schedule import check_schedule_name, schedule_of
from qsync.schedules import checked_content
from qsync.task import PAYLOAD_LIMIT, Task

if TYPE_CHECKING:
    _ModelForm: TypeAlias = forms.ModelForm[Schedule]
else:  # at run time, Django's class takes no type parameter
    _ModelForm = forms.ModelForm

WHEN = ("cron", "every", "tz", "missed")
"""Fields that determine when a schedule ticks; they can be changed later."""


class ChangeForm(_ModelForm):
    """Form that changes when a stored schedule ticks."""

    class Meta:
        """The fields that can be changed."""

        model = Schedule
        fields: tuple[str, ...] = WHEN

    def when(self) -> dict[str, Any]:
        """Return the cleaned fields that determine when the schedule ticks, as keyword arguments
        for the store."""
        cleaned = self.cleaned_data
        return {
            "cron": cleaned["cron"] or None, "every": cleaned["every"], "tz": cleaned["tz"] or None,
            "missed": cleaned["missed"],
        }  # fmt: skip

    def clean(self) -> None:
        """Check all fields together, with the checks that the store would make."""
        if not self.errors:
            try:
                self._check()
            except InvalidTask as error:
                self.add_error(*_shown(error, self.fields))

    def _check(self) -> None:
        when = self.when()
        if when["cron"] is None and when["every"] is None:
            raise InvalidTask("Enter a cron expression or an interval.")
        if when["cron"] is not None and when["every"] is not None:
            raise InvalidTask("Enter a cron expression or an interval, not both.")
        if when["every"] is not None and when["tz"] is not None:
            raise InvalidTask("tz: Leave the time zone empty for an interval.")
        schedule_of(when["cron"], when["every"], when["tz"])

    def validate_unique(self) -> None:
        """Do nothing, because schedules are in the store and not in the database."""


class AddForm(ChangeForm):
    """Form that creates a stored schedule; `built` is the task that the schedule enqueues."""

    built: Task[Any]

    task: forms.ChoiceField = forms.ChoiceField(
        choices=lambda: [("", "---------"), *task_choices.choices()],
        help_text="A task of this project.",
    )

    class Meta(ChangeForm.Meta):
        """All fields."""

        fields: tuple[str, ...] = ("name", "task", "queue", "arguments", *WHEN)

    def _check(self) -> None:
        super()._check()
        cleaned = self.cleaned_data
        check_schedule_name(cleaned["name"])
        if cleaned["queue"]:
            _check_queue(cleaned["queue"])
        self.built = task_choices.built(cleaned["task"], cleaned["arguments"], cleaned["queue"])
        when = self.when()
        checked_content(
            cleaned["name"], self.built, **when, payload_limit=PAYLOAD_LIMIT,
            declared=project_app()._connections.declared,
        )  # fmt: skip
        if schedule_store.is_taken(cleaned["name"]):
            raise InvalidTask(f"name: schedule {cleaned['name']} already exists")
        if schedule_store.find(f"{self.built.queue}:{cleaned['name']}") is not None:
            raise InvalidTask(
                f"name: a program has a periodic task {cleaned['name']}; use another name"
            )


def _check_queue(queue: str) -> None:
    """Raise InvalidTask unless the project or a running server serves the queue."""
    check_name("queue", queue)
    queues = task_choices.queues()
    if queue not in queues and queue not in schedule_store.queues_of_servers():
        raise InvalidTask(
            f"queue: the project has no queue {queue}, and no running server serves it; the "
            f"queues are {', '.join(queues)}"
        )


def _shown(error: InvalidTask, fields: Any) -> tuple[str | None, str]:
    """Split a message such as `cron=...` or `tz: ...` into the field it begins with and its
    text."""
    text = str(error)
    name, _, rest = text.partition(": ")
    if name in fields:
        return name, rest
    name = text.partition("=")[0]
    return (name if name in fields else None), text

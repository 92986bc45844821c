"""The admin of schedules: those in the store, and the periodic tasks of programs.

`Schedule` has no table. Django's own form, confirmation and history pages read schedules from the
store and write them to the store. Only the list has its own template, because Django's list
template needs a query set.
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.core.paginator import Paginator
from django.http import HttpResponseRedirect
from django.template.response import TemplateResponse

from qsync.contrib.django import schedule_store as store
from qsync.contrib.django.models import Schedule
from qsync.contrib.django.schedule_form import WHEN, AddForm, ChangeForm
from qsync.errors import InvalidTask, QsyncError, StoreUnavailable

if TYPE_CHECKING:
    _ModelAdmin: TypeAlias = admin.ModelAdmin[Schedule]
else:  # at run time, Django's class takes no type parameter
    _ModelAdmin = admin.ModelAdmin

PER_PAGE: Final = 100
"""Number of schedules per page of the list."""

ACTIONS: Final = {
    "run": ("change", "Run selected schedules now"),
    "pause": ("change", "Pause selected schedules"),
    "resume": ("change", "Resume selected schedules"),
    "delete": ("delete", "Delete selected schedules"),
}
"""Actions of the list, with the permission that each needs."""

DONE: Final = {
    "run": "enqueued its task", "pause": "paused", "resume": "resumed", "delete": "deleted",
}  # fmt: skip
"""What to log and to show for a schedule after each action."""

NOT_FOUND: Final = {"resume": "it is not paused", "delete": "it is not in the store"}
"""Reason to show if the store did not find what an action would change, by action."""

COLUMNS: Final = ("Name", "Task", "Queue", "When", "Next tick", "Last tick", "Defined in")
"""Columns of the list."""


def _answered(view: Any) -> Any:
    """Wrap a view so that an error of the store, e.g. an outage, shows an error page."""

    @wraps(view)
    def answer(self: ScheduleAdmin, request: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return view(self, request, *args, **kwargs)
        except QsyncError as error:
            status = 503 if isinstance(error, StoreUnavailable) else 409
            return self.page(request, "error", status, title="Schedules", problem=str(error))

    return answer


@admin.register(Schedule)
class ScheduleAdmin(_ModelAdmin):
    """Lists, creates, changes, pauses, runs and deletes schedules, with Django's permissions."""

    def has_change_permission(self, request: Any, obj: Any = None) -> bool:
        """Check Django's permission; a program's periodic task can be changed only by a deploy."""
        return super().has_change_permission(request, obj) and _is_stored(obj)

    def has_delete_permission(self, request: Any, obj: Any = None) -> bool:
        """Check Django's permission; a program's periodic task cannot be deleted here."""
        return super().has_delete_permission(request, obj) and _is_stored(obj)

    def get_object(self, request: Any, object_id: str, from_field: Any = None) -> Any:
        """Read a schedule from the store."""
        return store.find(object_id)

    def get_form(self, request: Any, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        """Return the form: all fields for a new schedule, only the time fields for an existing
        one."""
        return super().get_form(
            request, obj, change, **{**kwargs, "form": ChangeForm if change else AddForm}
        )

    def get_fieldsets(self, request: Any, obj: Any = None) -> Any:
        """Return the fields to show; the arguments appear only in the form of a new schedule."""
        task = ["name", "task", "queue"] + ([] if obj else ["arguments"])
        return [(None, {"fields": task}), ("When", {"fields": list(WHEN)})]

    def get_readonly_fields(self, request: Any, obj: Any = None) -> Any:
        """Return the fields of an existing schedule that cannot be changed."""
        return ["name", "task", "queue"] if obj else []

    def save_model(self, request: Any, obj: Any, form: Any, change: bool) -> None:
        """Write a schedule to the store."""
        if change:
            changed = store.change(obj, form.when(), _user(request))
            if not changed.ok:
                raise InvalidTask(_failed(obj.name, changed))
        else:
            store.create(obj.name, form.built, form.when(), _user(request))
            obj.queue = form.built.queue
            obj.id = f"{obj.queue}:{obj.name}"

    def delete_model(self, request: Any, obj: Any) -> None:
        """Delete a schedule from the store."""
        store.delete(obj.id, _user(request))

    def get_deleted_objects(self, objs: Any, request: Any) -> Any:
        """Describe what will be deleted: only the schedules, which have no related objects."""
        return [str(obj) for obj in objs], {"schedules": len(objs)}, set(), []

    @_answered
    def changeform_view(self, *args: Any, **kwargs: Any) -> Any:
        """Show or handle the form of a schedule."""
        return super().changeform_view(*args, **kwargs)

    @_answered
    def delete_view(self, *args: Any, **kwargs: Any) -> Any:
        """Ask whether to delete a schedule, and delete it."""
        return super().delete_view(*args, **kwargs)

    @_answered
    def history_view(self, *args: Any, **kwargs: Any) -> Any:
        """Show the changes that admin users made to a schedule."""
        return super().history_view(*args, **kwargs)

    @_answered
    def changelist_view(self, request: Any, extra_context: Any = None) -> Any:
        """List the schedules, and handle the actions of the list."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        if request.method == "POST":
            return self._act(request)
        prefix = request.GET.get("q", "").strip()
        try:
            infos, problem = store.all_schedules(prefix), ""
        except InvalidTask as error:
            infos, problem = [], str(error)
        page = Paginator([store.shown(info) for info in infos], PER_PAGE).get_page(
            request.GET.get("p")
        )
        return self.page(
            request, "change_list", title="Schedules", schedules=page, q=prefix,
            problem=problem, columns=COLUMNS, actions=self._allowed(request),
            has_add_permission=self.has_add_permission(request), **(extra_context or {}),
        )  # fmt: skip

    def _allowed(self, request: Any) -> list[tuple[str, str]]:
        """Return the actions that the user is allowed to run."""
        may = {
            "change": self.has_change_permission(request),
            "delete": self.has_delete_permission(request),
        }
        return [(name, text) for name, (need, text) in ACTIONS.items() if may[need]]

    def _act(self, request: Any) -> Any:
        """Run an action on the selected schedules; ask for confirmation before deleting."""
        action, ids = request.POST.get("action", ""), request.POST.getlist("_selected_action")
        if action not in dict(self._allowed(request)):
            if action in ACTIONS:
                raise PermissionDenied
            messages.warning(request, "No action selected.")
        elif not ids:
            messages.warning(request, "Items must be selected in order to perform actions on them.")
        elif action == "delete" and "post" not in request.POST:
            return self.page(request, "delete_selected", title="Delete multiple schedules", ids=ids)
        else:
            self._do(request, action, ids)
        return HttpResponseRedirect(request.get_full_path())

    def _do(self, request: Any, action: str, ids: list[str]) -> None:
        by, why = _user(request), request.POST.get("why", "").strip()
        for id in ids:
            name = id.partition(":")[2]
            if action == "run":
                change = store.trigger(id, by)
            elif action == "pause":
                change = store.pause(id, by, why)
            elif action == "resume":
                change = store.resume(id, by)
            else:
                change = store.delete(id, by)
            if not change.ok:
                messages.error(request, _failed(name, change, action))
                continue
            done = DONE[action]
            if action == "run":
                done += f" {change.holder}"
            elif action == "pause" and why:
                done += f": {why}"
            if action == "delete":
                self.log_deletions(request, [Schedule(id=id, name=name)])
            else:
                self.log_change(request, Schedule(id=id, name=name), _sentence(done))
            messages.success(request, f"Schedule {name}: {_sentence(done, first=False)}")

    def page(self, request: Any, template: str, status: int = 200, **context: Any) -> Any:
        """Render a template of the schedule admin."""
        return TemplateResponse(
            request, f"admin/qsync/schedule/{template}.html",
            {**self.admin_site.each_context(request), "opts": self.opts, **context},
            status=status,
        )  # fmt: skip


def _user(request: Any) -> str:
    return str(request.user.get_username())  # a custom user model may have numbers as names


def _sentence(text: str, *, first: bool = True) -> str:
    """Return a text with a full stop; if `first` is true, its first letter becomes a capital."""
    begin = text[0].upper() if first else text[0]
    return begin + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def _is_stored(obj: Any) -> bool:
    info = getattr(obj, "info", None)
    return info is None or info.stored


def _failed(name: str, change: Any, action: str = "") -> str:
    """Return a message that says why a schedule was not changed."""
    match change.outcome:
        case "duplicate":
            why = f"task {change.holder} holds its unique lock"
        case "not_found":
            why = NOT_FOUND.get(action, "there is no such schedule")
        case _:
            why = change.why
    return f"Schedule {name} was not changed: {why}."

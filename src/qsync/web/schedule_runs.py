"""The page of a schedule and its runs, and the backfill action."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from starlette.requests import Request
from starlette.responses import Response

from qsync.errors import InvalidTask
from qsync.inspector import ScheduleRun
from qsync.phrase import phrase, phrase_of
from qsync.web.bulk_actions import back_to
from qsync.web.events import last_actions
from qsync.web.pages import Site
from qsync.web.query import Fields
from qsync.web.translation import _, date_and_time, ngettext


async def show(site: Site, request: Request) -> Response:
    """Show a schedule: when it runs, in its own time zone, and its last runs."""
    fields = Fields(request.query_params.multi_items())
    name, queue = fields.text("name"), fields.text("queue") or "default"
    info = await site.inspector.schedule(name, queue=queue)
    if info is None:
        title = _("There is no schedule %(name)s.", name=name)
        return site.page(request, "error", status=404, title=title, text="")
    runs = await site.inspector.schedule_history(name, queue=queue)
    zone = _zone(info.tz)
    return site.page(
        request, "schedule_runs", info=info, runs=runs, longest=_longest(runs),
        zone=info.tz or "UTC", local=[(time, _local(time, zone)) for time in info.next_at],
        local_tick={run.task: _local(run.tick, zone) for run in runs},
        actions=await last_actions(site, queue, subject=name),
    )  # fmt: skip


async def backfill(site: Site, request: Request) -> Response:
    """Enqueue the task of each tick in a past interval, after a confirmation with their number."""
    form = await site.form(request)
    name, queue = form.text("name"), form.text("queue")
    page = {"name": name, "queue": queue}
    info = await site.inspector.schedule(name, queue=queue)
    try:
        zone = _zone(info.tz if info else None)
        start, end = _moment("from", form, zone), _moment("to", form, zone)
        is_sure = form.text("sure") == "yes"
        plan = await site.acting(request).backfill(
            name, queue=queue, start=start, end=end, dry_run=not is_sure
        )
    except InvalidTask as error:
        return site.go(request, "/schedule/runs", phrase_of(error), good=False, **page)
    if plan is None or plan.refused:
        text = plan.refused if plan and plan.refused else _("There is no such schedule.")
        if plan and plan.enqueued:
            enqueued = ngettext("%(num)s task enqueued.", "%(num)s tasks enqueued.", plan.enqueued)
            text = f"{enqueued} {text}"
        return site.go(request, "/schedule/runs", text, good=False, **page)
    number = ngettext("%(num)s task", "%(num)s tasks", plan.enqueued)
    if is_sure or not plan.enqueued:
        text = ngettext("%(num)s task enqueued.", "%(num)s tasks enqueued.", plan.enqueued)
        return site.go(request, "/schedule/runs", text, good=plan.enqueued > 0, **page)
    return site.confirm(
        request, form, title=_("Backfill %(name)s?", name=name),
        text=_(
            "This enqueues %(number)s, one for each tick from %(start)s to %(end)s.",
            number=number, start=start, end=end,
        ),
        button=_("Enqueue %(number)s", number=number), danger=False,
        back=back_to(request, "/schedule/runs", **page),
    )  # fmt: skip


def _longest(runs: list[ScheduleRun]) -> float:
    return max((run.duration or 0.0 for run in runs), default=0.0) or 1.0


def _zone(tz: str | None) -> tzinfo:
    try:
        return ZoneInfo(tz) if tz else UTC
    except (ZoneInfoNotFoundError, ValueError):
        return UTC


def _local(time: datetime, zone: tzinfo) -> str:
    return date_and_time(time.astimezone(zone))


def _moment(field: str, form: Fields, zone: tzinfo) -> datetime:
    """Parse a time from the form; without an offset, it is in the schedule's time zone."""
    text = form.text(field, 40).strip()
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        problem = phrase("%(field)s: “%(text)s” is not a time.", field=field, text=text)
        raise InvalidTask(problem) from None
    return time if time.tzinfo is not None else time.replace(tzinfo=zone)

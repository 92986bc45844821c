"""Planted mistakes in scripts, each of which the model check must find.

A mistake is in force during the block of its context manager. Mistakes in servers and clients are
in tests/simulation/mutants.py.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any, Final

from qsync.broker import ops
from qsync.broker.script import Script
from tests.support.mutation import planted

Plant = Callable[[], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def exchanged(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute of `owner` during the block.

    Raises TypeError if the new value is a function that does not take the arguments of the old
    function.
    """
    before = getattr(owner, name)
    if inspect.isfunction(before) and inspect.isfunction(value):
        parameters = inspect.signature(before).parameters.values()
        named = [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]
        args = [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
        inspect.signature(value).bind(*args, **dict.fromkeys(named))
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def named(*plants: Plant) -> dict[str, Plant]:
    """Return the mistakes, by the names under which reports list them."""
    return {plant.__name__.replace("_", " "): plant for plant in plants}


def settle_without_token() -> contextlib.AbstractContextManager[None]:
    """Any server may settle a task, with any token."""
    right = "elseif owner == args[first + stride * (i - 1) + 1] then"
    return planted("include/check_leases.lua", right, "elseif true then")


def repeated_enqueue_is_a_duplicate() -> contextlib.AbstractContextManager[None]:
    """An enqueue that is repeated after a lost reply is refused.

    The mistake shows only in calls without a sender, because the last call of a client is answered
    from its record. The simulation plants the corresponding mistake in clients.
    """
    right = "if old and old ~= message or holder or repeated then"
    return planted("include/insert_tasks.lua", right, "if old or holder or repeated then")


@contextlib.contextmanager
def enqueue_not_kept() -> Iterator[None]:
    """A client's enqueue that is repeated after a lost reply is executed again."""
    right = "if sender ~= '' and #others < 3 * #tasks.ids then"
    in_flow_variant = "if sender ~= '' and (created > 0 or #others < 3 * #tasks.ids) then"
    record = "ARGV.number .. ' ' .. now_text"
    kept = f"redis.call('HSET', KEYS.calls, ARGV.sender, {record})"
    with (
        planted("enqueue.lua", right, "if false then"),
        planted("enqueue.lua", in_flow_variant, "if false then"),
        planted("enqueue_one.lua", kept, ""),
    ):
        yield


def promoted_but_not_pending() -> contextlib.AbstractContextManager[None]:
    """Due tasks leave their set but do not become pending."""
    right = "      to_pending(due)\n"
    return planted("include/promote_due.lua", right, "")


def crash_not_counted() -> contextlib.AbstractContextManager[None]:
    """An expired lease does not count as a crash."""
    return planted("include/recover_expired.lua", "      crashes = crashes + 1\n", "")


def lock_outlives_death() -> contextlib.AbstractContextManager[None]:
    """A task that dies keeps its lock."""
    return planted("kill.lua", "  unlock(now, dying)\n", "")


@contextlib.contextmanager
def due_tasks_moved_in_two_steps() -> Iterator[None]:
    """A fetch removes due tasks from their set, and only the server's next fetch makes them
    pending."""
    moved = """local stash = redis.call('HGET', KEYS.meta, 'stash:' .. server)
if stash then
  local back = {}
  for id in string.gmatch(stash, '%S+') do
    back[#back + 1] = id
  end
  redis.call('HDEL', KEYS.meta, 'stash:' .. server)
  to_pending(back)
end
"""
    right = "      to_pending(due)\n"
    call, with_server = "promote_due(now, limit)", "promote_due(now, limit, server)"
    wrong = "      redis.call('HSET', KEYS.meta, 'stash:' .. server, table.concat(due, ' '))\n"
    with (
        planted("fetch.lua", "-- 1 promote\n", moved),
        planted("fetch.lua", f"moved = {call}", f"moved = {with_server}"),
        planted("fetch.lua", f"rest = {call}", f"rest = {with_server}"),
        planted("include/promote_due.lua", call, with_server),
        planted("include/promote_due.lua", right, wrong),
    ):
        yield


def retry_without_token() -> contextlib.AbstractContextManager[None]:
    """Any server may retry a task, with any token."""
    right = "local held, held_ids, replies, lost = check_leases(ARGV, 2, 4)\n"
    return planted("retry.lua", right, f"{_ANYBODYS}{right}")


def result_stored_before_the_token_check() -> contextlib.AbstractContextManager[None]:
    """A script stores a result before it has checked that the sender holds the lease."""
    right = "local gone, done, completed, results = {}, {}, {}, {}\n"
    first = """for i = 3, stride == 4 and #ARGV or 0, 4 do
  if ARGV[i + 3] ~= '' then
    redis.call('HSET', KEYS.results, ARGV[i], ARGV[i + 3])
  end
end
"""
    return planted("complete.lua", right, f"{first}{right}")


def no_script_runs_out_of_memory() -> contextlib.AbstractContextManager[None]:
    """No script may run while the store is out of memory."""
    real = ops.load

    def load(name: str, *, allow_oom: bool | None = None, flow: bool = False) -> Script:
        return real(name, allow_oom=False, flow=flow)

    return exchanged(ops, "load", load)


@contextlib.contextmanager
def lock_with_a_fixed_duration() -> Iterator[None]:
    """A unique lock lasts for one minute, even if its task runs longer."""
    window = "take(lock, option[4], id)"
    forever = "redis.call('HGET', KEYS.unique, '@' .. holder) == lock"
    with (
        planted("include/insert_tasks.lua", window, "take(lock, 60000000, id)"),
        planted("include/unique_locks.lua", forever, "false"),
    ):
        yield


@contextlib.contextmanager
def fetch_without_number() -> Iterator[None]:
    """A fetch that is executed twice takes different tasks each time."""
    with (
        planted("fetch.lua", "if number < before then", "if false then"),
        planted("fetch.lua", "if number == before then", "if false then"),
    ):
        yield


def unbounded_promotion() -> contextlib.AbstractContextManager[None]:
    """A fetch promotes any number of tasks."""
    right = "local due = due_ids(set_key, now, limit)"
    return planted("include/promote_due.lua", right, "local due = due_ids(set_key, now, 1000000)")


def recovery_reads_messages() -> contextlib.AbstractContextManager[None]:
    """Recovery decodes the messages of the recovered tasks."""
    right = "  local owners = redis.call('HMGET', KEYS.owner, unpack(lapsed))\n"
    reads = """  for _, message in ipairs(redis.call('HMGET', KEYS.tasks, unpack(lapsed))) do
    if message then
      cmsgpack.unpack(message)
    end
  end
"""
    return planted("include/recover_expired.lua", right, f"{reads}{right}")


def repeated_enqueue_restarts_the_task() -> contextlib.AbstractContextManager[None]:
    """A repeated enqueue restarts the task."""
    right = "local old = stored[i] and string.sub(stored[i], #stamped + 1) or here[id]"
    return planted("include/insert_tasks.lua", right, "local old = here[id]")


def finished_id_accepted_again() -> contextlib.AbstractContextManager[None]:
    """An id that a caller chose is free as soon as its task has left the queue."""
    right = "local recent = recent_places(now, tasks, times)"
    return planted("enqueue.lua", right, "local recent = {}")


@contextlib.contextmanager
def publish_aborts_half_way() -> Iterator[None]:
    """If the user may not publish, the script fails after tasks have left `active` and before they
    enter another state."""
    publish = "for _, id in ipairs({}) do redis.call('SPUBLISH', {}, id) end\n"
    killed, completed = "  release_leases(dying)\n", "forget_tasks(now, gone, bare)\n"
    with (
        planted("kill.lua", killed, killed + publish.format("dying", "KEYS.done")),
        planted("complete.lua", completed, completed + publish.format("done", "KEYS.done")),
    ):
        yield


def refused_publish_is_an_error() -> contextlib.AbstractContextManager[None]:
    """If the user may not publish, a script completes its transition and then returns an error."""
    return planted("include/ended_tasks.lua", "redis.pcall('SPUBLISH'", "redis.call('SPUBLISH'")


def runnable_time_lost_on_hand_back() -> contextlib.AbstractContextManager[None]:
    """The waiting time of a task that is handed back counts from when the task was enqueued."""
    right = "  note_runnable(now, head)\n"
    return planted("hand_back.lua", right, "")


def tick_of_a_changed_schedule() -> contextlib.AbstractContextManager[None]:
    """A tick is enqueued although its schedule has been replaced since the server read it."""
    right = "  elseif string.sub(record, 1, 8) ~= stamp or tonumber(score or '') ~= due then\n"
    wrong = "  elseif tonumber(score or '') ~= due then\n"
    return planted("tick_schedules.lua", right, wrong)


def pause_outlives_its_schedule() -> contextlib.AbstractContextManager[None]:
    """A schedule that is stored under the name of a deleted schedule inherits its pause."""
    return planted("delete_schedule.lua", "if not of_program then\n", "if false then\n")


def unfair_priority() -> contextlib.AbstractContextManager[None]:
    """A fairness key of another priority continues at the virtual time, even if its last tag is
    higher."""
    right = "      tag = math.max(band_time(priority), before)\n"
    wrong = "      tag = priority == normal_priority and math.max(band_time(5), before)\n"
    return planted("include/fairness_tags.lua", right, f"{wrong}        or band_time(priority)\n")


def handed_back_to_the_head_of_the_queue() -> contextlib.AbstractContextManager[None]:
    """Tasks that are handed back or recovered go to the head of the whole queue."""
    right = "    local base = #band > 0 and head_of_band(priority) - #band - 1\n"
    wrong = """    local first = redis.call('ZRANGE', KEYS.pending, 0, 0, 'WITHSCORES')
    local base = (tonumber(first[2] or '') or band_time(priority)) - #band - 1
"""
    into = "      args[#args + 1] = into_band(base + i, priority)\n"
    stack = contextlib.ExitStack()
    stack.enter_context(planted("include/fairness_tags.lua", right, wrong))
    stack.enter_context(
        planted("include/fairness_tags.lua", into, "      args[#args + 1] = base + i\n")
    )
    return stack


def priority_lost_on_promotion() -> contextlib.AbstractContextManager[None]:
    """Scheduled tasks get normal priority when they become due."""
    right = "    args[2 * i - 1] = next_tag(keys[i] or '')\n"
    wrong = "    args[2 * i - 1] = next_tag(string.match(keys[i] or '', '^[^\\255]*'))\n"
    return planted("include/fairness_tags.lua", right, wrong)


def replaced_task_runs_the_old_payload() -> contextlib.AbstractContextManager[None]:
    """A call that replaces a waiting task changes its due time, but not its payload."""
    right = "  redis.call('HSET', KEYS.tasks, holder, new_message)\n"
    return planted("include/replace_holder.lua", right, "")


def successor_with_the_old_payload() -> contextlib.AbstractContextManager[None]:
    """A task that was replaced while it ran restarts with its old payload."""
    right = "  redis.call('HSET', KEYS.tasks, unpack(bodies))\n"
    return planted("include/start_successors.lua", right, "")


def successor_lost_in_a_crash() -> contextlib.AbstractContextManager[None]:
    """A task that was replaced while it ran is recovered with the old payload."""
    right = "  replaced, crashed, crashed = split_successors(crashed, crashed)\n"
    wrong = "  replaced = split_successors({}, {})\n"
    return planted("include/recover_expired.lua", right, wrong)


def debounce_without_a_maximum() -> contextlib.AbstractContextManager[None]:
    """Calls can postpone a debounced task forever."""
    right = "    due = math.min(due, first + option[10])\n"
    return planted("include/replace_holder.lua", right, "")


def repeated_replacement_counts_again() -> contextlib.AbstractContextManager[None]:
    """When a call is repeated, its task replaces the task of a later call."""
    right = "if sender ~= '' and (created > 0 or #others < 3 * #tasks.ids) then"
    return planted("enqueue.lua", right, "if sender ~= '' and #others == 0 then")


# Limits


def in_flow(lines: str) -> str:
    """Mark lines as belonging only to the flow variants."""
    return f"-- flow:\n{lines}-- end flow\n"


def paused_type_is_fetched() -> contextlib.AbstractContextManager[None]:
    """A fetch leases tasks of a paused type."""
    return planted(
        "include/lease_pending.lua", "body and any_paused and paused_limit(body)", "false"
    )


def slot_freed_twice() -> contextlib.AbstractContextManager[None]:
    """A task gives back two slots when it stops being active."""
    right = "      state[field] = math.max(0, state[field] - 1)\n"
    return planted("include/limit_states.lua", right, right.replace("- 1", "- 2"))


def slot_kept_by_an_expired_lease() -> contextlib.AbstractContextManager[None]:
    """When tasks with expired leases are recovered, they do not give back their slots."""
    right = "  release_leases(taken)\n"
    before, after = (
        in_flow("  local used = limits_used\n  limits_used = false\n"),
        in_flow("  limits_used = used\n"),
    )
    return planted("include/recover_expired.lua", right, f"{before}{right}{after}")


def slot_kept_by_a_failed_task() -> contextlib.AbstractContextManager[None]:
    """A task that waits for a retry keeps its slots."""
    right = "  release_leases(held_ids)\n"
    return planted("retry.lua", right, f"{in_flow('  limits_used = false' + chr(10))}{right}")


def rate_taken_by_a_repeated_fetch() -> contextlib.AbstractContextManager[None]:
    """A repeated fetch counts the starts of its tasks again."""
    right = "  local ids, messages = replay_fetch(batch, token)\n"
    again = """  begin_limits(now)
  read_holds(ids)
  for _, id in ipairs(ids) do
    take_limits(held_limits[id] or {})
  end
  settle_limits()
"""
    return planted("fetch.lua", right, f"{right}{in_flow(again)}")


def waiter_not_moved() -> contextlib.AbstractContextManager[None]:
    """When a slot is returned, no waiter is moved."""
    right = "  local opened = open_waiters() > 0\n"
    return planted("include/limit_waiters.lua", right, "  local opened = false\n")


def opening_not_stored() -> contextlib.AbstractContextManager[None]:
    """The opening time of a limit is not stored when its rate is used up."""
    right = "    if held < state.rule.slots and has_waiter(limit, state) then\n"
    return planted("include/limit_waiters.lua", right, "    if false then\n")


def opening_wakes_no_server() -> contextlib.AbstractContextManager[None]:
    """No server is woken for a limit that opens before all others."""
    right = "  return first < (before or math.huge)\n"
    return planted("include/limit_waiters.lua", right, "  return false\n")


def start_not_refunded() -> contextlib.AbstractContextManager[None]:
    """When a task that never started is handed back, its start is not given back."""
    return planted("hand_back.lua", "refund_starts(unstarted, leased_at)\n", "")


def refund_of_regained_starts() -> contextlib.AbstractContextManager[None]:
    """A start is given back although the rate has already regained it and other tasks have used
    it."""
    right = "    local regained = math.max(0, limits_now - oldest[limit])\n"
    return planted("include/limit_states.lua", right, "    local regained = 0\n")


def expired_start_refunded() -> contextlib.AbstractContextManager[None]:
    """An expired lease gives back its start although the handler may have begun."""
    right = "  release_leases(taken)\n"
    refund = in_flow("""  local leased_at = {}
  for _, id in ipairs(taken) do
    leased_at[id] = now
  end
  refund_starts(taken, leased_at)
""")
    return planted("include/recover_expired.lua", right, f"{refund}{right}")


def closed_limit_starts_tasks() -> contextlib.AbstractContextManager[None]:
    """Pending tasks start although a handler has closed their limit."""
    right = "state.closed > limits_now or early then"
    return planted("include/limit_states.lua", right, "early then")


def opened_limit_does_not_try_waiters() -> contextlib.AbstractContextManager[None]:
    """When an operator opens a limit, its waiters are not tried before the old opening time."""
    return planted("open_limit.lua", "if open_one_limit(now, limit) then\n", "if true then\n")


def waiter_of_a_cancelled_task() -> contextlib.AbstractContextManager[None]:
    """When a limited task is cancelled, its entry stays among the waiters."""
    return planted("cancel.lua", "      remove_waiters({ id })\n", "")


def new_task_before_waiters() -> contextlib.AbstractContextManager[None]:
    """A new task becomes pending although other tasks wait for its limit."""
    right = "    if not is_limit_open(state) or has_waiter(limits[i], state) then\n"
    return planted("include/limit_waiters.lua", right, "    if not is_limit_open(state) then\n")


def limited_leased_ahead() -> contextlib.AbstractContextManager[None]:
    """A server without free slots leases tasks with limits."""
    right = "      elseif limits and free <= 0 then\n"
    return planted("include/lease_pending.lua", right, "      elseif false then\n")


def raised_rule_does_not_move_waiters() -> contextlib.AbstractContextManager[None]:
    """When a rule is raised, no waiter is moved."""
    right = "  local name = string.match(field, '^!?(.*)$')\n"
    return planted("include/change_rules.lua", right, f"{right}  if true then return 1 end\n")


def fairness_restarts_despite_waiters() -> contextlib.AbstractContextManager[None]:
    """Fairness keys restart while limited tasks keep their tags, so new tasks overtake limited
    ones."""
    right = "  if not left and redis.call('EXISTS', KEYS.limited) == 1 then\n"
    return planted("include/wake_next.lua", right, "  if false then\n")


def bulk_call_passes_a_bound() -> contextlib.AbstractContextManager[None]:
    """Only the first task of a call counts towards the bound."""
    right = "tasks = math.max(waiting + created - most_tasks, 0),"
    wrong = "tasks = math.max(waiting + 1 - most_tasks, 0),"
    return planted("include/queue_bounds.lua", right, wrong)


def removed_bytes_still_counted() -> contextlib.AbstractContextManager[None]:
    """The size of messages that leave the queue is not subtracted."""
    right = "    add_bytes(-stored_bytes(ids))\n"
    return planted("include/forget_tasks.lua", right, "")


def scheduled_tasks_pass_a_bound() -> contextlib.AbstractContextManager[None]:
    """Tasks with a delay do not count towards a bound."""
    right = "ipairs({ KEYS.pending, KEYS.limited, KEYS.scheduled, KEYS.retry })"
    wrong = "ipairs({ KEYS.pending, KEYS.limited, KEYS.retry })"
    return planted("include/queue_bounds.lua", right, wrong)


def dropped_task_stays_ready() -> contextlib.AbstractContextManager[None]:
    """A pending task that is dropped for a new task still counts towards its limits."""
    return planted(
        "include/queue_bounds.lua", "      release_ready(ids)\n", "      local _ = ids\n"
    )


def holder_dropped_by_its_own_call() -> contextlib.AbstractContextManager[None]:
    """To make room for a new task, a call drops the task that another task of the call replaces."""
    return planted(
        "include/queue_bounds.lua", "        if not kept[id] then\n", "        if true then\n"
    )


def edit_of_a_changed_message() -> contextlib.AbstractContextManager[None]:
    """An edit replaces the message of a task even if the task has been edited or replaced since it
    was read."""
    right = "  or digest ~= ARGV.seen and stored ~= ARGV.message then\n"
    return planted("edit.lua", right, "  then\n")


def edited_dead_task_keeps_its_crashes() -> contextlib.AbstractContextManager[None]:
    """A dead task that is edited and run keeps its failed attempts."""
    return planted("edit.lua", "  revive(id, ARGV.key, ARGV.record)\n", "")


_ANYBODYS: Final = """for i = 2, #ARGV, 4 do
  ARGV[i + 1] = redis.call('HGET', KEYS.owner, ARGV[i]) or ARGV[i + 1]
end
"""


IN_SCRIPTS: Final = named(
    settle_without_token,
    repeated_enqueue_is_a_duplicate,
    enqueue_not_kept,
    promoted_but_not_pending,
    crash_not_counted,
    lock_outlives_death,
    due_tasks_moved_in_two_steps,
    retry_without_token,
    result_stored_before_the_token_check,
    no_script_runs_out_of_memory,
    lock_with_a_fixed_duration,
    fetch_without_number,
    unbounded_promotion,
    recovery_reads_messages,
    repeated_enqueue_restarts_the_task,
    finished_id_accepted_again,
    runnable_time_lost_on_hand_back,
    publish_aborts_half_way,
    refused_publish_is_an_error,
    unfair_priority,
    handed_back_to_the_head_of_the_queue,
    priority_lost_on_promotion,
    replaced_task_runs_the_old_payload,
    successor_with_the_old_payload,
    successor_lost_in_a_crash,
    debounce_without_a_maximum,
    repeated_replacement_counts_again,
    paused_type_is_fetched,
    slot_freed_twice,
    slot_kept_by_an_expired_lease,
    slot_kept_by_a_failed_task,
    rate_taken_by_a_repeated_fetch,
    waiter_not_moved,
    opening_not_stored,
    opening_wakes_no_server,
    start_not_refunded,
    refund_of_regained_starts,
    expired_start_refunded,
    closed_limit_starts_tasks,
    opened_limit_does_not_try_waiters,
    waiter_of_a_cancelled_task,
    new_task_before_waiters,
    limited_leased_ahead,
    raised_rule_does_not_move_waiters,
    fairness_restarts_despite_waiters,
    bulk_call_passes_a_bound,
    removed_bytes_still_counted,
    scheduled_tasks_pass_a_bound,
    dropped_task_stays_ready,
    holder_dropped_by_its_own_call,
    edit_of_a_changed_message,
    edited_dead_task_keeps_its_crashes,
)
"""Mistakes that the model check must find."""

IN_SCHEDULES: Final = named(tick_of_a_changed_schedule, pause_outlives_its_schedule)
"""Mistakes that the model check must find in the scripts of schedules."""

"""The actions of the model check, with their frequencies and the strategies for their arguments."""

from __future__ import annotations

from typing import Any, Final, get_args

from hypothesis import strategies as st

from qsync.bounds import Bounds, WhenFull
from qsync.broker.op_values import FetchPolicy
from qsync.limit import LimitRule
from tests.support.damage import HASHES, SETS, Damage
from tests.support.queue_driver import LEASE, STATES, S

IDS: Final = ("a", "b", "-1", "XX", "=l", "@b")
SERVERS: Final = ("s", "t", "s1")
SCHEDULES: Final = ("nightly", "weekly")
SENDERS: Final = ("", "x", "y")
POLICY: Final = FetchPolicy(lease_us=LEASE, max_crashes=2, dead_limit=1, dead_age_us=200 * S)
OPTIONS: Final[tuple[dict[str, Any], ...]] = (
    {},
    {"delay": 5},
    {"delay": 60, "fairness_key": "k"},
    {"unique": True, "unique_key": "l"},
    {"unique": 400, "unique_key": "l", "retention": 20},
    {"unique": 2000, "unique_key": "m", "delay": 5, "fairness_key": "k"},
    {"fairness_key": "k", "retention": 20},
    {"fairness_key": "m"},
    {"remember_us": 100 * S},
    {"remember_us": 4000 * S},
    {"remember_us": 4000 * S, "retention": 20},
    {"remember_us": 1000 * S, "unique": True, "unique_key": "l", "retention": 20},
    {"limits": ("c:1",)},
    {"limits": ("c:1",), "delay": 5, "fairness_key": "k"},
    {"limits": ("c:1", "r"), "retention": 20},
    {"limits": ("r",)},
    {"limits": ("r", "c:2", "free"), "unique": True, "unique_key": "l"},
    {"limits": ("c:2",), "fairness_key": "m"},
    {"limits": ("c:1",), "unique_key": "l", "on_duplicate": "replace"},
    {"limits": ("r",), "priority": 9},
    {"priority": 9},
    {"priority": 2, "fairness_key": "k"},
    {"priority": 9, "fairness_key": "k", "delay": 5},
    {"unique_key": "l", "on_duplicate": "replace"},
    {"unique_key": "l", "on_duplicate": "replace", "retention": 20, "fairness_key": "k"},
    {"unique_key": "l", "on_duplicate": "replace", "delay": 5, "priority": 9},
    {"unique_key": "l", "on_duplicate": "replace", "remember_us": 100 * S},
    {"unique_key": "m", "debounce": 5, "debounce_max": 12, "priority": 8},
    {"unique_key": "l", "debounce": 5, "debounce_max": 5, "fairness_key": "m"},
)

RULES: Final = {
    "c": LimitRule(concurrency=1),
    "r": LimitRule(rate=1, per_us=7 * S, burst=1),
}
"""Rules that the program sets; `free` has no rule."""

WEIGHTS: Final = {
    "enqueue": 6, "enqueue_finished": 2, "burst": 4, "tick": 2,
    "fetch": 6, "crash": 4, "await_due": 8,
    "complete": 3, "retry": 3, "kill": 3, "hand_back": 3, "stopped": 1,
    "pause_type": 2, "resume_type": 3,
    "set_limit": 2, "open_limit": 2, "put_limit_rules": 1, "put_program_bounds": 2, "set_bounds": 2,
    "renew": 2, "mark_started": 3, "progress": 1,
    "cancel": 4, "run": 4, "edit": 4, "reschedule": 3, "replace_active": 4,
    "delete": 1, "purge": 1, "abandon": 1, "pause": 1, "resume": 3,
    "repeat": 3, "time": 3, "wake": 5, "flush_scripts": 1, "fill": 1, "make_room": 2,
    "put_schedule": 2, "tick_schedules": 4, "delete_schedule": 1, "pause_schedule": 1,
    "resume_schedule": 1,
    "hush": 1, "speak": 2, "serve": 1, "damage": 1, "later_version": 1,
}  # fmt: skip

ids = st.sampled_from(IDS)
servers = st.sampled_from(SERVERS)
options = st.sampled_from(OPTIONS)
schedules = st.sampled_from(SCHEDULES)
records = st.sampled_from((b"a record", b"another record", b""))
states = st.sampled_from(("",) * 12 + STATES)
held = st.lists(st.integers(0, 11), min_size=1, max_size=3)
known = st.integers(0, 11)
steps = st.sampled_from(
    (LEASE // 3, 1, S - 1, 5 * S, LEASE, 40 * S, 200 * S, 3700 * S, -2 * S, -LEASE, -3600 * S)
)
damages = st.tuples(
    st.sampled_from(("lost", "lost", "lost", "spoilt", "evicted")),
    st.sampled_from(("tasks", "owner", "unique", *HASHES, *SETS)),
    st.integers(0, 5),
).map(lambda parts: Damage(*parts))
treatment = st.lists(
    st.sampled_from(
        ("fetch", "fetch", "complete", "retry", "kill", "hand_back", "stopped", "renew",
         "mark_started", "cancel", "run", "delete", "enqueue", "abandon")
    ),
    max_size=5,
)  # fmt: skip

bounds = st.builds(
    Bounds,
    max_tasks=st.sampled_from((None, 1, 2, 3, 5)),
    max_bytes=st.sampled_from((None, 150, 400)),
    when_full=st.sampled_from(get_args(WhenFull)),
)

ACTIONS: Final[dict[str, st.SearchStrategy[tuple[Any, ...]]]] = {
    "enqueue": st.tuples(st.lists(st.tuples(ids, options), min_size=1, max_size=4)),
    "enqueue_finished": st.tuples(known, st.booleans()),
    "burst": st.tuples(st.lists(options, min_size=1, max_size=4)),
    "tick": st.tuples(ids, options, st.sampled_from((0, 0, 0, 1, -1))),
    "put_schedule": st.tuples(schedules, st.sampled_from((S, 40 * S)), records),
    "tick_schedules": st.tuples(
        st.lists(
            st.tuples(
                schedules,
                st.sampled_from(("there", "there", "old", "any")),
                st.lists(st.tuples(ids, options), max_size=2),
            ),
            min_size=1,
            max_size=2,
            unique_by=lambda row: row[0],
        )
    ),
    "delete_schedule": st.tuples(schedules, st.booleans()),
    "pause_schedule": st.tuples(schedules),
    "resume_schedule": st.tuples(schedules),
    "fetch": st.tuples(
        servers,
        st.integers(0, 4),
        st.sampled_from((1, 1, 1, 1, 0, -1)),
        st.sampled_from((None, None, None, 0, 1)),
    ),
    "crash": st.tuples(st.booleans(), servers, st.integers(0, 4)),
    "await_due": st.tuples(known, st.sampled_from((0, 0, -1)), servers, st.integers(0, 4)),
    "complete": st.tuples(held, st.sampled_from((None, 0, 20 * S))),
    "retry": st.tuples(held, st.sampled_from((0, 5 * S, 60 * S))),
    "kill": st.tuples(held, st.booleans()),
    "hand_back": st.tuples(
        held,
        st.sampled_from((None, None, 0, 5 * S)),
        st.sampled_from((("", 0), ("", 0), ("r", 20 * S), ("c:1", 3 * S))),
        st.booleans(),
        st.sampled_from((0, 0, 3 * S, 20 * S, -S, None)),
    ),
    "set_limit": st.tuples(
        st.sampled_from(("c", "c:1", "r", "free")),
        st.sampled_from(
            (
                None,
                None,
                LimitRule(concurrency=2),
                LimitRule(rate=1, per_us=9 * S, burst=1),
                LimitRule(concurrency=1, rate=3, per_us=S, burst=3),
            )
        ),
    ),
    "open_limit": st.tuples(st.sampled_from(("r", "r", "c:1", "free"))),
    "put_limit_rules": st.tuples(
        st.sampled_from(("c", "r")), st.sampled_from((*RULES.values(), LimitRule(concurrency=3)))
    ),
    "put_program_bounds": st.tuples(bounds),
    "set_bounds": st.tuples(st.one_of(st.none(), bounds)),
    "pause_type": st.tuples(st.sampled_from(("type", "other", "other"))),
    "resume_type": st.tuples(st.sampled_from(("type", "other"))),
    "stopped": st.tuples(held),
    "renew": st.tuples(held, st.sampled_from((LEASE, S))),
    "mark_started": st.tuples(),
    "progress": st.tuples(held, st.integers(0, 9)),
    "cancel": st.tuples(known),
    "run": st.tuples(known, states),
    "edit": st.tuples(
        known,
        st.sampled_from(("", "", "scheduled", "retry")),
        st.sampled_from(("", "+0", f"+{30 * S}")),
        st.booleans(),
        st.sampled_from((0, 0, 0, 20)),
    ),
    "replace_active": st.tuples(st.sampled_from((None, None, 5))),
    "reschedule": st.tuples(
        known,
        st.sampled_from(("", "scheduled", "retry")),
        st.sampled_from((0, S, 30 * S)),
        st.booleans(),
    ),
    "delete": st.tuples(st.lists(known, min_size=1, max_size=3), states),
    "purge": st.tuples(states),
    "abandon": st.tuples(servers),
    "pause": st.tuples(),
    "resume": st.tuples(),
    "repeat": st.tuples(st.integers(0, 19)),
    "time": st.tuples(steps),
    "wake": st.tuples(),
    "flush_scripts": st.tuples(),
    "fill": st.tuples(),
    "make_room": st.tuples(),
    "hush": st.tuples(),
    "speak": st.tuples(),
    "serve": st.tuples(servers),
    "later_version": st.tuples(st.integers(0, 19)),
    "damage": st.tuples(st.lists(damages, min_size=1, max_size=3), treatment),
}

# All actions share one strategy, because hypothesis leaves out rules at random, and a run without
# enqueues or fetches would test nothing.
actions = st.sampled_from([name for name, times in WEIGHTS.items() for _ in range(times)]).flatmap(
    lambda name: st.tuples(st.just(name), ACTIONS[name])
)

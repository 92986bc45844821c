"""Every operation uses only its declared keys. The tests make each call as a user with restricted
rights and on a cluster, because both refuse undeclared keys."""

from __future__ import annotations

from collections.abc import Iterator
from secrets import token_hex
from typing import Any

import pytest
import redis

from qsync.broker import ops, redis_clients, schedule_ops, views
from qsync.broker.blocking import Broker
from qsync.broker.call import Call
from qsync.broker.op_values import LeaseRef
from qsync.broker.script import Script
from qsync.keys import GlobalKeys, QueueKeys
from qsync.state import TaskState
from tests.scripts.test_ops_locks import NAME
from tests.scripts.test_ops_twice import ALL, Make, queue
from tests.support.queue_driver import BINARIES, START, Rig
from tests.support.stores import Cluster

LOOK: dict[str, Make] = {
    "show": lambda rig, held: views.get_tasks(rig.keys, ["a", "p", "s", "r", "c", "d"]),
    "counts": lambda rig, held: views.counts(rig.keys),
    "list_tasks": lambda rig, held: views.list_tasks(rig.keys, TaskState.DEAD, count=5),
    "overview": lambda rig, held: views.overview(rig.keys),
    "check_for_work": lambda rig, held: views.check_for_work(rig.keys, lease_us=1),
    "locate": lambda rig, held: views.pending_position(rig.keys, "p", lock=NAME, server="s"),
    "schedules": lambda rig, held: views.schedules(rig.keys),
    "due schedules": lambda rig, held: schedule_ops.due_schedules(rig.keys, now_us=rig.now),
    "stored schedules": lambda rig, held: schedule_ops.stored_schedules(rig.keys, ["daily", "x"]),
    "stored page": lambda rig, held: schedule_ops.stored_page(rig.keys, prefix="d"),
    "first stored": lambda rig, held: schedule_ops.stored_page(rig.keys, cursor=""),
    "schedule queues": lambda rig, held: schedule_ops.schedule_queues(rig.globals),
    "queues": lambda rig, held: views.queues(rig.globals),
    "registered": lambda rig, held: views.registered(rig.globals, "queue"),
    "servers": lambda rig, held: views.servers(rig.globals),
    "record": lambda rig, held: views.server_info(rig.globals, "s"),
}


@pytest.fixture(params=BINARIES)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with Rig(request.param) as rig:
        yield rig
        rig.client.acl_deluser("narrow")


def as_user(rig: Rig, call: Call[Any], *rules: str) -> Any:
    """Make a call as a user who may run all commands but has access only to what these rules grant;
    return the reply."""
    word = token_hex()
    own = ["reset", "on", f">{word}", "+@all"]
    rig.client.execute_command("ACL", "SETUSER", "narrow", *own, *rules)
    options: dict[str, Any] = {"username": "narrow", "password": word, "protocol": 2}
    with redis.Redis(unix_socket_path=rig.socket, **options) as user:
        return call.decode(user.eval(call.script.text, len(call.keys), *call.keys, *call.args))


@pytest.mark.faults(47, 54)
@pytest.mark.parametrize("name", ALL | LOOK)
def test_user_with_access_to_the_declared_keys_can_make_each_call(rig: Rig, name: str) -> None:
    call = (ALL | LOOK)[name](rig, queue(rig))
    channels = [f"&{key}" for key in call.keys if key == rig.keys.done]
    as_user(rig, call, *[f"~{key}" for key in call.keys], *channels)


def test_user_with_fewer_rights_is_refused(rig: Rig) -> None:
    """A call without the right to one of its keys fails, so the test above detects undeclared
    keys."""
    call = ops.enqueue(rig.keys, rig.tasks("a"), sender="x", number=1, now_us=rig.now)
    less = [f"~{key}" for key in call.keys[1:]]
    with pytest.raises(redis.ResponseError):
        as_user(rig, call, *less)
    look = Script("look", "return redis.call('HLEN', ARGV[1])", sha="", keys=())
    undeclared: Call[int] = Call(look, keys=(), args=(call.keys[0],), decode=int)
    with pytest.raises(redis.ResponseError):
        as_user(rig, undeclared, *less)


class InCluster(Rig):
    """A queue in a cluster, with its own prefix."""

    def __init__(self, cluster: Cluster, prefix: str) -> None:
        self.keys, self.globals = QueueKeys(prefix, "queue"), GlobalKeys(prefix)
        self.broker = self._unlimited = Broker(redis_clients.parse(cluster.url))
        self.client = cluster.client()
        self.now = START
        self._number = 0


@pytest.mark.faults(48, 49)
def test_every_operation_works_in_a_cluster(cluster: Cluster) -> None:
    for at, name in enumerate(ALL | LOOK):
        with InCluster(cluster, f"ops-keys-{at}") as rig:
            held: list[LeaseRef] = queue(rig)
            rig.run((ALL | LOOK)[name](rig, held))

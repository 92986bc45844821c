"""python -m tests.sim --seeds N [--from M]: live through many seeds and say what was wrong.

--show ID prints the events that speak of a task, --all every event. --mistakes plants each known
mistake and says how many seeds it takes to find it.
"""

from __future__ import annotations

import argparse
import sys
import time

import redis

from tests.rig import shared_store
from tests.sim.history import live
from tests.sim.mutants import MUTANTS, caught
from tests.sim.verdict import explain


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim")
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--from", dest="first", type=int, default=0)
    parser.add_argument("--show", metavar="ID")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--mistakes", action="store_true")
    options = parser.parse_args()
    socket = str(shared_store("valkey").config["unixsocket"])
    with redis.Redis(unix_socket_path=socket, protocol=2) as client:
        return find_mistakes(client, options) if options.mistakes else soak(client, options)


def find_mistakes(client: redis.Redis, options: argparse.Namespace) -> int:
    """Print a table of the planted mistakes, and of the seeds that it took to find each."""
    missed = 0
    for name, plant in MUTANTS.items():
        seeds = range(options.first, options.first + options.seeds)
        outcome = caught(plant, client, seeds)
        if outcome is None:
            missed += 1
            say(f"| {name} | not within {options.seeds} |")
        else:
            say(f"| {name} | {outcome.seed + 1 - options.first} |")
    return 1 if missed else 0


def soak(client: redis.Redis, options: argparse.Namespace) -> int:
    """Live through many seeds."""
    began = time.monotonic()
    bad, calls, lapsed, tasks, recreated = [], 0, 0, 0, 0
    for seed in range(options.first, options.first + options.seeds):
        outcome = live(seed, client)
        calls, lapsed = calls + outcome.calls, lapsed + outcome.lapsed
        tasks, recreated = tasks + outcome.tasks, recreated + outcome.recreated
        if outcome.wrong:
            bad.append(seed)
            say(f"seed {seed}:", *outcome.wrong[:8], sep="\n    ")
        if options.all:
            say(*map(repr, outcome.events), sep="\n")
        elif options.show:
            say(*explain(outcome.events, options.show), sep="\n")
        done = seed + 1 - options.first
        if done % 100 == 0:
            say(f"{done} seeds, {done / (time.monotonic() - began):.1f}/s, {len(bad)} bad")
    took = time.monotonic() - began
    say(
        f"{options.seeds} seeds in {took:.1f} s: {options.seeds / took:.1f}/s, {calls} calls, "
        f"{tasks} tasks, {lapsed} lapsed leases, {recreated} made again; bad: {bad or 'none'}"
    )
    return 1 if bad else 0


def say(*words: object, sep: str = " ") -> None:
    sys.stdout.write(sep.join(map(str, words)) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

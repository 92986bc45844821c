"""python -m tests.simulation --seeds N [--from M]: run many seeds and print the problems found.

--seed N repeats that seed exactly. --show ID prints the events of a task, and --all prints every
event. --processes P divides the seeds among P processes, each with its own store. The program
prints its progress once a minute; Ctrl-C or SIGTERM ends it with the verdict so far. --mistakes
plants each known mistake and prints how many seeds it takes to find the mistake.
"""

from __future__ import annotations

import argparse
import sys
import time
from itertools import islice

import redis

from tests.chaos.progress import Progress
from tests.simulation.history import Outcome
from tests.simulation.mutants import MUTANTS, caught
from tests.simulation.runs import SHOWN, Summary, outcomes, spread
from tests.simulation.verdict import explain
from tests.support.queue_driver import shared_store


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--from", dest="first", type=int, default=0)
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only each Nth seed")
    parser.add_argument("--within", type=float, metavar="SECONDS", help="end after this time")
    parser.add_argument("--at-least", type=int, default=0, metavar="N", help="but not before N")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--show", metavar="ID")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--json", action="store_true", help="print only a summary")
    parser.add_argument("--mistakes", action="store_true")
    parser.add_argument("--seed", type=int, metavar="N", help="run this seed only")
    options = parser.parse_args()
    if options.seed is not None:
        options.first, options.seeds, options.every = options.seed, 1, 1
    if options.processes > 1 and not options.mistakes:
        began = time.monotonic()
        with Progress() as progress:
            summary = spread(
                options.seeds,
                first=options.first,
                processes=options.processes,
                within_s=options.within,
                at_least=options.at_least,
                progress=progress,
            )
        return finish(began, summary)
    socket = str(shared_store("valkey").config["unixsocket"])
    with redis.Redis(unix_socket_path=socket, protocol=2) as client:
        return find_mistakes(client, options) if options.mistakes else soak(client, options)


def find_mistakes(client: redis.Redis, options: argparse.Namespace) -> int:
    """Print a table of the planted mistakes and the number of seeds that it took to find each."""
    missed = 0
    for name, plant in MUTANTS.items():
        seeds = range(options.first, options.first + options.seeds)
        outcome = caught(plant, client, seeds)
        if outcome is None:
            missed += 1
            say(f"| {name} | not found in {options.seeds} |")
        else:
            say(f"| {name} | {outcome.seed + 1 - options.first} |")
    return 1 if missed else 0


def soak(client: redis.Redis, options: argparse.Namespace) -> int:
    """Run many seeds."""
    began = time.monotonic()

    def tell(outcome: Outcome) -> None:
        if options.json:
            return
        if outcome.wrong:
            say(f"seed {outcome.seed}:", *outcome.wrong[:SHOWN], sep="\n    ")
        if options.all:
            say(*map(repr, outcome.events), sep="\n")
        elif options.show:
            say(*explain(outcome.events, options.show), sep="\n")

    last = options.first + options.seeds * options.every
    seeds = range(options.first, last, options.every)
    with Progress() as progress:
        summary = outcomes(
            client,
            seeds,
            within_s=options.within,
            at_least=options.at_least,
            progress=progress,
            tell=tell,
        )
    if options.json:
        say(summary.encode())
        return 0
    return finish(began, summary)


def finish(began: float, summary: Summary) -> int:
    """Print the summary and return the exit code."""
    took = time.monotonic() - began
    for seed, wrong in islice(summary.bad.items(), SHOWN):
        say(f"seed {seed}:", *wrong, sep="\n    ")
    say(f"{took:.1f} s, {summary.seeds / took:.1f} seeds/s: {summary}")
    return 1 if summary.bad else 0


def say(*words: object, sep: str = " ") -> None:
    sys.stdout.write(sep.join(map(str, words)) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

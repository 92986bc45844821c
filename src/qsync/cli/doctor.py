"""`qsync doctor`: checks the store, and audits and repairs the data of queues."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from dataclasses import asdict
from typing import Annotated, Final

import typer

from qsync.broker.acl import Role
from qsync.broker.address import Address
from qsync.broker.aio import AsyncBroker
from qsync.cli.command import NOT_DONE, USAGE, exit_with
from qsync.cli.options import Json, OnlyQueue, StoreOptions
from qsync.cli.output import print_json, print_line
from qsync.cli.store import connections_of, exit_unknown_queue
from qsync.diagnostics.audit import MEANINGS, Auditor, Damage, Kind, Report
from qsync.diagnostics.doctor import Doctor, Finding, Level
from qsync.errors import QsyncError
from qsync.inspector import Inspector
from qsync.keys import check_name
from qsync.worker.logs import escape

_MARKS: Final[dict[Level, tuple[str, str]]] = {
    "ok": ("ok", "green"),
    "warning": ("warning", "yellow"),
    "problem": ("PROBLEM", "red"),
    "unknown": ("unknown", "cyan"),
}
NAMES_SHOWN: Final = 5
"""Maximum number of damaged tasks listed per kind of damage; --json lists all."""

STORE_TIMEOUT_S: Final = 10.0


def doctor(
    *,
    store: StoreOptions,
    role: Annotated[
        Role | None,
        typer.Option(
            help="Check the permissions of this role.  [default: any role]", show_default=False
        ),
    ] = None,
    audit: Annotated[
        bool,
        typer.Option(
            "--audit",
            help="Check the data of the queues instead of the store's settings. The "
            "audit reads in short steps, and writes only with --repair.",
        ),
    ] = False,
    queue: OnlyQueue = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Repair the damage that --audit finds.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check whether the store is suitable for qsync, and suggest what to change.

    With --audit, check the data of the queues instead; with --audit --repair, also repair the
    damage. An audit and a repair can run while the queues are in use.

    Exit codes: 0 ok, 1 problem found or damage left, 2 usage.
    """
    if (queue is not None or repair) and not audit:
        exit_with("--queue and --repair need --audit", USAGE)
    if role is not None and audit:
        exit_with("--role and --audit cannot be used together", USAGE)
    connections, _ = connections_of(store, patience=STORE_TIMEOUT_S)
    prefix = connections.prefix
    try:
        if queue is not None:
            check_name("queue", queue)
        with contextlib.closing(connections):
            address = connections.address
            if audit:
                sound = asyncio.run(_audit(address, prefix, queue, repair=repair, as_json=as_json))
            else:
                sound = _examine(Doctor(address, prefix=prefix, role=role), as_json=as_json)
    except QsyncError as error:
        exit_with(str(error), USAGE if isinstance(error, ValueError) else NOT_DONE)
    raise typer.Exit(0 if sound else NOT_DONE)


def _examine(doctor: Doctor, *, as_json: bool) -> bool:
    """Examine the store, print the findings, and return whether none is a problem."""
    findings = asyncio.run(doctor.examine())
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            _print_finding(finding)
    return all(finding.level != "problem" for finding in findings)


async def _audit(
    address: Address, prefix: str, queue: str | None, *, repair: bool, as_json: bool
) -> bool:
    """Audit the queues, repair them if asked to, and return whether no damage is left."""
    broker = AsyncBroker(address, connections=1)
    try:
        auditor = Auditor(broker, prefix=prefix)
        report = await auditor.audit(queue)
        if queue is not None and not (report.ids or report.damages or report.unknown):
            await _check_queue(Inspector(broker, prefix=prefix), queue)
        mended: Counter[Kind] = Counter()
        after = report
        if repair and report.damages:
            mended = await auditor.repair(report.damages)
            after = await auditor.audit(queue)
    finally:
        await broker.aclose()
    if as_json:
        print_json({
            **asdict(report),
            "damages": [asdict(damage) for damage in report.damages],
            "mended": dict(mended),
            "left": [asdict(damage) for damage in after.damages],
        })  # fmt: skip
    else:
        _print_report(report, mended, after, repair=repair)
    return not after.damages and not after.truncated


async def _check_queue(inspector: Inspector, queue: str) -> None:
    """Exit if there is no queue with this name."""
    if queue not in await inspector.queue_names():
        await exit_unknown_queue(inspector, queue)


def _print_finding(finding: Finding) -> None:
    mark, colour = _MARKS[finding.level]
    node = f" [{finding.node}]" if finding.node else ""
    text = escape(f"{finding.name}{node}: {finding.text}")
    typer.echo(f"{typer.style(f'{mark:8}', fg=colour)}{text}")


def _print_report(report: Report, mended: Counter[Kind], after: Report, *, repair: bool) -> None:
    for text in report.unknown:
        print_line(f"unknown: {text}")
    _print_damages(report.damages)
    if report.lost_payloads:
        print_line(f"{report.lost_payloads} ended tasks have no message; they can be deleted")
    for kind, number in mended.items():
        print_line(f"repaired: {kind}, {number}: {MEANINGS[kind][1]}")
    if repair and after.damages:
        print_line("still damaged:")
        _print_damages(after.damages)
    queues = ", ".join(report.queues) or "none"
    print_line(f"{report.ids} entries in queues: {queues}; {len(report.damages)} damaged")
    if report.truncated:
        print_line("there is more damage: repair, then audit again")


def _print_damages(damages: list[Damage]) -> None:
    for kind, (meaning, cure) in MEANINGS.items():
        names = [
            " ".join(filter(None, (damage.queue, damage.id)))
            for damage in damages
            if damage.kind == kind
        ]
        if names:
            more = f", and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
            print_line(f"{kind}: {meaning}: {', '.join(names[:NAMES_SHOWN])}{more}")
            print_line(f"  with --repair: {cure}" if cure else "  --repair cannot repair this")

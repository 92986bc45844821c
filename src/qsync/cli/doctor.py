"""`qsync doctor`: whether the store is fit for the queue, and what lies in it as it must be."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import asdict
from typing import Annotated, Any, Final

import typer

from qsync.broker.acl import Role
from qsync.broker.address import Address
from qsync.broker.aio import AsyncBroker
from qsync.cli.options import (
    App,
    Prefix,
    Url,
)
from qsync.cli.store import connections_of
from qsync.diagnostics.audit import MEANINGS, Auditor, Damage, Kind, Report
from qsync.diagnostics.doctor import Doctor, Finding, Level
from qsync.errors import QsyncError
from qsync.keys import check_name
from qsync.worker.logs import escape

_MARKS: Final[dict[Level, tuple[str, str]]] = {
    "ok": ("ok", "green"),
    "warning": ("warning", "yellow"),
    "problem": ("PROBLEM", "red"),
    "unknown": ("unknown", "cyan"),
}
SHOWN: Final = 5
"""How many damages of a kind are named; --json names all."""


def doctor(
    url: Url = None,
    prefix: Prefix = None,
    app: App = None,
    role: Annotated[
        Role | None,
        typer.Option(
            help="What the user of the URL is to have the rights for.  [default: any of them]",
            show_default=False,
        ),
    ] = None,
    audit: Annotated[
        bool,
        typer.Option(
            "--audit", help="Look at what lies in the queues instead. Reads, in short steps."
        ),
    ] = False,
    queue: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Audit this queue alone.", show_default=False),
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Mend what the audit finds, as far as it can be.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say whether the store is fit for the queue, and what to do where it is not.

    With --audit, say whether all that lies in the queues is as it must be; with --repair too, mend
    it. Both may be done while the queues are in use.

    Exits with 1 when there is a problem, or a damage that has not been mended.
    """
    if (queue is not None or repair) and not audit:
        _fail("--queue and --repair go with --audit")
    if role is not None and audit:
        _fail("--role does not go with --audit")
    connections, _ = connections_of(url, prefix, app, patience=10)
    name = connections.prefix
    try:
        if queue is not None:
            check_name("queue", queue)
        try:
            address = connections.address
            if audit:
                sound = asyncio.run(_audit(address, name, queue, repair=repair, as_json=as_json))
            else:
                sound = _examine(Doctor(address, prefix=name, role=role), as_json=as_json)
        finally:
            connections.close()
    except QsyncError as error:
        _fail(str(error), code=2 if isinstance(error, ValueError) else 1)
    raise typer.Exit(0 if sound else 1)


def _examine(doctor: Doctor, *, as_json: bool) -> bool:
    found = asyncio.run(doctor.examine())
    if as_json:
        _print_json([asdict(finding) for finding in found])
    else:
        for finding in found:
            _print_finding(finding)
    return all(finding.level != "problem" for finding in found)


async def _audit(
    address: Address, prefix: str, queue: str | None, *, repair: bool, as_json: bool
) -> bool:
    broker = AsyncBroker(address, connections=1)
    try:
        auditor = Auditor(broker, prefix=prefix)
        report = await auditor.audit(queue)
        mended: Counter[Kind] = Counter()
        left = report
        if repair and report.damages:
            mended = await auditor.repair(report.damages)
            left = await auditor.audit(queue)
    finally:
        await broker.aclose()
    if as_json:
        _print_json({
            **asdict(report),
            "damages": [asdict(damage) for damage in report.damages],
            "mended": dict(mended),
            "left": [asdict(damage) for damage in left.damages],
        })  # fmt: skip
    else:
        _print_report(report, mended, left, repair=repair)
    return not left.damages and not left.truncated


def _print_finding(finding: Finding) -> None:
    mark, colour = _MARKS[finding.level]
    where = f" [{finding.node}]" if finding.node else ""
    typer.echo(
        f"{typer.style(f'{mark:8}', fg=colour)}{finding.name}{where}: {escape(finding.text)}"
    )


def _print_report(report: Report, mended: Counter[Kind], left: Report, *, repair: bool) -> None:
    for text in report.unknown:
        typer.echo(f"unknown: {escape(text)}")
    _print_damages(report.damages)
    if report.lost_payloads:
        typer.echo(
            f"{report.lost_payloads} ended tasks have lost their message; they may be deleted"
        )
    for kind, number in mended.items():
        typer.echo(f"mended: {kind}, {number}: {MEANINGS[kind][1]}")
    if repair and left.damages:
        typer.echo("still found:")
        _print_damages(left.damages)
    queues = ", ".join(report.queues) or "none"
    typer.echo(f"{report.ids} entries in queues: {queues}; {len(report.damages)} damaged")
    if report.truncated:
        typer.echo("there is more: repair, and audit again")


def _print_damages(damages: list[Damage]) -> None:
    for kind, (meaning, cure) in MEANINGS.items():
        found = [damage for damage in damages if damage.kind == kind]
        if found:
            names = ", ".join(
                escape(" ".join(filter(None, (one.queue, one.id)))) for one in found[:SHOWN]
            )
            more = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            typer.echo(f"{kind}: {meaning}: {names}{more}")
            typer.echo(f"  with --repair: {cure}" if cure else "  not to be mended by --repair")


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


def _fail(message: str, *, code: int = 2) -> None:
    typer.echo(f"qsync doctor: {escape(message)}", err=True)
    raise typer.Exit(code)

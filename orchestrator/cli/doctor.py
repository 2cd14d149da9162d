"""The command `doctor`: check whether a sweep can run here."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from orchestrator.cli.completion import complete_spec
from orchestrator.cli.options import (
    AddressOption,
    HomeOption,
    JsonOption,
    WeightsOption,
    console,
    error_console,
    print_json,
)
from orchestrator.environment.home import home_at, weights_at
from trainer.plain_text import counted

if TYPE_CHECKING:
    from orchestrator.doctor.checks import Finding

STYLES = {"ok": "", "warning": "yellow", "error": "red"}


def doctor(
    spec: Annotated[
        str | None,
        typer.Argument(
            metavar="SPEC",
            help="A spec, whose addresses, tasks, weights and GPUs are checked, too.",
            autocompletion=complete_spec,
        ),
    ] = None,
    home: HomeOption = None,
    address: AddressOption = None,
    weights: WeightsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check what a sweep needs, on each node of a cluster, and print what is wrong and how to repair it.

    Checks this machine's limits, folders and proxies, the home, the study database and MLflow; with `--address` also
    the versions, home, GPUs, data, weights and cache of each node. Starts nothing. Exit status 1 if there is an error.
    A launch on a cluster does the checks of the servers and the nodes before it starts.
    """
    from orchestrator.doctor.checks import check_nodes, check_services
    from orchestrator.doctor.machine import check_machine
    from orchestrator.spec.loader import find_spec, load_cluster, load_spec

    path = find_spec(spec) if spec else None
    cluster = load_cluster(path) if path else None
    place = home_at(home, cluster)
    sweep = load_spec(path) if path else None
    weights = weights_at(weights, cluster)
    if cluster is not None:
        address = address or cluster.address

    with error_console.status("checking the servers"):
        findings = [*check_machine(place), *check_services(place)]

    # Without a usable home the nodes have nothing to check.
    if not any(finding.subject in ("addresses", "home") for finding in _errors(findings)):
        from orchestrator.drivers.ray.cluster import connected

        step = "checking the nodes" if address else "checking this machine"
        with error_console.status(step), connected(address) if address else contextlib.nullcontext():
            findings += check_nodes(place, sweep, weights, cluster=address is not None)

    if as_json:
        print_json({"errors": len(_errors(findings)), "findings": [dataclasses.asdict(each) for each in findings]})
    else:
        _print(findings)
    if _errors(findings):
        raise typer.Exit(1)


def _errors(findings: Sequence[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.verdict == "error"]


def _print(findings: Sequence[Finding]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("where", "what", "", "found"):
        table.add_column(name, overflow="fold")
    for finding in findings:
        style = STYLES[finding.verdict]
        table.add_row(finding.where, finding.subject, finding.verdict, finding.detail, style=style)
    console.print(table)

    for finding in findings:
        if finding.remedy:
            console.print(f"{finding.where}, {finding.subject}: {finding.remedy}")

    num_errors = len(_errors(findings))
    console.print(f"{counted(num_errors, 'error')}." if num_errors else "no errors.")

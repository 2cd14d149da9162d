"""The command `doctor`: whether a sweep would run here."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer
from rich.table import Table

from orchestrator.cli.options import AddressOption, HomeOption, WeightsOption, console
from orchestrator.doctor.checks import Finding, check_nodes, check_services
from orchestrator.environment.home import home_at
from orchestrator.spec.loader import find_spec, load_cluster, load_spec

STYLES = {"ok": "", "warning": "yellow", "error": "red"}


def doctor(
    spec: Annotated[
        str | None,
        typer.Argument(metavar="SPEC", help="A spec: its addresses, tasks, weights and GPUs are looked at, too."),
    ] = None,
    home: HomeOption = None,
    address: AddressOption = None,
    weights: WeightsOption = None,
) -> None:
    """Look at all that a sweep needs, on each node of a cluster, and say what is wrong and how to cure it.

    Home, record, MLflow; with --address each node's versions, home, GPUs, data, weights and cache. Nothing is
    started. Exit status 1 if something is wrong. A launch on a cluster looks at the same before it starts.
    """
    path = find_spec(spec) if spec else None
    cluster = load_cluster(path) if path else None
    place = home_at(home, cluster)
    sweep = load_spec(path) if path else None
    if cluster is not None:
        address, weights = address or cluster.address, weights or cluster.weights
    with console.status("looking at the servers"):
        findings = check_services(place)
    if all(finding.verdict != "error" or finding.subject not in ("addresses", "home") for finding in findings):
        from orchestrator.drivers.ray import cluster as ray_nodes

        looking = console.status("looking at the nodes" if address else "looking at this machine")
        with looking, ray_nodes.connected(address) if address else contextlib.nullcontext():
            findings += check_nodes(place, sweep, weights, cluster=address is not None)
    _print(findings)
    if any(finding.verdict == "error" for finding in findings):
        raise typer.Exit(1)


def _print(findings: list[Finding]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("where", "what", "", "found"):
        table.add_column(name, overflow="fold")
    for one in findings:
        table.add_row(one.where, one.subject, one.verdict, one.detail, style=STYLES[one.verdict])
    console.print(table)
    cures = [one for one in findings if one.remedy]
    for one in cures:
        console.print(f"{one.where}, {one.subject}: {one.remedy}", highlight=False, soft_wrap=True)
    wrong = sum(one.verdict == "error" for one in findings)
    told = "all is well" if not wrong else "1 thing is wrong" if wrong == 1 else f"{wrong} things are wrong"
    console.print(f"{told}.", highlight=False)

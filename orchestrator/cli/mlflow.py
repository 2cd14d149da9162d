"""The commands about MLflow: `ui` and `sync`."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from orchestrator.cli.options import HomeOption, OptionalSweepArgument, console, whole_number
from orchestrator.environment.home import Home, home_at
from orchestrator.environment.lookup import find_sweep, sweep_names
from orchestrator.errors import LeaseError, ServiceError, UserError
from orchestrator.redaction import redact
from trainer.plain_text import counted

REMOTE_BROWSER_VARIABLES = ("JUPYTERHUB_SERVICE_PREFIX", "JUPYTERHUB_API_URL", "VSCODE_PROXY_URI", "CODESPACE_NAME")
"""Variables of environments in which a browser reaches this machine through a proxy with another host name."""
LINE_EVERY_S = 10.0
"""Seconds between two lines of progress where the output is not a terminal."""


def sync(
    sweep: OptionalSweepArgument = None,
    home: HomeOption = None,
) -> None:
    """Make MLflow equal to the study database: log what it lacks, and restore what was deleted there.

    Trains nothing and changes no trial. Use it after runs were deleted in MLflow's page, after its database was lost,
    or with another address: `MLFLOW_TRACKING_URI=http://HOST:5000 sptune sync demo`.

    Exit status: 0 if MLflow has everything, 1 if something could not be logged, 2 for a mistake.
    """
    if sweep is not None:
        is_whole = _sync(sweep, home)
    else:
        # All are tried, whatever is wrong with one of them.
        results = [_sync_one_of_several(name, home) for name in sweep_names(home_at(home))]
        is_whole = all(results)
    if not is_whole:
        raise typer.Exit(1)


def _sync_one_of_several(sweep: str, home: str | None) -> bool:
    """Synchronize a sweep, print what keeps it from being done, and return whether MLflow has all of it."""
    try:
        return _sync(sweep, home)
    except LeaseError as error:
        console.print(f"{sweep}: left to its driver. {error}")
        return True
    except UserError as error:
        console.print(f"{sweep}: {error}")
        return False


def _sync(sweep: str, home: str | None) -> bool:
    """Synchronize one sweep, print what was done, and return whether MLflow has all of it."""
    from orchestrator.tracking.mlflow_sync import sync_sweep

    place, database, spec = find_sweep(home, sweep, writes=True)
    last_line_at = time.monotonic()
    # SQLite then puts its log into the file, which can be read and copied alone.
    with contextlib.closing(database), console.status(f"logging {spec.name} to MLflow") as status:

        def show(num_left: int) -> None:
            nonlocal last_line_at
            status.update(f"logging {spec.name} to MLflow: {_left(num_left)}")
            if not console.is_terminal and time.monotonic() - last_line_at > LINE_EVERY_S:
                last_line_at = time.monotonic()
                console.print(f"{spec.name}: {_left(num_left)}")

        outcome = sync_sweep(place, database, spec, show)

    parts = [
        (outcome.num_created, "run created", "runs created"),
        (outcome.num_restored, "run restored", "runs restored"),
        (outcome.num_removed, "second run of a trial removed", "second runs of a trial removed"),
        (outcome.num_logged, "trial or study logged", "trials and studies logged"),
    ]
    done = ", ".join(counted(count, one, several) for count, one, several in parts if count)
    if outcome.problem is None:
        console.print(f"{spec.name}: {f'{done}. ' if done else ''}MLflow has everything.")
        return True
    console.print(f"{spec.name}: {f'{done}. ' if done else ''}{_left(outcome.num_left)}: MLflow {outcome.problem}.")
    return False


def _left(number: int) -> str:
    return counted(number, "trial or study is left", "trials and studies are left")


def ui(
    home: HomeOption = None,
    port: Annotated[int, typer.Option(parser=whole_number(1, 65535), help="Port on the loopback address.")] = 5000,
    allowed_hosts: Annotated[
        str | None,
        typer.Option(
            metavar="HOST[,HOST]",
            help="Host names of a proxy, such as JupyterHub's, through which browsers come. Without them MLflow "
            "answers 403, `Invalid Host header`.",
        ),
    ] = None,
) -> None:
    """Serve the MLflow of a home at 127.0.0.1, and print the address of each sweep. Stop it with Ctrl-C.

    A home without permission to write is served from a copy of its database, so changes made in the page are lost.
    """
    place = home_at(home)
    if place.mlflow_file is None:
        if not place.mlflow_uri:
            raise UserError("this home has no MLflow: set MLFLOW_TRACKING_URI to the address of a server.")
        raise UserError(f"this home uses an MLflow server: open {redact(place.mlflow_uri)} in a browser.")
    if not place.mlflow_file.exists():
        raise UserError(
            f"{place.root} has no MLflow database yet; run `sptune launch demo --home {shlex.quote(place.root)}` first."
        )

    hosts = _host_names(allowed_hosts)
    _check_port(port)
    if os.access(place.mlflow_file, os.W_OK) and os.access(place.mlflow_file.parent, os.W_OK):
        from orchestrator.tracking.mlflow_locations import correct_locations

        correct_locations(place)
        _print_addresses(place, place.mlflow_uri, port, has_hosts=bool(hosts))
        # Ctrl-C and the exit status then belong to MLflow's server, and no process of ours waits beside it.
        os.execv(sys.executable, _server_command(place, place.mlflow_uri, port, hosts))
    _serve_snapshot(place, port, hosts)


def _serve_snapshot(home: Home, port: int, hosts: list[str]) -> None:
    """Serve a copy of the database of a home that cannot be written, with the artifacts where they are."""
    from orchestrator.tracking.mlflow_locations import snapshot

    with tempfile.TemporaryDirectory(prefix="sptune-ui-") as folder:
        try:
            uri = snapshot(home, Path(folder))
        except sqlite3.Error as error:
            raise UserError(f"MLflow's database {home.mlflow_file} cannot be read: {error}.") from None

        console.print(f"{home.root} cannot be written: this is a copy of its MLflow database as it is now.")
        _print_addresses(home, uri, port, has_hosts=bool(hosts))
        server = subprocess.Popen(_server_command(home, uri, port, hosts))
        # The copy is deleted when the server has ended.
        signal.signal(signal.SIGTERM, lambda *_: server.terminate())
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        code = server.wait()
    raise typer.Exit(code)


def _server_command(home: Home, uri: str, port: int, hosts: list[str]) -> list[str]:
    from orchestrator.tracking.mlflow_page import server_options

    # One worker process: SQLite allows one writer at a time.
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--workers", "1"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--artifacts-destination", str(home.mlflow_artifacts)]
    command += server_options()
    if hosts:
        # The page sends its requests with the proxy's origin, so that must be allowed, too.
        local = ["localhost", "localhost:*", "127.0.0.1", "127.0.0.1:*"]
        command += ["--allowed-hosts", ",".join([*local, *hosts, *(f"{host}:*" for host in hosts)])]
        origins = [f"{scheme}://{host}{end}" for host in hosts for scheme in ("https", "http") for end in ("", ":*")]
        command += ["--cors-allowed-origins", ",".join(origins)]
    return command


def _host_names(text: str | None) -> list[str]:
    """Return the host names in an option, which may be written as addresses."""
    names = []
    for part in (text or "").split(","):
        address = part.strip()
        if not address:
            continue
        host = urlsplit(address if "://" in address else f"//{address}").hostname
        if not host:
            raise UserError(f"--allowed-hosts {redact(address)}: write host names, such as hub.example.org.")
        names.append(host)
    return names


def _check_port(port: int) -> None:
    """Raise UserError if a server cannot listen at a port.

    Otherwise MLflow would start, fail, and leave its own trace on the screen.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except PermissionError:
            raise UserError(
                f"port {port} is reserved for the administrator; choose one above 1023 with --port."
            ) from None
        except OSError:
            raise UserError(f"port {port} is taken, perhaps by another `sptune ui`; choose one with --port.") from None


def _print_addresses(home: Home, uri: str, port: int, *, has_hosts: bool) -> None:
    from orchestrator.tracking.mlflow_client import explain
    from orchestrator.tracking.mlflow_page import view_paths

    try:
        paths = view_paths(uri)
    except Exception as error:
        # SQLite, SQLAlchemy and MLflow each raise errors of their own.
        raise ServiceError(f"MLflow {explain(error)} ({home.mlflow_file}).") from None

    console.print(f"MLflow at http://127.0.0.1:{port} for {home.root}; Ctrl-C stops it.")
    for name, path in paths.items():
        console.print(f"  {name}: http://127.0.0.1:{port}{path}")

    if not has_hosts and any(os.environ.get(name) for name in REMOTE_BROWSER_VARIABLES):
        prefix = os.environ.get("JUPYTERHUB_SERVICE_PREFIX", "").rstrip("/")
        where = f"JupyterHub shows it at {prefix}/proxy/{port}/. " if prefix else ""
        console.print(
            f"{where}If a proxy's page answers 403, `Invalid Host header`, stop this and add --allowed-hosts HOST, "
            "with the host name in the browser's address bar."
        )

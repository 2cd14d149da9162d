"""Ray's nodes: join a cluster, list its nodes and resources, and call a function on each of them."""

from __future__ import annotations

import contextlib
import gc
import logging
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.drivers import signals
from orchestrator.drivers.ray.own_ray import PlainPath, deaf_processes, kill_at_shutdown, own_ray_options
from orchestrator.drivers.ray.token import check_token
from orchestrator.errors import ClusterError
from orchestrator.spec.resources import TrialResources
from trainer.plain_text import counted

ACCELERATOR_PREFIX = "accelerator_type:"
"""Prefix of the resources that stand for a kind of GPU in Ray."""
ANSWER_TIMEOUT_S = 120.0
"""Seconds that a node may take to answer. Its new process imports torch first."""
Request = TypeVar("Request")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Node:
    """A node of a Ray cluster. One host may run several."""

    name: str
    """Host name, address and the first letters of the id, which together are unique."""
    node_id: str
    resources: Mapping[str, float]


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect this process to the cluster at `address`, or start a local Ray that ends with this context.

    Raises:
        ClusterError: if there is no cluster at the address, it refuses the token, or this machine is not a node of it.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    # Errors of trials are in the study database.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)

    if address is not None:
        _check_address(address)
        check_token(address)

    options = contextlib.nullcontext({"address": address}) if address else own_ray_options()
    with options as place:
        try:
            _start(address, place)
        except KeyboardInterrupt:
            # Processes of Ray may run already.
            shut_down()
            raise

        try:
            yield
        finally:
            shut_down()


def _start(address: str | None, place: Mapping[str, Any]) -> None:
    try:
        with signals.keeping_sigterm(), deaf_processes():
            ray.init(
                **place,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                job_config=PlainPath(),
            )
    except Exception as error:
        # A node that does not start in time raises a plain Exception.
        raise _start_error(address, error) from None


def shut_down() -> None:
    """Disconnect this process from Ray, and end a local Ray.

    Tune leaves reference cycles that hold Ray's object references. If Python's collector frees them in another thread
    while Ray shuts down, Ray ends the process with status 1 and without a word. So they are freed before, and nothing
    that exists now is collected meanwhile, not even if another thread asks for it.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with signals.deferred():
            gc.collect()
            gc.freeze()
    finally:
        try:
            kill_at_shutdown()
            ray.shutdown()
        finally:
            gc.unfreeze()
            if was_enabled:
                gc.enable()


def _start_error(address: str | None, error: Exception) -> ClusterError:
    """Return the sentence about a Ray that cannot be joined or started."""
    reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
    if address is None:
        return ClusterError(
            f"Ray cannot start on this machine: {reason}. `sptune doctor` looks for the reason; `--inline` runs the "
            "sweep without Ray."
        )
    return ClusterError(
        f"no Ray cluster at {address}: {reason}. Check that the cluster is running with this version of Ray, that "
        "this machine is one of its nodes, and that RAY_AUTH_TOKEN is its token; or leave --address out."
    )


def _check_address(address: str) -> None:
    """Raise if no cluster answers at an address.

    Raises:
        ClusterError: if none does, or the address is of Ray Client.
    """
    if "://" in address:
        raise ClusterError(
            f"{address}: a driver runs on a node of its cluster, not through Ray Client. Run the command on the head "
            "node (`ray exec`, `ray job submit`), or let this machine join with `ray start --address=HOST:6379 "
            "--num-cpus=0` and give --address auto."
        )

    host_and_port = re.fullmatch(r"([^:/]+):(\d+)", address)
    if host_and_port is None:
        return

    # Ray itself would try for minutes.
    try:
        socket.create_connection((host_and_port[1], int(host_and_port[2])), timeout=10).close()
    except OSError as error:
        raise ClusterError(f"no Ray cluster at {address}: {error}. Start one, or leave --address out.") from None


def nodes() -> list[Node]:
    """Return the nodes that are alive, the head node first."""
    alive = [
        Node(
            name=f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:6]})",
            node_id=node["NodeID"],
            resources=node["Resources"],
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
    return sorted(alive, key=lambda node: ("node:__internal_head__" not in node.resources, node.name))


def ray_resources(resources: TrialResources) -> dict[str, float]:
    """Return the resources of a trial by Ray's names."""
    amounts = {"CPU": float(resources.cpus), "GPU": resources.initial_gpus}
    if resources.accelerator_type is not None:
        # A node with this kind of GPU has 1 of this resource. A small amount selects the node for any number of trials.
        amounts[f"{ACCELERATOR_PREFIX}{resources.accelerator_type}"] = 0.001
    return {name: amount for name, amount in amounts.items() if amount}


def num_trials_that_fit(resources: TrialResources, present: Iterable[Node]) -> int:
    """Return how many trials with these resources fit the nodes at the same time, each on one node."""
    amounts = ray_resources(resources)
    # 1e-6 makes up for rounding: a quotient that should be whole may be a little below.
    return sum(
        min(int(node.resources.get(name, 0) / amount + 1e-6) for name, amount in amounts.items()) for node in present
    )


def check_resources_exist(resources: Mapping[str, TrialResources]) -> None:
    """Raise if the trials of some backbone fit no node.

    Args:
        resources: of one trial, by backbone.

    Raises:
        ClusterError: with the trials that fit no node, and the resources of the nodes.
    """
    present = nodes()
    problems = []
    for backbone, required in resources.items():
        if not num_trials_that_fit(required, present):
            kind = f" of type {required.accelerator_type}" if required.accelerator_type else ""
            gpus = f"{counted(required.initial_gpus, 'GPU')}{kind}"
            problems.append(f"a trial of {backbone} asks for {counted(required.cpus, 'CPU')} and {gpus}")

    if problems:
        available = "; ".join(dict.fromkeys(_describe(node) for node in present))
        raise ClusterError(
            f"no node can run these: {', '.join(problems)}. Ray's nodes have: {available}. Lower `resources` in the "
            "spec, give --address of another cluster, or set `cluster: {workers: N}` for a cluster that grows."
        )


def _describe(node: Node) -> str:
    cpus = node.resources.get("CPU", 0)
    gpus = node.resources.get("GPU", 0)
    kinds = [name.removeprefix(ACCELERATOR_PREFIX) for name in node.resources if name.startswith(ACCELERATOR_PREFIX)]

    description = f"{counted(cpus, 'CPU')} and {counted(gpus, 'GPU')}"
    if kinds and gpus:
        description += f" ({', '.join(kinds)})"
    return description


def ask_each_node(function: Callable[[Request], Answer], request: Request) -> list[tuple[Node, Answer | str]]:
    """Call a function on all nodes at once.

    Returns:
        Each node with the function's result, or with the reason why there is none.
    """
    task = ray.remote(num_cpus=0, max_retries=0)(function)
    present = nodes()
    references = [
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False)).remote(request)
        for node in present
    ]

    ray.wait(references, num_returns=len(references), timeout=ANSWER_TIMEOUT_S)
    return [(node, _answer(reference)) for node, reference in zip(present, references, strict=True)]


def _answer(reference: Any) -> Any:
    try:
        return ray.get(reference, timeout=0)
    except ray.exceptions.GetTimeoutError:
        return f"it did not answer within {ANSWER_TIMEOUT_S:.0f} s"
    except (RayError, ImportError) as error:
        # The last line of a remote traceback names the error.
        lines = [line for line in str(error).splitlines() if line.strip()]
        return lines[-1].strip() if lines else type(error).__name__

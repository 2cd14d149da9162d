"""The door to Ray's nodes: joining a cluster, what it has, and asking each of its nodes a question."""

from __future__ import annotations

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

from orchestrator.errors import ClusterError
from orchestrator.spec.resources import TrialResources

ACCELERATOR_PREFIX = "accelerator_type:"
"""How Ray's resources name a kind of GPU."""
ANSWER_TIMEOUT_S = 120.0
"""How long a node may take to answer: it imports torch for it."""
Question = TypeVar("Question")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of a cluster, or a part of one that Ray takes for a machine."""

    name: str
    """Host name, address, and the first letters of Ray's id: of one host there may be several."""
    node_id: str
    resources: Mapping[str, float]


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Within, this process drives the cluster at `address`, or a Ray of this machine that ends with it.

    Raises:
        ClusterError: if there is no cluster at the address, or this machine is not a node of it.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures are the record's to tell
    if address is not None and "://" in address:
        raise ClusterError(
            f"{address}: a driver runs on a node of its cluster, not through Ray Client. Run the command on the head "
            "node (`ray exec`, `ray job submit`), or have this machine join with `ray start --address=HOST:6379 "
            "--num-cpus=0` and give --address auto."
        )
    try:
        if address is not None and (place := re.fullmatch(r"([^:/]+):(\d+)", address)):
            socket.create_connection((place[1], int(place[2])), timeout=10).close()  # Ray itself tries for minutes
    except OSError as error:
        raise ClusterError(f"no Ray cluster at {address}: {error}. Start one, or leave --address out.") from None
    try:
        # "local": without it Ray joins whatever cluster someone has started on this machine.
        ray.init(address=address or "local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError, RayError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise ClusterError(
            f"no Ray cluster at {address}: {reason}. See that one runs, of this version of Ray, that this machine is a "
            "node of it, and that RAY_AUTH_TOKEN is its token; or leave --address out."
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def nodes() -> list[Node]:
    """The nodes that are alive, the head first."""
    found = [
        Node(
            f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:6]})",
            node["NodeID"],
            node["Resources"],
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
    return sorted(found, key=lambda node: ("node:__internal_head__" not in node.resources, node.name))


def ray_resources(share: TrialResources) -> dict[str, float]:
    """What a trial asks of Ray."""
    asked = {"CPU": float(share.cpus), "GPU": share.initial_gpus}
    if share.accelerator_type is not None:
        asked[f"{ACCELERATOR_PREFIX}{share.accelerator_type}"] = 0.001
    return {name: amount for name, amount in asked.items() if amount}


def num_trials_that_fit(share: TrialResources, there: Iterable[Node]) -> int:
    """How many such trials fit the nodes at once, each on one of them."""
    asked = ray_resources(share)
    return sum(
        min(int(node.resources.get(name, 0) / amount + 1e-6) for name, amount in asked.items()) for node in there
    )


def check_resources_exist(shares: Mapping[str, TrialResources]) -> None:
    """See that each backbone's trials fit some node.

    Raises:
        ClusterError: with what does not, and what the nodes have.
    """
    there = nodes()
    problems = []
    for backbone, share in shares.items():
        if num_trials_that_fit(share, there):
            continue
        kind = f" of type {share.accelerator_type}" if share.accelerator_type else ""
        problems.append(f"a trial of {backbone} asks for {share.cpus} CPUs and {share.initial_gpus:g} GPUs{kind}")
    if problems:
        have = "; ".join(dict.fromkeys(_describe(node) for node in there))
        raise ClusterError(
            f"no node can run these: {', '.join(problems)}. Ray's nodes have: {have}. Lower `resources` in the spec, "
            "give --address of another cluster, or `cluster: {workers: N}` for one that grows."
        )


def ask_each_node(answer: Callable[[Question], Answer], question: Question) -> list[tuple[Node, Answer | str]]:
    """What a function answers on each node, all asked at once; in place of an answer that fails, why."""
    task = ray.remote(num_cpus=0, max_retries=0)(answer)
    there = nodes()
    asked = [
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False)).remote(question)
        for node in there
    ]
    ray.wait(asked, num_returns=len(asked), timeout=ANSWER_TIMEOUT_S)
    return [(node, _answer(reference)) for node, reference in zip(there, asked, strict=True)]


def _answer(reference: Any) -> Any:
    try:
        return ray.get(reference, timeout=0)
    except ray.exceptions.GetTimeoutError:
        return f"it did not answer within {ANSWER_TIMEOUT_S:.0f} s"
    except (RayError, ImportError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        return lines[-1].strip() if lines else type(error).__name__


def _describe(node: Node) -> str:
    cpus, gpus = node.resources.get("CPU", 0), node.resources.get("GPU", 0)
    kinds = [name.removeprefix(ACCELERATOR_PREFIX) for name in node.resources if name.startswith(ACCELERATOR_PREFIX)]
    return f"{cpus:g} CPUs and {gpus:g} GPUs" + (f" ({', '.join(kinds)})" if kinds and gpus else "")

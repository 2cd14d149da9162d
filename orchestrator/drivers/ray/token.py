"""Asks a Ray cluster whether it accepts this process's token, before Ray itself would ask for half a minute."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from ray._private import services
from ray.exceptions import AuthenticationError

from orchestrator.errors import ClusterError

ANSWER_TIMEOUT_S = 10.0
"""Seconds that the cluster may take to answer."""


def check_token(address: str) -> None:
    """Raise if the cluster at an address answers that the token is missing or wrong.

    Ray repeats a refused call for 20 s and prints a line about each. Whatever else happens here, Ray's own connection
    meets it too and names it.

    Args:
        address: ``host:port``, or ``auto`` for the cluster of this machine.

    Raises:
        ClusterError: if the token is refused.
    """
    try:
        grpc: Any = import_module("grpc")
        messages: Any = import_module("ray.core.generated.gcs_service_pb2")
        from ray._private.grpc_utils import init_grpc_channel
        from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub
    except ImportError:
        # Without the packages of `sptune[cluster]`, or with a Ray that has moved these, Ray's own words must do.
        return

    try:
        server = services.canonicalize_bootstrap_address(address)
        if server is None:
            return
        with init_grpc_channel(server) as channel:
            NodeInfoGcsServiceStub(channel).GetClusterId(messages.GetClusterIdRequest(), timeout=ANSWER_TIMEOUT_S)
    except AuthenticationError:
        # RAY_AUTH_MODE=token without a token.
        raise ClusterError(_refusal(address)) from None
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            raise ClusterError(_refusal(address)) from None
    except Exception:
        return


def _refusal(address: str) -> str:
    has_token = bool(os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"))
    sent = "another token" if has_token and os.environ.get("RAY_AUTH_MODE") != "disabled" else "no valid token"
    return (
        f"the Ray cluster at {address} asks for its token, and this process sent {sent}. Set RAY_AUTH_MODE=token, and "
        "RAY_AUTH_TOKEN to the token that the cluster was started with."
    )

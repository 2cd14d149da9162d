"""Finds the network in a checkpoint, whatever wraps it.

Programs store a network under keys (`state_dict`, `model`, `teacher`) and behind prefixes (`module.` of DDP,
`_orig_mod.` of `torch.compile`, `backbone.`), in any order and depth. The place of the patch embedding tells where a
network is. If a checkpoint holds several, `PREFERRED` decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

ANCHOR = "patch_embed.proj.weight"
"""The tensor that every ViT has once."""
WRAPPED_INSIDE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""Parts of names that PyTorch adds, also in the middle: compiled, sharded or checkpointed modules."""
PREFERRED = (
    # timm's order: moving averages before the weights that they average.
    "state_dict_ema",
    "model_ema",
    "ema_model",
    "ema",
    "teacher",
    "target_encoder",
    # MoCo's published choice, although the momentum encoder is an average.
    "base_encoder",
    "state_dict",
    "model",
    "student",
    "backbone",
    "encoder",
)
"""Which of several networks is taken: the one under the first of these keys or prefixes."""
MAX_DEPTH = 6
"""Depth of nested dictionaries that are searched."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundNetwork:
    """A network in a checkpoint."""

    part: str
    """Keys and prefixes that lead to it, without those that PyTorch adds, such as `state_dict_ema`."""
    values: dict[str, Any]
    """What the checkpoint holds under its names, without prefixes."""


def find_networks(content: object) -> list[FoundNetwork]:
    """Return all networks in a checkpoint."""
    return [
        _network(path, values, name.removesuffix(ANCHOR))
        for path, values in _dictionaries(content, ())
        for name in values
        if name.endswith(ANCHOR) and name.removesuffix(ANCHOR)[-1:] in ("", ".") and _is_matrix(values[name])
    ]


def choose_network(networks: list[FoundNetwork]) -> FoundNetwork | None:
    """Return the network to use, or None if nothing tells which one it is."""
    remaining = networks
    for key in PREFERRED:
        under_key = [network for network in remaining if key in network.part.split(".")]
        remaining = under_key or remaining
    return remaining[0] if len(remaining) == 1 else None


def _dictionaries(content: object, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Yield every dictionary in a checkpoint with the keys that lead to it. Names are without `WRAPPED_INSIDE`."""
    if not isinstance(content, dict) or len(path) > MAX_DEPTH:
        return

    yield path, {_without_wrappers(name): value for name, value in content.items() if isinstance(name, str)}
    for key, value in content.items():
        yield from _dictionaries(value, (*path, str(key)))


def _without_wrappers(name: str) -> str:
    for wrapper in WRAPPED_INSIDE:
        name = name.replace(wrapper, "")
    return name


def _network(path: tuple[str, ...], values: dict[str, Any], prefix: str) -> FoundNetwork:
    keys = [key for key in (*path, *prefix.split(".")) if key not in ("", "module")]
    own = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
    return FoundNetwork(part=".".join(keys), values=own)


def _is_matrix(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim > 1

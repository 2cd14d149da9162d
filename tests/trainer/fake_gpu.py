"""A GPU that only knows shapes, types and devices: what runs on it is checked and counted, and nothing is computed.

Tensors of a `FakeTensorMode` have no values. An operation on tensors of two devices fails, and so does one that needs a
value, such as `.item()`. Three parts of torch need a real GPU and are replaced: the engine of the backward pass, the
choice of an attention kernel, and fused optimizers.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

GPU = "cuda:0"
aten = torch.ops.aten

NO_KERNEL = ("prim.", "profiler.", "aten.empty", "aten.new_empty", "aten._unsafe_view", "aten.detach", "aten.alias")
"""Operations that start nothing on a GPU, beside views."""
READS_VALUES = (
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.bincount.default,
)
"""Operations whose result, or the shape of it, depends on values that a GPU has to compute first."""


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Run a block on a GPU that only knows shapes. Tensors that are made before it, such as generators', are real."""
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode(allow_non_fake_inputs=True):
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
        patch.setattr(torch.autograd, "grad", _gradients)
        patch.setattr(F, "scaled_dot_product_attention", _attention)
        patch.setattr(torch, "_fused_adamw_", _fused_update)
        patch.setattr(torch, "_fused_sgd_", _fused_update)
        yield


class Kernels(TorchDispatchMode):
    """Counts the operations that start a kernel on a GPU, and the casts among them."""

    def __init__(self) -> None:
        super().__init__()
        self.by_name: Counter[str] = Counter()
        self.cast: list[Tensor] = []
        """What was cast to bfloat16."""

    @property
    def total(self) -> int:
        return sum(self.by_name.values())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = str(func)
        if not func.is_view and not name.startswith(NO_KERNEL):
            self.by_name[name] += 1
        if func is aten._to_copy.default and (kwargs or {}).get("dtype") is torch.bfloat16:
            self.cast.append(args[0])
        return func(*args, **(kwargs or {}))


class Waits(TorchDispatchMode):
    """Counts the operations that make the process wait for a GPU: values that are read, and copies between devices.

    Enter it last, so that it sees each operation before a mode that answers it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_name: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return sum(self.by_name.values())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        devices = {value.device.type for value in args if isinstance(value, Tensor)}
        if func in (aten._to_copy.default, aten.copy_.default):
            devices |= {torch.device(options["device"]).type} if options.get("device") is not None else set()
            is_wait = len(devices) > 1 and not options.get("non_blocking")
        else:
            reads_mask = func is aten.index.Tensor and any(
                index is not None and index.dtype is torch.bool for index in args[1]
            )
            is_wait = "cuda" in devices and (func in READS_VALUES or reads_mask)
        if is_wait:
            self.by_name[str(func)] += 1
        return func(*args, **options)


class AnyValues(TorchDispatchMode):
    """Answers what needs values with values that are possible, so that code which waits for a GPU runs to its end."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is aten._local_scalar_dense.default:
            is_float = args[0].is_floating_point()
            return 0.5 if is_float else args[0].dtype is torch.bool
        if func is aten.nonzero.default:
            return args[0].new_empty(args[0].numel(), args[0].ndim, dtype=torch.int64)
        if func is aten.index.Tensor and any(i is not None and i.dtype is torch.bool for i in args[1]):
            return args[0].clone()
        if func is aten._unique2.default:
            return args[0].flatten(), args[0].flatten(), args[0].flatten()
        if func is aten.bincount.default:
            return args[0].new_empty((kwargs or {}).get("minlength") or args[2])
        return func(*args, **(kwargs or {}))


def _attention(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
    """Run the kernel that torch takes on a GPU: FlashAttention, or the memory-efficient one for float32."""
    if query.dtype is torch.float32:
        mixed: Tensor = aten._scaled_dot_product_efficient_attention(query, key, value, None, True)[0]
    else:
        mixed = aten._scaled_dot_product_flash_attention(query, key, value)[0]
    return mixed


def _fused_update(
    parameters: list[Tensor], gradients: list[Tensor], *states: list[Tensor], lr: float | Tensor, **_: Any
) -> None:
    """Change parameters in one launch, as a fused optimizer does."""
    tensors = [*parameters, *gradients, *(tensor for state in states for tensor in state)]
    if isinstance(lr, Tensor):
        tensors.append(lr)
    assert {tensor.device for tensor in tensors} == {torch.device(GPU)}, "all that it reads is there"
    torch._foreach_add_(parameters, gradients)


def _gradients(loss: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the gradients as `torch.autograd.grad` does, whose engine asks the driver for streams of the GPU."""
    assert loss.grad_fn is not None
    incoming: dict[Any, dict[int, Tensor]] = defaultdict(dict)
    incoming[loss.grad_fn][0] = torch.ones_like(loss)
    found: dict[int, Tensor] = {}

    with torch.no_grad():
        for node in _from_the_loss(loss.grad_fn):
            given = incoming.pop(node)
            if hasattr(node, "variable"):
                found[id(node.variable)] = given[0]
                continue

            outgoing = node(*(given.get(i) for i in range(len(node._input_metadata))))
            outgoing = outgoing if isinstance(outgoing, tuple) else (outgoing,)
            for (child, i), gradient in zip(node.next_functions, outgoing, strict=True):
                if child is not None and gradient is not None:
                    fitting = _fit(gradient, child._input_metadata[i])
                    known = incoming[child].get(i)
                    incoming[child][i] = fitting if known is None else known + fitting

    return tuple(found[id(parameter)] for parameter in parameters)


def _fit(gradient: Tensor, expected: Any) -> Tensor:
    """Return a gradient with the shape and type of its tensor, as the engine makes it."""
    assert gradient.device == expected.device
    if gradient.shape != expected.shape:
        gradient = gradient.sum_to_size(expected.shape)
    return gradient.to(expected.dtype)


def _from_the_loss(root: Any) -> list[Any]:
    """Return the nodes of a graph, each after all that lead to it from the loss."""
    finished: list[Any] = []
    seen: set[Any] = set()
    stack = [(root, False)]
    while stack:
        node, children_are_done = stack.pop()
        if children_are_done:
            finished.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(child, False) for child, _ in node.next_functions if child is not None]
    return finished[::-1]

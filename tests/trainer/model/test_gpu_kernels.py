"""On a GPU, training asks torch for kernels that repeat their bits, and leaves torch's settings as they were."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.model.backbone import Backbone, vit_nano_patch4_32
from trainer.model.execution import backward, with_precision
from trainer.model.gpu_kernels import (
    ATTENTION_KERNELS,
    CUBLAS_WORKSPACE,
    check_repeatable,
    describe_arithmetic,
    fix_cublas_workspace,
    gpu_arithmetic,
    repeatable,
)
from trainer.prompt_init.token_stream import TokenStream

# Modules whose properties mypy does not see.
cudnn: Any = torch.backends.cudnn
deterministic: Any = torch.utils.deterministic

Settings = dict[str, Any]
Context = Callable[[str, str], AbstractContextManager[None]]
EXACT = {"matmul": "ieee", "convolution": "ieee", "cudnn": False, "flash": True, "efficient": True, "math": True}
"""What `gpu_arithmetic` asks for, if its precision is not tf32."""
STRICT = EXACT | {"deterministic": True, "warn_only": False, "fill": False}
"""What `repeatable` asks for."""


def settings() -> Settings:
    """Return all settings of torch that decide the bits on a GPU."""
    cuda = torch.backends.cuda
    return {
        "matmul": cuda.matmul.fp32_precision,
        "convolution": cudnn.conv.fp32_precision,
        "cudnn": cuda.cudnn_sdp_enabled(),
        "flash": cuda.flash_sdp_enabled(),
        "efficient": cuda.mem_efficient_sdp_enabled(),
        "math": cuda.math_sdp_enabled(),
        "priority": torch._C._get_sdp_priority_order(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "fill": deterministic.fill_uninitialized_memory,
    }


class Recorder(TorchDispatchMode):
    """Records the settings under which each operation on a GPU's tensors runs."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.settings: list[Settings] = []
        self.error = error

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.error is not None and func is torch.ops.aten.mm.default:
            raise self.error
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.is_cuda:
            self.settings.append(settings())
        return result


@pytest.fixture
def unchanged() -> Iterator[None]:
    """Restore torch's settings after a test that changes them as a user would."""
    matmul, convolution = torch.backends.cuda.matmul, cudnn.conv
    before = (matmul.fp32_precision, convolution.fp32_precision)
    yield
    matmul.fp32_precision, convolution.fp32_precision = before
    torch.use_deterministic_algorithms(False)


def choose_nothing() -> None:
    """Leave torch as it starts."""


def choose_tf32() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True


def choose_high() -> None:
    torch.set_float32_matmul_precision("high")


def choose_warnings() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)


CHOICES = [choose_nothing, choose_tf32, choose_high, choose_warnings]


@pytest.mark.parametrize("choose", CHOICES, ids=lambda choose: choose.__name__)
@pytest.mark.parametrize(("precision", "digits"), [("fp32", "ieee"), ("tf32", "tf32"), ("bf16", "ieee")])
@pytest.mark.parametrize(("context", "expected"), [(gpu_arithmetic, EXACT), (repeatable, STRICT)])
@pytest.mark.usefixtures("unchanged")
def test_what_a_user_has_set_holds_again_after_the_work_on_a_gpu(
    context: Context, expected: Settings, precision: str, digits: str, choose: Callable[[], None]
) -> None:
    choose()
    expected = expected | {"matmul": digits, "convolution": digits}
    before = settings()
    with pytest.raises(KeyError), context(precision, "cuda:1"):
        raise KeyError([settings() | expected == settings()])
    assert settings() == before

    # One within the other, as a step is within a forward pass.
    with context(precision, "cuda"):
        with gpu_arithmetic("fp32", "cuda"):
            assert settings() | EXACT == settings()
        assert settings() | expected == settings()
    assert settings() == before


def test_a_users_attention_kernel_holds_again_after_the_work_on_a_gpu() -> None:
    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH], set_priority=True):
        before = settings()
        with repeatable("fp32", "cuda"):
            assert settings()["priority"][:3] == [kernel.value for kernel in ATTENTION_KERNELS]
        assert settings() == before


@pytest.mark.parametrize("context", [gpu_arithmetic, repeatable])
def test_work_on_a_cpu_changes_no_setting(context: Context) -> None:
    before = settings()
    with context("tf32", "cpu"):
        assert settings() == before


def on_fake_gpu(network: nn.Module) -> None:
    """Replace all tensors of a network by fake ones on a GPU."""
    for module in network.modules():
        for name, parameter in [*module.named_parameters(recurse=False)]:
            setattr(module, name, nn.Parameter(torch.empty(parameter.shape, device="cuda"), requires_grad=False))
        for name, buffer in [*module.named_buffers(recurse=False)]:
            setattr(module, name, torch.empty(buffer.shape, device="cuda"))


def test_forward_and_backward_pass_repeat_their_bits_and_nothing_else_asks_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = settings()
    with FakeTensorMode():
        network = nn.Linear(5, 3, device="cuda")
        inputs_B5 = torch.zeros(4, 5, device="cuda")
        labels_B = torch.zeros(4, dtype=torch.long, device="cuda")

        # torch's engine needs a real GPU. A stand-in shows what it would run under.
        def gradients(loss: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
            assert settings() | STRICT == settings()
            return [torch.zeros_like(parameter) for parameter in parameters]

        monkeypatch.setattr(torch.autograd, "grad", gradients)
        with Recorder() as recorder:
            step = with_precision(network, "fp32", "cuda")
            loss, _ = backward(step, list(network.parameters()), inputs_B5, labels_B, 2, "fp32")

    assert loss.device.type == "cuda" and network.weight.grad is not None
    strict = [seen for seen in recorder.settings if seen | STRICT == seen]
    # Two micro-batches: their products, losses and gradients. What adds them up may be any kernel.
    assert len(strict) > 8 and recorder.settings[-1] == before == settings()


def test_a_network_that_is_scored_computes_in_the_digits_of_its_precision() -> None:
    with FakeTensorMode(), torch.no_grad(), Recorder() as recorder:
        network = nn.Linear(5, 3, device="cuda")
        inputs_B5 = torch.zeros(4, 5, device="cuda")
        recorder.settings.clear()
        with_precision(network, "fp32", "cuda")(inputs_B5)
    assert recorder.settings and all(seen | EXACT == seen for seen in recorder.settings)


def test_images_pass_through_the_network_in_float32_for_prototypes() -> None:
    backbone = Backbone(vit_nano_patch4_32(), readout="mean", sha256="")
    with FakeTensorMode():
        on_fake_gpu(backbone)
        images_MCHW = torch.zeros(3, 3, 32, 32, dtype=torch.uint8, device="cuda")
        stream = TokenStream(backbone=backbone, num_images=3, images_of=lambda rows_B: images_MCHW, num_layers=5)
        layers: list[int] = []
        with Recorder() as recorder:
            stream.for_each_batch(torch.arange(3), lambda rows_B, layer, tokens_BND: layers.append(layer))

    assert layers == [0, 1, 2, 3, 4]
    assert recorder.settings and all(seen | EXACT == seen for seen in recorder.settings)


@pytest.mark.parametrize(
    ("device", "before", "after"),
    [
        ("cuda", None, ":4096:8"),
        ("cuda:1", None, ":4096:8"),
        ("cuda", ":16:8", ":16:8"),
        ("cuda", "", ""),
        ("cpu", None, None),
    ],
)
def test_cublas_gets_a_workspace_of_fixed_size_unless_the_user_chose_one(
    monkeypatch: pytest.MonkeyPatch, device: str, before: str | None, after: str | None
) -> None:
    # Set first, so that the variable is restored after the test.
    monkeypatch.setenv(CUBLAS_WORKSPACE, "x")
    if before is None:
        monkeypatch.delenv(CUBLAS_WORKSPACE)
    else:
        monkeypatch.setenv(CUBLAS_WORKSPACE, before)
    fix_cublas_workspace(device)
    assert os.environ.get(CUBLAS_WORKSPACE) == after


def test_a_process_whose_cublas_cannot_repeat_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CUBLAS_WORKSPACE, ":0:0")
    refusal = RuntimeError("Deterministic behavior was enabled ... you must set CUBLAS_WORKSPACE_CONFIG=:4096:8")
    with FakeTensorMode(), Recorder(refusal), pytest.raises(ValueError, match="differ") as caught:
        check_repeatable("cuda")
    assert str(caught.value) == (
        "CUBLAS_WORKSPACE_CONFIG must be :4096:8 or :16:8 when a process first computes on a GPU, or results differ "
        "from run to run; it is ':0:0' now. Set it to :4096:8 and start the process again."
    )

    # Any other error says what it says.
    with FakeTensorMode(), Recorder(RuntimeError("CUDA error: unknown")), pytest.raises(RuntimeError, match="unknown"):
        check_repeatable("cuda")
    with FakeTensorMode():
        check_repeatable("cuda")


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_the_arithmetic_of_a_cpu_is_its_precision(precision: str) -> None:
    assert describe_arithmetic(precision, 64, "cpu") == precision

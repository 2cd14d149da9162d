"""Micro-batches give the result of a whole batch when memory runs out; and precision bf16."""

from __future__ import annotations

import copy
import itertools
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.catalog import METHODS
from trainer.config import TrainConfig
from trainer.data.split import load_split
from trainer.model.backbone import load_backbone
from trainer.model.execution import backward, evaluate_in_batches, has_bf16, with_precision
from trainer.training.feature_cache import frozen_features
from trainer.training.loop import train

TOO_MUCH = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


class Tight(nn.Module):
    """Two layers in float64 that run out of memory above `fits()` inputs, and keep the inputs they accepted."""

    def __init__(self, fits: Callable[[], int], error: Exception = TOO_MUCH) -> None:
        super().__init__()
        self.error = error
        generator = torch.Generator().manual_seed(0)
        self.first, self.second = nn.Linear(5, 7).double(), nn.Linear(7, 3).double()
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        self.fits = fits
        self.took: list[Tensor] = []
        self.refused: list[int] = []

    def forward(self, inputs_B: Tensor) -> Tensor:
        hidden_B = self.first(inputs_B).tanh()
        if len(inputs_B) > self.fits():
            self.refused.append(len(inputs_B))
            raise self.error
        self.took.append(inputs_B)
        logits_BK: Tensor = self.second(hidden_B)
        return logits_BK


def batch(size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(size)
    inputs_B = torch.randn(size, 5, generator=generator, dtype=torch.float64)
    return inputs_B, torch.randint(0, 3, (size,), generator=generator)


def undivided(network: Tight, size: int) -> tuple[Tensor, list[Tensor]]:
    """Return loss and gradients of all inputs at once."""
    inputs_B, labels_B = batch(size)
    loss = F.cross_entropy(network.second(network.first(inputs_B).tanh()), labels_B)
    return loss.detach(), list(torch.autograd.grad(loss, list(network.parameters())))


def assert_gradients(network: Tight, expected: list[Tensor]) -> None:
    for parameter, gradient in zip(network.parameters(), expected, strict=True):
        assert parameter.grad is not None and float(gradient.abs().max()) > 1e-3
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=1e-12)


def halves(size: int, fits: int) -> list[int]:
    """Return a size and its halves, rounded up, down to the first that fits."""
    return [size] if size <= fits else [size, *halves(-(-size // 2), fits)]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the logged warnings of `execution`, and clear them."""
    messages = [
        r.getMessage() for r in caplog.records if (r.name, r.levelno) == ("trainer.model.execution", logging.WARNING)
    ]
    caplog.clear()
    return messages


def sentences(purpose: str, sizes: list[int]) -> list[str]:
    return [
        f"out of memory in {purpose} with {size} images at once: retrying with {half}, which gives the same result"
        for size, half in itertools.pairwise(sizes)
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 16, 17, 33])
@pytest.mark.parametrize("fits", [1, 3, 5, 8, 64])
def test_a_batch_in_micro_batches_has_the_loss_and_gradient_of_the_whole_batch(
    fits: int, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    network = Tight(lambda: fits)
    loss, gradients = undivided(network, size)
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 1e9)  # what an earlier step left
    sizes = halves(size, fits)
    parameters = list(network.parameters())
    found, part = backward(network, parameters, *batch(size), micro_batch_size=size)
    torch.testing.assert_close(found.double(), loss, rtol=2e-6, atol=0)  # added up in float32
    assert not found.requires_grad
    assert_gradients(network, gradients)
    assert part == sizes[-1] <= fits and network.refused == sizes[:-1]
    assert warnings(caplog) == sentences("training", sizes)
    # Each input was worked out once, in order, as many at a time as fit.
    assert torch.equal(torch.cat(network.took), batch(size)[0])
    assert {len(taken) for taken in network.took[:-1]} <= {part}

    # The next batch begins with what did fit.
    assert backward(network, parameters, *batch(size), micro_batch_size=part)[1] == part
    assert_gradients(network, gradients)
    assert warnings(caplog) == [] and network.refused == sizes[:-1]


@pytest.mark.parametrize("when", range(1, 6))
def test_running_out_of_memory_inside_a_batch_loses_and_repeats_no_input(
    when: int, caplog: pytest.LogCaptureFixture
) -> None:
    # Someone else takes memory at the n-th call: eight inputs fit before, two behind.
    calls = itertools.count(1)
    network = Tight(lambda: 8 if next(calls) < when else 2)
    loss, gradients = undivided(network, 37)
    found, part = backward(network, list(network.parameters()), *batch(37), micro_batch_size=8)
    torch.testing.assert_close(found.double(), loss, rtol=2e-6, atol=0)
    assert_gradients(network, gradients)
    assert (part, warnings(caplog)) == (2, sentences("training", [8, 4, 2]))
    assert [len(taken) for taken in network.took][: when - 1] == [8] * (when - 1)
    assert torch.equal(torch.cat(network.took), batch(37)[0])


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        MemoryError(),
    ],
    ids=repr,
)
def test_memory_that_runs_out_elsewhere_halves_the_batch_too(error: Exception) -> None:
    network = Tight(lambda: 2, error)
    _, gradients = undivided(network, 7)
    _, part = backward(network, list(network.parameters()), *batch(7), micro_batch_size=7)
    assert part == 2
    assert_gradients(network, gradients)
    assert len(evaluate_in_batches(network, batch(7)[0], 7)) == 7


@pytest.mark.parametrize("error", [RuntimeError("shapes cannot be multiplied"), ValueError("out of memory")], ids=repr)
def test_another_error_halves_nothing(error: Exception) -> None:
    network = Tight(lambda: 2, error)
    with pytest.raises(type(error), match=str(error)):
        backward(network, list(network.parameters()), *batch(7), micro_batch_size=7)
    assert network.refused == [7]


@pytest.mark.parametrize("size", [1, 2, 7, 8])
def test_a_single_input_that_does_not_fit_is_an_error(size: int, caplog: pytest.LogCaptureFixture) -> None:
    network = Tight(lambda: 0)
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate 20"):
        backward(network, list(network.parameters()), *batch(size), micro_batch_size=size)
    assert warnings(caplog) == sentences("training", halves(size, 1))
    assert all(parameter.grad is None for parameter in network.parameters())
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate 20"):
        evaluate_in_batches(network, batch(size)[0], micro_batch_size=size)
    assert warnings(caplog) == sentences("evaluation", halves(size, 1))


def test_other_errors_are_not_treated_as_out_of_memory(caplog: pytest.LogCaptureFixture) -> None:
    network = Tight(lambda: 8)
    for run in (
        lambda: backward(network, list(network.parameters()), batch(4)[0][:, :4], batch(4)[1], micro_batch_size=4),
        lambda: evaluate_in_batches(network, batch(4)[0][:, :4]),
    ):
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as caught:
            run()
        assert not isinstance(caught.value, torch.OutOfMemoryError)
    assert warnings(caplog) == []


class FailsOnTheWayBack(torch.autograd.Function):
    """Identity in the forward pass; out of memory in the backward pass as often as `failures` has entries."""

    @staticmethod
    def forward(ctx: Any, hidden_B: Tensor, failures: list[int]) -> Tensor:
        ctx.failures = failures
        return hidden_B.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        if ctx.failures:
            raise torch.OutOfMemoryError(f"CUDA out of memory ({ctx.failures.pop()}).")
        return gradients[0], None


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_running_out_of_memory_in_the_backward_pass_leaves_no_partial_gradient(
    failures: int, caplog: pytest.LogCaptureFixture
) -> None:
    left = list(range(failures))
    network = Tight(lambda: 64)
    loss, gradients = undivided(network, 13)

    def failing(inputs_B: Tensor) -> Tensor:
        # The last layer has its gradient when the way back fails; the first has none.
        logits_BK: Tensor = network.second(FailsOnTheWayBack.apply(network.first(inputs_B).tanh(), left))
        return logits_BK

    found, part = backward(failing, list(network.parameters()), *batch(13), micro_batch_size=13)
    torch.testing.assert_close(found.double(), loss, rtol=2e-6, atol=0)
    assert_gradients(network, gradients)
    sizes = [13, 7, 4, 2][: failures + 1]
    assert (part, warnings(caplog)) == (sizes[-1], sentences("training", sizes))


@pytest.mark.parametrize("fits", [1, 3, 5, 8, 1000])
@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 257])
def test_outputs_are_in_order_for_every_micro_batch_size(
    size: int, fits: int, caplog: pytest.LogCaptureFixture
) -> None:
    network = Tight(lambda: fits)
    inputs_N = batch(size)[0]
    with torch.no_grad():
        expected_NK = network.second(network.first(inputs_N).tanh())
    for part in (256, 4):
        outputs_NK = evaluate_in_batches(network, inputs_N, part)
        torch.testing.assert_close(outputs_NK, expected_NK, rtol=0, atol=1e-12)
        assert not outputs_NK.requires_grad
        assert torch.equal(torch.cat(network.took), inputs_N)
        assert max(map(len, network.took)) <= min(fits, part)
        assert bool(warnings(caplog)) == (min(size, part) > fits)
        network.took.clear()
    if size <= 256 and size <= fits:
        evaluate_in_batches(network, inputs_N)
        assert len(network.took) == 1, "all at once where they fit"


def test_fp32_does_not_change_the_network() -> None:
    network = Tight(lambda: 8)
    for exact in (network, copy.deepcopy(network).float()):
        inputs_B = batch(8)[0].to(exact.first.weight.dtype)
        logits_BK = with_precision(exact, "fp32", "cpu")(inputs_B)
        assert logits_BK.dtype == inputs_B.dtype and torch.equal(logits_BK, exact(inputs_B))


def test_bf16_on_a_processor_without_it_logs_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with_precision(Tight(lambda: 1), "fp32", "cpu")
    assert caplog.text == ""
    with_precision(Tight(lambda: 1), "bf16", "cpu")
    assert ("no arithmetic for bf16" in caplog.text) is not has_bf16("cpu")


def test_bf16_computes_in_bf16_with_gradients_and_outputs_in_fp32() -> None:
    network = Tight(lambda: 8).float()
    inputs_B, labels_B = batch(8)[0].float(), batch(8)[1]
    half = with_precision(network, "bf16", "cpu")
    logits_BK, exact_BK = half(inputs_B).detach(), network(inputs_B).detach()
    assert logits_BK.dtype is torch.float32 and torch.equal(logits_BK, logits_BK.bfloat16().float())
    assert 1e-4 < float((logits_BK - exact_BK).abs().max()) < 0.1
    parameters = list(network.parameters())
    exact_loss, _ = backward(network, parameters, inputs_B, labels_B, micro_batch_size=8)
    exact = [parameter.grad for parameter in parameters]
    loss, part = backward(half, parameters, inputs_B, labels_B, micro_batch_size=8)
    assert part == 8 and float(loss) == pytest.approx(float(exact_loss), rel=0.05)
    for parameter, gradient in zip(parameters, exact, strict=True):
        assert gradient is not None and parameter.grad is not None and not torch.equal(parameter.grad, gradient)
        assert (parameter.dtype, parameter.grad.dtype) == (torch.float32, torch.float32)
        torch.testing.assert_close(parameter.grad, gradient, rtol=0.1, atol=0.02)


def test_a_failing_network_leaves_autocast_disabled() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        with_precision(Tight(lambda: 1).float(), "bf16", "cpu")(batch(8)[0].float())
    assert not torch.is_autocast_enabled("cpu")


WITHOUT_PROTOTYPES_AND_DROPOUT = [
    name for name, row in METHODS.items() if not row.has_prototypes and not row.prompt_dropout
]
"""Methods whose only warnings are of steps and evaluation, and whose steps draw no random numbers for an image."""


@contextmanager
def little_memory(config: TrainConfig) -> Iterator[None]:
    """Let the network of a training run out of memory above five images."""

    def refuse(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        if len(given[0]) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    frozen = load_backbone(  # asked for as training does, this is the object that it uses
        config.backbone, image_size=config.pixels, normalize=config.normalize, weights=None, device="cpu"
    )
    # Each method calls this norm, whatever it does to the block.
    hook = frozen.get_submodule("vit.blocks.3.norm1").register_forward_pre_hook(refuse)
    frozen_features.cache_clear()  # what went through it before is known
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.parametrize("method", WITHOUT_PROTOTYPES_AND_DROPOUT)
def test_a_run_has_the_same_result_on_a_device_with_little_memory(
    method: str, data_root: str, tmp_path: Path, tiny: Callable[..., TrainConfig], caplog: pytest.LogCaptureFixture
) -> None:
    load_split(data_root, "demo/digits", "train", 1.0, 32)
    data_root = str(shutil.copytree(data_root, tmp_path / "data"))
    val = tmp_path / "data/demo/digits/val.parquet"
    pq.write_table(pq.read_table(val)[:20], val)
    config = tiny(method, epochs=2, lr=1e-3)
    expected = list(train(config, data_root=data_root))
    assert warnings(caplog) == []
    learns = method != "linear"  # a linear run's network is evaluated only: its steps never run out
    with little_memory(config):
        run = train(config, data_root=data_root, folder=str(tmp_path / "run"))
        next(run)
        training, evaluation = sentences("training", [16, 8, 4]), sentences("evaluation", halves(256, 5))
        first = warnings(caplog)
        assert [text for text in first if "training" in text] == (training if learns else [])
        assert set(first) - set(training) == set(evaluation)
        # Interrupted, it goes on with what did fit.
        del run
        found = list(train(config, data_root=data_root, folder=str(tmp_path / "run")))
        assert set(warnings(caplog)) == (set(evaluation) if learns else set()), "features are known by now"
    for epoch, plain in zip(found, expected, strict=True):
        assert epoch.metrics.pop("train/images_at_once", None) == (4 if learns else None)
        assert epoch.metrics == {name: pytest.approx(value, rel=1e-4) for name, value in plain.metrics.items()} | {
            "train/images_per_s": epoch.metrics["train/images_per_s"]
        }

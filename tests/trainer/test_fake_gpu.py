"""Training, evaluation and prototypes on a GPU that only knows shapes: no operation mixes devices, no step waits.

Shapes: B batch, L prompted layers, P prompt_length, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException

from tests.trainer.fake_gpu import GPU, AnyValues, Kernels, fake_gpu
from trainer.catalog import BACKBONES, BUNDLED, METHODS, BackboneRow
from trainer.config import TrainConfig
from trainer.data.split import Split
from trainer.methods.protocol import build_model
from trainer.model.adapted_vit import AdaptedViT
from trainer.model.backbone import Backbone, build_vit
from trainer.model.execution import with_precision
from trainer.prompt_init.strategies import build_prototypes
from trainer.prompt_init.token_stream import TokenStream
from trainer.training.batches import EpochBatches
from trainer.training.evaluation import logits_of
from trainer.training.step import TrainingStep

VIT_B = BACKBONES["vit_base_patch16_224.mae"]


def without_values(row: BackboneRow) -> Backbone:
    """Return the network of a catalog row whose weights have shapes only."""
    with torch.device("meta"):
        vit = build_vit(row)
    return Backbone(vit, readout=row.readout, sha256="")


def prompted(network: Backbone, config: TrainConfig) -> AdaptedViT:
    """Return the model of a config around a network, without values."""
    num_layers = {"all": network.num_layers, "first": 1, "none": 0}[METHODS[config.method].prompted_layers]
    with torch.device("meta"):
        prompt_LPD = torch.empty(num_layers, config.prompt_length or 0, network.embed_dim)
        return build_model(config, network, num_classes=100, prompt_LPD=prompt_LPD)


class Run:
    """A training run on the fake GPU, in the parts that the training loop is made of. Make and use it in `fake_gpu`."""

    def __init__(self, model: AdaptedViT, config: TrainConfig) -> None:
        self.config = config
        self.model = model.to_empty(device=GPU)
        self.network = with_precision(self.model, config.precision, GPU)
        self.train_step = TrainingStep(config, self.network, self.model.learnable())
        self.total_loss = torch.zeros((), device=GPU)

        side = model.backbone.image_size
        self.images = Split(
            images_R=torch.empty(100, 3, side, side, dtype=torch.uint8, device=GPU),
            rows_N=torch.arange(100, device=GPU),
            labels_N=torch.empty(100, dtype=torch.int64, device=GPU),
            keys=("",) * 100,
            view="fixed",
            fingerprint="",
        )
        self.batches = EpochBatches(config, self.images, Split.take, epoch=1)

    def take_batch(self) -> tuple[Tensor, Tensor]:
        return self.batches.take(0, torch.Generator("cpu"))

    def step(self) -> None:
        """Train one batch, as the loop does."""
        self.model.train()
        self.total_loss += self.train_step(*self.take_batch(), 0.01)

    def evaluate(self) -> Tensor:
        self.model.eval()
        return logits_of(self.network, Split.take, self.images, 64)


@pytest.mark.parametrize("method", METHODS)
def test_steps_and_evaluation_of_every_method_stay_on_the_gpu_and_wait_for_nothing(
    method: str, tiny: Callable[..., TrainConfig]
) -> None:
    optimizers = {"spt_deep": "adamw", "vpt_deep": "sgd", "linear": "sgd"}
    for precision in ("fp32", "bf16"):
        config = tiny(
            method, precision=precision, optimizer=optimizers.get(method, "adamw"), drop_path=0.2, ema_decay=0.9
        )
        model = prompted(without_values(BACKBONES[BUNDLED]), config)
        with fake_gpu():
            run = Run(model, config)
            run.step()
            logits_NK = run.evaluate()
            # As a graph would be captured: with batch and learning rate in memory.
            run.train_step.run_over_fixed_memory(*run.take_batch(), capture=False)
            run.step()
            for tensor in (run.total_loss, logits_NK, *run.train_step.changed_tensors()):
                assert tensor.device == torch.device(GPU) and tensor.dtype is torch.float32
            assert logits_NK.shape == (100, 100)


@pytest.mark.parametrize(("precision", "digits"), [("fp32", "ieee"), ("tf32", "tf32"), ("bf16", "ieee")])
def test_the_backward_pass_has_the_precision_of_the_network(
    precision: str, digits: str, tiny: Callable[..., TrainConfig]
) -> None:
    config = tiny("spt_deep", precision=precision)
    model = prompted(without_values(BACKBONES[BUNDLED]), config)
    seen: list[tuple[str, str]] = []

    with fake_gpu():
        run = Run(model, config)
        engine = torch.autograd.grad

        def gradients(loss: Tensor, parameters: list[Tensor]) -> tuple[Tensor, ...]:
            cudnn: Any = torch.backends.cudnn
            seen.append((torch.backends.cuda.matmul.fp32_precision, cudnn.conv.fp32_precision))
            return engine(loss, parameters)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.autograd, "grad", gradients)
            run.step()
    assert seen == [(digits, digits)]


def test_a_step_that_reads_a_value_or_mixes_devices_would_be_found(tiny: Callable[..., TrainConfig]) -> None:
    config = tiny("spt_shallow")
    model = prompted(without_values(BACKBONES[BUNDLED]), config)
    with fake_gpu():
        run = Run(model, config)
        run.step()
        with pytest.raises(DataDependentOutputException):
            run.total_loss.item()

        run.model.backbone.mean_C11 = torch.empty(3, 1, 1)
        with pytest.raises(RuntimeError, match="to be on the same device"):
            run.step()


@pytest.mark.parametrize(
    ("prompt_init", "layers_at_once"),
    [("random", 0), ("mean_pool", 0), ("max_pool", 0), ("kmeans", 0), ("kmeans", 1), ("kmeans", 2)],
)
def test_prototypes_of_every_strategy_are_built_on_the_gpu(prompt_init: str, layers_at_once: int) -> None:
    network = without_values(BACKBONES[BUNDLED])
    with fake_gpu(), AnyValues():
        network.to_empty(device=GPU)
        stream = TokenStream(
            backbone=network,
            num_images=2,
            images_of=lambda rows_B: torch.empty(len(rows_B), 3, 32, 32, dtype=torch.uint8, device=GPU),
            num_layers=2,
            layers_at_once=layers_at_once,
        )
        prompt_LPD = build_prototypes(stream, prompt_init=prompt_init, prompt_length=3, seed=0)
    assert (prompt_LPD.device, prompt_LPD.shape) == (torch.device(GPU), (2, 3, 96))


VIT_B_CONFIG = TrainConfig.from_params(
    {"task": "vtab/cifar100", "backbone": VIT_B.name, "method": "spt_deep", "prompt_length": 20, "batch_size": 32}
    | {"prompt_init": "random", "precision": "bf16"}
)


def kernels_of_a_step(model: AdaptedViT) -> tuple[int, int]:
    """Return the number of kernels of a training step, and how many of them cast a frozen weight or a part of one."""
    with fake_gpu():
        run = Run(model, VIT_B_CONFIG)
        run.train_step.fill_optimizer_state()
        with Kernels() as kernels:
            run.step()
        frozen = {parameter.untyped_storage()._cdata for parameter in run.model.backbone.parameters()}
        return kernels.total, sum(tensor.untyped_storage()._cdata in frozen for tensor in kernels.cast)


def test_a_bf16_step_of_vit_b_starts_at_most_551_kernels_and_casts_no_frozen_weight() -> None:
    num_kernels, num_casts = kernels_of_a_step(prompted(without_values(VIT_B), VIT_B_CONFIG))
    assert num_kernels <= 551 and num_casts == 0


@pytest.mark.slow
def test_weights_that_are_cast_once_save_148_casts_a_step_of_vit_b() -> None:
    frozen = without_values(VIT_B)
    cast_once, cast_each_step = (prompted(frozen, VIT_B_CONFIG) for _ in range(2))
    cast_each_step.backbone = frozen.variant(learns=False, drop_path=0.0)
    num_kernels, _ = kernels_of_a_step(cast_once)
    assert kernels_of_a_step(cast_each_step) == (num_kernels + 148, 148)

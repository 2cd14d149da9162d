"""Self-Prompt Tuning as research code trains it, written plainly: the baseline for the speed of our trainer.

Everything is in fp32. Each epoch decodes, resizes and normalises each image again in a `DataLoader`, whose workers
start again each epoch. The forward pass is timm's own blocks over `[CLS, prompts, patches]`. Each step reads the loss
for its meter and averages the state of the whole model. Each epoch saves the whole model, its average and the
optimizer.

In our data order it has our losses (`tests/trainer/training/test_published_recipe.py`): only how they are computed
differs.
Shapes: B batch, C 3, H W image height and width, L prompted layers, P prompt_length, T tokens, D width, K classes.
"""

from __future__ import annotations

import copy
import io
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from timm.utils.model_ema import ModelEmaV2
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, v2

from trainer.catalog import METHODS, is_augmented
from trainer.config import TrainConfig
from trainer.data.split import load_split
from trainer.data.task_store import read_examples
from trainer.data.tasks import open_task
from trainer.model.backbone import Backbone, cls_and_positions, load_backbone
from trainer.model.prompted_vit import PromptedViT
from trainer.prompt_init.initial_prompt import initial_prompt
from trainer.training.optimizer import lr_at

EMA_DECAY = 0.9999

Batches = DataLoader[tuple[Tensor, int]]


def plain_logits(
    vit: VisionTransformer,
    head: nn.Module,
    prompt_LPD: Tensor,
    readout: str,
    pixels_BCHW: Tensor,
    prompt_dropout: float = 0.0,
) -> Tensor:
    """Run the papers' forward pass with timm's own modules only: from normalised pixels to logits ``[B, K]``."""
    tokens_BTD = plain_tokens(vit, pixels_BCHW)
    layers, length, _ = prompt_LPD.shape
    for i, block in enumerate(vit.blocks):
        if i < layers:
            rest_BTD = tokens_BTD[:, 1 + (length if i else 0) :]
            prompt_BPD = F.dropout(prompt_LPD[i].expand(len(tokens_BTD), -1, -1), prompt_dropout)
            tokens_BTD = torch.cat([tokens_BTD[:, :1], prompt_BPD, rest_BTD], dim=1)
        tokens_BTD = block(tokens_BTD)
    return read_plainly(vit, head, readout, tokens_BTD)


def plain_tokens(vit: VisionTransformer, pixels_BCHW: Tensor) -> Tensor:
    """Return CLS and patches with their positions, ``[B, T, D]``."""
    patches_BTD = vit.patch_embed(pixels_BCHW)
    cls_11D, positions_1TD = cls_and_positions(vit)
    return torch.cat([cls_11D.expand(len(patches_BTD), -1, -1), patches_BTD], dim=1) + positions_1TD


def read_plainly(vit: VisionTransformer, head: nn.Module, readout: str, tokens_BTD: Tensor) -> Tensor:
    """Return the logits ``[B, K]`` of the tokens that leave the last block, CLS first."""
    read_BD = tokens_BTD[:, 1:].mean(dim=1) if readout == "mean" else tokens_BTD[:, 0]
    logits_BK: Tensor = head(vit.norm(read_BD))
    return logits_BK


class PublishedModel(nn.Module):
    """The prompted network as one module, with a copy of the frozen network in it."""

    def __init__(self, backbone: Backbone, prompt_LPD: Tensor, head: nn.Linear) -> None:
        super().__init__()
        self.vit = copy.deepcopy(backbone.vit)
        self.prompt_LPD: nn.Parameter = nn.Parameter(prompt_LPD.detach().clone())
        self.head = copy.deepcopy(head)
        self.readout = backbone.readout

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Return logits ``[B, K]`` of normalised pixels."""
        return plain_logits(self.vit, self.head, self.prompt_LPD, self.readout, pixels_BCHW)


class EncodedImages(Dataset[tuple[Tensor, int]]):
    """Images as files contain them. Each is decoded and transformed whenever it is read."""

    def __init__(self, encoded: Sequence[bytes], labels: Sequence[int], transform: Callable[[Image.Image], Tensor]):
        self.encoded = encoded
        self.labels = labels
        self.transform = transform

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        with Image.open(io.BytesIO(self.encoded[row])) as opened:
            return self.transform(opened.convert("RGB")), self.labels[row]


def transform_of(backbone: Backbone, size: int, *, augmented: bool, train: bool) -> Callable[[Image.Image], Tensor]:
    """Return the published transform: squares for VTAB; for FGVC random crops in training, else 256 to 224."""
    how = InterpolationMode.BICUBIC
    to_square: list[nn.Module] = [v2.Resize(round(size * 256 / 224) if augmented else size, how), v2.CenterCrop(size)]
    if augmented and train:
        to_square = [v2.RandomResizedCrop(size, interpolation=how), v2.RandomHorizontalFlip()]
    mean, std = (values_C11.flatten().tolist() for values_C11 in (backbone.mean_C11, backbone.std_C11))
    to_numbers = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    composed: Callable[[Image.Image], Tensor] = v2.Compose([*to_square, *to_numbers])
    return composed


def optimizer_of(config: TrainConfig, model: PublishedModel) -> torch.optim.AdamW:
    """Return AdamW with one group each for the prompt, the head's weight and the head's bias."""
    groups = [
        {"params": [model.prompt_LPD], "weight_decay": config.weight_decay},
        {"params": [model.head.weight], "weight_decay": config.head_weight_decay},
        {"params": [model.head.bias], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr)


def train_step(
    model: PublishedModel,
    optimizer: torch.optim.Optimizer,
    average: ModelEmaV2 | None,
    batch: tuple[Tensor, Tensor],
    lr: float,
    device: str,
) -> float:
    """Take one step on a batch as the loader yields it, and return the loss for the meter."""
    pixels_BCHW, labels_B = (values.to(device, non_blocking=True) for values in batch)
    for group in optimizer.param_groups:
        group["lr"] = lr
    loss = F.cross_entropy(model(pixels_BCHW), labels_B)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if average is not None:
        average.update(model)
    return float(loss.item())


@torch.no_grad()
def accuracy_of(model: PublishedModel, loader: Batches, device: str) -> float:
    """Return the fraction of the loader's images that the model classifies correctly."""
    model.eval()
    num_correct = num_images = 0
    for batch in loader:
        pixels_BCHW, labels_B = (values.to(device, non_blocking=True) for values in batch)
        num_correct += int((model(pixels_BCHW).argmax(dim=1) == labels_B).sum().item())
        num_images += len(labels_B)

    return num_correct / num_images


def save_whole(
    path: Path, model: PublishedModel, optimizer: torch.optim.Optimizer, average: ModelEmaV2 | None, epoch: int
) -> None:
    """Save the whole model, its average and the optimizer in one file."""
    state = {"epoch": epoch, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    if average is not None:
        state["model_ema"] = average.module.state_dict()
    torch.save(state, path)


def our_order(config: TrainConfig, num_images: int) -> Callable[[int], list[int]]:
    """Return a function that gives the order of rows in which `trainer.training.loop` trains an epoch."""

    def order(epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(config.stream_seed("order", epoch))
        rows: list[int] = torch.randperm(num_images, generator=generator).tolist()
        return rows

    return order


def train_as_published(
    config: TrainConfig,
    *,
    data_root: str,
    folder: str | Path,
    device: str,
    num_workers: int,
    ema: bool = True,
    order: Callable[[int], Sequence[int]] | None = None,
) -> Iterator[dict[str, float]]:
    """Train a whole trial by the published recipe, and yield the metrics of each epoch after saving its checkpoint.

    Prompt and head start at our values. The prototypes come from our code too, which favours this side: the reference
    pushes all images through the network in one batch.

    Args:
        order: returns the rows of an epoch (counted from 1) in the order of training; None for the loader's own order.

    Raises:
        ValueError: if the config has what the recipe lacks: dropout, a learning backbone, bf16, SGD, or another
            transform.
        FloatingPointError: if the loss is NaN or infinite.
    """
    method = METHODS[config.method]
    card = open_task(data_root, config.task)
    if method.prompt_dropout or method.backbone_learns or config.drop_path or not config.prompt_length:
        raise ValueError(f"the published recipe is that of spt_deep and spt_shallow, got {config.method}.")
    if (config.precision, config.optimizer, config.transform) != ("fp32", "adamw", "spt"):
        raise ValueError("the published recipe has precision fp32, optimizer adamw and transform spt.")

    augmented = is_augmented(config.task)
    checkpoint = Path(folder) / "checkpoint.pth"
    torch.manual_seed(config.seed)
    backbone = load_backbone(config.backbone, image_size=config.pixels, normalize=config.normalize, device=device)

    # The first values of prompt and head.
    view = "whole" if augmented else "fixed"
    train_split = load_split(
        data_root, config.task, config.train_split, config.train_size, config.pixels, device, "spt", view
    )
    first = PromptedViT(
        backbone,
        num_classes=len(card.class_names),
        prompt_LPD=initial_prompt(config, backbone, train_split, data_root=data_root, prototype_cache=None).prompt_LPD,
        prompt_dropout=0.0,
        head_std=config.backbone_row.head_std,
        generator=torch.Generator().manual_seed(config.stream_seed("head")),
    )
    model = PublishedModel(backbone, first.prompt_LPD, first.head).to(device)
    optimizer = optimizer_of(config, model)
    average = ModelEmaV2(model, decay=EMA_DECAY) if ema else None

    # The images, still encoded.
    splits = ("train", "val") if config.eval_split == "val" else ("train", "val", "test")
    stored = {split: list(read_examples(data_root, config.task, split)) for split in splits}
    by_key = {example.key: example for examples in stored.values() for example in examples}

    def images_of(keys: Sequence[str], *, train: bool) -> EncodedImages:
        examples = [by_key[key] for key in keys]
        transform = transform_of(backbone, config.pixels, augmented=augmented, train=train)
        return EncodedImages(
            [example.image for example in examples], [example.label for example in examples], transform
        )

    train_images = images_of(train_split.keys, train=True)
    eval_images = images_of([example.key for example in stored[config.eval_split]], train=False)

    def loader_of(images: EncodedImages, rows: Sequence[int] | None, *, train: bool) -> Batches:
        return DataLoader(
            images,
            batch_size=config.batch_size,
            sampler=rows,
            shuffle=train and rows is None,
            drop_last=train,
            num_workers=num_workers,
            pin_memory=torch.device(device).type == "cuda",
        )

    eval_loader = loader_of(eval_images, None, train=False)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)

    # The epochs.
    for epoch in range(1, config.epochs + 1):
        started = time.perf_counter()
        model.train()
        loader = loader_of(train_images, order(epoch) if order is not None else None, train=True)
        losses = []
        for step, batch in enumerate(loader):
            lr = lr_at(epoch - 1 + step / len(loader), config)
            losses.append(train_step(model, optimizer, average, batch, lr, device))
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(f"the loss became {losses[-1]} in epoch {epoch}.")

        trained = time.perf_counter()
        metrics = {
            "train/loss": sum(losses) / len(losses),
            "train/lr": lr,
            "train/images_per_s": len(losses) * config.batch_size / (trained - started),
            config.eval_metric: accuracy_of(model, eval_loader, device),
        }
        save_whole(checkpoint, model, optimizer, average, epoch)
        yield metrics | {"epoch/seconds": time.perf_counter() - started}

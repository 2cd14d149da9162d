"""Inference: makes a classifier of `card.json` and `prompt.safetensors` of a finished run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainer import run_folder
from trainer.catalog import is_augmented
from trainer.config import TrainConfig
from trainer.data.images import reason_of
from trainer.data.transforms import decode
from trainer.methods.protocol import adaptation_of, build_model
from trainer.model.adapted_vit import AdaptedViT
from trainer.model.backbone import load_backbone, with_fresh_norm
from trainer.model.execution import evaluate_in_batches, with_precision
from trainer.run_folder import RunCard
from trainer.storage.run_results import read_result, read_run_card
from trainer.storage.tensors import unpack_tensors


@dataclass(frozen=True, slots=True)
class Prediction:
    """A class, and how confident the model is in it."""

    class_name: str
    confidence: float
    """Softmax, 0..1."""


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A trained model, with the image transform that they were scored with."""

    model: AdaptedViT
    config: TrainConfig
    class_names: list[str]
    device: str

    def classify(
        self,
        images: Sequence[bytes | Path],
        top: int = 5,
        batch_size: int = 64,
        on_unreadable: Callable[[ValueError], None] | None = None,
    ) -> Iterator[list[Prediction]]:
        """Yield the most likely classes of each image, best first.

        Args:
            images: encoded images, as bytes or files.
            top: number of classes per image.
            batch_size: images that go through the network together.
            on_unreadable: called with the error of an image that cannot be decoded. The image has no classes then. With
                None the error is raised.

        Raises:
            ValueError: if an image cannot be decoded, with its name or index.
            OSError: if a file cannot be read.
        """
        network = with_precision(self.model, self.config.precision, self.device)
        for start in range(0, len(images), batch_size):
            squares: dict[int, Tensor] = {}
            batch = range(start, min(start + batch_size, len(images)))
            for index in batch:
                try:
                    squares[index] = self._decode(images[index], index)
                except ValueError as error:
                    if on_unreadable is None:
                        raise
                    on_unreadable(error)

            found: dict[int, list[Prediction]] = {}
            if squares:
                images_BCHW = torch.stack([*squares.values()]).to(self.device)
                found = dict(
                    zip(squares, self._predictions(evaluate_in_batches(network, images_BCHW), top), strict=True)
                )
            yield from (found.get(index, []) for index in batch)

    def _predictions(self, logits_BK: Tensor, top: int) -> list[list[Prediction]]:
        """Return the most likely classes of each image."""
        best = logits_BK.softmax(dim=1).topk(min(top, logits_BK.shape[1]), dim=1)
        return [
            [Prediction(self.class_names[label], confidence) for label, confidence in zip(*row, strict=True)]
            for row in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def _decode(self, image: bytes | Path, index: int) -> Tensor:
        """Return an image as the square that the network sees."""
        data = image if isinstance(image, bytes) else image.read_bytes()
        try:
            return decode(data, self.config.pixels, self.config.transform, augmented=is_augmented(self.config.task))
        # Pillow's plugins raise errors of every kind for damaged bytes.
        except Exception as error:
            name = f"image {index}" if isinstance(image, bytes) else str(image)
            raise ValueError(f"{name} cannot be decoded as an image: {reason_of(error)}") from error


def load_classifier(folder: str | Path, *, weights: str | None = None, device: str = "cpu") -> Classifier:
    """Return the model of a finished run. See `trainer.load`.

    Raises:
        ValueError: if the folder holds no finished run, or the backbone's weights are not those it was trained on.
        OSError: if the folder cannot be read.
    """
    card, learnt = _read_run(folder)
    config = card.config

    backbone = load_backbone(
        config.backbone, image_size=config.pixels, normalize=config.normalize, weights=weights, device=device
    )
    if backbone.sha256 != card.backbone_sha256:
        raise ValueError(
            f"{folder} was trained on weights of {config.backbone} with SHA-256 {card.backbone_sha256[:12]}, found "
            f"{backbone.sha256[:12]}; name the file it was trained on with --weights or SPTUNE_WEIGHTS."
        )

    if config.final_norm == "fresh":
        backbone = with_fresh_norm(backbone)

    # Every learnable value is overwritten below.
    model = build_model(
        config,
        backbone,
        num_classes=len(card.class_names),
        prompt_LPD=torch.zeros_like(learnt.get("prompt", torch.zeros(0, 0, backbone.embed_dim))),
    )
    with torch.no_grad():
        for name, parameter in model.learnable().items():
            parameter.copy_(learnt[name])
    adaptation_of(config).merge(model.backbone, backbone)
    model.to(device).eval()
    return Classifier(model=model, config=config, class_names=card.class_names, device=device)


def _read_run(folder: str | Path) -> tuple[RunCard, dict[str, Tensor]]:
    """Return the card and the learnt tensors of a finished run, which fit together.

    Raises:
        ValueError: if one is missing or damaged, or they are of different runs.
        OSError: if the folder cannot be read.
    """
    card = read_run_card(str(folder))
    stored = read_result(str(folder), run_folder.PROMPT, unpack_tensors)
    if card is None or stored is None:
        raise ValueError(
            f"{folder} holds no finished run: card.json and prompt.safetensors are written at the end of one."
        )

    learnt, _ = stored

    # The two files may have been copied from different runs.
    shapes = {name: list(tensor.shape) for name, tensor in learnt.items()}
    if shapes != card.learnable:
        names = shapes.keys() | card.learnable.keys()
        differing = sorted(name for name in names if shapes.get(name) != card.learnable.get(name))
        raise ValueError(
            f"{folder}/prompt.safetensors does not belong to its card.json: {', '.join(differing[:3])} differ."
        )
    return card, learnt

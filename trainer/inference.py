"""Use of what was trained: a folder of `card.json` and `prompt.safetensors` becomes a model that classifies images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors

from trainer import run_folder
from trainer.catalog import METHODS, is_augmented
from trainer.config import TrainConfig
from trainer.data.transforms import decode
from trainer.model.backbone import load_backbone
from trainer.model.execution import evaluate_in_batches, with_precision
from trainer.model.prompted_vit import PromptedViT
from trainer.run_folder import RunCard
from trainer.storage.files import read_bytes


@dataclass(frozen=True, slots=True)
class Prediction:
    """One of the classes, with the softmax that the model gives it."""

    class_name: str
    confidence: float
    """0..1."""


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A trained prompt and head on their backbone, with the transform that they were scored with."""

    model: PromptedViT
    config: TrainConfig
    class_names: list[str]
    device: str

    def classify(
        self, images: Sequence[bytes | Path], top: int = 5, batch_size: int = 64
    ) -> Iterator[list[Prediction]]:
        """The most likely classes of each image, best first; images are encoded bytes or files.

        Raises:
            ValueError: if an image cannot be decoded, with its name or place.
            OSError: if a file cannot be read.
        """
        augmented = is_augmented(self.config.task)
        for start in range(0, len(images), batch_size):
            squares = []
            for place, image in enumerate(images[start : start + batch_size], start=start):
                data = image if isinstance(image, bytes) else image.read_bytes()
                try:
                    squares.append(decode(data, self.config.pixels, self.config.transform, augmented=augmented))
                except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                    name = f"image {place}" if isinstance(image, bytes) else str(image)
                    known = not isinstance(error, UnidentifiedImageError)
                    reason = error if known else "its format is unknown"
                    raise ValueError(f"{name} is no image that can be decoded: {reason}") from error
            network = with_precision(self.model, self.config.precision, self.device)
            logits_BK = evaluate_in_batches(network, torch.stack(squares).to(self.device))
            found = logits_BK.softmax(dim=1).topk(min(top, logits_BK.shape[1]), dim=1)
            for confidences, labels in zip(found.values.tolist(), found.indices.tolist(), strict=True):
                yield [Prediction(self.class_names[k], c) for k, c in zip(labels, confidences, strict=True)]


def load_classifier(folder: str | Path, *, weights: str | None = None, device: str = "cpu") -> Classifier:
    """What a finished run left in its folder (path or URI), as a model. See `trainer.load`.

    Raises:
        ValueError: if the folder holds no finished run, or the backbone's weights are others than it was trained on.
        OSError: if the folder cannot be read.
    """
    card_bytes, tensors = (read_bytes(f"{folder}/{name}") for name in (run_folder.CARD, run_folder.PROMPT))
    if card_bytes is None or tensors is None:
        raise ValueError(f"{folder} holds no finished run: card.json and prompt.safetensors come at the end of one.")
    try:
        card = RunCard.from_json(card_bytes)
    except ValueError as error:
        raise ValueError(f"{folder}/card.json is damaged: {error}.") from error
    config = card.config
    method = METHODS[config.method]
    backbone = load_backbone(
        config.backbone, image_size=config.pixels, normalize=config.normalize, weights=weights, device=device
    )
    if backbone.sha256 != card.backbone_sha256:
        raise ValueError(
            f"{folder} was trained on weights of {config.backbone} with SHA-256 {card.backbone_sha256[:12]}, found "
            f"{backbone.sha256[:12]}; name the file it was trained on with --weights or SPTUNE_WEIGHTS."
        )
    try:
        learnt = load_tensors(tensors)
    except SafetensorError as error:
        raise ValueError(f"{folder}/prompt.safetensors is damaged: {error}.") from error
    found = {name: list(tensor.shape) for name, tensor in learnt.items()}
    if found != card.learnable:
        names = found.keys() | card.learnable.keys()
        wrong = sorted(name for name in names if found.get(name) != card.learnable.get(name))
        raise ValueError(f"{folder}/prompt.safetensors is not of its card.json: {', '.join(wrong[:3])} differ.")
    model = PromptedViT(
        backbone.variant(learns=method.backbone_learns, drop_path=0.0),
        num_classes=len(card.class_names),
        prompt_LPD=learnt.get("prompt", torch.zeros(0, 0, backbone.embed_dim)),
        prompt_dropout=0.0,
        generator=torch.Generator(),
        backbone_learns=method.backbone_learns,
    )
    with torch.no_grad():
        for name, parameter in model.learnable().items():
            parameter.copy_(learnt[name])
    model.to(device).eval()
    return Classifier(model=model, config=config, class_names=card.class_names, device=device)

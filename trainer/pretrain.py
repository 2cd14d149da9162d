"""Pre-training of the bundled backbone: MAE on small images, with `python -m trainer.pretrain IMAGES --out FOLDER`.

Masked autoencoders (He et al., CVPR 2022, arXiv 2111.06377): three of four patches are hidden and the ViT encodes the
rest. A small decoder reconstructs the hidden patches. The loss is the mean square error over their normalised pixels.

Shapes: B batch, N patches, V visible patches, T tokens with CLS, D width, K pixels of a patch (4 x 4 x 3 = 48).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import platform
import shlex
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from rich.progress import track
from safetensors.torch import save
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from trainer.data.images import suffixes, to_rgb
from trainer.model import backbone
from trainer.plain_text import counted
from trainer.storage.files import write_bytes
from trainer.training.checkpoint import load_state, save_state

ARCHITECTURE = backbone.vit_nano_patch4_32.__name__


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings that the training depends on, except the images."""

    epochs: int
    batch_size: int = 256
    lr: float = 1.5e-3
    warmup_share: float = 0.05
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    mask_share: float = 0.75
    crop_area: tuple[float, float] = (0.3, 1.0)
    decoder_dim: int = 64
    decoder_depth: int = 1
    seed: int = 0


class MaskedAutoencoder(nn.Module):
    """A ViT with fixed sine-cosine positions, and the decoder that is used for pre-training only."""

    decoder_positions_ND: Tensor

    def __init__(self, vit: VisionTransformer, *, decoder_dim: int, decoder_depth: int) -> None:
        super().__init__()
        self.vit = vit
        grid = vit.patch_embed.grid_size[0]
        patch = vit.patch_embed.patch_size[0]

        # CLS has no position in the grid.
        _, positions_1TD = backbone.cls_and_positions(vit)
        positions_1TD.requires_grad_(False)[0, 1:] = sine_cosine_positions(grid, vit.embed_dim)
        positions_1TD[0, 0] = 0

        self.patch = patch
        self.to_decoder = nn.Linear(vit.embed_dim, decoder_dim)
        self.mask_token = nn.Parameter(torch.randn(decoder_dim) * 0.02)
        self.register_buffer("decoder_positions_ND", sine_cosine_positions(grid, decoder_dim), persistent=False)
        self.decoder = nn.Sequential(*[Block(decoder_dim, num_heads=4) for _ in range(decoder_depth)])
        self.to_pixels = nn.Sequential(nn.LayerNorm(decoder_dim), nn.Linear(decoder_dim, 3 * patch**2))

    def forward(self, images_BCHW: Tensor, mask_share: float) -> Tensor:
        """Return the mean square error over the normalised pixels of the hidden patches."""
        # Encoder: CLS and a random subset of the patches, other patches for each image.
        cls_11D, positions_1TD = backbone.cls_and_positions(self.vit)
        patches_BND = self.vit.patch_embed(images_BCHW) + positions_1TD[:, 1:]
        batch, count, width = patches_BND.shape
        order_BN = torch.rand(batch, count, device=patches_BND.device).argsort(dim=1)
        visible_BV = order_BN[:, : round(count * (1 - mask_share))]
        tokens_BTD = torch.cat(
            [
                cls_11D.expand(batch, -1, -1),
                patches_BND.gather(1, visible_BV[..., None].expand(-1, -1, width)),
            ],
            dim=1,
        )

        # Decoder: the encoded patches at their positions, the mask token at the others.
        encoded_BTD = self.to_decoder(self.vit.norm(self.vit.blocks(tokens_BTD)))
        decoder_patches_BND = self.mask_token.to(encoded_BTD.dtype).expand(batch, count, -1)
        decoder_patches_BND = decoder_patches_BND.scatter(
            1, visible_BV[..., None].expand(-1, -1, encoded_BTD.shape[-1]), encoded_BTD[:, 1:]
        )
        tokens_BTD = torch.cat([encoded_BTD[:, :1], decoder_patches_BND + self.decoder_positions_ND], dim=1)
        predicted_BNK = self.to_pixels(self.decoder(tokens_BTD))[:, 1:]

        # Loss: each patch's pixels are normalised by their own mean and variance.
        target_BNK = F.unfold(images_BCHW, self.patch, stride=self.patch).transpose(1, 2)
        variance_BN1, mean_BN1 = torch.var_mean(target_BNK, dim=-1, keepdim=True)
        normalized_BNK = (target_BNK - mean_BN1) / (variance_BN1 + 1e-6).sqrt()
        error_BN = (predicted_BNK - normalized_BNK).square().mean(dim=-1)
        hidden_BN = torch.ones_like(error_BN).scatter(1, visible_BV, 0)
        loss: Tensor = (error_BN * hidden_BN).sum() / hidden_BN.sum()
        return loss


def sine_cosine_positions(grid: int, dim: int) -> Tensor:
    """Return fixed positions ``[grid * grid, dim]``: a quarter of the width each for sin and cos of row and column."""
    frequency = 10000 ** -(torch.arange(dim // 4) / (dim // 4))
    row, column = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")

    angles = [index.reshape(-1, 1) * frequency for index in (row, column)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)


def read_images(source: Path, image_size: int) -> tuple[Tensor, Tensor | None]:
    """Read the images of a folder (any depth) or of a Parquet file with a column `image` and optionally `label`.

    Returns:
        uint8 ``[images, 3, image_size, image_size]``, and labels ``[images]`` or None.

    Raises:
        ValueError: if the source holds no image.
    """
    # Encoded images or their paths: decoded one by one below, so only the small pixels stay in memory.
    labels = None
    if source.suffix == ".parquet":
        table = pq.read_table(source)
        files: list[bytes | Path] = table["image"].to_pylist()
        if "label" in table.column_names:
            labels = torch.tensor(table["label"].to_pylist())
    else:
        files = sorted(file for file in source.rglob("*") if file.suffix.lower() in suffixes())
    if not files:
        raise ValueError(f"{source} holds no image; give a Parquet file with a column `image`, or a folder of images.")

    pixels = np.empty((len(files), 3, image_size, image_size), np.uint8)
    for i, file in enumerate(track(files, f"reading {source.name}")):
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            # The centre square of the upright image, resized.
            picture = to_rgb(image)
            side = min(picture.size)
            left = (picture.width - side) // 2
            top = (picture.height - side) // 2
            square = picture.resize(
                (image_size, image_size), Image.Resampling.BICUBIC, (left, top, left + side, top + side)
            )
        pixels[i] = np.asarray(square).transpose(2, 0, 1)

    return torch.from_numpy(pixels), labels


def random_crops(images_BCHW: Tensor, area: tuple[float, float]) -> Tensor:
    """Return a random square of each image, resized to the image's size. Half of them are mirrored."""
    # One affine map a batch crops, resizes and mirrors with a single interpolation.
    batch = len(images_BCHW)
    scale_B = torch.empty(batch).uniform_(*area).sqrt()
    shift_B2 = (torch.rand(batch, 2) * 2 - 1) * (1 - scale_B[:, None])

    theta_B23 = torch.zeros(batch, 2, 3)
    theta_B23[:, 0, 0] = scale_B * (torch.randint(0, 2, (batch,)) * 2 - 1)
    theta_B23[:, 1, 1] = scale_B
    theta_B23[:, :, 2] = shift_B2

    grid = F.affine_grid(theta_B23.to(images_BCHW.device), list(images_BCHW.shape), align_corners=False)
    return F.grid_sample(images_BCHW, grid, padding_mode="reflection", align_corners=False)


def linear_probe(vit: VisionTransformer, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> float:
    """Return the test accuracy of a logistic regression on the frozen network's mean patch token after the norm."""
    frozen = backbone.Backbone(vit, readout="mean", sha256="")

    @torch.no_grad()
    def features(images: Tensor) -> np.ndarray:
        outputs = []
        for images_BCHW in images.split(500):
            cls_B1D, patches_BND, _ = frozen.embed(images_BCHW)
            outputs.append(frozen.read_out(vit.blocks(torch.cat([cls_B1D, patches_BND], dim=1))))
        return torch.cat(outputs).numpy()

    train_images, train_labels = train
    test_images, test_labels = test
    train_features = features(train_images)

    scaler = StandardScaler().fit(train_features)
    probe = LogisticRegression(max_iter=2000).fit(scaler.transform(train_features), train_labels)
    return float(probe.score(scaler.transform(features(test_images)), test_labels))


def pretrain(images: Tensor, recipe: Recipe, out: Path, device: str) -> tuple[VisionTransformer, list[float]]:
    """Train a network and save a checkpoint per epoch in `out`. Another call resumes from the checkpoint.

    Returns:
        The network, on the CPU, and the mean loss of each epoch.

    Raises:
        ValueError: if there are fewer images than a batch, or the checkpoint is of another recipe.
    """
    torch.manual_seed(recipe.seed)
    vit = backbone.vit_nano_patch4_32()
    model = MaskedAutoencoder(vit, decoder_dim=recipe.decoder_dim, decoder_depth=recipe.decoder_depth).to(device)

    # Weight decay for matrices only, not for biases and norms.
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    not_decayed = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": not_decayed, "weight_decay": 0.0}],
        lr=recipe.lr,
        betas=recipe.betas,
    )

    # The schedule counts steps: a linear warm-up, then half a cosine down to zero.
    steps_per_epoch = len(images) // recipe.batch_size
    if steps_per_epoch == 0:
        raise ValueError(
            f"{counted(len(images), 'image is', 'images are')} fewer than a batch of {recipe.batch_size}; give more "
            "images."
        )
    total_steps = recipe.epochs * steps_per_epoch
    warmup_steps = max(1, round(recipe.warmup_share * recipe.epochs * steps_per_epoch))

    losses: list[float] = []
    state = load_state(out / "pretrain.pt")
    if state is not None:
        if state["recipe"] != asdict(recipe):
            raise ValueError(f"{out} holds a checkpoint of another recipe; choose another --out or remove it.")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        losses = state["losses"]

    for epoch in range(len(losses), recipe.epochs):
        # A seed of its own for each epoch: a resumed training draws the same crops and masks.
        torch.manual_seed(recipe.seed + 1_000_003 * (epoch + 1))
        started = time.perf_counter()
        total_loss = 0.0

        order = torch.randperm(len(images))[: steps_per_epoch * recipe.batch_size]
        for step, rows in enumerate(order.split(recipe.batch_size)):
            steps_done = epoch * steps_per_epoch + step
            if steps_done < warmup_steps:
                scale = (steps_done + 1) / warmup_steps
            else:
                decay = (steps_done - warmup_steps) / max(1, total_steps - warmup_steps)
                scale = 0.5 * (1 + math.cos(math.pi * decay))
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * scale

            images_BCHW = random_crops(images[rows].to(device).float() / 127.5 - 1, recipe.crop_area)
            loss = model(images_BCHW, recipe.mask_share)

            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total_loss += loss.item()

        losses.append(total_loss / steps_per_epoch)
        state = {
            "recipe": asdict(recipe),
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "losses": losses,
        }
        save_state(out / "pretrain.pt", state)

        seconds = time.perf_counter() - started
        print(f"epoch {epoch + 1}/{recipe.epochs}  loss {losses[-1]:.4f}  {seconds:.0f} s", flush=True)

    return vit.cpu(), losses


def main() -> None:
    """Run the command line of `python -m trainer.pretrain`."""
    parser = argparse.ArgumentParser(prog="python -m trainer.pretrain", description=__doc__)
    parser.add_argument("images", type=Path, help="folder of images, or Parquet file with a column `image`")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, card and checkpoint")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--probe", type=Path, help="Parquet file with labels, on which the card's linear-probe accuracy is measured"
    )
    arguments = parser.parse_args()

    arguments.out.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    recipe = Recipe(epochs=arguments.epochs, seed=arguments.seed)
    image_size = backbone.vit_nano_patch4_32().patch_embed.img_size[0]
    images, labels = read_images(arguments.images, image_size)

    started = time.perf_counter()
    vit, losses = pretrain(images, recipe, arguments.out, device)

    # Half precision halves the size of the file, which ships with the package.
    name = f"{ARCHITECTURE}.mae"
    weights = save({key: value.half().contiguous() for key, value in vit.state_dict().items()})
    write_bytes(arguments.out / f"{name}.safetensors", weights)

    # The card says how the weights were made. It lies beside them in the package.
    card = {
        "name": name,
        "sha256": hashlib.sha256(weights).hexdigest(),
        "parameters": sum(p.numel() for p in vit.parameters()),
        "data": f"{counted(len(images), 'image')} of {arguments.images}, at {image_size}x{image_size}",
        "objective": "masked autoencoder, normalised pixels (arXiv 2111.06377)",
        "recipe": asdict(recipe),
        "command": shlex.join(["python", "-m", "trainer.pretrain", *sys.argv[1:]]),
        "made_with": {"python": platform.python_version(), "torch": torch.__version__, "timm": timm.__version__},
        "device": device,
        "seconds_of_last_run": round(time.perf_counter() - started),
        "loss_per_epoch": [round(loss, 5) for loss in losses],
    }

    # An untrained network is the baseline that pre-training must beat.
    if arguments.probe and labels is not None:
        test_images, test_labels = read_images(arguments.probe, image_size)
        assert test_labels is not None, "a probe needs labels"

        torch.manual_seed(recipe.seed)
        untrained = backbone.vit_nano_patch4_32()
        card["linear_probe_accuracy"] = {
            "test_images": len(test_images),
            "pretrained": linear_probe(vit, (images, labels), (test_images, test_labels)),
            "untrained": linear_probe(untrained, (images, labels), (test_images, test_labels)),
        }
        print(f"linear probe: {card['linear_probe_accuracy']}")

    write_bytes(arguments.out / f"{name}.card.json", f"{json.dumps(card, indent=2)}\n".encode())


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as problem:
        sys.exit(f"error: {problem}")

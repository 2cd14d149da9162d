"""Sheet of prototypes: one picture of the image patches nearest to each prototype.

Shapes: L prompted layers, P prompts, D width, B images, S side of an image.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import textwrap

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from trainer.catalog import is_augmented
from trainer.config import TrainConfig
from trainer.data.split import load_split
from trainer.model.backbone import load_backbone
from trainer.plain_text import counted
from trainer.plots.nearest_patches import nearest_patches
from trainer.plots.style import YELLOW
from trainer.prompt_init.token_stream import TokenStream, token_stream
from trainer.storage.files import write_bytes
from trainer.storage.integrity import read_or_set_aside
from trainer.storage.tensors import unpack_tensors

OUTSIDE = "#BFD7EA"
"""Colour beyond an image's edge. Not grey, because images have grey."""
IMAGES = 1000
"""Number of images whose patches are compared with prototypes.

These are all of a VTAB task: 196,000 patches of a ViT-B/16. They cost one pass of the frozen network, a hundredth of a
run of 100 epochs.
"""
VERSION = 1
"""Count up if the same prototypes give another sheet than before: cached sheets of older versions are not used then."""

# The most that a sheet has room for: patches per prompt, layers, and prompts per layer.
NEAREST = 3
LAYERS = 6
PROMPTS = 16

# Pixels: side of a patch with its surroundings, gap between two of them, left margin, height of a line of text.
CELL = 48
GAP = 3
LEFT = 86
LINE = 15


def prototype_sheet(prompt_LPD: Tensor, stream: TokenStream, title: str) -> bytes:
    """Return a PNG of the real image patches whose tokens are nearest to each prompt.

    A block is a layer, and a column of it is a prompt. Each patch is framed, in a crop of the image that is three
    patches wide. Pale blue is outside of the image.

    Args:
        prompt_LPD: initial values of the prompts.
        stream: the images, with as many layers as the prompt has.
        title: text above the blocks.
    """
    num_layers, prompt_length, _ = prompt_LPD.shape
    layers = _evenly_spaced(num_layers, LAYERS)
    prompts = _evenly_spaced(prompt_length, PROMPTS)
    sampled_LPD = prompt_LPD[:, prompts]

    patches = nearest_patches(sampled_LPD, stream, nearest=NEAREST)
    rows_B = patches.image_LPK[layers].unique()
    image_by_row = dict(zip(rows_B.tolist(), stream.images_of(rows_B).cpu(), strict=True))
    patch_size = stream.backbone.patch_size
    patches_per_row = stream.backbone.image_size // patch_size
    relative_LP = patches.distance_LPK[..., 0] / sampled_LPD.double().square().sum(dim=2).clamp(min=1e-12).cpu()

    # An empty sheet, as large as its blocks and the explanation below them.
    explanation = (
        f"Column: the {NEAREST} patches nearest to a prototype, by squared Euclidean distance to the tokens that enter "
        "the layer. Distance: that of the nearest, as a share of the prototype's squared length; the median prompt. "
        f"From {counted(stream.num_images, 'image')}; {len(prompts)} of {counted(prompt_length, 'prompt')} and "
        f"{len(layers)} of {counted(num_layers, 'layer')} are shown; pale blue is outside of the image."
    )
    width = max(LEFT + len(prompts) * (CELL + GAP) + GAP, 480)
    lines = textwrap.wrap(explanation, width // 6)
    block_height = LINE + NEAREST * (CELL + GAP) + 4
    height = LINE + 10 + len(layers) * block_height + len(lines) * LINE + 8
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(11)
    pen.text((6, 6), title, "black", ImageFont.load_default(12))

    for block, layer in enumerate(layers):
        top = LINE + 10 + block * block_height
        pen.text((6, top + LINE + CELL), f"layer {layer}", "black", font)
        pen.text((6, top + 2 * LINE + CELL), f"distance {float(relative_LP[layer].median()):.2f}", "#444444", font)
        pen.text((6, top + LINE // 2), "prompt", "#444444", font, anchor="lm")
        for column, prompt in enumerate(prompts):
            left = LEFT + column * (CELL + GAP)
            pen.text((left + CELL // 2, top + LINE // 2), str(prompt), "#444444", font, anchor="mm")
            for rank in range(NEAREST):
                image = image_by_row[int(patches.image_LPK[layer, column, rank])]
                row_and_column = divmod(int(patches.patch_LPK[layer, column, rank]), patches_per_row)
                cell = _framed(image, row_and_column, patch_size)
                sheet.paste(cell, (left, top + LINE + rank * (CELL + GAP)))

    for number, line in enumerate(lines):
        pen.text((6, sheet.height - (len(lines) - number) * LINE - 4), line, "#444444", font)

    # A palette makes a sheet of photographs a third as large.
    buffer = io.BytesIO()
    sheet.quantize(128, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def cached_prototype_sheet(
    config: TrainConfig,
    prototypes: bytes,
    *,
    data_root: str,
    weights: str | None,
    prototype_cache: str | None,
    device: str,
) -> bytes:
    """Return the sheet of a run's prototypes from the prototype cache, or draw it and keep it there.

    Args:
        prototypes: content of the run's `prototypes.safetensors`.
        prototype_cache: folder (path or URI); None keeps nothing.

    Raises:
        ValueError: if the data or the weights do not fit the config.
        OSError: if data or prototype cache cannot be read or written.
    """
    backbone = load_backbone(
        config.backbone, image_size=config.pixels, normalize=config.normalize, weights=weights, device=device
    )
    task = config.task
    size = config.train_size
    if config.init_task is not None:
        task = config.init_task
        size = 1.0
    view = "whole" if is_augmented(task) else "fixed"

    # On the CPU and past the cache of splits: only a thousand images go to the device, and no split of the training is
    # pushed out.
    images = load_split.__wrapped__(
        data_root,
        task,
        config.train_split,
        size,
        config.pixels,
        "cpu",
        config.transform,
        view,
        val_size=config.val_size,
        draw=config.draw,
    )

    # Everything that decides what the sheet looks like.
    title = f"{task}  {config.prompt_init}  {config.backbone}"
    content = {
        "version": VERSION,
        "prototypes": hashlib.sha256(prototypes).hexdigest(),
        "backbone": backbone.sha256,
        "normalize": config.normalize,
        "images": images.fingerprint,
        "crops": config.seed if view == "whole" else None,
        "title": title,
    }
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    if prototype_cache is not None:
        cached = read_or_set_aside(f"{prototype_cache}/{key}.png", _parse_png)
        if cached is not None:
            return cached

    prompt_LPD = unpack_tensors(prototypes)[0]["prompt"]
    cpu_stream = token_stream(config, backbone, images, len(prompt_LPD), IMAGES)
    stream = dataclasses.replace(cpu_stream, images_of=lambda rows_B: cpu_stream.images_of(rows_B).to(device))
    sheet = prototype_sheet(prompt_LPD, stream, title)
    if prototype_cache is not None:
        write_bytes(f"{prototype_cache}/{key}.png", sheet)
    return sheet


def _parse_png(data: bytes) -> bytes:
    """Return a PNG whose checksums are right.

    Raises:
        Exception: of several kinds, if one is wrong.
    """
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        image.verify()
    return data


def _framed(image_3SS: Tensor, row_and_column: tuple[int, int], patch_size: int) -> Image.Image:
    """Return an enlarged patch with a patch's width of its surroundings, and a frame just outside the patch."""
    top, left = (patch_size * (position - 1) for position in row_and_column)
    crop = Image.new("RGB", (3 * patch_size, 3 * patch_size), OUTSIDE)
    crop.paste(Image.fromarray(image_3SS.permute(1, 2, 0).contiguous().numpy()), (-left, -top))
    # Small patches keep their pixels visible; large ones are made smaller without aliasing.
    resampling = Image.Resampling.NEAREST if crop.width < CELL else Image.Resampling.BICUBIC
    cell = crop.resize((CELL, CELL), resampling)

    first = CELL // 3
    last = 2 * CELL // 3 - 1
    pen = ImageDraw.Draw(cell)
    pen.rectangle((first - 2, first - 2, last + 2, last + 2), outline="black")
    pen.rectangle((first - 1, first - 1, last + 1, last + 1), outline=YELLOW)
    return cell


def _evenly_spaced(count: int, most: int) -> list[int]:
    """Return at most `most` of the numbers below `count`, evenly spaced, the first and the last among them."""
    return sorted({round(i * (count - 1) / max(1, most - 1)) for i in range(most)})

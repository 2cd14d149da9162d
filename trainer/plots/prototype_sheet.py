"""The image patches nearest to each prototype, as one picture."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import textwrap

from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import load
from torch import Tensor

from trainer.catalog import is_augmented
from trainer.config import TrainConfig
from trainer.data.split import load_split
from trainer.model.backbone import load_backbone
from trainer.plots.nearest_patches import nearest_patches
from trainer.plots.style import YELLOW
from trainer.prompt_init.token_stream import TokenStream, token_stream
from trainer.storage.files import read_bytes, write_bytes

OUTSIDE = "#BFD7EA"
"""What is beyond an image's edge: no grey, which images have."""
IMAGES = 1000
"""Images whose patches are compared with prototypes: all of a VTAB task, 196,000 patches of a ViT-B/16. They cost one
pass of the frozen network, a hundredth of a run of 100 epochs."""
NEAREST, LAYERS, PROMPTS = 3, 6, 16
"""What a sheet of prototypes has room for."""
CELL, GAP, LEFT, LINE = 48, 3, 86, 15
"""Pixels of a patch with its surroundings, between two of them, left of the first, and from one line to the next."""
VERSION = 1
"""Counted up when the same prototypes give another sheet than before."""


def prototype_sheet(prompt_LPD: Tensor, stream: TokenStream, title: str) -> bytes:
    """A PNG that shows prompts as the real image patches whose tokens are nearest: a block a layer, a column a prompt.

    Each patch is framed, in a crop of the image that is three patches wide. Pale blue is outside of the image.

    Args:
        prompt_LPD: the prompts as they started.
        stream: the images, and as many layers as the prompt has.
    """
    num_layers, prompt_length, _ = prompt_LPD.shape
    layers, prompts = _evenly(num_layers, LAYERS), _evenly(prompt_length, PROMPTS)
    shown_LPD = prompt_LPD[:, prompts]
    found = nearest_patches(shown_LPD, stream, nearest=NEAREST)
    images = found.image_LPK[layers].unique()
    pictures = dict(zip(images.tolist(), stream.images_of(images).cpu(), strict=True))
    patch, per_row = stream.backbone.patch_size, stream.backbone.image_size // stream.backbone.patch_size
    away_LP = found.distance_LPK[..., 0] / shown_LPD.double().square().sum(dim=2).clamp(min=1e-12).cpu()

    foot = (
        f"Column: the {NEAREST} patches nearest to a prototype, by squared Euclidean distance to the tokens that enter "
        "the layer. Distance: that of the nearest, as a share of the prototype's squared length; the median prompt. "
        f"From {stream.num_images:,} images; {len(prompts)} of {prompt_length} prompts and {len(layers)} of "
        f"{num_layers} layers are shown; pale blue is outside of the image."
    )
    width = max(LEFT + len(prompts) * (CELL + GAP) + GAP, 480)
    lines = textwrap.wrap(foot, width // 6)
    block = LINE + NEAREST * (CELL + GAP) + 4
    sheet = Image.new("RGB", (width, LINE + 10 + len(layers) * block + len(lines) * LINE + 8), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    pen.text((6, 6), title, "black", ImageFont.load_default(12))
    for place, layer in enumerate(layers):
        top = LINE + 10 + place * block
        pen.text((6, top + LINE + CELL), f"layer {layer}", "black", font)
        pen.text((6, top + 2 * LINE + CELL), f"distance {float(away_LP[layer].median()):.2f}", "#444444", font)
        pen.text((6, top + LINE // 2), "prompt", "#444444", font, anchor="lm")
        for column, prompt in enumerate(prompts):
            left = LEFT + column * (CELL + GAP)
            pen.text((left + CELL // 2, top + LINE // 2), str(prompt), "#444444", font, anchor="mm")
            for rank in range(NEAREST):
                image = int(found.image_LPK[layer, column, rank])
                row_and_column = divmod(int(found.patch_LPK[layer, column, rank]), per_row)
                sheet.paste(_framed(pictures[image], row_and_column, patch), (left, top + LINE + rank * (CELL + GAP)))
    for number, line in enumerate(lines):
        pen.text((6, sheet.height - (len(lines) - number) * LINE - 4), line, "#444444", font)
    buffer = io.BytesIO()
    # A palette makes a sheet of photographs a third as large.
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
    """The sheet of a run's prototypes: from the bank, or drawn and kept there."""
    backbone = load_backbone(
        config.backbone, image_size=config.pixels, normalize=config.normalize, weights=weights, device=device
    )
    own = config.init_task is None
    task = config.task if config.init_task is None else config.init_task
    view = "whole" if is_augmented(task) else "fixed"
    # On the CPU and past the splits that are kept in the process: a thousand images go to the device, not all.
    size = config.train_size if own else 1.0
    images = load_split.__wrapped__(
        data_root, task, config.train_split, size, config.pixels, "cpu", config.transform, view
    )
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
    if prototype_cache is not None and (kept := read_bytes(f"{prototype_cache}/{key}.png")) is not None:
        return kept
    prompt_LPD = load(prototypes)["prompt"]
    cpu = token_stream(config, backbone, images, len(prompt_LPD), IMAGES)
    stream = dataclasses.replace(cpu, images_of=lambda rows_B: cpu.images_of(rows_B).to(device))
    sheet = prototype_sheet(prompt_LPD, stream, title)
    if prototype_cache is not None:
        write_bytes(f"{prototype_cache}/{key}.png", sheet)
    return sheet


def _framed(image_3SS: Tensor, row_and_column: tuple[int, int], patch: int) -> Image.Image:
    """A patch and a patch's width of its surroundings, enlarged, with a frame just outside the patch."""
    top, left = (patch * (place - 1) for place in row_and_column)
    crop = Image.new("RGB", (3 * patch, 3 * patch), OUTSIDE)
    crop.paste(Image.fromarray(image_3SS.permute(1, 2, 0).contiguous().numpy()), (-left, -top))
    how = Image.Resampling.NEAREST if crop.width < CELL else Image.Resampling.BICUBIC
    cell = crop.resize((CELL, CELL), how)
    first, last = CELL // 3, 2 * CELL // 3 - 1
    pen = ImageDraw.Draw(cell)
    pen.rectangle((first - 2, first - 2, last + 2, last + 2), outline="black")
    pen.rectangle((first - 1, first - 1, last + 1, last + 1), outline=YELLOW)
    return cell


def _evenly(count: int, most: int) -> list[int]:
    """At most so many of the first numbers, evenly chosen, the first and the last among them."""
    return sorted({round(i * (count - 1) / max(1, most - 1)) for i in range(most)})

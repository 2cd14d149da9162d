"""Cost of prototypes at full size: seconds, and memory beyond that of the model.

Run `python -m tests.benchmarks.prototypes vit_base_patch16_224.mae --images 300`. Images are noise, generated when they
are read, and the network's weights are random. On a CPU, k-means holds as many tokens as it may at 186 images of ViT-B
(36,408 per layer). More images take longer but no more memory: compare the last column at half and at all images. On a
GPU, k-means holds the tokens of all images, of all layers or of groups of layers, if they fit: `--images 5994` is
CUB-200.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

import torch

from trainer.catalog import BACKBONES, PROTOTYPE_INITS
from trainer.model.backbone import Backbone, build_vit
from trainer.prompt_init.strategies import build_prototypes
from trainer.prompt_init.token_stream import TokenStream, with_all_tokens


def peak_bytes(device: str) -> int:
    """Return the peak memory of this process on its device."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(backbone_name: str, images: int, prompt_init: str, prompt_length: int) -> None:
    """Build the prototypes of one strategy, and print the seconds and the memory. Runs in a process of its own."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    row = BACKBONES[backbone_name]
    torch.manual_seed(0)
    backbone = Backbone(build_vit(row), readout=row.readout, sha256="").to(device)

    def images_of(rows_B: torch.Tensor) -> torch.Tensor:
        noise = torch.Generator().manual_seed(int(rows_B[0]))
        shape = (len(rows_B), 3, row.image_size, row.image_size)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=noise).to(device)

    # Buffers of the libraries are allocated at the first pass, and count as the model's.
    list(backbone.patch_tokens(images_of(torch.arange(1))))

    before = peak_bytes(device)
    started = time.perf_counter()
    stream = TokenStream(backbone=backbone, num_images=images, images_of=images_of, num_layers=row.num_layers)
    if prompt_init == "kmeans":
        stream = with_all_tokens(stream)
    build_prototypes(stream, prompt_init=prompt_init, prompt_length=prompt_length, seed=0).cpu()
    seconds = time.perf_counter() - started

    print(
        f"{backbone_name} {prompt_init:9} {prompt_length} prompts, {images:6,} images, {device}: {seconds:7.1f} s, "
        f"{(peak_bytes(device) - before) / 2**30:.2f} GiB above the model",
        flush=True,
    )


def main() -> None:
    """Measure every strategy with half and with all of the images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backbone", nargs="?", default="vit_base_patch16_224.mae", choices=BACKBONES)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--prompt-length", type=int, default=20)
    parser.add_argument("--only", choices=PROTOTYPE_INITS, help="only this strategy, with this number of images")
    options = parser.parse_args()
    if options.only:
        measure(options.backbone, options.images, options.only, options.prompt_length)
        return

    # The peak of a process never falls, so each measurement has a process of its own.
    for prompt_init in PROTOTYPE_INITS:
        for images in (options.images // 2, options.images):
            command = [sys.executable, "-m", "tests.benchmarks.prototypes", options.backbone, "--only", prompt_init]
            command += ["--images", str(images), "--prompt-length", str(options.prompt_length)]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()

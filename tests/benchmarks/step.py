"""Time of one training step: ours, and a plain timm forward and backward pass with the same learnable parameters.

Run `python -m tests.benchmarks.step [BACKBONE] --prompt-length 20 --batch-size 8`. Both sides take turns in this
process, on the same images. The ratio is that of the medians. The plain side concatenates `[CLS, prompts, patches]`
before each block, as in the figure of the papers. No weights are needed: the network's are random.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.benchmarks.published import plain_logits
from trainer.catalog import BACKBONES
from trainer.model.backbone import Backbone, build_vit
from trainer.model.prompted_vit import PromptedViT


def published_logits(model: PromptedViT, images_BCHW: Tensor) -> Tensor:
    """Return the logits of the papers' forward pass, from the same uint8 images."""
    backbone = model.backbone
    pixels_BCHW = (images_BCHW.float() / 255 - backbone.mean_C11) / backbone.std_C11
    return plain_logits(backbone.vit, model.head, model.prompt_LPD, backbone.readout, pixels_BCHW)


def main() -> None:
    """Measure, and print one line per method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backbone", nargs="?", default="vit_base_patch16_224.mae", choices=BACKBONES)
    parser.add_argument("--prompt-length", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    row = BACKBONES[options.backbone]
    torch.manual_seed(0)
    images_BCHW = torch.randint(0, 256, (options.batch_size, 3, row.image_size, row.image_size), dtype=torch.uint8)
    labels_B = torch.randint(0, 100, (options.batch_size,), device=device)
    images_BCHW = images_BCHW.to(device)
    backbone = Backbone(build_vit(row), readout=row.readout, sha256="").to(device)

    for method, layers in (("deep", row.num_layers), ("shallow", 1)):
        model = PromptedViT(
            backbone,
            num_classes=100,
            prompt_LPD=0.1 * torch.randn(layers, options.prompt_length, row.embed_dim),
            prompt_dropout=0.0,
            generator=torch.Generator().manual_seed(0),
        ).to(device)

        def step(logits: Callable[[], Tensor], parameters: list[Tensor]) -> tuple[float, float]:
            if device == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            loss = F.cross_entropy(logits(), labels_B)
            torch.autograd.grad(loss, parameters)
            if device == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter() - started, float(loss.detach())

        learnable: list[Tensor] = list(model.learnable().values())
        ours_s = []
        plain_s = []
        for _ in range(options.steps + 1):
            ours_step_s, our_loss = step(lambda model=model: model(images_BCHW), learnable)  # type: ignore[misc]
            plain_step_s, plain_loss = step(lambda model=model: published_logits(model, images_BCHW), learnable)  # type: ignore[misc]
            assert abs(our_loss - plain_loss) < 1e-4, "both compute the same"
            ours_s.append(ours_step_s)
            plain_s.append(plain_step_s)

        # The first step of each side warms up.
        ours = statistics.median(ours_s[1:])
        plain = statistics.median(plain_s[1:])
        print(
            f"{options.backbone} {method}, {options.prompt_length} prompts, batch {options.batch_size}, {device}: "
            f"ours {1000 * ours:.0f} ms, plain timm {1000 * plain:.0f} ms, ratio {ours / plain:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()

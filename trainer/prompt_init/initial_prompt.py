"""The prompt's initial value, and the prototype cache: each set of prototypes is built once and shared by all trials.

A set's key is a hash of what it is built from: network, images, strategy, length, seed, the kind of GPU, and the tokens
that k-means clusters there. Sets are built in float32 for every precision of training.
Shapes: L prompted layers, P prompt_length, D width.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer import phase
from trainer.catalog import METHODS, is_augmented
from trainer.config import TrainConfig
from trainer.data.split import Split, load_split
from trainer.model.backbone import Backbone
from trainer.model.device_errors import is_out_of_memory
from trainer.model.gpu_kernels import device_kind
from trainer.prompt_init.strategies import build_prototypes, uniform_prompt
from trainer.prompt_init.token_stream import TokenStream, token_stream, with_all_tokens
from trainer.storage.files import write_bytes
from trainer.storage.integrity import read_or_set_aside
from trainer.storage.tensors import pack_tensors, unpack_tensors

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class InitialPrompt:
    """The initial value of a prompt."""

    prompt_LPD: Tensor
    """On the CPU; ``[0, 0, D]`` for methods without prompts."""
    seconds: float = 0.0
    """Time that building the prototypes took, also when they are read from the cache."""


def initial_prompt(
    config: TrainConfig,
    backbone: Backbone,
    train_split: Split,
    *,
    data_root: str,
    prototype_cache: str | None,
    cache: str | None = None,
) -> InitialPrompt:
    """Return the prompt's initial value: prototypes of the training images (SPT), or uniform noise (VPT).

    Args:
        prototype_cache: folder (path or URI) of built sets; None builds the set again.
        cache: folder on a local disk for decoded images of `init_task`; None as in `load_split`.

    Raises:
        ValueError: if there are fewer tokens than prompts.
        OSError: if the cache cannot be read or written.
    """
    num_layers = {"all": backbone.num_layers, "first": 1, "none": 0}[METHODS[config.method].prompted_layers]

    if config.prompt_length is None:
        return InitialPrompt(torch.zeros(0, 0, backbone.embed_dim))

    if config.prompt_init == "uniform":
        generator = torch.Generator().manual_seed(config.stream_seed("prompt"))
        return InitialPrompt(
            uniform_prompt(backbone, num_layers=num_layers, prompt_length=config.prompt_length, generator=generator)
        )

    device = str(train_split.labels_N.device)
    images = train_split
    if config.init_task is not None:
        images = _images_of_init_task(config, data_root, device, cache)

    stream = token_stream(config, backbone, images, num_layers, config.init_images)
    if config.prompt_init == "kmeans":
        with_all = with_all_tokens(stream)
        if with_all.layers_at_once:
            try:
                return _stored_or_built(config, images, with_all, prototype_cache)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise

            # Outside the handler: the exception that it holds keeps the tokens in memory.
            torch.cuda.empty_cache()
            log.warning(
                "out of memory in k-means over all %d tokens of each of %d layers: it clusters a sample of %d tokens a "
                "layer instead, so prototypes differ from those of the same GPU with more free memory",
                with_all.num_clustered,
                with_all.layers_at_once,
                stream.num_clustered,
            )

    return _stored_or_built(config, images, stream, prototype_cache)


def _stored_or_built(
    config: TrainConfig, images: Split, stream: TokenStream, prototype_cache: str | None
) -> InitialPrompt:
    """Return the prototypes of a stream from the cache, or build them and keep them there."""
    assert config.prompt_length is not None and config.prompt_init is not None, "a method with prompts"
    device = images.labels_N.device

    # The key of a stored set: a change of these names or of their values makes all sets of a cache unreachable.
    content: dict[str, object] = {
        "backbone": stream.backbone.sha256,
        "normalize": config.normalize,
        "images": images.fingerprint,
        "init_images": config.init_images,
        "layers": stream.num_layers,
        "prompt_init": config.prompt_init,
        "prompt_length": config.prompt_length,
        "seed": config.seed,
    }
    # Other kinds of GPU round in other ways, so their sets differ in last bits, and those with more memory cluster more
    # tokens. Sets of a CPU keep the key of 0.1.0.
    if device.type == "cuda":
        content["device"] = device_kind(device)
        if config.prompt_init == "kmeans":
            content |= {"clustered_tokens": stream.num_clustered, "layers_at_once": stream.layers_at_once}

    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    location = f"{prototype_cache}/{key}.safetensors"

    if prototype_cache is not None:
        cached = read_or_set_aside(location, _parse_cached)
        if cached is not None:
            return cached

    phase.begin(f"building prototypes of {config.init_task or config.task}")
    started = time.perf_counter()
    prompt_LPD = build_prototypes(
        stream,
        prompt_init=config.prompt_init,
        prompt_length=config.prompt_length,
        seed=config.stream_seed("prototypes"),
    ).cpu()
    seconds = time.perf_counter() - started
    if stream.layers_at_once:
        # Or this process would hold the memory of all tokens while it trains, and others on the GPU would lack it.
        torch.cuda.empty_cache()

    # Two trials that build the same set at once write the same values: no lock is needed.
    if prototype_cache is not None:
        notes = {"seconds": repr(seconds), "content": json.dumps(content)}
        write_bytes(location, pack_tensors({"prompt": prompt_LPD.contiguous()}, notes))

    return InitialPrompt(prompt_LPD, seconds)


def _parse_cached(data: bytes) -> InitialPrompt:
    """Return the set in a file of the cache."""
    tensors, notes = unpack_tensors(data)
    return InitialPrompt(tensors["prompt"], float(notes["seconds"]))


def _images_of_init_task(config: TrainConfig, data_root: str, device: str, cache: str | None) -> Split:
    task = str(config.init_task)
    view = "whole" if is_augmented(task) else "fixed"
    return load_split(
        data_root, task, config.train_split, 1.0, config.pixels, device, config.transform, view=view, cache=cache
    )

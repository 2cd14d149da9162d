"""Tables of tasks, backbones and methods, one row each. Standard library only."""

from __future__ import annotations

import re
from dataclasses import KW_ONLY, dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A classification task with the sizes of its official splits. The split `trainval` is train and val together."""

    name: str
    group: str
    """Group of tasks over which reports average."""
    num_classes: int
    num_train: int
    num_val: int
    num_test: int
    augmented: bool = False
    """True if training sees random crops and mirror images (FGVC), False if it sees each image as it is (VTAB)."""


SIZES = {
    "nano": (5, 96),
    "tiny": (12, 192),
    "small": (12, 384),
    "base": (12, 768),
    "large": (24, 1024),
    "huge": (32, 1280),
}
"""Layers and width of the standard ViTs."""


@dataclass(frozen=True, slots=True)
class BackboneRow:
    """A frozen network. Its full timm name is the architecture, a dot, and the tag of the weights."""

    name: str
    size: str
    pretraining: Literal["mae", "moco_v3", "supervised", "dino", "dinov2"]
    published_as: str = ""
    """Name of the file that its authors published, if they did."""
    on_hub: bool = True
    """Whether timm's hub has its weights."""
    patch_size: int = 16
    image_size: int = 224
    """Side of the square that the network sees, in pixels, unless a config sets another."""
    mean_and_std: Literal["imagenet", "half"] = "imagenet"
    """Pixel normalization it was trained with: ImageNet's mean and std, or 0.5 and 0.5."""

    @property
    def architecture(self) -> str:
        """timm's name of the network without the tag of its weights."""
        return self.name.partition(".")[0]

    @property
    def num_layers(self) -> int:
        """Number of transformer blocks, L."""
        return SIZES[self.size][0]

    @property
    def embed_dim(self) -> int:
        """Width of a token, D."""
        return SIZES[self.size][1]

    @property
    def readout(self) -> Literal["mean", "cls"]:
        """Input of the head: the mean of all tokens but CLS (MAE), or the CLS token."""
        return "mean" if self.pretraining == "mae" else "cls"

    @property
    def head_std(self) -> float:
        """Standard deviation of the head's initial weight (SPT's reference code: 0.01 on MoCo v3)."""
        return 0.01 if self.pretraining == "moco_v3" else 0.02

    def num_patches(self, image_size: int | None = None) -> int:
        """Return the number of patch tokens of one image, N."""
        return ((image_size or self.image_size) // self.patch_size) ** 2


@dataclass(frozen=True, slots=True)
class Method:
    """A way to adapt the network to a task."""

    name: str
    paper_name: str
    """The name that papers print."""
    adaptation: str
    """Its class, an `Adaptation` of trainer/methods/protocol.py: a module, a colon and a name."""
    _: KW_ONLY
    fields: tuple[str, ...] = ()
    """Fields of TrainConfig that this method has, and methods that do not name them have not."""
    prompted_layers: Literal["all", "first", "none"] = "none"
    prompt_inits: tuple[str, ...] = ()
    """Strategies for the prompt's initial value. If there is only one, there is nothing to choose."""
    prompt_dropout: float = 0.0
    backbone_learns: bool = False
    """Whether the whole network is trained, which takes four times its memory."""
    has_weight_decay: bool = True
    """Whether it trains a parameter that decays, besides the head: one that is no vector."""
    first_lr: tuple[float, float] | None = None
    """Range of lr for a first search, if another than that of prompts and heads."""

    @property
    def has_prototypes(self) -> bool:
        """Whether its prompts start from prototypes of the task's patch tokens, by one of several strategies."""
        return len(self.prompt_inits) > 1


PROTOTYPE_INITS = ("random", "mean_pool", "max_pool", "kmeans")


def _vtab(name: str, group: str, num_classes: int, num_test: int) -> Task:
    """Return a VTAB-1K task: 800 training and 200 validation images, and the full test set."""
    return Task(
        name=f"vtab/{name}", group=group, num_classes=num_classes, num_train=800, num_val=200, num_test=num_test
    )


def _fgvc(name: str, num_classes: int, num_train: int, num_val: int, num_test: int) -> Task:
    """Return a fine-grained task, trained on random crops. Train and val are VPT's 90 and 10 per cent."""
    return Task(
        name=f"fgvc/{name}",
        group="fgvc",
        num_classes=num_classes,
        num_train=num_train,
        num_val=num_val,
        num_test=num_test,
        augmented=True,
    )


OWN = "own/"
"""Prefix of the names of users' own tasks. Their sizes stand in their cards."""


def is_own(name: str) -> bool:
    """Return whether a name can be that of a user's own task, which is also a folder of the task store."""
    return re.fullmatch(rf"{OWN}[^\W_][\w.-]*", name) is not None


TASKS = {
    task.name: task
    for task in (
        _vtab("cifar100", "natural", 100, 10_000),
        _vtab("caltech101", "natural", 102, 6_084),
        _vtab("dtd", "natural", 47, 1_880),
        _vtab("oxford_flowers102", "natural", 102, 6_149),
        _vtab("oxford_iiit_pet", "natural", 37, 3_669),
        _vtab("svhn", "natural", 10, 26_032),
        _vtab("sun397", "natural", 397, 21_750),
        _vtab("patch_camelyon", "specialized", 2, 32_768),
        _vtab("eurosat", "specialized", 10, 5_400),
        _vtab("resisc45", "specialized", 45, 6_300),
        _vtab("diabetic_retinopathy", "specialized", 5, 42_670),
        _vtab("clevr_count", "structured", 8, 15_000),
        _vtab("clevr_dist", "structured", 6, 15_000),
        _vtab("dmlab", "structured", 6, 22_735),
        _vtab("kitti", "structured", 4, 711),
        _vtab("dsprites_loc", "structured", 16, 73_728),
        _vtab("dsprites_ori", "structured", 16, 73_728),
        _vtab("smallnorb_azi", "structured", 18, 12_150),
        _vtab("smallnorb_ele", "structured", 9, 12_150),
        _fgvc("cub_200_2011", 200, 5_394, 600, 5_794),
        _fgvc("nabirds", 555, 21_536, 2_393, 24_633),
        _fgvc("oxford_flowers", 102, 1_020, 1_020, 6_149),
        _fgvc("stanford_dogs", 120, 10_800, 1_200, 8_580),
        _fgvc("stanford_cars", 196, 7_329, 815, 8_041),
        Task(name="demo/digits", group="demo", num_classes=10, num_train=800, num_val=200, num_test=797),
        Task(name="demo/shapes_loc", group="demo", num_classes=16, num_train=800, num_val=200, num_test=2000),
        Task(name="demo/shapes_ori", group="demo", num_classes=16, num_train=800, num_val=200, num_test=2000),
    )
}

BUNDLED = "vit_nano_patch4_32.mae"
"""Name of the network that ships with this package."""


BACKBONES = {
    row.name: row
    for row in (
        BackboneRow(BUNDLED, "nano", "mae", on_hub=False, patch_size=4, image_size=32, mean_and_std="half"),
        BackboneRow("vit_base_patch16_224.mae", "base", "mae", "mae_pretrain_vit_base.pth"),
        BackboneRow("vit_large_patch16_224.mae", "large", "mae", "mae_pretrain_vit_large.pth"),
        BackboneRow("vit_huge_patch14_224.mae", "huge", "mae", "mae_pretrain_vit_huge.pth", patch_size=14),
        BackboneRow("vit_base_patch16_224.moco_v3", "base", "moco_v3", "vit-b-300ep.pth.tar", on_hub=False),
        BackboneRow("vit_large_patch16_224.moco_v3", "large", "moco_v3", on_hub=False),
        BackboneRow("vit_huge_patch14_224.moco_v3", "huge", "moco_v3", on_hub=False, patch_size=14),
        BackboneRow("vit_tiny_patch16_224.augreg_in21k", "tiny", "supervised", mean_and_std="half"),
        BackboneRow("vit_small_patch16_224.augreg_in21k", "small", "supervised", mean_and_std="half"),
        BackboneRow("vit_base_patch16_224.augreg_in21k", "base", "supervised", mean_and_std="half"),
        BackboneRow("vit_large_patch16_224.augreg_in21k", "large", "supervised", mean_and_std="half"),
        BackboneRow("vit_base_patch16_224.orig_in21k", "base", "supervised", "ViT-B_16.npz", mean_and_std="half"),
        BackboneRow("vit_large_patch16_224.orig_in21k", "large", "supervised", "ViT-L_16.npz", mean_and_std="half"),
        BackboneRow(
            "vit_huge_patch14_224.orig_in21k", "huge", "supervised", "ViT-H_14.npz", patch_size=14, mean_and_std="half"
        ),
        BackboneRow("vit_small_patch16_224.dino", "small", "dino", "dino_deitsmall16_pretrain.pth"),
        BackboneRow("vit_base_patch16_224.dino", "base", "dino", "dino_vitbase16_pretrain.pth"),
        BackboneRow("vit_small_patch14_dinov2.lvd142m", "small", "dinov2", "dinov2_vits14_pretrain.pth", patch_size=14),
        BackboneRow("vit_base_patch14_dinov2.lvd142m", "base", "dinov2", "dinov2_vitb14_pretrain.pth", patch_size=14),
        BackboneRow("vit_large_patch14_dinov2.lvd142m", "large", "dinov2", "dinov2_vitl14_pretrain.pth", patch_size=14),
    )
}

_PROMPTS = "trainer.methods.prompts:Prompts"

METHODS = {
    method.name: method
    for method in (
        Method("spt_deep", "SPT-Deep", _PROMPTS, prompted_layers="all", prompt_inits=PROTOTYPE_INITS),
        Method("spt_shallow", "SPT-Shallow", _PROMPTS, prompted_layers="first", prompt_inits=PROTOTYPE_INITS),
        Method("vpt_deep", "VPT-Deep", _PROMPTS, prompted_layers="all", prompt_inits=("uniform",), prompt_dropout=0.1),
        Method("vpt_shallow", "VPT-Shallow", _PROMPTS, prompted_layers="first", prompt_inits=("uniform",)),
        Method("linear", "Linear", "trainer.methods.protocol:Adaptation", has_weight_decay=False),
        Method(
            "full", "Full", "trainer.methods.parts_of_the_network:Full", backbone_learns=True, first_lr=(1e-4, 5e-3)
        ),
        Method(
            "bias", "Bias", "trainer.methods.parts_of_the_network:Bias", has_weight_decay=False, first_lr=(1e-4, 1e-2)
        ),
        Method("partial_1", "Partial-1", "trainer.methods.parts_of_the_network:PartialOne", first_lr=(1e-4, 5e-3)),
        Method("lora", "LoRA", "trainer.methods.lora:LoRA", fields=("lora_rank",), first_lr=(1e-4, 1e-2)),
        Method("ssf", "SSF", "trainer.methods.ssf:SSF", has_weight_decay=False, first_lr=(1e-4, 1e-2)),
        Method(
            "adapter",
            "Adapter",
            "trainer.methods.adapter:Adapters",
            fields=("adapter_dim", "adapter_form"),
            first_lr=(1e-4, 1e-2),
        ),
        Method(
            "gate_vpt",
            "GateVPT",
            "trainer.methods.gate_vpt:GateVPT",
            fields=("gate_init",),
            prompted_layers="first",
            prompt_inits=("uniform",),
        ),
        Method(
            "gate_vpt_prototypes",
            "GateVPT from prototypes",
            "trainer.methods.gate_vpt:GateVPT",
            fields=("gate_init",),
            prompted_layers="first",
            prompt_inits=PROTOTYPE_INITS,
        ),
        Method(
            "vfpt",
            "VFPT",
            "trainer.methods.vfpt:VFPT",
            fields=("fourier_share",),
            prompted_layers="all",
            prompt_inits=("uniform",),
        ),
        Method(
            "bpt_deep",
            "BPT-Deep",
            "trainer.methods.bpt:BPT",
            fields=("bpt_rank",),
            prompted_layers="all",
            prompt_inits=("uniform",),
        ),
        Method(
            "bpt_shallow",
            "BPT-Shallow",
            "trainer.methods.bpt:BPT",
            fields=("bpt_rank",),
            prompted_layers="first",
            prompt_inits=("uniform",),
        ),
        Method(
            "e2vpt_unpruned",
            "Unpruned E2VPT",
            "trainer.methods.e2vpt:KeyValuePrompts",
            fields=("key_value_length",),
            prompted_layers="all",
            prompt_inits=("uniform",),
            prompt_dropout=0.1,
        ),
        Method(
            "e2vpt_unpruned_prototypes",
            "Unpruned E2VPT from prototypes",
            "trainer.methods.e2vpt:KeyValuePrompts",
            fields=("key_value_length",),
            prompted_layers="all",
            prompt_inits=PROTOTYPE_INITS,
            prompt_dropout=0.1,
        ),
    )
}


def is_augmented(task: str) -> bool:
    """Return whether a task is trained on random crops. Users' own tasks are not."""
    return task in TASKS and TASKS[task].augmented

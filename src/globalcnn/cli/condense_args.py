"""The options of `globalcnn condense`."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor, nn

from ..condense import DEFAULT_BLOCK, Plan, Recovery, plan
from ..models import list_models
from ..models.weights import find_weights
from .options import DataOfRun, RecipeName, RecipeOptions


@dataclass(frozen=True)
class Args:
    """Condense a CNN: blocks that repeat each other give way to one cheap block.

    With a folder as --out it is trained too: the new stages first learn the features of the original, each
    by itself, then the whole learns from the labels and from the original, by SGD at a rate of 0.05 unless
    --recipe, --optimizer or --lr say otherwise. The folder holds the condensed network (model.safetensors),
    the plan, the figures of each phase (report.json, report.png) and all that --resume needs. With a
    .safetensors file as --out the plan is applied and nothing is trained: what stays keeps its weights, the
    new blocks have fresh ones. --plan-only shows the plan, and writes it to a .json file, which can be edited
    and given as --plan.
    """

    network: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL_OR_CHECKPOINT")]
    """A run folder or weights file, or the name of weights that come with the library, such as
    resnet32_cifar-cifar10; or my_net.py:build or package.module:function, which returns a network
    with its trained weights. Without training also a name as in `globalcnn list` or of timm's, with weights
    of seed 0."""
    images: Annotated[DataOfRun, tyro.conf.arg(name="")] = field(default_factory=DataOfRun)
    out: Path | None = None
    """The folder for everything; or a file: .safetensors of the condensed network without training, .json of
    the plan."""
    plan_only: tyro.conf.FlagCreatePairsOff[bool] = False
    """Show the plan and change nothing."""
    plan: Path | None = None
    """A plan to apply, as --plan-only wrote it. Default: a new one."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Continue the condensing in the folder --out where it stopped."""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """Replace --out if it is there."""
    max_params: int | None = None
    """Parameters that the condensed network may have."""
    max_macs: int | None = None
    """Multiply-adds that it may need for one image."""
    speedup: float | None = None
    """How many times as fast it must be on this machine, measured."""
    block: str = DEFAULT_BLOCK
    """What comes: depthwise (a residual depthwise 7x7), global (Global layer), sweeps, norm-act, none."""
    keep: int = 1
    """Blocks that stay of every repetition."""
    seconds: float = 5.0
    """About how long times are measured for the plan."""
    timing_batch: int = 64
    """Images of the batch that is measured."""
    recipe: RecipeName = "modern"
    changes: Annotated[RecipeOptions, tyro.conf.arg(name="")] = field(default_factory=RecipeOptions)
    repair_epochs: int = 2
    """Epochs in which the new stages learn the original's features, before the --epochs end to end."""
    repair_lr: float = Recovery.repair_lr
    """Largest learning rate of these epochs, by AdamW."""
    distill: str | None = None
    """How the logits of the original are learned: kd or dist. Default: kd below 20 classes, else dist."""
    temperature: float = Recovery.temperature
    """Divides the logits of both networks."""
    views: int = Recovery.views
    """The original's logits are computed once over so many fixed augmented views of each training image; 0
    runs the original in every step."""
    feature_weight: float = Recovery.feature_weight
    """Weight of the error of the features before pooling at first; 0 leaves it out."""
    feature_share: float = Recovery.feature_share
    """Share of the epochs over which that weight falls to 0."""
    few_images: int = Recovery.few_images
    """With fewer training images per class the classifier stays, and features alone are learned."""
    num_classes: int | None = None
    """Size of the output, of a network by name. Default: the network's own."""
    in_chans: int | None = None
    """Input channels, of a network by name. Default: the network's own."""
    model: str | None = None
    """The network of a checkpoint that does not say how it is built or is not to be believed."""
    trust_source: tyro.conf.FlagCreatePairsOff[bool] = False
    """Build whatever the checkpoint names: only for files of your own."""
    seed: int = 0
    """Of the new blocks' weights, and of order and augmentation."""
    device: str = "auto"
    """Where it is trained: auto, cpu, cuda or mps."""

    @property
    def image_size(self) -> int | tuple[int, int] | None:
        """As it was given."""
        return self.images.image_size


def is_checkpoint(word: str) -> bool:
    """Whether the word names weights in a file or folder; a `UserError` if it looks so and there are none."""
    if os.path.exists(word):
        return True
    is_path = word.endswith((".safetensors", ".pt", ".pth", ".bin")) or os.sep in word
    is_network_and_data = word.rpartition("-")[0] in list_models()
    if is_network_and_data or (is_path and ":" not in word):
        find_weights(word)
        return True
    return False


def timed_images(args: Args, in_chans: int, size: tuple[int, int]) -> Tensor:
    """The batch whose time counts: noise, always the same."""
    noise = torch.Generator().manual_seed(0)
    return torch.randn(args.timing_batch, in_chans, *size, generator=noise)


def planned(args: Args, network: nn.Module, images: Tensor) -> Plan:
    """The plan that the options ask for."""
    return plan(
        network,
        images,
        max_params=args.max_params,
        max_macs=args.max_macs,
        speedup=args.speedup,
        block=args.block,
        keep=args.keep,
        seconds=args.seconds,
    )

"""Published recipes of the CIFAR networks: 300 epochs, no held-out images; the figure is the last epoch's.

Source: Kag and Saligrama, CVPR 2022, appendix; DARTS: Liu et al., ICLR 2019, section 3.2. The accuracies
printed with them are the best test accuracy over all epochs of one run, which these recipes do not choose.
"""

from __future__ import annotations

from ...train.recipe import Recipe

_BASE = Recipe(
    name="cifar",
    epochs=300,
    batch_size=128,
    optimizer="sgd",
    lr=0.1,
    momentum=0.9,
    weight_decay=1e-4,
    schedule="step",
    milestones=(150, 225),
    decay_rate=0.1,
    warmup_epochs=0.0,
    label_smoothing=0.0,
    ema_decay=0.0,
    validation=0.0,
)
_DARTS = _BASE.replace(
    batch_size=96,
    lr=0.025,
    schedule="cosine",
    milestones=(),
    weight_decay=3e-4,
    cutout=16,
    drop_path_rate=0.2,
    grad_clip=5.0,
    auxiliary_weight=0.4,
)

RECIPES: tuple[Recipe, ...] = (
    _BASE.replace(name="resnet_cifar", batch_size=128, weight_decay=5e-5),
    _BASE.replace(name="resnet_global_cifar", batch_size=32, weight_decay=6e-5),
    _BASE.replace(name="resnet_tiny_cifar", batch_size=32, weight_decay=1e-4),
    _BASE.replace(name="resnet_global_tiny_cifar", batch_size=32, weight_decay=3e-5),
    _BASE.replace(name="wide_resnet_cifar", batch_size=32, weight_decay=1e-4),
    _BASE.replace(name="wide_resnet_global_cifar", batch_size=32, weight_decay=5e-5),
    _BASE.replace(name="densenet_cifar", batch_size=64, weight_decay=1e-4),
    _DARTS.replace(name="darts_cifar"),
    _DARTS.replace(name="darts_global_cifar", weight_decay=8e-4),
)

# model -> recipe; the tiny Wide-ResNets have no recipe of their own and share their family's
MODELS: dict[str, str] = {
    "resnet32_cifar": "resnet_cifar",
    "resnet56_cifar": "resnet_cifar",
    "resnet_global_cifar": "resnet_global_cifar",
    "resnet_global_large_cifar": "resnet_global_cifar",
    "resnet_tiny_cifar": "resnet_tiny_cifar",
    "resnet_global_tiny_cifar": "resnet_global_tiny_cifar",
    "wide_resnet_cifar": "wide_resnet_cifar",
    "wide_resnet_tiny_cifar": "wide_resnet_cifar",
    "wide_resnet_global_cifar": "wide_resnet_global_cifar",
    "wide_resnet_global_tiny_cifar": "wide_resnet_global_cifar",
    "densenet_cifar": "densenet_cifar",
    "densenet_global_cifar": "densenet_cifar",
    "densenet_global_large_cifar": "densenet_cifar",
    "darts_cifar": "darts_cifar",
    "darts_tiny_cifar": "darts_cifar",
    "darts_global_cifar": "darts_global_cifar",
    "darts_global_large_cifar": "darts_global_cifar",
    "darts_global_tiny_cifar": "darts_global_cifar",
}

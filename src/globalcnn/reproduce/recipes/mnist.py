"""Published recipes on MNIST: the ODE comparison (160 epochs) and the three MNIST-10 backbones (30 epochs).

Source: Kag and Saligrama, CVPR 2022, appendix; the first is that of the torchdiffeq example it follows.
"""

from __future__ import annotations

from ...train.recipe import Recipe

_PLAIN = Recipe(
    name="plain",
    batch_size=128,
    optimizer="sgd",
    momentum=0.9,
    warmup_epochs=0.0,
    label_smoothing=0.0,
    ema_decay=0.0,
    crop_padding=0,
    flip=False,
    validation=0.0,
)

RECIPES: tuple[Recipe, ...] = (
    _PLAIN.replace(
        name="mnist",
        epochs=160,
        lr=0.1,
        weight_decay=0.0,
        schedule="step",
        milestones=(60, 100, 140),
        decay_rate=0.1,
    ),
    _PLAIN.replace(
        name="mnist_backbones", epochs=30, lr=0.01, weight_decay=5e-4, schedule="constant", grad_clip=5.0
    ),
)

MODELS: dict[str, str] = {
    "resnet_mnist": "mnist",
    "global_mnist": "mnist",
    "neural_ode_mnist": "mnist",
    "digits_conv": "mnist_backbones",
    "digits_residual": "mnist_backbones",
    "digits_global": "mnist_backbones",
}

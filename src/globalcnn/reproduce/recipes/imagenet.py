"""Published recipes of the ImageNet networks, for 8 processes.

Source: Kag and Saligrama, CVPR 2022, appendix: the optimiser (RMSProp of the TensorFlow kind), batch sizes,
learning rates and their decay, epochs, dropout, drop path, averaged weights, RandAugment, random erasing,
label smoothing, and that the learning rate of MobileNetV3-Global is noisy.

Where it is silent, a value is chosen that is usual with timm's training script: rho 0.9 of RMSProp; no weight
decay on norms and biases; 0.9999 as decay of the averaged weights; the learning rate is noisy from 42 to 90
percent of the epochs; random erasing 0.2 for EfficientNet-B0-Global too; random resized crops and flips; no
images held out. The warm-up begins at a twentieth of the learning rate, as in all recipes here, and full
precision is the default, which `--precision bf16` changes.

The learning rates are for 8 processes. With fewer, lower `--lr` in proportion.
"""

from __future__ import annotations

from ...train.recipe import Recipe

_BASE = Recipe(
    name="efficientnet_b0_global_imagenet",
    epochs=450,
    batch_size=256,
    optimizer="rmsproptf",
    lr=0.192,
    momentum=0.9,
    optimizer_eps=1e-3,
    weight_decay=1e-5,
    decay_norms_and_biases=False,
    schedule="exponential",
    decay_rate=0.97,
    decay_epochs=2.4,
    warmup_epochs=3.0,
    label_smoothing=0.1,
    ema_decay=0.9999,
    crop_padding=4,
    flip=True,
    rand_augment="rand-m9-mstd0.5",
    random_erasing=0.2,
    drop_rate=0.2,
    drop_path_rate=0.2,
    validation=0.0,
)

RECIPES: tuple[Recipe, ...] = (
    _BASE,
    _BASE.replace(
        name="mobilenetv3_global_imagenet",
        epochs=600,
        decay_rate=0.973,
        lr_noise=(0.42, 0.9),
    ),
    _BASE.replace(
        name="mobilenetv2_global_imagenet", epochs=200, batch_size=128, lr=0.4, random_erasing=0.05
    ),
)

MODELS: dict[str, str] = {
    "efficientnet_b0_global": "efficientnet_b0_global_imagenet",
    "mobilenetv3_global": "mobilenetv3_global_imagenet",
    "mobilenetv2_global": "mobilenetv2_global_imagenet",
}

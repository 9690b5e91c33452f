"""Every CIFAR and MNIST network takes ten optimiser steps and learns a small batch.

That the loss falls would not say much: the classifier alone can learn a few images. So the network must also
end well below what the classifier reaches alone, in as many steps on the features of the untrained network;
and every parameter that trains must get a gradient. The last tests show that broken networks are found out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from globalcnn import create_model, list_models
from globalcnn.models import model_info
from globalcnn.nn.coefficients import Coefficient
from globalcnn.nn.implicit.equilibrium import Equilibrium, Solver

CLASSES = 4
STEPS = 10
AUXILIARY_WEIGHT = 0.4  # published


@dataclass(frozen=True)
class Way:
    """How a network is tried: images and learning rate; the last loss must be below `share` of the first one,
    and below `of_classifier` of what the classifier reaches alone."""

    batch: int = 4
    side: int = 16
    lr: float = 0.005
    share: float = 0.6
    of_classifier: float = 0.75


WAYS = {
    "resnet": Way(),
    "densenet": Way(),
    "darts": Way(side=32, lr=0.001),  # the auxiliary head is made for maps of this size
    "darts_tiny_cifar": Way(batch=8, side=32, lr=0.01, share=0.75, of_classifier=0.9),  # three channels
    "mdeq": Way(lr=0.001),
    "neupde": Way(batch=2, lr=0.0005),
    "neupde_mnist": Way(side=28),
    "mnist": Way(side=28, lr=0.001),
    "neural_ode": Way(side=28, lr=0.001, share=0.7),
    "digits": Way(batch=8, side=28, lr=0.05),
}

LEARNERS = [n for n in list_models() if model_info(n).dataset.startswith(("CIFAR", "MNIST"))]
OTHER_SETTINGS = (
    ("neural_ode_mnist", {"method": "rk4", "steps": 2}),
    ("neural_ode_mnist", {"method": "rk4", "steps": 2, "adjoint": True}),
    ("mdeq_cifar", {"gradient": "unrolled"}),
    ("mdeq_cifar", {"gradient": "jacobian_free"}),
)


def way_of(name: str) -> Way:
    return WAYS.get(name) or WAYS[model_info(name).family]


def built(name: str, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    model = create_model(name, num_classes=CLASSES, **settings)
    for module in model.modules():
        if isinstance(module, Equilibrium):
            module.solver = module.backward_solver = Solver(max_evaluations=4)
    return model


def pictures(channels: int, way: Way) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth blobs of colour with some noise, normalised as a whole, and their labels."""
    g = torch.Generator().manual_seed(1)
    blobs = torch.randn(way.batch, channels, 5, 5, generator=g)
    x = F.interpolate(blobs, (way.side, way.side), mode="bicubic", align_corners=False)
    x = x + 0.1 * torch.randn(x.shape, generator=g)
    return (x - x.mean()) / x.std(), torch.arange(way.batch) % CLASSES


@dataclass(frozen=True)
class Learned:
    """losses of the steps; classifier_alone: last loss of the classifier alone; untouched: parameters
    that never got a gradient other than zero, but for the biases that a norm cancels (zero, or rounding):
    they need one, of any value."""

    losses: list[float]
    classifier_alone: float
    untouched: list[str]

    def check(self, way: Way) -> None:
        assert not self.untouched
        assert self.losses[-1] < way.share * self.losses[0], self.losses
        assert self.losses[-1] < way.of_classifier * self.classifier_alone, (
            self.losses,
            self.classifier_alone,
        )


def learn(model: nn.Module, x: torch.Tensor, y: torch.Tensor, way: Way) -> Learned:
    """Ten steps of training mode, the auxiliary head's loss included where there is one."""
    model.train()
    alone = classifier_alone(model, x, y, way)
    optimizer = torch.optim.Adam(model.parameters(), lr=way.lr)
    cancelled = cancelled_biases(model)
    losses, touched = [], set()
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss, whole = losses_of(model, x, y)
        whole.backward()
        optimizer.step()
        losses.append(loss.item())
        graded = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        touched |= {n for n, grad in graded.items() if n in cancelled or grad.abs().max() > 0}
    return Learned(losses, alone, [n for n, _ in model.named_parameters() if n not in touched])


def cancelled_biases(model: nn.Module) -> set[str]:
    """Biases of the coefficient convolutions: a batch norm follows, so the loss does not depend on them."""
    return {
        f"{name}.net.bias"
        for name, module in model.named_modules()
        if isinstance(module, Coefficient) and isinstance(module.net, nn.Conv2d)
    }


def losses_of(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of the logits, and what is differentiated."""
    if not hasattr(model, "forward_with_auxiliary"):
        loss = F.cross_entropy(model(x), y)
        return loss, loss
    logits, auxiliary = model.forward_with_auxiliary(x)
    loss = F.cross_entropy(logits, y)
    return loss, loss + AUXILIARY_WEIGHT * F.cross_entropy(auxiliary, y)


def classifier_alone(model: nn.Module, x: torch.Tensor, y: torch.Tensor, way: Way) -> float:
    with torch.no_grad():
        features = model.forward_head(model.forward_features(x), pre_logits=True)
    head = nn.Linear(features.shape[1], CLASSES)
    head.load_state_dict(model.get_classifier().state_dict())
    optimizer = torch.optim.Adam(head.parameters(), lr=way.lr)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = F.cross_entropy(head(features), y)
        loss.backward()
        optimizer.step()
    return loss.item()


@pytest.mark.parametrize("name", LEARNERS)
def test_it_learns_a_small_batch(name):
    model, way = built(name), way_of(name)
    learn(model, *pictures(model.in_chans, way), way).check(way)


@pytest.mark.parametrize(("name", "settings"), OTHER_SETTINGS, ids=str)
def test_it_learns_with_other_gradients(name, settings):
    model, way = built(name, **settings), way_of(name)
    learn(model, *pictures(model.in_chans, way), way).check(way)


def test_an_equilibrium_learns_by_plain_iterations():
    model, way = built("mdeq_cifar"), way_of("mdeq_cifar")
    model.equilibrium.unroll = 4
    learn(model, *pictures(model.in_chans, way), way).check(way)


def test_only_imagenet_is_left_out():
    assert {model_info(n).dataset for n in set(list_models()) - set(LEARNERS)} == {"ImageNet-1K"}


def frozen(model: nn.Module) -> None:
    """Only the classifier trains."""
    kept = set(model.get_classifier().parameters())
    for p in model.parameters():
        p.requires_grad_(p in kept)


def cut(model: nn.Module) -> None:
    """No gradient gets past the classifier."""
    between(model, torch.Tensor.detach)


def reversed_gradients(model: nn.Module) -> None:
    """All but the classifier gets the gradient with the wrong sign."""
    between(model, lambda features: 2 * features.detach() - features)


def without_gradients(model: nn.Module) -> None:
    """A parameter that the forward does not use."""
    model.unused = nn.Parameter(torch.zeros(3))


def between(model: nn.Module, change: Any) -> None:
    head = model.forward_head
    model.forward_head = lambda features, **settings: head(change(features), **settings)


BROKEN = ("resnet_global_tiny_cifar", "densenet_global_cifar", "global_mnist", "digits_residual")


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("spoil", [frozen, cut, reversed_gradients], ids=lambda f: f.__name__)
def test_a_network_whose_body_does_not_learn_is_found_out(name, spoil):
    """By the losses, whatever is known of the gradients."""
    model, way = built(name), way_of(name)
    spoil(model)
    learned = learn(model, *pictures(model.in_chans, way), way)
    with pytest.raises(AssertionError):
        replace(learned, untouched=[]).check(way)


@pytest.mark.parametrize("spoil", [frozen, cut, without_gradients], ids=lambda f: f.__name__)
def test_parameters_without_gradients_are_found_out(spoil):
    model, way = built("resnet_global_tiny_cifar"), way_of("resnet_global_tiny_cifar")
    spoil(model)
    learned = learn(model, *pictures(model.in_chans, way), way)
    assert learned.untouched
    with pytest.raises(AssertionError):
        learned.check(way)

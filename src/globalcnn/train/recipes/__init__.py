"""Recipes by name: the default `modern` one and the published ones."""

from __future__ import annotations

from ...errors import UserError, unknown_name
from ..recipe import Recipe
from . import cifar, imagenet, mnist

MODERN = Recipe()

RECIPES: dict[str, Recipe] = {r.name: r for r in (MODERN, *cifar.RECIPES, *mnist.RECIPES, *imagenet.RECIPES)}
PUBLISHED_FOR: dict[str, str] = {**cifar.MODELS, **mnist.MODELS, **imagenet.MODELS}


def find_recipe(name: str, model: str | None = None) -> Recipe:
    """The recipe of that name; "published" stands for the one that `model` was published with.

    >>> find_recipe("published", "resnet_global_cifar").batch_size
    32
    """
    if name == "published":
        if model not in PUBLISHED_FOR:
            raise UserError(
                f"no recipe was published for model {model!r}; choose one by name: {', '.join(RECIPES)}"
            )
        return RECIPES[PUBLISHED_FOR[model]]
    if name not in RECIPES:
        raise unknown_name("recipe", name, [*RECIPES, "published"])
    return RECIPES[name]


def suited_to(recipe: Recipe, data: str) -> Recipe:
    """The default recipe as it suits the data: digits have a handedness, so they are not flipped.

    Published recipes and recipes for other data stay as they are.
    """
    if recipe.name == MODERN.name and data in ("digits", "mnist"):
        return recipe.replace(flip=False, crop_padding=2)
    return recipe

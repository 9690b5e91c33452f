"""Recipes by name: the default `modern` one, and what each network was published with."""

from __future__ import annotations

from pathlib import Path

from ...errors import UserError, unknown_name
from ...files import read_json
from ...train.recipe import Recipe
from . import cifar, imagenet, mnist

RECIPES: dict[str, Recipe] = {
    r.name: r for r in (Recipe(), *cifar.RECIPES, *mnist.RECIPES, *imagenet.RECIPES)
}
# model -> name of the recipe that it was published with
PUBLISHED_FOR: dict[str, str] = {**cifar.MODELS, **mnist.MODELS, **imagenet.MODELS}


def find_recipe(name: str, model: str | None = None) -> Recipe:
    """The recipe called `name`; "published" means the one that `model` was published with, and the path of a
    .json file the one in it: its fields, or those under "recipe", as in a run folder's run.json and the cards
    of weights. Fields that are not there are the modern recipe's.

    Raises `UserError` for an unknown name, a file without one, or where nothing was published for `model`.

    >>> find_recipe("published", "resnet_global_cifar").batch_size
    32
    """
    if name == "published":
        if model not in PUBLISHED_FOR:
            raise UserError(
                f"no recipe was published for model {model!r}; choose one by name: {', '.join(RECIPES)}"
            )
        return RECIPES[PUBLISHED_FOR[model]]
    if name.endswith(".json"):
        return _recipe_in(name)
    if name not in RECIPES:
        raise unknown_name("recipe", name, [*RECIPES, "published"])
    return RECIPES[name]


def _recipe_in(path: str) -> Recipe:
    content = read_json(path)
    values = content.get("recipe", content) if isinstance(content, dict) else None
    if not isinstance(values, dict):
        raise UserError(f'{path!r} holds no recipe: a JSON object of its fields, or one under "recipe"')
    return Recipe.from_dict({"name": Path(path).stem, **values})

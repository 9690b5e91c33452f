"""Training: recipes, the loop, run folders, evaluation."""

from .checkpoint import Description, find_weights, load_model
from .divergence import TrainingDiverged
from .evaluate import Evaluation, evaluate
from .loop import EpochResult, Progress
from .recipe import Recipe
from .recipes import PUBLISHED_FOR, RECIPES, find_recipe, suited_to
from .run import Reporter, RunResult, train

__all__ = [
    "PUBLISHED_FOR",
    "RECIPES",
    "Description",
    "EpochResult",
    "Evaluation",
    "Progress",
    "Recipe",
    "Reporter",
    "RunResult",
    "TrainingDiverged",
    "evaluate",
    "find_recipe",
    "find_weights",
    "load_model",
    "suited_to",
    "train",
]

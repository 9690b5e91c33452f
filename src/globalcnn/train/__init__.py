"""Training: recipes, the loop, run folders, evaluation."""

from .checkpoint import Description, find_weights, load_model
from .divergence import TrainingDiverged
from .evaluate import Evaluation, evaluate
from .objectives import CrossEntropy, Objective, Outcome, WithAuxiliaryHeads
from .progress import EpochResult, Progress, Reporter, Silent
from .recipe import Recipe, suited_to
from .run import RunResult, train

__all__ = [
    "CrossEntropy",
    "Description",
    "EpochResult",
    "Evaluation",
    "Objective",
    "Outcome",
    "Progress",
    "Recipe",
    "Reporter",
    "RunResult",
    "Silent",
    "TrainingDiverged",
    "WithAuxiliaryHeads",
    "evaluate",
    "find_weights",
    "load_model",
    "suited_to",
    "train",
]

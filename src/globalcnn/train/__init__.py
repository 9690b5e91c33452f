"""Training: recipes, the loop, run folders, evaluation."""

from .divergence import TrainingDiverged
from .evaluate import Evaluation, evaluate
from .objectives import CrossEntropy, Objective, Outcome, WithAuxiliaryHeads
from .progress import EpochResult, Progress, Reporter, Silent
from .recipe import Recipe, suited_to
from .run import RunResult, train

__all__ = [
    "CrossEntropy",
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
    "suited_to",
    "train",
]

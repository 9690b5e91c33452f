"""Training: recipes, objectives, the loop, run folders, evaluation, prediction."""

from .divergence import TrainingDiverged
from .evaluate import Evaluation, evaluate
from .initial import start_from
from .network import build_for
from .objectives import CrossEntropy, Objective, Outcome, WithAuxiliaryHeads
from .prediction import Prediction, predict
from .progress import EpochResult, Progress, Reporter, Silent
from .recipe import Recipe, suited_to
from .run import RunResult, train
from .trained_for import as_trained

__all__ = [
    "CrossEntropy",
    "EpochResult",
    "Evaluation",
    "Objective",
    "Outcome",
    "Prediction",
    "Progress",
    "Recipe",
    "Reporter",
    "RunResult",
    "Silent",
    "TrainingDiverged",
    "WithAuxiliaryHeads",
    "as_trained",
    "build_for",
    "evaluate",
    "predict",
    "start_from",
    "suited_to",
    "train",
]

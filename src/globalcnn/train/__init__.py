"""Training: recipes, objectives, the loop, run folders, evaluation, prediction."""

from .. import _torchvision

_torchvision.check()

from .divergence import TrainingDiverged  # noqa: E402
from .evaluate import Evaluation, evaluate  # noqa: E402
from .initial import start_from  # noqa: E402
from .network import build_for  # noqa: E402
from .objectives import CrossEntropy, Objective, Outcome, WithAuxiliaryHeads  # noqa: E402
from .objectives_distill import Distillation  # noqa: E402
from .objectives_features import FeatureError, StagePair, StagewiseMatching  # noqa: E402
from .prediction import Prediction, predict  # noqa: E402
from .progress import EpochResult, Progress, Reporter, Silent  # noqa: E402
from .recipe import Recipe, suited_to  # noqa: E402
from .run import RunResult, train  # noqa: E402
from .teacher import Teacher, teacher_for  # noqa: E402
from .trained_for import as_trained  # noqa: E402

__all__ = [
    "CrossEntropy",
    "Distillation",
    "EpochResult",
    "Evaluation",
    "FeatureError",
    "Objective",
    "Outcome",
    "Prediction",
    "Progress",
    "Recipe",
    "Reporter",
    "RunResult",
    "Silent",
    "StagePair",
    "StagewiseMatching",
    "Teacher",
    "TrainingDiverged",
    "WithAuxiliaryHeads",
    "as_trained",
    "build_for",
    "evaluate",
    "predict",
    "start_from",
    "suited_to",
    "teacher_for",
    "train",
]

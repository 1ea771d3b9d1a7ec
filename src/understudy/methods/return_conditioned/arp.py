from ...checkpoint import FromStage
from ...core import Schema
from ...data.column_changes import LastAction
from ...data.scored_return import ScoredReturn
from ...data.text_columns import TaskText
from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...heads.categorical import Categorical
from ...heads.regression import Regression
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method, Stage
from ...learn.optimizer import OptimizerConfig
from ...learn.task_scorer import TASK, ScorerCalibration, TaskContrast
from ...nets.encoders import TokenEncoder
from ...nets.transformer import Transformer
from ...policy import PolicyConfig
from ..needs import NUMBERS_OR_CLASSES
from ..registry import method


@method("Kim et al. 2023 (ARP), arXiv 2309.10790, whose scorer is CLIP, frozen or trained further on the "
        "demonstrations, and which also predicts the return. Here a scorer is trained on the demonstrations; take one "
        "that knows more layouts with --stage scorer=RUN", rows=("237",),
        needs=(NUMBERS_OR_CLASSES, "tasks in words that differ between episodes"),
        when="if the task in words moves to new places; with a given scorer it did well here, with a learned one worse "
             "than cloning.")
def arp(n_obs_steps: int = 4, target_return: float | None = None, quantile: float = 0.9,
        features: Schema | None = None) -> Method:
    """Adaptive return-conditioned policy: rewards are how well each observation fits the words of the task.

    Args:
        n_obs_steps: Number of steps of the history.
        target_return: Desired return while acting. None: the quantile of the demonstrations.
        quantile: Quantile of the returns of the demonstrations. 1 is the highest.
        features: The columns of the data. Discrete actions get a categorical head.
    """
    discrete = features is not None and features["action"].kind == "discrete"
    head, past = Categorical(temperature=1.0) if discrete else Regression(), n_obs_steps - 1
    words = () if features is not None and TASK in features else (TaskText(),)
    trunk = Transformer(128, 1, 1, "block_causal", encoder_depth=3, dropout=0.1)
    window = Window(n_obs_steps, n_obs_steps, action_offset=-past, obs_pad_mask=True)  # a loss at every step
    scene, reward = PolicyConfig(head), ScorerCalibration(FromStage("scorer", "scorer"), quantile)
    stages = (Stage("scorer", Method(scene, learner=TaskContrast(), transforms=words)),
              Stage("reward", Method(scene, learner=reward, transforms=words)))
    transforms = (*words, LastAction(), ScoredReturn(FromStage("reward", "reward"), target=target_return))
    learner = BehaviorCloning(10_000, 64, optimizer=OptimizerConfig(lr=5e-4, weight_decay=5e-5, warmup_steps=500))
    policy = PolicyConfig(head, trunk, TokenEncoder(128), window=window)
    return Method(policy, RecedingHorizon(1, skip=past), learner, transforms, stages)

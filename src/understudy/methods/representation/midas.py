from dataclasses import replace

from ...checkpoint import FromStage
from ...core import Schema
from ...data.codec import Normalizer
from ...data.motion_prompt import AddMotionPrompts, MotionPrompt
from ...execute.chunking import RecedingHorizon
from ...heads.bins import Bins
from ...heads.categorical import Categorical
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import InitializeFrom, Method, Stage
from ...learn.optimizer import OptimizerConfig
from ...nets.in_context import InContextTransformer
from ...nets.multimodal_prompt import MultimodalPromptEncoder
from ...policy import PolicyConfig
from ..needs import NUMBERS_OR_CLASSES, PROMPTS
from ..registry import method


@method("Li et al. 2024, arXiv 2310.09676, with a history, images of objects, and a pretrained language model that "
        "reads the prompt", rows=("172",), needs=(NUMBERS_OR_CLASSES, PROMPTS, "while acting: a prompt, as columns"),
        when="if prompts mix words and objects; set --method.keep-motions, or the second stage unlearns the first "
             "(claim multimodal-prompts).")
def midas(objects: str = "observation.objects", words: str = "observation.prompt.words",
          prompt_objects: str = "observation.prompt.objects", follow: int = 1, n_frames: int = 3, width: int = 128,
          depth: int = 3, steps: int = 10_000, keep_motions: bool = False, features: Schema | None = None) -> Method:
    """MIDAS: learn to follow the motion that a prompt shows, then to follow prompts of words and objects.

    Args:
        objects: Column with the objects of the scene, of shape (objects, features).
        words: Column with the class of the word at each position of the prompt. 0 for no word.
        prompt_objects: Column with the object at each position of the prompt, of shape (positions, features).
        follow: The word before the frames of a motion.
        n_frames: Number of frames of a motion.
        width: Width of all tokens.
        depth: Number of blocks of the transformer that acts.
        steps: Number of updates of each of the two stages.
        keep_motions: In the second stage, train each episode also with the motion as its prompt. Without it, following
            motions is unlearned.
        features: The columns of the data. Discrete actions get a categorical head.
    """
    discrete = features is not None and features["action"].kind == "discrete"
    head = Categorical(autoregressive=True) if discrete else Bins(50, temperature=0)
    encoder = MultimodalPromptEncoder(objects, words, prompt_objects, width=width)
    policy = PolicyConfig(head, InContextTransformer(width, depth, causal=False), encoder, inputs=encoder.columns,
                          codec=Normalizer(unscaled=(objects, prompt_objects)))
    learner = BehaviorCloning(steps, 64, OptimizerConfig(lr=1e-3, warmup_steps=100))
    motion = MotionPrompt(objects, words, prompt_objects, follow, n_frames)
    first = Method(policy, RecedingHorizon(), learner, (motion,))
    added = (AddMotionPrompts(motion),) if keep_motions else ()
    return replace(first, transforms=added, stages=(Stage("inverse_dynamics", first),),
                   initialize_from=(InitializeFrom(FromStage("inverse_dynamics")),))

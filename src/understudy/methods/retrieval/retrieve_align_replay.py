from ...checkpoint import FromStage
from ...data.operations import Crop, Filter
from ...data.relabel import FirstObservation, MotionToFirst
from ...data.window import Window
from ...execute.aligned_replay import AlignedReplay
from ...execute.planar_frame import PlanarFrame
from ...heads.neighbors import Neighbors
from ...heads.regression import Regression
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method, Stage
from ...learn.optimizer import OptimizerConfig
from ...nets.encoders import ConcatEncoder
from ...nets.feed_forward import FeedForward
from ...policy import PolicyConfig
from ..needs import NUMBERS
from ..registry import method


@method("Di Palo and Johns 2024, arXiv 2312.12345, whose retrieval compares features of DINO, and whose alignment is "
        "visual servoing by a camera at the wrist", rows=("316",),
        needs=(NUMBERS, "actions that are velocities of an observed pose",
               "prior data: the robot moves away from the start of each demonstration"),
        when="if there is one demonstration, and the robot can first go to where it began.")
def retrieve_align_replay(
    descriptor: str = "observation.environment_state", view: str = "observation.environment_state",
    pose: str = "observation.state", step: tuple[float, ...] = (1.0,), tolerance: float = 0.05, first: int = 0,
    frame: str | None = None, poses: tuple[str, ...] = (),
) -> Method:
    """Retrieval, alignment, replay: choose a demonstration, go where it began, and repeat its motion.

    Args:
        descriptor: Column that tells which demonstration fits.
        view: Column that tells where the robot is relative to the object.
        pose: Column with the pose of the effector.
        step: How far an action of 1 moves each component of the pose in one step.
        tolerance: Alignment ends at actions smaller than this.
        first: First step of a demonstration that is repeated. -6 is the sixth from the end.
        frame: Column with the pose in whose frame the velocities are, such as that of the effector. None: the world's.
        poses: Columns whose pose is given in that frame too. See `PlanarFrame`.
    """
    task = (Filter("dataset", equals=("task",)), Crop(first))
    prior = Filter("dataset", equals=("prior",))
    wrapper = None if frame is None else PlanarFrame(frame, poses)
    memory = PolicyConfig(Neighbors(1, "equal"), encoder=ConcatEncoder(), window=Window(1, 2),
                          inputs=tuple(dict.fromkeys((descriptor, view))))
    look = PolicyConfig(Neighbors(1, "equal"), encoder=ConcatEncoder(), inputs=(descriptor,), target=view)
    align = PolicyConfig(Regression(), FeedForward((128, 128)), ConcatEncoder(), inputs=(view, "observation.goal"))
    retrieval = Method(look, learner=BehaviorCloning(1), transforms=(*task, Crop(0, 1)), wrapper=wrapper)
    alignment = Method(align, learner=BehaviorCloning(2000, 256, OptimizerConfig(3e-3)), wrapper=wrapper,
                       transforms=(MotionToFirst(pose, step), prior, FirstObservation(view)))
    return Method(memory, AlignedReplay(FromStage("retrieval"), FromStage("alignment"), tolerance=tolerance),
                  BehaviorCloning(1), task, wrapper=wrapper,
                  stages=(Stage("retrieval", retrieval, "task"), Stage("alignment", alignment, "prior")))

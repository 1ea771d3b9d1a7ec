from ...checkpoint import FromStage
from ...core import Schema
from ...data.codec import Normalizer
from ...data.column_changes import ConstantColumn, LastAction
from ...data.operations import ShiftedStarts
from ...data.text_columns import TaskText
from ...data.window import Window
from ...execute.wrappers import SkillWrapper
from ...heads.likelihood.categorical import Categorical, choose_head
from ...heads.likelihood.gaussian import Gaussian
from ...learn.cloning.latent_labels import SKILL, LatentLabels
from ...learn.cloning.skill_autoencoder import SkillAutoencoder, inputs_without_words
from ...learn.method import Method, Stage
from ...nets.quantization import FSQ
from ...policy import PolicyConfig
from ..needs import NUMBERS_OR_CLASSES
from ..registry import method


@method("Wang et al. 2024 (OmniJARVIS), arXiv 2407.00114, with a pretrained language model, thoughts and summaries as "
        "words, images, and codes of 128 steps", rows=("073",),
        needs=(NUMBERS_OR_CLASSES, "a task in words", "while acting: the task in words"),
        when="if a task in words takes many steps, and what to do depends on what was done before.")
def omnijarvis(period: int = 20, levels: tuple[int, ...] = (8, 8, 8, 6, 5), memory: int = 8, max_bytes: int = 64,
               features: Schema | None = None) -> Method:
    """Converts behavior to codes, of which a policy predicts the next one from words and earlier codes (OmniJARVIS).

    Args:
        period: Number of steps of a code.
        levels: Number of levels of each symbol of a code.
        memory: Number of periods whose observations and codes the high-level policy reads.
        max_bytes: Number of bytes of the words.
    """
    quantizer = FSQ(levels)
    head = choose_head(features, Gaussian(), Categorical(temperature=1.0))
    low = PolicyConfig(head, codec=Normalizer(unscaled=(SKILL,)), inputs=inputs_without_words(features))
    codes = Method(low, learner=SkillAutoencoder(period, quantizer=quantizer),
                   transforms=(ConstantColumn(SKILL, (0.0,) * len(levels)),))
    high = PolicyConfig(Categorical(autoregressive=True), window=Window(n_obs_steps=memory))
    labels = LatentLabels(FromStage("codes", "posterior"))
    wrapper = SkillWrapper(FromStage("codes"), period, quantizer=quantizer)
    return Method(high, transforms=(labels, ShiftedStarts(period), TaskText(max_bytes), LastAction()),
                  stages=(Stage("codes", codes),), wrapper=wrapper)

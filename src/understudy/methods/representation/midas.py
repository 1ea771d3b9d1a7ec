from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch
from torch import nn

from ...checkpoint import FromStage
from ...core import Above, AtLeast, Context, DataError, Feature, Schema, UserError, part
from ...data.codec import Normalizer
from ...data.episode import Episode
from ...data.operations import Operation
from ...heads.likelihood.bins import Bins
from ...heads.likelihood.categorical import Categorical, choose_head
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import InitializeFrom, Method, Stage
from ...learn.optimizer import OptimizerConfig
from ...nets.base import Encoder, EncoderNet
from ...nets.encoders import check_inputs, check_unscaled, num_classes_of, observed_column
from ...nets.feed_forward import feed_forward_layers
from ...nets.in_context import InContextTransformer
from ...nets.transformer import Transformer, TransformerBlock, check_heads
from ...policy import PolicyConfig
from ..needs import NUMBERS_OR_CLASSES, PROMPTS
from ..registry import method


@part
class MotionPrompt:
    """Replaces the prompt of an episode by "follow this motion", with frames of the same episode.

    A policy that learns from it learns inverse dynamics: which actions lead from one frame to the next. The first
    position of the new prompt is a word. The objects of each frame follow, in their order. Frames are evenly spaced
    from the first to the last observation. An episode with fewer observations shows all of them, and the positions
    after them are padding (0).

    While acting, the environment or an `ObservationWrapper` gives the prompt.

    Args:
        objects: Column with the objects of the scene, of shape (objects, features).
        words: Column with the class of the word at each position of the prompt. 0 for no word.
        prompt_objects: Column with the object at each position of the prompt, of shape (positions, features).
        word: The word at the first position.
        n_frames: Largest number of frames.

    References:
        Li et al. (2024), Mastering Robot Manipulation with Multimodal Prompts through Pretraining and Multi-task
        Fine-tuning (MIDAS), arXiv:2310.09676.
    """

    objects: str = "observation.objects"
    words: str = "observation.prompt.words"
    prompt_objects: str = "observation.prompt.objects"
    word: Annotated[int, AtLeast(1)] = 1
    n_frames: Annotated[int, AtLeast(1)] = 3

    def __call__(self, episode: Episode) -> Episode:
        features = episode.features()
        for name in (self.objects, self.words, self.prompt_objects):
            if name not in features:
                raise DataError(f"there is no column {name!r}; the episode has {', '.join(sorted(features))}",
                                where="MotionPrompt", hint="name a column that is there")
        word_feature, object_feature = features[self.words], features[self.prompt_objects]
        frames = np.asarray(episode.steps[self.objects])
        count = min(self.n_frames, len(frames))
        frames = frames[np.linspace(0, len(frames) - 1, count).round().astype(int)]
        frames = frames.reshape(-1, frames.shape[-1])
        if 1 + len(frames) > word_feature.size:
            raise DataError(f"a word and {count} frames of {len(frames) // count} objects need {1 + len(frames)} "
                            f"positions, but a prompt has {word_feature.size}", where="MotionPrompt.n_frames",
                            hint="show fewer frames, or record longer prompts")
        words = np.zeros(word_feature.shape, word_feature.dtype)
        objects = np.zeros(object_feature.shape, object_feature.dtype)
        words[0], objects[1:1 + len(frames)] = self.word, frames
        columns = {self.words: (words, word_feature), self.prompt_objects: (objects, object_feature)}
        return _with_prompt(episode, columns)


@dataclass(frozen=True)
class AddMotionPrompts(Operation):
    """Adds each episode a second time, with a prompt that shows its motion.

    A policy that has learned to follow motions forgets it when it is trained on other prompts alone.
    """

    motion: MotionPrompt = MotionPrompt()

    def apply(self, data):
        return data + data.map(self.motion)


def _with_prompt(episode: Episode, columns: dict[str, tuple[np.ndarray, Feature]]) -> Episode:
    """Returns the episode with columns that have the same value at every observation."""
    repeated = {name: np.broadcast_to(value, (len(episode.steps[name]), *value.shape))
                for name, (value, _) in columns.items()}
    schema = {**episode.schema, **{name: feature for name, (_, feature) in columns.items()}}
    return replace(episode.replace(repeated), schema=schema)


@part
class MultimodalPromptEncoder(Encoder):
    """Encoder of prompts in which words and objects alternate, and of the objects in the scene.

    Each position of the prompt is a word if the class in `words` is not 0. Otherwise it is an object if the features in
    `prompt_objects` are not all 0, or else padding. One network embeds the objects of the prompt and of the scene. A
    transformer reads the prompt. With `residual`, the embedding of each object in the prompt is added to the
    transformer's output for this object, so that details of the object are not lost.

    The prompt is read at the newest observation step. Words that the schema does not know are embedded as zeros.

    Args:
        objects: Column with the objects of the scene, of shape (objects, features).
        words: Column with the class of the word at each position of the prompt, of shape (positions,). 0 for no word.
        prompt_objects: Column with the object at each position of the prompt, of shape (positions, features). The codec
            must leave it and `objects` as they are: ``Normalizer(unscaled=...)``.
        residual: Add the embedding of objects to the output of the transformer.
        depth: Number of blocks of the transformer that reads the prompt.
        heads: Number of attention heads. Must divide `width`.
        feed_forward_ratio: Width of the hidden layer of each block, relative to `width`.

    References:
        Li et al. (2024), Mastering Robot Manipulation with Multimodal Prompts through Pretraining and Multi-task
        Fine-tuning (MIDAS), arXiv:2310.09676, whose transformer is a pretrained language model.
    """

    objects: str = "observation.objects"
    words: str = "observation.prompt.words"
    prompt_objects: str = "observation.prompt.objects"
    residual: bool = True
    width: Annotated[int, AtLeast(1)] = 64
    depth: Annotated[int, AtLeast(0)] = 1
    heads: Annotated[int, AtLeast(1)] = 4
    feed_forward_ratio: Annotated[float, Above(0)] = 2

    @property
    def columns(self) -> tuple[str, str, str]:
        """The names of the columns that the encoder reads."""
        return self.objects, self.words, self.prompt_objects

    def build(self, features, n_obs_steps):
        for field, column in zip(("objects", "words", "prompt_objects"), self.columns, strict=True):
            check_inputs(features, (column,), f"MultimodalPromptEncoder.{field}")
        if others := [name for name in features if name not in self.columns]:
            raise UserError(f"MultimodalPromptEncoder does not read the column {others[0]!r}.",
                            where="MultimodalPromptEncoder", hint=f"Use inputs={self.columns}.")
        scene, words, prompt = (features[name] for name in self.columns)
        if words.kind != "discrete" or len(words.shape) != 1:
            raise UserError(f"{self.words!r}, of kind {words.kind!r} and shape {words.shape}, does not have one class "
                            "for each position of a prompt.", where="MultimodalPromptEncoder.words",
                            hint="Name a class column of shape (positions,).")
        if (scene.kind, prompt.kind) != ("vector", "vector") or len(scene.shape) != 2 or (
                prompt.shape != (*words.shape, scene.shape[1])):
            raise UserError(f"The objects of the prompt have the shape {prompt.shape} and those of the scene "
                            f"{scene.shape}, for {words.size} positions.", where="MultimodalPromptEncoder",
                            hint="They must be (positions, features) and (objects, features).")
        check_heads(self.width, self.heads, "MultimodalPromptEncoder")
        return _MultimodalPromptNet(self, features, n_obs_steps)

    def check_policy(self, codec, augmentations):
        check_unscaled(codec, (self.objects, self.prompt_objects), "each row of",
                       "one object would look different at each place", "MultimodalPromptEncoder")


class _MultimodalPromptNet(EncoderNet):
    def __init__(self, config: MultimodalPromptEncoder, features, n_obs_steps):
        super().__init__()
        self.config, self.width = config, config.width
        n_words = max(num_classes_of(features[config.words], config.words))
        n_positions, (n_objects, size) = features[config.words].size, features[config.objects].shape
        # All embeddings have similar sizes, so that the first normalization of a token keeps each of them.
        self.object_layers = nn.Sequential(feed_forward_layers((size, 2 * config.width, config.width), "gelu"),
                                           nn.LayerNorm(config.width))
        self.word_embedding = nn.Embedding(n_words + 1, config.width, padding_idx=n_words)
        self.position = nn.Parameter(0.5 * torch.randn(n_positions, config.width))
        self.scene_position = nn.Parameter(0.5 * torch.randn(n_obs_steps, n_objects, config.width))
        block = Transformer(config.width, config.depth, config.heads, feed_forward_ratio=config.feed_forward_ratio)
        self.blocks = nn.ModuleList(TransformerBlock(block, {"self"}, False) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self.token_obs_steps = ((n_obs_steps - 1,) * n_positions
                                + tuple(step for step in range(n_obs_steps) for _ in range(n_objects)))
        self.tokens = len(self.token_obs_steps)

    def forward(self, obs, rng=None):
        scene, scene_present = observed_column(obs, self.config.objects)
        embedded = self.object_layers(scene.float()) + self.scene_position
        tokens, mask = self._prompt(obs)
        return Context(torch.cat([tokens, embedded.flatten(1, 2)], 1),
                       torch.cat([mask, scene_present.repeat_interleave(scene.shape[2], 1)], 1))

    def _prompt(self, obs):
        """Returns the tokens of the prompt, (B, positions, width), and which are not padding, (B, positions)."""
        (words, has_words), (objects, has_objects) = (observed_column(obs, name) for name in self.config.columns[1:])
        words, objects = words[:, -1].long(), objects[:, -1].float()
        is_word = (words != 0) & has_words[:, -1:]
        is_object = ~is_word & (objects != 0).any(-1) & has_objects[:, -1:]
        unknown = self.word_embedding.num_embeddings - 1
        is_known_word = is_word & (words > 0) & (words < unknown)
        visual = self.object_layers(objects) * is_object.unsqueeze(-1)
        tokens = visual + self.word_embedding(torch.where(is_known_word, words, unknown)) + self.position
        mask = is_word | is_object
        # Each token reads itself, so that a prompt of padding alone gives finite numbers.
        attended = mask[:, None, None] | torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
        for block in self.blocks:
            tokens = block(tokens, mask=attended)
        tokens = self.norm(tokens)
        return tokens + visual if self.config.residual else tokens, mask


@method("Li et al. 2024, arXiv 2310.09676, with a history, images of objects, and a pretrained language model that "
        "reads the prompt", rows=("172",), needs=(NUMBERS_OR_CLASSES, PROMPTS, "while acting: a prompt, as columns"),
        when="if prompts mix words and objects; set --keep-motions, so that the second stage keeps what the first "
             "learned.")
def midas(objects: str = "observation.objects", words: str = "observation.prompt.words",
          prompt_objects: str = "observation.prompt.objects", follow: int = 1, n_frames: int = 3, width: int = 128,
          depth: int = 3, steps: int = 10_000, keep_motions: bool = False, features: Schema | None = None) -> Method:
    """MIDAS: learn to follow the motion that a prompt shows, then to follow prompts of words and objects.

    Args:
        follow: The word before the frames of a motion.
        depth: Number of blocks of the transformer that acts.
        steps: Number of updates of each of the two stages.
        keep_motions: In the second stage, train each episode also with the motion as its prompt. Without it, following
            motions is unlearned.
    """
    head = choose_head(features, Bins(50, temperature=0), Categorical(autoregressive=True))
    encoder = MultimodalPromptEncoder(objects, words, prompt_objects, width=width)
    policy = PolicyConfig(head, InContextTransformer(width, depth, causal=False), encoder, inputs=encoder.columns,
                          codec=Normalizer(unscaled=(objects, prompt_objects)))
    learner = BehaviorCloning(steps, 64, OptimizerConfig(lr=1e-3, warmup_steps=100))
    motion = MotionPrompt(objects, words, prompt_objects, follow, n_frames)
    first = Method(policy, learner=learner, transforms=(motion,))
    added = (AddMotionPrompts(motion),) if keep_motions else ()
    return replace(first, transforms=added, stages=(Stage("inverse_dynamics", first),),
                   initialize_from=(InitializeFrom(FromStage("inverse_dynamics")),))

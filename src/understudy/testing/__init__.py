"""Contract tests for your own parts, such as a head, codec or trunk: whether they keep their interface.

Each function raises AssertionError saying which promise was broken. None of them needs data.
"""

from .base import STATE, ContractViolation, require, require_equal, require_finite
from .data import check_codec, check_column_change, check_format
from .envs import check_env, check_shift
from .execute import check_executor, check_speaker, check_wrapper
from .guides import Guidance, check_guide
from .heads import check_head
from .improve import check_collection
from .learn import check_latent_encoder, check_learner, check_reward_model, check_scorer
from .methods import check_method, example_columns, example_data, with_trained_stages
from .nets import check_encoder, check_trunk
from .random_data import random_batch, random_dataset
from .robots import check_robot

__all__ = [
    "ContractViolation", "Guidance", "STATE", "check_codec", "check_collection", "check_column_change",
    "check_encoder", "check_env", "check_executor", "check_format", "check_guide", "check_head",
    "check_latent_encoder", "check_learner", "check_method", "check_reward_model", "check_robot", "check_scorer",
    "check_shift", "check_speaker", "check_trunk", "check_wrapper", "example_columns", "example_data", "random_batch",
    "random_dataset", "require", "require_equal", "require_finite", "with_trained_stages",
]

"""The prompted encoder: a trunk that is trained without the prompt, and cross-attention that reads it."""

from __future__ import annotations

import pytest
import torch

from understudy.core import Feature, UserError
from understudy.nets.encoders import TokenEncoder
from understudy.nets.prompted_encoder import PromptedEncoder
from understudy.testing import check_encoder

FEATURES = {"observation.state": Feature("float32", (3,)), "observation.other": Feature("float32", (2,)),
            "observation.task": Feature("uint8", (9,), "text")}
CONFIG = PromptedEncoder(encoder=TokenEncoder(16))


def test_it_keeps_the_contract_of_encoders():
    check_encoder(CONFIG, FEATURES)
    check_encoder(PromptedEncoder(encoder=TokenEncoder(16), depth=1),
                  {k: FEATURES[k] for k in ("observation.state", "observation.task")})


def test_the_prompt_matters_only_where_it_is_read():
    torch.manual_seed(0)
    obs = {"observation.state": torch.randn(4, 1, 3), "observation.other": torch.randn(4, 1, 2),
           "observation.task": torch.randint(1, 255, (4, 1, 9), dtype=torch.uint8)}
    other = {**obs, "observation.task": obs["observation.task"].flip(0)}
    absent = {**obs, "observation.task?": torch.zeros(4, 1, dtype=torch.bool)}
    read, unread = CONFIG.build(FEATURES, 1).eval(), PromptedEncoder(prompted=False, encoder=CONFIG.encoder).build(
        FEATURES, 1).eval()
    assert not torch.equal(read(obs).tokens, read(other).tokens)
    assert not torch.equal(read(obs).tokens, read(absent).tokens)
    assert torch.equal(unread(obs).tokens, unread(other).tokens)


def test_the_trunk_of_the_first_phase_fits_the_second():
    first, second = (PromptedEncoder(prompted=p, encoder=CONFIG.encoder).build(FEATURES, 2) for p in (False, True))
    second.trunk.load_state_dict(first.trunk.state_dict())
    assert {name.partition(".")[0] for name, _ in second.named_parameters()} == {"trunk", "prompt"}
    assert {name.partition(".")[0] for name, _ in first.named_parameters()} == {"trunk"}


def test_a_policy_without_the_prompt_is_refused():
    with pytest.raises(UserError, match="must read the prompt 'observation.task'"):
        CONFIG.build({"observation.state": FEATURES["observation.state"]}, 1)

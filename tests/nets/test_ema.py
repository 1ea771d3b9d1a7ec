"""Averages of weights."""

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

from understudy import config
from understudy.nets.ema import EMA, ConstantDecay, PolynomialDecay, WarmupDecay


class Counted(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2, 2), requires_grad=False)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("memory", torch.zeros(1, 2))

    def becomes(self, value):
        with torch.no_grad():
            self.a.fill_(value)
            self.b.fill_(-value)
            self.seen += 1
            self.memory = torch.full((int(self.seen), 2), float(value))


def averaged(decay, values):
    module = Counted()
    ema = EMA(module, decay)
    for value in values:
        module.becomes(value)
        ema.update(module)
    return ema, module


VALUES = [3.0, -1.0, 4.0, 1.0, -5.0, 9.0, 2.0]


@pytest.mark.parametrize("decay, rates", [
    (ConstantDecay(0.9), [0.9] * 7), (WarmupDecay(0.35), [2 / 11, 3 / 12, 4 / 13, 0.35, 0.35, 0.35, 0.35]),
    (0.35, [2 / 11, 3 / 12, 4 / 13, 0.35, 0.35, 0.35, 0.35]),
    (PolynomialDecay(0.5, 0.45), [0, 1 - 2**-0.5, 1 - 3**-0.5, 0.5, 0.55, 0.55, 0.55]),
    (PolynomialDecay(0.5, 0.45, start=2), [0, 0, 0, 1 - 2**-0.5, 1 - 3**-0.5, 0.5, 0.55])])
def test_an_average_in_closed_form(decay, rates):
    ema, module = averaged(decay, VALUES)
    want = 0.0
    for rate, value in zip(rates, VALUES, strict=True):
        want = rate * want + (1 - rate) * value
    assert np.allclose(ema.module.a.tolist(), want, rtol=1e-6) and np.allclose(ema.module.b, -want, rtol=1e-6)
    assert ema.updates == 7 and ema.module.seen == 7 and torch.equal(ema.module.memory, module.memory)
    assert module.a.tolist() == [2.0] * 3, "the module itself is left alone"


def test_power_one_is_the_plain_mean_since_the_start():
    assert np.allclose(averaged(PolynomialDecay(1.0, 0.0), VALUES)[0].module.a, np.mean(VALUES), rtol=1e-6)
    assert np.allclose(averaged(PolynomialDecay(1.0, 0.0, 3), VALUES)[0].module.a, np.mean(VALUES[3:]), rtol=1e-6)


def test_an_average_goes_on_where_it_was():
    whole = averaged(WarmupDecay(0.99), VALUES)[0]
    half, module = averaged(WarmupDecay(0.99), VALUES[:3])
    again = EMA(module, WarmupDecay(0.99))
    again.module.load_state_dict({k: v.clone() for k, v in half.module.state_dict().items()})
    again.updates = half.updates
    for value in VALUES[3:]:
        module.becomes(value)
        again.update(module)
    assert all(torch.equal(v, whole.module.state_dict()[k]) for k, v in again.module.state_dict().items())


def test_an_average_can_go_on_with_another_module():
    first, second = Counted(), Counted()
    ema = EMA(first, ConstantDecay(0.5))
    for module, value in ((first, 4.0), (second, 8.0), (second, 2.0)):
        module.becomes(value)
        ema.update(module)
    assert ema.module.a.tolist() == [3.5] * 3 and torch.equal(ema.module.memory, second.memory)


def test_an_average_is_apart_and_learns_nothing():
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).train()
    ema = EMA(module, ConstantDecay(0.5))
    before = copy.deepcopy(ema.module.state_dict())
    module[0].weight.data += 1
    assert all(torch.equal(v, before[k]) for k, v in ema.module.state_dict().items())
    assert not any(p.requires_grad for p in ema.module.parameters()) and not ema.module.training and module.training
    for decay in (ConstantDecay(0.5), WarmupDecay(0.9), PolynomialDecay(start=3)):
        assert config.load(json.loads(json.dumps(config.dump(decay)))) == decay
        assert all(0 <= decay.value(n) < 1 for n in range(1, 1000))
    assert dataclasses.replace(PolynomialDecay(), minimum=1e-3).value(10**9) == 1 - 1e-3


def test_buffers_follow_however_they_change():
    module = Counted()
    ema = EMA(module, ConstantDecay(0.9))
    for change in (lambda: module.seen.add_(3), lambda: None, lambda: setattr(module, "seen", torch.arange(4)),
                   lambda: module.seen.mul_(2), lambda: module.seen.resize_(6).fill_(1)):
        change()
        ema.update(module)
        assert torch.equal(ema.module.seen, module.seen) and ema.module.seen is not module.seen

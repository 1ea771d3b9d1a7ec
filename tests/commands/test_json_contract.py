"""Machine-readable output that other programs rely on. A change of these keys or statuses breaks them."""

import json

import pytest

from understudy import cli


@pytest.fixture
def call(capsys):
    def run(*args):
        status = cli.main([*map(str, args)])
        return status, json.loads(capsys.readouterr().out)
    return run


def test_a_plan_keeps_its_numbers_of_rollouts(call):
    """Unpaired, of each: between the normal approximation (62) and that with a continuity correction (72)."""
    status, plan = call("plan", "0.7", "0.9", "--json")
    assert status == 0 and {"paired", "unpaired"} <= plan["fixed"].keys()
    unpaired, paired = plan["fixed"]["unpaired"], plan["fixed"]["paired"]
    assert isinstance(unpaired, int) and all(isinstance(n, int) for n in paired.values())
    assert 62 <= unpaired <= 72
    assert list(paired) == ["0", "0.25", "0.5"]  # the correlation between the two on the same starts
    assert list(paired.values()) == sorted(paired.values(), reverse=True) and 30 < paired["0.5"] < paired["0"] < 80

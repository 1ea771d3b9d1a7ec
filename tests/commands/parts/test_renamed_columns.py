"""eval --rename: an environment shows columns under other names than the policy reads."""

import json

import numpy as np
import pytest
from fixtures.cli import TINY, refused
from fixtures.walking import Walk
from gymnasium import spaces

from understudy.cli import main
from understudy.commands.parts.options import split_pairs
from understudy.core import ConfigError


class Joints(Walk):
    observation_space = spaces.Dict({"joints": Walk.observation_space})

    def obs(self):
        return {"joints": super().obs()}


class Both(Walk):
    observation_space = spaces.Dict({"joints": Walk.observation_space, "state": Walk.observation_space})

    def obs(self):
        return {"joints": super().obs(), "state": np.zeros(2, np.float32)}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("renamed")
    trust = ["--trust", "fixtures", "--actor", "random"]
    assert main(["record", "fixtures.walking:Walk", *trust, "--episodes", "6", "--out", str(folder / "demos")]) == 0
    assert main(["train", "bc", str(folder / "demos"), "--out", str(folder / "run"), *TINY]) == 0
    return folder / "run"


def test_renamed_columns_give_the_same_episodes(run, capsys, monkeypatch):
    monkeypatch.syspath_prepend(__file__.rpartition("/")[0])

    def call(env, *rename):
        capsys.readouterr()
        words = [w for name in rename for w in ("--rename", name)][:1] + list(rename)
        status = main(["eval", str(run), env, "--episodes", "8", "--json", "--trust", "fixtures", "--trust",
                       "test_renamed_columns", *words])
        return status, *capsys.readouterr()
    own, joints, both = (json.loads(call(env, *rename)[1])["return"] for env, rename in (
        ("fixtures.walking:Walk", ()), ("test_renamed_columns:Joints", ("observation.joints=observation.state",)),
        ("test_renamed_columns:Both", ("observation.joints=observation.state", "observation.state=observation.other"))))
    assert own == joints == both
    refused(call("test_renamed_columns:Both", "observation.joints=observation.state"),
            "'observation.joints' and 'observation.state' would both be the column 'observation.state'")
    refused(call("test_renamed_columns:Joints"), "add --rename observation.joints=observation.state; otherwise use the "
            "environment that its data were recorded in, fixtures.walking:Walk")
    refused(call("test_renamed_columns:Joints", "observation.joint=observation.state"),
            "no observation 'observation.joint'", "did you mean 'observation.joints'?")


def test_a_name_is_given_once():
    assert split_pairs("--rename", ("a=b", "c=b"), "x=y") == {"a": "b", "c": "b"}
    with pytest.raises(ConfigError, match="--rename: 'a' is given twice, as b and c"):
        split_pairs("--rename", ("a=b", "a=c"), "x=y")

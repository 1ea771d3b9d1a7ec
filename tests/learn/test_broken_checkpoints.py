"""What cannot be loaded says what is wrong, and which command mends it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from fixtures.runs import made_up, plain, run
from safetensors.torch import load_file

from understudy.core import UserError
from understudy.learn.method import load_actor
from understudy.learn.run import Run
from understudy.nets.mlp import MLP
from understudy.policy import Policy


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A small run that knows its command, with two checkpoints."""
    out = tmp_path_factory.mktemp("runs") / "made"
    run(out, plain(), save_freq=3, score=lambda policy: 0.0, command="understudy train bc d --out r")
    run_ = Run(out)
    shutil.copytree(run_.checkpoint_path(6), run_.checkpoint_path(3))
    return out


def refusal(path, load=Policy.load) -> str:
    with pytest.raises(UserError) as error:
        load(path)
    assert "\n" not in error.value.problem and error.value.hint and error.value.where
    return str(error.value)


def test_weights_of_another_recipe_are_told_in_one_line(made, tmp_path):
    at = tmp_path / "at"
    shutil.copytree(made / "checkpoints/000006", at)
    recipe = json.loads((at / "policy.json").read_text())
    own = load_file(at / "weights.safetensors")
    for change, words in (
            ({"width": 9}, [f"{sum(8 in v.shape for v in own.values())} of another shape "
                            "(the first: net.input_layer.weight",
                            " in the place of (9, "]),
            ({"depth": 2}, ["missing (the first: net.blocks.1."]),
            ({"depth": 0}, ["unexpected (the first: net.blocks.0."])):
        (at / "policy.json").write_text(json.dumps({**recipe, "trunk": {**recipe["trunk"], **change}}))
        message = refusal(at)
        assert all(w in message for w in words) and len(message) < 500, message
    assert message.endswith(f"remove {at} and train again: understudy train bc d --out r")
    with pytest.raises(UserError, match=r"damaged: \d+ missing \(the first: .*\); of \d+ tensors\n  -> remove"):
        Run(made).resume(6, plain(trunk=MLP(width=8, depth=2)).learner.build(
            Policy(plain(trunk=MLP(width=8, depth=2)).policy, made_up().features()), 0, 6, made_up()))


def flipped(path: Path):
    """Writes copies of the file over it that differ in one bit: in its length field, header, and tensors."""
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    inside = np.linspace(header, len(whole) - 1, 5).astype(int).tolist()
    for at in (0, 7, 8, (8 + header) // 2, header - 1, *inside):
        for bit in (0, 6):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1:])
            yield at, bit
    path.write_bytes(whole)


def test_a_flipped_bit_in_weights_is_refused(made, tmp_path):
    shutil.copytree(made, tmp_path / "r")
    at = tmp_path / "r/checkpoints/000006"
    for _ in flipped(at / "weights.safetensors"):
        message = refusal(tmp_path / "r")
        assert "weights.safetensors: the file is damaged" in message and "SHA-256" in message
        assert f"take another checkpoint of the run: {tmp_path / 'r/checkpoints/000003'}" in message
    Policy.load(tmp_path / "r")
    (at / "checksums.json").write_text('{"weights.safetensors": "0"}')
    assert "weights.safetensors: the file is damaged" in refusal(at)
    for spoilt in ("{}", "[]", "{"):
        (at / "checksums.json").write_text(spoilt)
        assert "checksums.json: " in refusal(at) and "take another checkpoint of the run" in refusal(at)
    (at / "checksums.json").unlink()
    assert "checksums.json: there is no such file" in refusal(at)


def test_a_saved_policy_has_a_checksum_too(tmp_path):
    policy = Policy(plain().policy, made_up().features())
    policy.save(tmp_path / "p")
    policy.save(tmp_path / "p")  # over itself
    Policy.load(tmp_path / "p")
    for _ in flipped(tmp_path / "p" / "weights.safetensors"):
        assert f"remove {tmp_path / 'p'} and train again" in refusal(tmp_path / "p")


def test_a_flipped_bit_in_the_state_of_a_learner_is_refused(made, tmp_path):
    shutil.copytree(made, tmp_path / "r")
    at = tmp_path / "r/checkpoints/000006"
    learner = plain().learner.build(Policy(plain().policy, made_up().features()), 0, 6, made_up())
    for _ in flipped(at / "train" / "learner.safetensors"):
        message = refusal(6, lambda step: Run(tmp_path / "r").resume(step, learner))
        assert "learner.safetensors: the file is damaged" in message
        assert message.endswith(f"remove {at}, and training continues from the checkpoint before it")
    Run(tmp_path / "r").resume(6, learner)


@pytest.mark.parametrize("name", ["policy.json", "features.json", "weights.safetensors", "method.json"])
@pytest.mark.parametrize("spoil", ["gone", "cut", "[]", "{}"])
def test_a_broken_checkpoint_says_what_to_take_instead(made, tmp_path, name, spoil):
    shutil.copytree(made, tmp_path / "r")
    file = tmp_path / "r/checkpoints/000006" / name
    whole = file.read_bytes()
    file.write_bytes(whole[:len(whole) // 2] if spoil == "cut" else spoil.encode())
    if spoil == "gone":
        file.unlink()
    message = refusal(tmp_path / "r", load_actor)
    assert name in message and ("there is no such file" in message) == (spoil == "gone")
    if (name, spoil) not in (("features.json", "{}"), ("method.json", "[]"), ("method.json", "{}")):
        assert f"take another checkpoint of the run: {tmp_path / 'r/checkpoints/000003'}" in message
        load_actor(tmp_path / "r/checkpoints/000003")


def test_a_run_without_a_checkpoint_names_the_command_that_goes_on(made, tmp_path):
    begun, other = tmp_path / "begun", tmp_path / "other"
    with Run(begun).locked():
        (begun / "checkpoints").mkdir()
        message = refusal(begun)
    assert "stopped before" in message
    assert message.endswith(f"started the run: understudy train METHOD DATA --out {begun}")
    assert refusal(begun / "best").endswith(f"--out {begun}")
    shutil.copytree(made, other)
    (other / "run.json").unlink()
    message = refusal(other)
    assert f"{other}/checkpoints/000006" in message
    assert message.endswith("started the run: understudy train bc d --out r")
    Policy.load(other / "checkpoints/000006")
    (other / "run.json").write_text('{"last": 6}')
    assert "run.json: the file does not contain the names of checkpoints" in refusal(other)
    assert f"name one of these: {made}/checkpoints/000003, {made}/checkpoints/000006" in refusal(made / "checkpoints")
    assert f"name the folder: {made}/checkpoints/000006" in refusal(made / "checkpoints/000006/weights.safetensors")
    assert "there is nothing here\n  -> check the path" in refusal(tmp_path / "no")


DEEP = 100_000


@pytest.mark.parametrize("name", ["method.json", "policy.json", "features.json"])
@pytest.mark.parametrize("text", ["[]", "5", '"x"', "{}", "null", "", '{"$": 5}', '{"$": []}', "[" * DEEP + "]" * DEEP,
                                  '{"a":' * 500 + "1" + "}" * 500])
def test_a_file_that_holds_something_else_is_no_defect(made, tmp_path, name, text):
    at = tmp_path / "at"
    shutil.copytree(made / "checkpoints/000006", at)
    (at / name).write_text(text)
    with pytest.raises(UserError) as error:
        load_actor(at)
    assert name in str(error.value)


def leaves(value, path=()):
    """The paths of all values in JSON data."""
    if path:
        yield path
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from leaves(part, (*path, key))


@pytest.mark.parametrize("name", ["method.json", "policy.json", "features.json"])
def test_a_value_of_another_type_is_no_defect(made, tmp_path, name):
    """Each value in turn. What may stand in its place loads; everything else is refused with a sentence."""
    at = tmp_path / "at"
    shutil.copytree(made / "checkpoints/000006", at)
    document = json.loads((at / name).read_text())
    paths, refusals = list(leaves(document)), 0
    for *parents, last in paths:
        for wrong in ("x", [[1]], {"$": 5}):
            changed = json.loads(json.dumps(document))
            node = changed
            for key in parents:
                node = node[key]
            node[last] = wrong
            (at / name).write_text(json.dumps(changed))
            try:
                load_actor(at)
            except UserError:
                refusals += 1
    assert refusals > len(paths)

"""What is in the folder of a run, and what it refuses."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.runs import contents, everything, made_up, plain, run
from safetensors.torch import load_file

from understudy.core import DataWarning, UserError
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode
from understudy.heads.memory.neighbors import Neighbors
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.run import IS_SUCCESS, Run, comparable_scores
from understudy.learn.train import best_step
from understudy.learn.training_curves import TrainingCurves
from understudy.nets.ema import ConstantDecay
from understudy.policy import Policy

STEPS, EVERY = 11, 4


# -- what is in the folder -------------------------------------------------------------------------------------------


def test_the_folder_says_where_the_policy_comes_from(whole):
    assert json.loads((whole / "run.json").read_text())["last"] == f"checkpoints/{STEPS:06d}"
    last = whole / "checkpoints" / f"{STEPS:06d}"
    assert {f.name for f in last.iterdir()} == {"policy.json", "features.json", "weights.safetensors", "method.json",
                                                "provenance.json", "checksums.json", "train"}
    assert {f.name for f in (last / "train").iterdir()} == {"learner.safetensors", "state.json", "checksums.json"}
    provenance = json.loads((last / "provenance.json").read_text())
    data = made_up(image=True)
    assert provenance["data"]["name"] == "made_up.npz" and provenance["data"]["fingerprint"] == data.fingerprint()
    assert provenance["data"]["episodes"] == 6 and provenance["data"]["steps"] == data.steps and provenance["seed"] == 0
    assert len(provenance["held_out"]) == 1 and provenance["versions"]["torch"] == torch.__version__
    assert not any("/home/" in f.read_text() for f in whole.rglob("*") if f.suffix in (".json", ".md", ".jsonl"))
    card = (whole / "CARD.md").read_text()
    assert "made_up.npz" in card and data.fingerprint() in card and "understudy eval" in card
    assert Method.load(whole) == everything()
    assert not list(whole.rglob("*.part"))


def test_it_is_validated_at_every_mark_and_at_the_end(whole):
    steps = [line["step"] for line in Run(whole).read_metrics() if "validation/energy" in line]
    assert steps == [4, 8, 11]
    assert [line["step"] for line in Run(whole).read_metrics() if "loss" in line] == list(range(1, STEPS + 1))


def test_the_held_out_episodes_teach_nothing(tmp_path):
    """Neither weights nor statistics: whatever they hold, the policy is the same."""
    data = made_up()
    run(tmp_path / "a", plain(), data)
    held_out = json.loads((tmp_path / "a/checkpoints/000006/provenance.json").read_text())["held_out"]

    def spoil(episode):
        return episode.replace({k: 100 * np.asarray(v) for k, v in episode.steps.items()})
    spoiled = Dataset([spoil(e) if i in held_out else e for i, e in enumerate(data)])
    run(tmp_path / "b", plain(), spoiled)
    a, b = (load_file(tmp_path / n / "checkpoints/000006/weights.safetensors") for n in "ab")
    assert all(torch.equal(a[k], b[k]) for k in a)
    lines = [
        [x["validation/energy"] for x in Run(tmp_path / n).read_metrics() if "validation/energy" in x] for n in "ab"
    ]
    assert lines[1][0] > 10 * lines[0][0]


def test_a_mixture_is_drawn_by_its_shares(tmp_path):
    """Of two parts, one with no share at all: as if it were not there, but for the statistics, which are of both."""
    from understudy.data.mixture import mix

    def runs(name, spoil):
        other = made_up(3).map(lambda e: e.replace({"action": spoil * np.asarray(e.steps["action"])}))
        mixture, shares = mix((made_up(), 1.0), (other, 0.0))
        run(
            tmp_path / name,
            plain(codec=Normalizer("identity", "identity")),
            mixture,
            sampling_weights=shares,
            val_fraction=0.0,
        )
        return load_file(tmp_path / name / "checkpoints/000006/weights.safetensors")
    a, b = runs("a", 1.0), runs("b", 0.5)
    assert all(torch.equal(a[k], b[k]) for k in a)
    with pytest.raises(UserError, match=r"sampling_weights was MixtureWeights.*, is none"):
        mixture, _ = mix((made_up(), 1.0), (made_up(3), 0.0))
        run(tmp_path / "a", plain(codec=Normalizer("identity", "identity")), mixture, val_fraction=0.0)


def test_the_best_is_kept_and_named_by_score_and_ties_go_to_the_later(tmp_path):
    scores = {2: 0.1, 4: 0.7, 6: 0.7, 8: 0.2, 10: 0.2}
    steps = iter(scores)
    run(tmp_path / "run", plain(10), save_freq=2, score=lambda policy: scores[next(steps)])
    assert json.loads((tmp_path / "run/run.json").read_text()) == {"last": "checkpoints/000010",
                                                                   "best": "checkpoints/000006"}
    assert Run(tmp_path / "run").saved_steps() == [6, 10]
    Policy.load(tmp_path / "run" / "best")
    lines = [{"step": n, "validation/energy": e} for n, e in ((1, 0.5), (2, 0.3), (3, 0.3), (4, 0.4))]
    assert best_step(lines, (1, 2, 3, 4), "validation/energy") == 3
    assert best_step(lines, (1, 4), "validation/energy") == 4 and best_step([], (1,), "score") is None


def test_what_is_not_finite_is_null_in_the_metrics_and_never_the_best(tmp_path):
    run = Run(tmp_path)
    for step, score in ((1, float("nan")), (2, -3.0), (3, float("inf"))):
        run.log_metrics(step=step, score=score)
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text() and run.read_metrics()[0] == {"step": 1, "score": None}
    assert best_step(run.read_metrics(), (1, 2, 3), "score") == 2


def test_returns_are_scores_of_0_once_success_is_reported(tmp_path):
    """An environment may report success only where there is one."""
    scores = iter([{"score": 5.0, IS_SUCCESS: 0.0}, *({"score": x, IS_SUCCESS: 1.0} for x in (0.2, 0.1))])
    run(tmp_path / "run", plain(6), save_freq=2, score=lambda policy: next(scores))
    assert Run(tmp_path / "run").named_checkpoints()["best"] == "checkpoints/000004"
    assert TrainingCurves.load(tmp_path / "run").curves["score"].values == (0.0, 0.2, 0.1)
    returns = [{"step": 1, "score": 5.0, IS_SUCCESS: 0.0}, {"step": 2, "score": -9.0, IS_SUCCESS: 0.0}]
    assert best_step(comparable_scores(returns), (1, 2), "score") == 1
    lines = [*returns, {"step": 3, "score": 0.2, IS_SUCCESS: 1.0}, {"step": 4, "score": 3.0, IS_SUCCESS: 0.0}]
    assert best_step(comparable_scores(lines), (1, 2, 3, 4), "score") == 3
    unmarked = [{"step": 1, "score": 0.5}, *lines[2:]]  # of an earlier version, or of a score of one's own
    assert best_step(comparable_scores(unmarked), (1, 3, 4), "score") == 1


def test_without_anything_to_judge_by_the_last_is_kept(tmp_path):
    run(tmp_path / "run", plain(), made_up(3))
    assert json.loads((tmp_path / "run/run.json").read_text()) == {"last": "checkpoints/000006"}
    with pytest.raises(UserError, match="no 'best' checkpoint"):
        Policy.load(tmp_path / "run" / "best")


def test_a_memory_is_filled_by_what_the_encoder_has_become(tmp_path):
    """The encoder of a nearest-neighbor policy trains by a penalty; what it remembers must follow."""
    from fixtures.learning import Recover

    method = plain(head=Neighbors(n_neighbors=1))
    method = replace(method, learner=replace(method.learner, auxiliary_losses=(Recover(),), ema=ConstantDecay(0.0),
                                             optimizer=OptimizerConfig(lr=0.05)))
    policy = run(tmp_path / "run", method, val_fraction=0.0)
    loaded = Policy.load(tmp_path / "run")
    windows = policy.windows(made_up())
    batch = windows.gather(np.arange(len(windows)))
    with torch.no_grad():
        for p in (policy, loaded):
            torch.testing.assert_close(p.net.keys, p.context(batch.obs).flat())
    first = Policy.load(tmp_path / "run")
    first.fit_statistics(made_up(), refit_codec=False)
    assert torch.equal(first.net.keys, loaded.net.keys)
    none = run(tmp_path / "none", replace(plain(0), policy=method.policy), val_fraction=0.0)  # nothing to train
    assert not torch.allclose(none.net.keys, policy.net.keys)


# -- refusals --------------------------------------------------------------------------------------------------------


def test_another_method_data_or_seed_is_refused_and_named(tmp_path):
    out, other = tmp_path / "run", made_up()
    run(out, plain())
    before = contents(out)
    slower = replace(plain(), learner=replace(plain().learner, optimizer=OptimizerConfig(lr=0.5)))
    for options, difference in (({"method": slower}, "method.learner.optimizer.lr was 0.001, is 0.5"),
                                ({"steps": 5}, "method.learner.steps was 6, is 5"),
                                ({"steps": 9}, f"--from {out} --steps 3"), ({"seed": 1}, "seed was 0, is 1"),
                                ({"val_fraction": [0, 1]}, "held-out episodes was"), ({"data": other[:5]}, "data was "),
                                ({"resume": False}, "the run already exists")):
        with pytest.raises(UserError) as error:
            run(out, **{"method": plain(), "data": other, **options})
        assert difference in str(error.value) and "another --out" in str(error.value)
    assert contents(out) == before


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="the folder is not a run; it contains thesis.tex"):
        run(tmp_path, plain())
    with pytest.raises(UserError, match="this is a file"):
        run(tmp_path / "thesis.tex", plain())


def test_two_at_once_are_refused(tmp_path):
    with Run(tmp_path).locked(), pytest.raises(UserError, match="another process is training"):
        run(tmp_path, plain())
    run(tmp_path, plain())


@pytest.mark.parametrize("column, value", [("action", np.nan), ("observation.state", np.inf)])
def test_what_is_no_number_is_refused_by_place(tmp_path, column, value):
    data = made_up()
    spoiled = np.array(data[3].steps[column])
    spoiled[5, 1] = value
    data = Dataset([e.replace({column: spoiled}) if i == 3 else e for i, e in enumerate(data)])
    with pytest.raises(UserError, match=rf"the value is not finite: {value}") as error:
        run(tmp_path / "run", plain(), data, val_fraction=[0])
    assert "episode 3, step 5" in str(error.value) and f"{column}[1]" in str(error.value)


# -- what was interrupted while it was recorded ----------------------------------------------------------------------


def test_interrupted_episodes_are_left_out_unless_asked(tmp_path):
    data = made_up()
    fragment, last_fragment = (Episode({n: shift + 3 * np.asarray(a) for n, a in data[0].steps.items()},
                                       {"interrupted": True}) for shift in (100, 101))
    mixed = Dataset([data[0], fragment, *data[1:], last_fragment], data.metadata)
    clean = run(tmp_path / "clean", plain(), data)
    with pytest.warns(DataWarning, match=r"2 of 8 episodes.*left out of training: 1, 7\. .*--include-interrupted"):
        trained = run(tmp_path / "left", plain(), mixed)
    assert trained.state_dict().keys() == clean.state_dict().keys()
    assert all(torch.equal(v, clean.state_dict()[k]) for k, v in trained.state_dict().items())
    provenance = {n: json.loads((tmp_path / n / "checkpoints/000006/provenance.json").read_text())
                  for n in ("clean", "left")}
    assert (provenance["clean"]["left_out"], provenance["left"]["left_out"]) == ([], [1, 7])
    (held_out_index,) = provenance["clean"]["held_out"]  # the same episode, by its number among all
    assert provenance["left"]["held_out"] == [held_out_index + (held_out_index > 0)]
    assert "Left out because their recording was interrupted: episodes 1, 7." in (tmp_path / "left/CARD.md").read_text()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asked = run(tmp_path / "asked", plain(), mixed, include_interrupted=True)
    assert any(not torch.equal(v, clean.state_dict()[k]) for k, v in asked.state_dict().items())
    with pytest.raises(UserError, match="left-out episodes was none, is 1, 7"):
        run(tmp_path / "asked", plain(), mixed)
    with pytest.raises(UserError, match="every episode was interrupted.*\n.*include_interrupted=True"):
        run(tmp_path / "none", plain(), Dataset([fragment] * 2, data.metadata))

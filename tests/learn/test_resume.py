"""A run that was stopped, killed or out of disk goes on as if nothing had happened, and loses nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from folders import PATHS
from safetensors.torch import load_file

from understudy.core import DataWarning, UserError
from understudy.data.augment import GaussianNoise
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.heads.flow import Flow
from understudy.heads.neighbors import Neighbors
from understudy.heads.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import Method, load_actor
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.run import Run, disk_space_errors
from understudy.learn.train import best_step, train
from understudy.learn.validation import Validation
from understudy.nets.ema import ConstantDecay, WarmupDecay
from understudy.nets.encoders import TokenEncoder
from understudy.nets.mlp import MLP
from understudy.nets.vision import SmallConv
from understudy.policy import Policy, PolicyConfig

STEPS, EVERY = 11, 4


def made_up(episodes: int = 6, image: bool = False) -> Dataset:
    rng = np.random.default_rng(0)

    def episode(n):
        seen = rng.normal(size=(n + 1, 3)).cumsum(0).astype(np.float32)
        columns = {"observation.state": seen, "action": np.tanh(seen[:-1, :2])}
        if image:
            columns["observation.images.front"] = rng.integers(0, 256, (n + 1, 24, 24, 3), dtype=np.uint8)
        return Episode(columns)
    return Dataset([episode(8 + 3 * i) for i in range(episodes)], {"path": "/home/someone/toys/made_up.npz", "fps": 10})


def everything() -> Method:
    """All that draws random numbers or remembers: dropout, noise, crops, average, parts, warm-up and cosine."""
    encoder = TokenEncoder(width=8, crop=2, vision=SmallConv(channels=(8, 8), keypoints=3))
    recipe = PolicyConfig(
        Flow(n_steps=2),
        trunk=MLP(width=16, depth=1, dropout=0.2),
        encoder=encoder,
        window=Window(2, 3),
        augmentations=(GaussianNoise("observation.state", 0.1),),
    )
    learn = BehaviorCloning(
        STEPS,
        12,
        OptimizerConfig(accumulation_steps=3, warmup_steps=3, grad_clip_norm=0.5, weight_decay=0.1),
        WarmupDecay(0.9),
    )
    return Method(recipe, learner=learn)


def plain(steps: int = 6, **recipe) -> Method:
    recipe = {"head": Regression(), "trunk": MLP(width=8, depth=1), "window": Window(1, 2), **recipe}
    return Method(PolicyConfig(**recipe), learner=BehaviorCloning(steps, 8))


class Stop:
    """Presses Ctrl-C during these updates."""

    def __init__(self, *at: int):
        self.at = set(at)

    def __call__(self, step, learner, seen):
        if step in self.at and "loss" in seen:
            os.kill(os.getpid(), signal.SIGINT)


def run(out, method=None, data=None, **options) -> Policy:
    options = {"device": "cpu", "save_freq": EVERY, "validation": Validation(6, 2), "progress": False, **options}
    return train(method or everything(), data or made_up(image=method is None), out, **options)


def contents(out: Path) -> dict:
    """All that a run holds, but for times and random names."""
    found = {"lines": [{k: v for k, v in line.items() if k != "seconds"} for line in Run(out).read_metrics()]}
    for file in sorted(out.rglob("*")):
        name = str(file.relative_to(out))
        if file.suffix == ".safetensors":
            found[name] = {k: v.numpy().tobytes() for k, v in load_file(file).items()}
        elif file.name == "state.json":
            state = json.loads(file.read_text())
            found[name] = {k: v for k, v in state.items() if k != "seconds"}
        elif file.is_file() and file.name != "metrics.jsonl":
            found[name] = file.read_text()
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The run that nothing ever stopped."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    run(out)
    return out


@pytest.mark.parametrize("at", range(1, STEPS + 1))
def test_stopped_at_any_update_it_is_the_same_run_bit_by_bit(whole, tmp_path, at):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(out, callbacks=[Stop(at)])
    assert Run(out).saved_steps()[-1] == at  # the update that ran was finished and kept
    run(out)
    assert contents(out) == contents(whole)


def test_with_its_data_on_the_device_it_is_the_same_run(whole, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr("understudy.data.device_windows.available_bytes", lambda device: made.append(device) or 10**9)
    run(tmp_path / "run")
    assert made == [torch.device("cpu")] and contents(tmp_path / "run") == contents(whole)


def test_stopped_again_and_again_it_is_the_same_run(whole, tmp_path):
    out, times = tmp_path / "run", 0
    while True:
        try:
            run(out, callbacks=[Stop(*range(1, STEPS + 1))])
            break
        except KeyboardInterrupt:
            times += 1
    assert times == STEPS and contents(out) == contents(whole)


def test_a_stretch_of_the_curve_that_was_cut_is_whole_again(tmp_path, monkeypatch):
    monkeypatch.setattr("understudy.learn.train.CURVE_POINTS", 3)
    run(tmp_path / "whole", plain(9))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", plain(9), callbacks=[Stop(5)])
    run(tmp_path / "cut", plain(9))
    assert [line["step"] for line in Run(tmp_path / "cut").read_metrics() if "loss" in line] == [3, 6, 9]
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_stopped_while_it_was_saved_it_stops(whole, tmp_path, monkeypatch):
    """The checkpoint is finished first; the interrupt is not forgotten over it."""
    out, save = tmp_path / "run", Run.save_checkpoint

    def pressed(self, step, *rest):
        if step == 8:
            os.kill(os.getpid(), signal.SIGINT)
        save(self, step, *rest)
    monkeypatch.setattr(Run, "save_checkpoint", pressed)
    with pytest.raises(KeyboardInterrupt):
        run(out)
    assert Run(out).saved_steps()[-1] == 8
    run(out)
    assert contents(out) == contents(whole)


def test_stopped_while_it_was_judged_it_is_judged_again(whole, tmp_path):
    def score(policy):
        if not asked:
            asked.append(1)
            raise KeyboardInterrupt
        return 1.0
    out, asked = tmp_path / "run", []
    with pytest.raises(KeyboardInterrupt):
        run(out, plain(), score=score, save_freq=3)
    assert Run(out).saved_steps() == [3] and not any("score" in line for line in Run(out).read_metrics())
    run(out, plain(), score=score, save_freq=3)
    assert [line["step"] for line in Run(out).read_metrics() if "score" in line] == [3, 6]


def test_what_takes_long_is_saved_in_between(whole, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr("understudy.learn.train.MAX_UNSAVED_SECONDS", 0.0)
    run(tmp_path / "run", callbacks=[lambda *a: saved.append(Run(tmp_path / "run").saved_steps()[-1])])
    assert sorted(set(saved)) == list(range(STEPS + 1))
    assert contents(tmp_path / "run") == contents(whole)


def test_a_second_interrupt_does_not_wait_but_an_echo_is_none(tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "echo", plain(), callbacks=[Stop(2), Stop(2)])
    assert Run(tmp_path / "echo").saved_steps() == [2]
    monkeypatch.setattr("understudy.learn.train.DeferredInterrupts.ECHO_SECONDS", -1.0)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "twice", plain(), callbacks=[Stop(2), Stop(2)])
    assert Run(tmp_path / "twice").saved_steps() == [0]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_finished_run_is_left_as_it_is(whole, tmp_path):
    before, seen = contents(whole), []
    policy = run(whole, callbacks=[lambda *a: seen.append(a)])
    assert contents(whole) == before and not seen
    loaded = Policy.load(whole)
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in policy.state_dict().items())
    assert not policy.training


@pytest.mark.parametrize("constant", [True, False])
def test_more_updates_continue_a_run_if_its_learning_rate_does_not_depend_on_them(tmp_path, constant):
    method = replace(everything(), learner=replace(everything().learner, optimizer=OptimizerConfig(
        warmup_steps=3, lr_schedule="constant" if constant else "cosine")))
    run(tmp_path / "more", method, made_up(image=True), steps=5)
    if not constant:
        with pytest.raises(UserError, match="cannot be continued to 11"):
            run(tmp_path / "more", method, made_up(image=True))
        return
    run(tmp_path / "more", method, made_up(image=True))
    run(tmp_path / "at once", method, made_up(image=True))
    last = f"checkpoints/{STEPS:06d}"
    more, whole = contents(tmp_path / "more" / last), contents(tmp_path / "at once" / last)
    assert more["weights.safetensors"] == whole["weights.safetensors"]
    assert more["train/learner.safetensors"] == whole["train/learner.safetensors"]
    assert Method.load(tmp_path / "more") == method


def test_the_seed_decides_the_run_and_nothing_else_does(tmp_path):
    def trained(name, seed, outer):
        torch.manual_seed(outer)
        before = torch.get_rng_state()
        run(tmp_path / name, plain(2), seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        return load_file(tmp_path / name / "checkpoints" / "000002" / "weights.safetensors")["net.input_layer.weight"]
    assert torch.equal(trained("a", 0, 0), trained("b", 0, 1))
    assert not torch.equal(trained("c", 1, 0), trained("d", 0, 0))


def test_a_run_of_an_earlier_version_is_continued(tmp_path):
    """It called the sampling weights of its provenance "draw"."""
    run(tmp_path, plain(4))
    for file in tmp_path.glob("checkpoints/*/provenance.json"):
        said = json.loads(file.read_text())
        said["draw"] = said.pop("sampling_weights")
        file.write_text(json.dumps(said))
    run(tmp_path, plain(4))
    assert "draw" in Run(tmp_path).read_checkpoint_json(4, "provenance.json"), "the run is finished, and left as it is"


# -- what is in the folder -------------------------------------------------------------------------------------------


def test_the_folder_says_where_the_policy_comes_from(whole):
    assert json.loads((whole / "run.json").read_text())["last"] == f"checkpoints/{STEPS:06d}"
    last = whole / "checkpoints" / f"{STEPS:06d}"
    assert {f.name for f in last.iterdir()} == {"policy.json", "features.json", "weights.safetensors", "method.json",
                                                "provenance.json", "checksums.json", "train"}
    assert {f.name for f in (last / "train").iterdir()} == {"learner.safetensors", "state.json", "checksums.json"}
    said = json.loads((last / "provenance.json").read_text())
    data = made_up(image=True)
    assert said["data"]["name"] == "made_up.npz" and said["data"]["fingerprint"] == data.fingerprint()
    assert said["data"]["episodes"] == 6 and said["data"]["steps"] == data.steps and said["seed"] == 0
    assert len(said["held_out"]) == 1 and said["versions"]["torch"] == torch.__version__
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
    held = json.loads((tmp_path / "a/checkpoints/000006/provenance.json").read_text())["held_out"]

    def spoil(episode):
        return episode.replace({k: 100 * np.asarray(v) for k, v in episode.steps.items()})
    spoiled = Dataset([spoil(e) if i in held else e for i, e in enumerate(data)])
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


def test_without_anything_to_judge_by_the_last_is_kept(tmp_path):
    run(tmp_path / "run", plain(), made_up(3))
    assert json.loads((tmp_path / "run/run.json").read_text()) == {"last": "checkpoints/000006"}
    with pytest.raises(UserError, match="no 'best' checkpoint"):
        Policy.load(tmp_path / "run" / "best")


def test_a_memory_is_filled_by_what_the_encoder_has_become(tmp_path):
    """The encoder of a nearest-neighbor policy trains by a penalty; what it remembers must follow."""
    from tests.learn.test_learn import Recover

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
    for options, said in (({"method": slower}, "method.learner.optimizer.lr was 0.001, is 0.5"),
                          ({"steps": 5}, "method.learner.steps was 6, is 5"),
                          ({"steps": 9}, f"--from {out} --steps 3"), ({"seed": 1}, "seed was 0, is 1"),
                          ({"val_fraction": [0, 1]}, "held-out episodes was"), ({"data": other[:5]}, "data was "),
                          ({"resume": False}, "the run already exists")):
        with pytest.raises(UserError) as error:
            run(out, **{"method": plain(), "data": other, **options})
        assert said in str(error.value) and "another --out" in str(error.value)
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


# -- disks that fill and processes that are killed -------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "small"
    run(out, plain(4), save_freq=2)
    return out


def _fills_up(out: Path, small: Path, broken) -> None:
    """One message; what was saved is whole; with room again the same command makes the same run."""
    with broken, pytest.raises(UserError, match="(?s)no room to write: .* make room, and give the same command"):
        run(out, plain(4), save_freq=2)
    for step in Run(out).saved_steps():
        Policy.load(out / "checkpoints" / f"{step:06d}")
    assert not list(out.rglob("*.part"))
    run(out, plain(4), save_freq=2)
    assert contents(out) == contents(small)


class Full:
    """The disk is full from the n-th time on that something is written for good."""

    def __init__(self, monkeypatch, n: int):
        self.patch, self.left, self.real = monkeypatch, n, os.fsync

    def __enter__(self):
        self.patch.setattr(os, "fsync", self)

    def __exit__(self, *error):
        self.patch.setattr(os, "fsync", self.real)

    def __call__(self, file):
        self.left -= 1
        if self.left <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.real(file)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 10, 17, 24, 31, 45, 58])
def test_a_full_disk_is_one_message_and_loses_nothing(tmp_path, small, monkeypatch, n):
    _fills_up(tmp_path / "run", small, Full(monkeypatch, n))


class Limit:
    """No file may be longer than so many bytes: a real error of the system, also inside safetensors."""

    def __init__(self, size: int):
        self.size = size

    def __enter__(self):
        import resource

        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))

    def __exit__(self, *error):
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows limits no file sizes")
@pytest.mark.parametrize("size", [10, 500, 5000])
def test_a_file_that_cannot_grow_is_one_message_and_loses_nothing(tmp_path, small, size):
    _fills_up(tmp_path / "run", small, Limit(size))


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(PermissionError), disk_space_errors(tmp_path, "make room"):
        raise PermissionError(errno.EACCES, "no")


def test_a_torn_line_and_half_a_checkpoint_are_cleared_away(tmp_path, whole):
    """What a power cut leaves: a line without its end, a folder that never got its name."""
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(out, callbacks=[Stop(6)])
    with open(out / "metrics.jsonl", "a") as lines:
        lines.write('{"step": 7, "loss": 1.0, "seconds": 1}\n{"step": 8, "lo')
    for half in (".000008.x1.part", ".000004.part"):
        (out / "checkpoints" / half / "train").mkdir(parents=True)
        (out / "checkpoints" / half / "policy.json").write_text("{")
    (out / ".run.json.x2.part").write_text("{")
    run(out)
    assert contents(out) == contents(whole)


def test_a_checkpoint_that_was_not_yet_named_counts(tmp_path, whole):
    """Killed between the checkpoint's move and the name in run.json."""
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(out, callbacks=[Stop(6)])
    (out / "run.json").write_text(json.dumps({"last": "checkpoints/000004"}))
    seen = []
    run(out, callbacks=[lambda n, learner, s: seen.append(n)])
    assert seen[0] == 7 and contents(out) == contents(whole)


PROGRAM = """
import sys
sys.path[:0] = {paths!r}
from tests.learn.test_resume import plain, made_up, run
print("ready", flush=True)
run({out!r}, plain(60), save_freq=1)
"""


@pytest.mark.slow  # processes are started and killed
def test_killed_at_any_moment_the_checkpoints_are_whole_and_it_goes_on(tmp_path):
    """It saves after every update, so that most kills come in the midst of saving."""
    out, rng, last = tmp_path / "run", np.random.default_rng(0), -1
    program = PROGRAM.format(paths=PATHS, out=str(out))
    for n in range(9):
        child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert child.stdout.readline() == b"ready\n", child.stderr.read()
        # The first time at once; then when it is at work, which on a busy machine may take a while to begin.
        deadline = time.monotonic() + 60
        while n and max(Run(out).saved_steps(), default=-1) <= last and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        saved = Run(out).saved_steps()
        assert n == 0 or saved[-1] > last
        last = max(saved, default=-1)
        for step in saved:
            policy = Policy.load(out / "checkpoints" / f"{step:06d}")
            learner = plain(60).learner.build(policy, 0, 60, made_up())
            assert Run(out).resume(step, learner)["step"] == step == learner.n_updates
        if saved and (out / "run.json").exists():
            Policy.load(out)
    assert last >= 7  # each but the first got further
    run(out, plain(60), save_freq=1)
    run(tmp_path / "reference", plain(60), save_freq=1)
    assert contents(out) == contents(tmp_path / "reference")


# -- what was interrupted while it was recorded ----------------------------------------------------------------------


def test_interrupted_episodes_are_left_out_unless_asked(tmp_path):
    data = made_up()
    fragment = Episode({n: 100 + 3 * np.asarray(a) for n, a in data[0].steps.items()}, {"interrupted": True})
    mixed = Dataset([data[0], fragment, *data[1:], fragment], data.metadata)
    clean = run(tmp_path / "clean", plain(), data)
    with pytest.warns(DataWarning, match=r"2 of 8 episodes.*left out of training: 1, 7\. Pass --include-interrupted"):
        left = run(tmp_path / "left", plain(), mixed)
    assert left.state_dict().keys() == clean.state_dict().keys()
    assert all(torch.equal(v, clean.state_dict()[k]) for k, v in left.state_dict().items())
    said = {n: json.loads((tmp_path / n / "checkpoints/000006/provenance.json").read_text()) for n in ("clean", "left")}
    assert (said["clean"]["left_out"], said["left"]["left_out"]) == ([], [1, 7])
    (held,) = said["clean"]["held_out"]  # the same episode, by its number among all
    assert said["left"]["held_out"] == [held + (held > 0)]
    assert "Left out because their recording was interrupted: episodes 1, 7." in (tmp_path / "left/CARD.md").read_text()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asked = run(tmp_path / "asked", plain(), mixed, include_interrupted=True)
    assert any(not torch.equal(v, clean.state_dict()[k]) for k, v in asked.state_dict().items())
    with pytest.raises(UserError, match="left-out episodes was none, is 1, 7"):
        run(tmp_path / "asked", plain(), mixed)
    with pytest.raises(UserError, match="every episode was interrupted.*\n.*include_interrupted=True"):
        run(tmp_path / "none", plain(), Dataset([fragment] * 2, data.metadata))


# -- what cannot be loaded says what is wrong, and which command mends it ---------------------------------------------


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
        said = refusal(at)
        assert all(w in said for w in words) and len(said) < 500, said
    assert said.endswith(f"remove {at} and train again: understudy train bc d --out r")
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
        said = refusal(tmp_path / "r")
        assert "weights.safetensors: the file is damaged" in said and "SHA-256" in said
        assert f"take another checkpoint of the run: {tmp_path / 'r/checkpoints/000003'}" in said
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
        said = refusal(6, lambda step: Run(tmp_path / "r").resume(step, learner))
        assert "learner.safetensors: the file is damaged" in said
        assert said.endswith(f"remove {at}, and training continues from the checkpoint before it")
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
    said = refusal(tmp_path / "r", load_actor)
    assert name in said and ("there is no such file" in said) == (spoil == "gone")
    if (name, spoil) not in (("features.json", "{}"), ("method.json", "[]"), ("method.json", "{}")):
        assert f"take another checkpoint of the run: {tmp_path / 'r/checkpoints/000003'}" in said
        load_actor(tmp_path / "r/checkpoints/000003")


def test_a_run_without_a_checkpoint_names_the_command_that_goes_on(made, tmp_path):
    begun, other = tmp_path / "begun", tmp_path / "other"
    with Run(begun).locked():
        (begun / "checkpoints").mkdir()
        said = refusal(begun)
    assert "stopped before" in said and said.endswith(f"started the run: understudy train METHOD DATA --out {begun}")
    assert refusal(begun / "best").endswith(f"--out {begun}")
    shutil.copytree(made, other)
    (other / "run.json").unlink()
    said = refusal(other)
    assert f"{other}/checkpoints/000006" in said and said.endswith("started the run: understudy train bc d --out r")
    Policy.load(other / "checkpoints/000006")
    (other / "run.json").write_text('{"last": 6}')
    assert "run.json: the file does not contain the names of checkpoints" in refusal(other)
    assert f"name one of these: {made}/checkpoints/000003, {made}/checkpoints/000006" in refusal(made / "checkpoints")
    assert f"name the folder: {made}/checkpoints/000006" in refusal(made / "checkpoints/000006/weights.safetensors")
    assert "there is nothing here\n  -> check the path" in refusal(tmp_path / "no")


# -- several processes -----------------------------------------------------------------------------------------------


SHARED = """
import sys
sys.path[:0] = {paths!r}
import torch
from dataclasses import replace
from pathlib import Path
from tests.learn.test_resume import everything, made_up, run, Stop
torch.set_num_threads(1)
method = everything()
optimizer = replace(method.learner.optimizer, accumulation_steps=2)
method = replace(method, learner=replace(method.learner, optimizer=optimizer))
try:
    run({out!r}, method, made_up(image=True), callbacks=[Stop(*{stop!r})])
except KeyboardInterrupt:
    print("interrupted", flush=True)
print("threads", *(task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")), flush=True)
"""


def _shared(out: Path, launcher: list[str], stop=()):
    program = out.with_suffix(".py")
    program.write_text(SHARED.format(paths=PATHS, out=str(out), stop=tuple(stop)))
    command = [sys.executable, *(["-m"] if launcher else []), *launcher, str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, textwrap.shorten(done.stderr, 3000)
    # One that outlives its group may want the interpreter after that has ended, which aborts the process.
    assert "threads" in done.stdout and "gloo" not in done.stdout
    return done.stdout


@pytest.mark.slow  # starts launchers that start processes
@pytest.mark.parametrize("launcher", [
    ["torch.distributed.run", "--standalone", "--nproc-per-node=2"],
    # --multi_gpu is what makes it start two; with --cpu it starts one, unless there is an mpirun.
    ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no",
     "--dynamo_backend=no"],
], ids=["torchrun", "accelerate"])
def test_two_processes_train_what_one_does(tmp_path, launcher):
    """Noise, crops and dropout included, since they belong to the parts of a batch; stopped and resumed as well."""
    one, two = tmp_path / "one", tmp_path / "two"
    _shared(one, [])
    assert "interrupted" in _shared(two, launcher, stop=[5])
    assert Run(two).saved_steps() == [4, 5]
    _shared(two, launcher)
    assert [Run(r).read_checkpoint_json(STEPS, "provenance.json")["device"]["processes"] for r in (one, two)] == [1, 2]
    a, b = contents(one), contents(two)
    assert a.keys() == b.keys()
    for mine, theirs in zip(a["lines"], b["lines"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3)
    path = f"checkpoints/{STEPS:06d}/train/learner.safetensors"
    one, two = load_file(one / path), load_file(two / path)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")

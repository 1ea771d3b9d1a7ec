"""Rules decide from intervals; a record goes stale with its code and with nothing else; a run goes on where it was."""

import shutil
import subprocess
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest

from understudy import cli, config
from understudy.claims import records
from understudy.claims.base import (
    RATE,
    SCORE,
    AboveBound,
    AllOf,
    Arm,
    BelowBound,
    Claim,
    ClaimPart,
    Condition,
    DemonstrationSource,
    EquivalentTo,
    Experiment,
    ExpertDemonstrations,
    GreaterThan,
    Measure,
    MissingRequirement,
    NegativeControl,
    RecordedDemonstrations,
    summarize,
)
from understudy.claims.folder import claims_folder
from understudy.claims.measures import log_jerk
from understudy.claims.runner import Cells, judge_again, judge_figures, run_claim, run_figures, run_pilot
from understudy.core import UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import open_dataset
from understudy.data.window import Window
from understudy.files import read_json, write_json
from understudy.heads.regression import Regression
from understudy.learn.method import Method
from understudy.policy import PolicyConfig


def flags(rate, seed=0):
    return (np.random.default_rng(seed).random((5, 100)) < rate).astype(float).tolist()


FIGURES = {"good": {"success": flags(0.9), "time": (np.full((5, 1), 3.0) + np.arange(5)[:, None] * 0.01).tolist()},
           "twin": {"success": flags(0.9), "time": (np.full((5, 1), 3.0) + np.arange(5)[:, None] * 0.01).tolist()},
           "bad": {"success": flags(0.4, 1), "time": (np.full((5, 1), 2.0) - np.arange(5)[:, None] * 0.01).tolist()}}


@pytest.mark.parametrize("rule,verdict", [
    (GreaterThan("success", "good", "bad"), "holds"), (GreaterThan("success", "good", "bad", 0.3), "holds"),
    (GreaterThan("success", "bad", "good"), "fails"), (GreaterThan("success", "good", "bad", 0.45), "undecided"),
    (GreaterThan("success", "good", "bad", 0.5), "undecided"), (GreaterThan("success", "good", "bad", 0.6), "fails"),
    (GreaterThan("success", "good", "twin"), "undecided"), (GreaterThan("success", "good", "twin", -0.1), "holds"),
    (GreaterThan("time", "good", "bad", 0.9), "holds"), (GreaterThan("time", "good", "bad", 1.2), "fails"),
    (EquivalentTo("success", "good", "twin", 0.1), "holds"), (EquivalentTo("success", "good", "bad", 0.1), "fails"),
    (EquivalentTo("success", "good", "twin", 0.001), "undecided"),
    (AboveBound("success", "good", 0.7), "holds"), (AboveBound("success", "bad", 0.7), "fails"),
    (AboveBound("time", "good", 3.02), "undecided"),
    (BelowBound("success", "bad", 0.7), "holds"), (BelowBound("success", "good", 0.7), "fails"),
    (BelowBound("time", "good", 3.02), "undecided"),
    (AllOf((GreaterThan("success", "good", "bad"), EquivalentTo("success", "good", "twin", 0.1))), "holds"),
    (AllOf((GreaterThan("success", "good", "bad"), EquivalentTo("success", "good", "bad", 0.1))), "fails"),
    (AllOf((GreaterThan("success", "good", "bad"), GreaterThan("success", "good", "twin"))), "undecided"),
])
def test_a_rule_decides_from_its_interval(rule, verdict):
    assert rule.judge(FIGURES, {"time": Measure("real", "loss fraction")}).verdict == verdict


def test_a_measure_declares_its_kind():
    """An AUROC of exactly 1 in every seed is no sequence of Bernoulli trials."""
    perfect = {"a": {"auroc": [[1.0]] * 6}}
    assert summarize(perfect, {"auroc": SCORE})["a"]["auroc"]["low"] == 1
    assert summarize(perfect, {"auroc": RATE})["a"]["auroc"]["low"] < 0.01
    assert AboveBound("auroc", "a", 0.8).judge(perfect, {"auroc": SCORE}).verdict == "holds"
    with pytest.raises(UserError, match="'auroc' has no kind.*\n.*declare it"):
        AboveBound("auroc", "a", 0.8).judge(perfect)


def test_every_recorded_figure_is_of_the_kind_that_its_claim_declares():
    for name, claim in records.all_claims().items():
        if records.record_path(name).exists():
            parts, figures = read_json(records.record_path(name))["parts"], read_json(records.figures_path(name))
            for part in claim.parts:
                found = summarize(figures[part.name], dict(part.experiment.measures))
                assert found.keys() == parts[part.name]["summary"].keys()


def test_a_rule_names_the_arms_it_looks_at():
    assert AllOf((GreaterThan("success", "good", "bad"), AboveBound("success", "good", 0.5))).arms == ("good", "bad")


def test_seeds_that_tune_never_judge_and_arms_are_tuned_alike():
    def build(seeds=(100, 101), tuning=(900,), options=(1, 1)):
        return Experiment(None, "fork", tuple(Arm(str(i), (None,) * n) for i, n in enumerate(options)), None,
                          seeds=seeds, tuning_seeds=tuning)
    build()
    with pytest.raises(ValueError, match="must not judge"):
        build(tuning=(100,))
    with pytest.raises(ValueError, match="must not judge"):
        build(seeds=(0, 1))
    with pytest.raises(ValueError, match="same number"):
        build(options=(1, 2))


def test_arms_and_options_are_replaced_by_name():
    numbers = Experiment(None, "fork", (Arm("a", (1, 2)), Arm("b", (3, 4)), Arm("c", (5, 6))), None)
    replaced = numbers.replace_arms(Arm("c", (7, 8)), Arm("a", (9, 10)))
    assert replaced.arms == (Arm("a", (9, 10)), Arm("b", (3, 4)), Arm("c", (7, 8)))
    assert numbers.change_options(lambda n: -n, "b").arms == (Arm("a", (1, 2)), Arm("b", (-3, -4)), Arm("c", (5, 6)))
    assert numbers.change_options(lambda n: 0 * n).arms == tuple(Arm(name, (0, 0)) for name in "abc")
    with pytest.raises(ValueError, match="no arm d"):
        numbers.replace_arms(Arm("d", (1, 2)))
    with pytest.raises(ValueError, match="no arm d"):
        numbers.change_options(lambda n: n, "d")


def test_jerk_of_known_motions():
    """The third difference of a cubic t^3 is 6 everywhere; that of a straight line is 0."""
    t = np.arange(10.0)[:, None]
    assert log_jerk(Episode({"action": t**3})) == pytest.approx(np.log(36))
    assert log_jerk(Episode({"action": 2 * t})) == pytest.approx(np.log(1e-12), abs=1e-6)


def test_every_claim_stands_complete():
    claims = records.all_claims()
    rows = {row for c in claims.values() for row in c.rows}
    assert {"260", "264", "158", "079", "281", "003", "007", "009", "185", "301", "308", "327"} <= rows
    for name, claim in claims.items():
        assert name == claim.name and records.find_file(name).with_suffix(".py").exists()
        assert claim.negative_control.part in {p.name for p in claim.parts} and any(p.is_decisive for p in claim.parts)
        for part in claim.parts:
            assert len(part.experiment.seeds) >= 5 and set(part.rule.arms) <= {a.name for a in part.experiment.arms}
            if part.name == claim.negative_control.part:
                assert config.dump(claim.negative_control.change(part.experiment)) != config.dump(part.experiment)
            for arm in part.experiment.arms:
                assert all(config.load(config.dump(o), ("understudy", "claims")) == o for o in arm.options)


@pytest.mark.slow
def test_a_fingerprint_sees_code_and_not_comments(tmp_path, monkeypatch):
    claim = records.find_claim("diffusion-bc")
    before = records.fingerprint(claim)
    assert before == records.fingerprint(claim)
    original = records._module_file

    def changed(text, change):
        assert change(text) != text
        return change(text)

    def with_change(change):
        def file(module):
            path = original(module)
            if path is None or module != "understudy.heads.diffusion":
                return path
            copy = tmp_path / path.name
            copy.write_text(change(path.read_text()))
            return copy
        monkeypatch.setattr(records, "_module_file", file)
        return records.fingerprint(claim)

    def said_otherwise(text):
        for same in (lambda text: "# said otherwise\n" + text, lambda text: text.replace("\n\n", "\n\n\n\n"),
                     lambda text: text.replace("the action or a mixture of both", "the action or both"),  # a docstring
                     lambda text: text.replace('    n_train_steps: int = 100\n',
                                               '    n_train_steps: int = (\n        100)\n')):
            text = changed(text, same)
        return text
    assert with_change(said_otherwise) == before
    assert with_change(lambda text: text.replace("n_steps: int = 10", "n_steps: int = 11")) != before
    seen = []
    monkeypatch.setattr(records, "_module_file", lambda module: seen.append(module) or original(module))
    records.fingerprint(claim)
    assert {"understudy.heads.flow", "understudy.evaluate.rollout", "understudy.envs.toys.fork"} <= set(seen)
    assert "claims.evaluation.ema_oscillation" not in seen and "understudy.cli" not in seen
    assert "understudy.data.episode" in seen and "understudy.data.formats.detection" not in seen
    # What it names by a string is followed, and no other environment.
    assert "understudy.envs.toys.particle" not in seen


def test_recorded_data_is_looked_for_where_the_variable_says_and_nowhere_else(tmp_path, monkeypatch):
    (tmp_path / "shared" / "data").mkdir(parents=True)
    np.savez(tmp_path / "shared/data/shown.npz", observations=np.zeros((6, 1)), actions=np.zeros((6, 1)),
             episode_ends=[2, 4, 6])
    (tmp_path / "checkout").mkdir()
    monkeypatch.chdir(tmp_path / "checkout")
    for folder in (None, "", str(tmp_path)):
        monkeypatch.delenv("UNDERSTUDY_DATA", raising=False)
        if folder is not None:
            monkeypatch.setenv("UNDERSTUDY_DATA", folder)
        with pytest.raises(MissingRequirement, match="shown.npz: The recorded .*\n  -> set UNDERSTUDY_DATA"):
            RecordedDemonstrations("shown.npz", "").load(0)
    monkeypatch.setenv("UNDERSTUDY_DATA", str(tmp_path / "shared/data"))
    values = open_dataset(tmp_path / "shared/data/shown.npz").fingerprint()
    assert (
        len(RecordedDemonstrations("shown.npz", values).load(0)) == 3
        and len(RecordedDemonstrations("shown.npz", values, 2).load(0)) == 2
    )
    with pytest.raises(UserError, match=f"shown.npz: The data differ .*fingerprint {values}, not 0000"):
        RecordedDemonstrations("shown.npz", "0" * 16).load(0)


def test_a_commit_says_whether_the_code_is_that_of_the_commit(tmp_path, monkeypatch):
    def git(*args):
        return subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *args], cwd=tmp_path, check=True,
                              capture_output=True, text=True).stdout.strip()
    (tmp_path / "claims/family/records").mkdir(parents=True)
    for name in ("ledger.tsv", "family/one.py", "family/one.md"):
        (tmp_path / "claims" / name).write_text("1")
    monkeypatch.chdir(tmp_path)
    git("init", "-q")
    assert records.provenance()["commit"] is None  # nothing is committed yet
    git("add", ".")
    git("commit", "-qm", "one")
    head = git("rev-parse", "HEAD")
    assert records.provenance()["commit"] == head and len(head) == 40
    (tmp_path / "claims/family/records/one.json").write_text("{}")  # what a claim before this one wrote
    (tmp_path / "claims/family/one.md").write_text("another word")
    (tmp_path / "notes.md").write_text("elsewhere")
    assert records.provenance()["commit"] == head
    (tmp_path / "claims/family/one.py").write_text("2")
    assert records.provenance()["commit"] == f"{head} with uncommitted changes"


def test_an_unknown_claim_names_the_nearest():
    with pytest.raises(UserError, match="no claim 'difusion-bc'\n.*did you mean 'diffusion-bc'.* list shows all$"):
        records.find_claim("difusion-bc")
    with pytest.raises(UserError, match="no claim 'nothing'\n  -> understudy claims list shows all$"):
        records.find_claim("nothing")


@pytest.fixture
def other_claims(tmp_path, monkeypatch):
    """The folder `claims` of another checkout, as the working directory has it."""
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    for name in [n for n in sys.modules if n.partition(".")[0] == "claims"]:
        monkeypatch.delitem(sys.modules, name)
    folder = tmp_path / "claims"
    (folder / "family").mkdir(parents=True)
    shutil.copy(claims_folder() / "ledger.tsv", folder)
    monkeypatch.chdir(tmp_path)
    yield folder
    for name in [n for n in sys.modules if n.partition(".")[0] == "claims"]:
        sys.modules.pop(name)


TEXT = """+++
[odd-claim]
decision = "which head"
paper = "p"
statement = "s"
control = "c"
advice = "a"
against = "b"
+++

How.
"""


@pytest.mark.parametrize("text,place,problem", [
    ("CLAIN = 1", "", "the module does not define CLAIM"),
    ("CLAIM = 'a claim'", "", "CLAIM is of type str, not Claim"),
    ("import not_there", ", line 1", "cannot be imported: ModuleNotFoundError: No module named 'not_there'"),
    ("x = 1\n\nCLAIM = Claim()", ", line 3", "cannot be imported: NameError"),
    ("x = 1\nCLAIM = (", ", line 2", "cannot be imported: SyntaxError"),
    (f"from {__name__} import toy_claim\nCLAIM = toy_claim()", "", "'toy', and the head of their text has odd-claim"),
])
def test_a_module_that_is_no_claim_is_named(other_claims, monkeypatch, tmp_path, capsys, text, place, problem):
    file = other_claims / "family/odd_claim.py"
    file.write_text(text)
    file.with_suffix(".md").write_text(TEXT)
    for subcommand in ("list", "table"):
        page = ["--html", str(tmp_path / "x.html")] * (subcommand == "table")
        assert cli.main(["claims", subcommand, "--trust", "claims", *page]) == 2
        err = " ".join(capsys.readouterr().err.split())
        assert f"{file}{place}" in err and problem in err and "Traceback" not in err


def test_claims_run_beside_their_own_understudy_or_where_they_are_trusted(other_claims, monkeypatch, capsys):
    file = other_claims / "family/odd_claim.py"
    file.write_text("from pathlib import Path\nPath('ran').touch()\n")
    file.with_suffix(".md").write_text(TEXT)
    (other_claims.parent / "pyproject.toml").write_text('[project]\nname = "understudy"\n')
    assert cli.main(["claims", "list"]) == 2
    err = capsys.readouterr().err
    assert "not those of the understudy that is installed" in err and "--trust claims" in err
    assert not (other_claims.parent / "ran").exists()
    assert cli.main(["claims", "list", "--trust", "claims"]) == 2 and (other_claims.parent / "ran").exists()
    assert "does not define CLAIM" in capsys.readouterr().err
    file.unlink()
    file.with_suffix(".md").unlink()
    assert cli.main(["claims", "list", "--trust", "claims"]) == 0 and "no claim is like that" in capsys.readouterr().out


def test_claims_are_in_the_repository_and_not_in_the_package(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["claims", "list"]) == 2
    assert "claims are in the repository of understudy and not in the package" in " ".join(
        capsys.readouterr().err.split())


@dataclass(frozen=True)
class Nothing(DemonstrationSource):
    def load(self, seed):
        return Dataset([])


def counted(experiment, method, data, seed, episodes, starts):
    """Success by a rate that is the method's rate; the cells that ran are counted."""
    CALLS.append((method.policy.window.horizon, seed))
    if len(CALLS) == STOP[0]:
        raise KeyboardInterrupt
    rate = {1: 0.95, 2: 0.3}[method.policy.window.horizon]
    return {"success": (np.random.default_rng(seed).random(episodes) < rate).astype(float).tolist()}


def at_rates(experiment, method, data, seed, episodes, starts):
    """The same with rates of the test's, independent between the arms."""
    arm = method.policy.window.horizon
    CALLS.append((arm, seed))
    return {"success": (np.random.default_rng([seed, arm]).random(episodes) < RATES[arm - 1]).astype(float).tolist()}


RATES = [0.0, 0.0]
CALLS: list = []
STOP = [None]


def alike(experiment):
    return replace(experiment, arms=tuple(replace(a, options=experiment.arms[0].options) for a in experiment.arms))


def toy_claim(**options) -> Claim:
    """Arm a succeeds in 95 % of episodes, arm b in 30 %; under the control both are a."""
    arms = tuple(
        Arm(name, (Method(PolicyConfig(Regression(), window=Window(1, h))),)) for name, h in (("a", 1), ("b", 2))
    )
    experiment = Experiment(Nothing(), "none", arms, counted, **{"episodes": 200, **options})
    return Claim("toy", ("000",), (ClaimPart("p", experiment, GreaterThan("success", "a", "b")),),
                 NegativeControl(alike, "p"))


def test_a_run_goes_on_where_it_was_and_its_control_must_fail(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("understudy.claims.runner.record_path", lambda name: tmp_path / f"{name}.json")
    monkeypatch.setattr("understudy.claims.runner.figures_path", lambda name: tmp_path / f"{name} figures.json")
    monkeypatch.setattr("understudy.claims.runner.pilots_path", lambda name: tmp_path / f"{name} pilots.json")
    monkeypatch.setattr("understudy.claims.runner.fingerprint", lambda claim: "0" * 16)
    claim = toy_claim()
    monkeypatch.setattr("understudy.claims.runner.provenance", lambda: {
        "commit": f"after {len(CALLS)} cells", "date": "2026-11-21"})
    STOP[0] = 4
    CALLS.clear()
    with pytest.raises(KeyboardInterrupt):
        run_claim(claim)
    assert not (tmp_path / "toy.json").exists()
    STOP[0] = None
    record = run_claim(claim)
    assert len(CALLS) == 4 + 7 and len(set(CALLS)) == 10  # the one that was cut off, and none that was whole
    assert record["commit"] == "after 4 cells"  # the code as it was when this run began
    assert (
        record["verdict"] == "holds"
        and record["negative_control"]["verdict"] == "fails"
        and record["negative_control"]["passes"]
    )
    assert read_json(tmp_path / "toy figures.json").keys() == {"p", "negative control"}
    again = run_claim(claim)
    assert len(CALLS) == 11 and again["parts"] == record["parts"]
    blind = run_claim(replace(claim, negative_control=NegativeControl(lambda e: e, "p")))
    assert (blind["verdict"], blind["reason"]) == ("undecided", "control inconclusive")
    redesigned = run_claim(claim, revision="Other seeds.")
    assert [(entry["kind"], entry["change"], entry["verdict"]) for entry in redesigned["log"]] == [
        ("run", "First run.", "holds"), ("run", "Run again, with the same design.", "holds"),
        ("run", "Run again, with the same design.", "undecided"), ("redesign", "Other seeds.", "holds")]
    pilot = {"date": "2026-11-20", "kind": "pilot", "change": "", "verdict": "holds"}
    write_json(tmp_path / "toy pilots.json", [pilot])
    assert [entry["kind"] for entry in run_claim(claim)["log"]][4:] == ["pilot", "run"]
    assert [entry["kind"] for entry in run_claim(claim)["log"]][4:] == ["pilot", "run", "run"]
    CALLS.clear()


def at_pilot_rates(experiment, method, data, seed, episodes, starts):
    CALLS.append(seed)
    n = 5 if method.policy.window.horizon == 2 else {800: 8, 801: 9, 802: 7}[seed]
    return {"success": [1.0] * n + [0.0] * (10 - n)}


def test_a_pilot_tells_how_much_seeds_differ(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("understudy.claims.runner.pilots_path", lambda name: tmp_path / "pilots.json")
    monkeypatch.setattr("understudy.claims.runner.provenance", lambda: {"commit": "c0ffee", "date": "2026-11-21"})
    CALLS.clear()
    claim = toy_claim()
    part = replace(claim.parts[0], experiment=replace(claim.parts[0].experiment, measure=at_pilot_rates))
    # Differences of 0.3, 0.4 and 0.2 vary by 0.1, and the smallest effect is 0.05.
    sentence, = run_pilot(replace(claim, parts=(part,)))
    assert sentence == "p, success, a and b: the spread of seeds is 2 smallest effects."
    assert sorted(set(CALLS)) == [800, 801, 802]
    note, = read_json(tmp_path / "pilots.json")
    assert note["kind"] == "pilot" and "800 to 802" in note["change"] and sentence in note["change"]
    CALLS.clear()


@pytest.mark.parametrize("failure, exponent, excess", [
    (lambda n: 0.9 * n**-0.25, -0.25, "below"), (lambda n: 0.6 * np.exp(-n / 400), None, "above"),
    (lambda n: 0.9 - 0.1 * np.log(n), None, "above")], ids=["power", "exponential", "logarithmic"])
def test_a_power_law_is_told_from_others(monkeypatch, failure, exponent, excess):
    from claims.evaluation import data_scaling_laws as scaling

    monkeypatch.setattr(scaling, "maze_success", lambda experiment, method, *rest: [[1 - failure(float(method.arm))]])
    monkeypatch.setattr(scaling.MazeDemonstrations, "load", lambda source, seed: None)
    found = scaling.scaling_exponent(scaling.LAW, scaling.MAZES.options[0], None, 110, 1000, 100)
    assert found["r"][0] < -0.85  # which would tell them from nothing
    assert (found["excess"][0] < -0.01) == (excess == "below") and (found["excess"][0] > 0.01) == (excess == "above")
    if exponent is not None:
        assert found["exponent"][0] == pytest.approx(exponent)


def test_the_smallest_effects_are_one_table_of_positive_numbers():
    """5 % of the scale: of 0 to 1, of 0 to 100, of -1 to 1, and of D4RL's reference returns."""
    from understudy.claims.effects import SMALLEST_EFFECTS as effects

    assert all(v > 0 for v in effects.values())
    assert effects["rate"] == effects["score"] == 0.05 and effects["correlation"] == 0.05 * 2
    assert effects["return"] == 100 * effects["return fraction"] == 5
    assert effects["hopper return"] == pytest.approx(162.7, abs=0.1)
    assert effects["walker return"] == pytest.approx(229.5, abs=0.1)
    assert np.exp(effects["log ratio"]) == pytest.approx(1.1)


@pytest.mark.parametrize("low,high,verdict", [
    (0.01, 0.06, "holds"), (-0.01, 0.06, "undecided"), (0.0, 0.06, "undecided"),
    (-0.01, 0.04, "fails"), (0.01, 0.04, "fails"),  # real, but negligible
    (-0.2, -0.1, "fails"), (0.01, 0.05, "holds")])
def test_an_effect_below_the_smallest_is_none(low, high, verdict):
    """With a smallest effect of 0.05, on either side of any bound."""
    assert Condition("d", 0.0, low, high, "above", 0.0, 0.05).verdict == verdict
    assert Condition("d", 0.0, low + 0.25, high + 0.25, "above", 0.25, 0.05).verdict == verdict or low in (0.0, 0.01)
    assert Condition("d", 0.0, -high, -low, "below", 0.0, 0.05).verdict == verdict


def test_a_stated_bound_is_the_bound():
    """The smallest effect, 0.05 for a success rate, is for bounds of 0 only."""
    for rule, least in ((GreaterThan("success", "good", "bad"), 0.05),
                        (GreaterThan("success", "good", "bad", 0.3), 0.0),
                        (GreaterThan("success", "good", "twin", -0.1), 0.0),
                        (AboveBound("success", "bad", 0.3), 0.0)):
        condition, = rule.judge(FIGURES).conditions
        assert condition.smallest_effect == least
        assert str(condition).endswith(f"above {condition.bound:.3g}" + (" by at least 0.05" if least else ""))


def test_under_a_true_null_a_rule_can_fail():
    """Of 400 experiments without an effect, 20 seeds of 200 starts: most fail, and at most 2.5 % hold."""
    rng, rule, verdicts = np.random.default_rng(0), GreaterThan("success", "a", "b"), []
    for _ in range(400):
        figures = {arm: {"success": (rng.random((20, 200)) < 0.5).astype(float)} for arm in "ab"}
        verdicts.append(rule.judge(figures).verdict)
    assert verdicts.count("fails") > 300 and verdicts.count("holds") <= 0.025 * 400 + 2


def test_a_measure_without_a_smallest_effect_cannot_be_judged():
    with pytest.raises(UserError, match="'return' has no smallest effect.*\n.*hopper return"):
        GreaterThan("return", "a", "b").judge({a: {"return": [[1.0], [2.0]]} for a in "ab"})
    with pytest.raises(ValueError, match="not in the table"):
        Measure("real", "beauty")


def test_a_conjunction_names_the_rule_that_its_control_removes():
    claim = toy_claim()
    both = AllOf((GreaterThan("success", "a", "b"), AboveBound("success", "a", 0.5)))
    part = replace(claim.parts[0], rule=both)
    with pytest.raises(ValueError, match="names the rules of p"):
        replace(claim, parts=(part,))
    named = replace(claim, parts=(part,), negative_control=replace(claim.negative_control, removes=both.rules[:1]))
    rng = np.random.default_rng(0)
    good, bad = ((rng.random((5, 300)) < rate).astype(float).tolist() for rate in (0.95, 0.3))
    alike = {"p": {"a": {"success": good}, "b": {"success": bad}},
             "negative control": {"a": {"success": good}, "b": {"success": good}}}
    assert judge_figures(named, alike)["verdict"] == "holds"  # "above 0.5" still holds under the control, and may
    survives = {**alike, "negative control": alike["p"]}
    found = judge_figures(named, survives)
    assert (found["verdict"], found["reason"]) == ("undecided", "control inconclusive")
    other = replace(named, negative_control=replace(named.negative_control, removes=both.rules[1:]))
    assert judge_figures(other, alike)["reason"] == "control inconclusive"
    unable = judge_figures(replace(named, mechanism_only="The toy has one goal."), alike)
    assert (unable["verdict"], unable["reason"]) == ("undecided", "mechanism only")
    assert unable["parts"]["p"]["verdict"] == "holds"  # what the part shows stays visible


def test_the_stored_records_are_what_the_rules_say_of_the_stored_figures():
    for name, claim in records.all_claims().items():
        if records.record_path(name).exists():
            record = read_json(records.record_path(name))
            if records.is_redesigned(records.find_text(name).revision, record):
                with pytest.raises(UserError, match="has changed since its record"):
                    judge_again(claim, "2026-11-23", "A rule that was set after the figures.")
                continue
            found = judge_figures(claim, read_json(records.figures_path(name)))
            assert (record["verdict"], record["reason"]) == (found["verdict"], found["reason"]), name
            for part, stored in record["parts"].items():
                assert stored["verdict"] == found["parts"][part]["verdict"]
                for a, b in zip(stored["conditions"], found["parts"][part]["conditions"], strict=True):
                    assert (a["low"], a["high"]) == pytest.approx((b["low"], b["high"]), rel=1e-6, abs=1e-9)


def test_every_record_has_its_history():
    for name in records.all_claims():
        if records.record_path(name).exists():
            record = read_json(records.record_path(name))
            assert record["log"][-1]["verdict"] == record["verdict"]
            assert {e["kind"] for e in record["log"]} <= {"pilot", "run", "redesign", "judged again", "note"}
            assert all(e["change"] and e["date"] for e in record["log"])
            assert [e["date"] for e in record["log"]] == sorted(e["date"] for e in record["log"])


def test_judging_again_runs_nothing_and_logs_what_changed(tmp_path, monkeypatch):
    monkeypatch.setattr("understudy.claims.runner.record_path", lambda name: tmp_path / f"{name}.json")
    claim = records.find_claim("checkpoint-selection")
    old = {**read_json(records.record_path(claim.name)), "verdict": "fails", "reason": "",
           "log": [{"date": "2026-01-01", "kind": "run", "change": "First run.", "verdict": "fails", "reason": ""}]}
    write_json(tmp_path / f"{claim.name}.json", old)
    monkeypatch.setattr("understudy.claims.runner._run_cell", lambda *args: pytest.fail("nothing runs"))
    record = judge_again(claim, "2026-02-02", "New rules.")
    assert record == read_json(tmp_path / f"{claim.name}.json")
    assert record["verdict"] == "holds" and record["log"][0] == old["log"][0] and len(record["log"]) == 2
    assert record["log"][1] == {"date": "2026-02-02", "kind": "judged again", "change": "New rules.",
                                "verdict": "holds", "reason": ""}
    assert [record[k] for k in ("seconds", "date", "commit")] == [old[k] for k in ("seconds", "date", "commit")]
    assert len(judge_again(claim, "2026-03-03", "No change.")["log"]) == 2
    (part,) = record["parts"].values()
    part["conditions"][0]["bound"] -= 0.1  # another rule with the same verdict
    write_json(tmp_path / f"{claim.name}.json", record)
    assert [entry["change"] for entry in judge_again(claim, "2026-03-03", "Another bound.")["log"]][2:] == [
        "Another bound."]


@pytest.mark.parametrize("rates,used", [((0.95, 0.3), 5), ((0.5, 0.41), 10), ((0.5, 0.44), 20)])
def test_planned_looks_stop_at_the_first_that_decides(tmp_path, rates, used):
    """The bound of each look is stricter than 0.05; the last look ends the run in any case."""
    CALLS.clear()
    RATES[:] = rates
    claim = toy_claim(seeds=tuple(range(100, 120)), looks=((5, 0.01), (10, 0.015), (20, 0.025)), episodes=100)
    part = claim.parts[0]
    claim = replace(claim, parts=(replace(part, experiment=replace(part.experiment, measure=at_rates)),))
    figures, _ = run_figures(claim, Cells(tmp_path), lambda text: None)
    assert len(figures["p"]["a"]["success"]) == used
    assert {seed for arm, seed in CALLS if arm == 2} == set(range(100, 100 + used))  # the control has arm a alone
    experiment = claim.parts[0].experiment
    assert [experiment.level(n) for n in (5, 10, 20, 7)] == pytest.approx([0.99, 0.985, 0.975, 0.95])


def against_equals(experiment):
    """Arm b becomes one that is as good as arm a, with its own draws."""
    equal = Method(PolicyConfig(Regression(), window=Window(1, 3)))
    return replace(experiment, arms=(experiment.arms[0], replace(experiment.arms[1], options=(equal,))))


@pytest.mark.parametrize("rates,used,control", [((0.95, 0.3, 0.95), 5, 10), ((0.95, 0.3, 0.99), 5, 5),
                                                ((0.95, 0.3, 0.3), 5, 20), ((0.5, 0.6, 0.5), 5, None)])
def test_a_control_goes_on_to_later_looks_until_it_passes(tmp_path, monkeypatch, rates, used, control):
    """Equals are told from 5 points by 10 seeds, and a control that holds never passes. Where the rule
    does not hold, there is nothing to remove, and the control does not run."""
    monkeypatch.setattr(f"{__name__}.RATES", list(rates))
    claim = toy_claim(seeds=tuple(range(100, 120)), looks=((5, 0.01), (10, 0.015), (20, 0.025)), episodes=100)
    part = claim.parts[0]
    claim = replace(claim, parts=(replace(part, experiment=replace(part.experiment, measure=at_rates)),),
                    negative_control=replace(claim.negative_control, change=against_equals))
    figures, _ = run_figures(claim, Cells(tmp_path), lambda text: None)
    seeds = {name: len(arms["a"]["success"]) for name, arms in figures.items()}
    assert seeds == {"p": used, **({"negative control": control} if control else {})}
    judged = judge_figures(claim, figures)
    assert (judged["negative_control"]["verdict"] == "not run") == (control is None)


@pytest.mark.parametrize("looks,text", [(((5, 0.03), (20, 0.03)), "at most 0.05"), (((10, 0.01), (5, 0.01)), "growing"),
                                        (((5, 0.05),), "the last at all"), (((20, 0.0),), "positive")])
def test_looks_are_planned_within_alpha(looks, text):
    with pytest.raises(ValueError, match=text):
        toy_claim(seeds=tuple(range(100, 120)), looks=looks)


def test_a_baseline_that_does_not_work_is_no_baseline():
    rng = np.random.default_rng(0)
    good, bad = ((rng.random((5, 300)) < rate).astype(float).tolist() for rate in (0.95, 0.3))
    figures = {"p": {"a": {"success": good}, "b": {"success": bad}},
               "negative control": {"a": {"success": good}, "b": {"success": good}}}
    assert judge_figures(toy_claim(sanity=(("b", "success", 0.2),)), figures)["verdict"] == "holds"
    found = judge_figures(toy_claim(sanity=(("b", "success", 0.5),)), figures)
    assert (found["verdict"], found["reason"]) == ("undecided", "b does not reach 0.5 of success")


def test_new_seeds_are_new_in_demonstrations():
    new, same = ExpertDemonstrations("fork", 4), ExpertDemonstrations("fork", 4, resample=False)
    assert new.load(100).fingerprint() != new.load(101).fingerprint()
    assert same.load(100).fingerprint() == same.load(101).fingerprint()

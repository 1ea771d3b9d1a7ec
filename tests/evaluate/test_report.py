"""The report: it tells everything, and nothing in it comes from elsewhere."""

import re
from dataclasses import replace

import numpy as np
import pytest
from fixtures.reports import checked, recorded_curves, svg

from understudy.core import Feature, UserError
from understudy.data.episode import Dataset, Episode
from understudy.envs.toys.fork import Fork
from understudy.evaluate import plots
from understudy.evaluate.action_prediction import (
    ActionPrediction,
    EpisodePlanSamples,
    ErrorBreakdown,
    PlanSamples,
    PredictionError,
    UncertainStep,
)
from understudy.evaluate.behavior_metrics import measure_behavior
from understudy.evaluate.evaluation import compare, evaluate, evaluation_of
from understudy.evaluate.failures import failure_figures
from understudy.evaluate.report import (
    Commands,
    Paragraph,
    Section,
    StatTiles,
    Table,
    demonstrations_section,
    write_page,
    write_prediction_report,
    write_report,
)
from understudy.evaluate.stats import Interval

EVIL = '<script>alert("&")</script>'


def test_the_report_of_two_policies_tells_it_all(runs, tmp_path):
    steady, shaky = runs.values()
    lines = [{"step": s, "loss": 1 / s, "seconds": 1.0} for s in range(1, 20)]
    lines += [{"step": 10, "validation/energy": 0.5, "score": 0.7}, {"step": 20, "validation/energy": 0.4}]
    page = checked(
        write_report(
            tmp_path / "r.html",
            runs=runs,
            env=Fork(),
            training={"steady": recorded_curves(lines), "shaky": recorded_curves(lines[:19])},
            commands=[("understudy eval a b", "Again")],
        )
    )
    assert page.seen.count("svg") == 7  # two maps, bars, difference, loss, error, score
    for words in ("steady succeeds more often than shaky", "20 of 20 against", "this checkpoint", "understudy eval a b",
                  Fork().metadata["success"], "Losses of different heads", "Clopper–Pearson"):
        assert words in page.text, words
    p = compare(steady, shaky)
    assert f"{100 * p.low:+.1f} to {100 * p.high:+.1f}".replace("-", "−") in page.text


def test_failure_groups_open_and_two_policies_stand_in_columns(runs, tmp_path):
    """Every group can be opened to see its episodes; measures of two policies are two columns of one table."""
    env = Fork(50)
    measured = {}
    for name, evaluation in runs.items():
        b = measure_behavior(evaluation.episodes, env)
        measured[name] = replace(b, failure_figures=tuple(failure_figures(b.failures, evaluation.episodes, env)))
    commands = [("understudy eval a fork --html r.html", "The same again:")]
    text = write_report(tmp_path / "r.html", runs=runs, env=env, behavior=measured, commands=commands).read_text()
    groups = [g for b in measured.values() for g in b.failures]
    assert groups and text.count("<details>") == len(groups) == text.count('<div class="group">')
    n_pictures = sum(min(len(g), 6) for g in groups)
    assert len(re.findall(r"<h3>Episode \d+ fails</h3>", text)) == n_pictures
    assert text.count("succeeds from the most similar start") == len(groups)
    curves = plots.component_curves([np.array([0.5, 1.0])], "elbow", 1, 0.0, 1.0)
    assert "elbow" in set(svg(curves).itertext())
    assert text.count('<div class="columns">') == 2  # failures, and what is said beside the table
    table = re.search(r"<table>.*?</table>", text[text.index("Behavior metrics"):], re.DOTALL)[0]
    head = re.findall(r"<th(?: [^>]*)?>(.*?)</th>", table)
    assert head[0] == "mean of an episode" and head[1:3] == list(runs) and text.count("mean of an episode") == 1
    jerk = next(m for m in next(iter(measured.values())).metrics if m.key == "action_jerk").value
    assert f"{jerk.estimate:.3g} [{jerk.low:.3g}, {jerk.high:.3g}]" in table
    last = text[text.index("What to do next"):]
    assert "Record more demonstrations" in last and commands[0][0] in last


def test_the_report_of_one_policy_without_map_or_success(runs, tmp_path):
    def bare(e):
        return Episode({k: v for k, v in e.steps.items() if k != "next.success"},
                       {k: v for k, v in e.metadata.items() if k != "success"})
    e = evaluation_of(runs["shaky"].episodes.map(bare))
    page = checked(write_report(tmp_path / "r.html", runs={"alone": e}))
    assert "mean return" in page.text and "a mean return of" in page.text and "succe" not in page.text.lower()
    other = checked(write_report(tmp_path / "s.html", runs={"one": e, "two": e}))
    assert "sign-flip" in other.text and "sign-flip" not in page.text  # the methods on the page, and no others
    shaky = checked(write_report(tmp_path / "t.html", runs={"shaky": runs["shaky"]}))
    assert "Clopper–Pearson" in shaky.text and "Tango" not in shaky.text and "McNemar" not in shaky.text
    assert "Tango" in checked(write_report(tmp_path / "u.html", runs=runs)).text
    assert "Cannot tell whether one or two is better" in other.text


def test_text_from_strangers_stays_text(runs, tmp_path):
    e = runs["steady"].episodes[0]
    feature = Feature("float32", (2,), names=(EVIL, "y"), unit=EVIL)
    hostile_data = Dataset([replace(e.replace({EVIL: np.zeros(len(e), np.float32)}), schema={"action": feature})] * 2)
    page = checked(write_report(tmp_path / "r.html", runs={EVIL: runs["steady"]}, env=Fork(),
                                training={EVIL: recorded_curves([{"step": 1, "loss": 1.0}])}, commands=[(EVIL, EVIL)]))
    assert page.text.count(EVIL) >= 4
    page = checked(write_page(tmp_path / "d.html", "t", [demonstrations_section(hostile_data)]))
    assert page.text.count(EVIL) >= 2
    every = (Paragraph(EVIL), StatTiles(((EVIL, EVIL),)), Table((EVIL,), ((EVIL,),)), Commands(((EVIL, EVIL),)))
    page = checked(write_page(tmp_path / "p.html", EVIL, [Section(EVIL, every, EVIL)], verdict=(EVIL, EVIL, EVIL),
                              footer=EVIL))
    assert page.text.count(EVIL) == 15


def test_no_number_is_a_negative_zero(tmp_path):
    table = Table(("", "r"), (("a", -0.0), ("b", Interval(-0.0, -1e-9, 0.0))))
    page = checked(write_page(tmp_path / "p.html", "t", [Section("s", (table,))]))
    assert "−0" not in page.text.replace("−1e−09", "")


def test_a_column_without_any_text_is_left_out():
    table = Table(("", "kept", "dropped after"), (("a", 1.0, ""), ("b", "", "")))
    assert "dropped after" not in table.html() and "kept" in table.html() and table.html().count("<td") == 4
    assert "dropped after" in Table(table.header, ()).html()


def test_a_report_is_written_whole_or_not_at_all(runs, tmp_path):
    write_report(tmp_path / "r.html", runs=runs)
    before = (tmp_path / "r.html").read_text()
    with pytest.raises(UserError):
        write_report(tmp_path / "r.html", runs={"a": runs["steady"], "b": evaluate(Fork().expert(), Fork(4), 4, 1)})
    assert (tmp_path / "r.html").read_text() == before and len(list(tmp_path.iterdir())) == 1


def test_the_report_on_recorded_episodes_says_what_it_is_not(tmp_path):
    rng = np.random.default_rng(0)
    some = Interval(0.4, 0.3, 0.5)
    fans = EpisodePlanSamples(
        3,
        rng.normal(size=(20, 2)),
        (PlanSamples(0, rng.normal(size=(5, 4, 2))), PlanSamples(18, rng.normal(size=(5, 4, 2)))),
    )
    parts = (ErrorBreakdown("lift", 0.3, 0.2), ErrorBreakdown(EVIL, 0.4, 0.1))
    tenths = tuple(ErrorBreakdown(f"{10 * i}-{10 * i + 10}%", 0.1 * i, 0.05) for i in range(10))
    unknown = Interval(0.2, float("nan"), float("nan"))
    prediction = ActionPrediction(
        "door",
        "held out",
        (3,),
        20,
        20,
        5,
        some,
        some,
        unknown,
        0.9,
        0.7,
        0.75,
        parts,
        "rad",
        tuple(ErrorBreakdown(str(h), 0.1, 0.1) for h in range(4)),
        tenths,
        (UncertainStep(3, 18, 1.2),),
        (fans,),
        (error := PredictionError("all", 0.02, 0.3, 0.1, 0.9, False), replace(some, estimate=0.02)),
        (replace(error, name="lift"), replace(error, name=EVIL, r2=None, is_constant=True)),
    )
    page_ = checked(write_prediction_report(prediction, tmp_path / "r.html"))
    assert "This is not a success rate" in page_.text and "energy score is 0.4" in page_.text and "70%" in page_.text
    assert "off by 0.02 rad on average" in page_.text and "never changes" in page_.text
    assert page_.seen.count("svg") == 5 and EVIL in page_.text
    certain = replace(prediction, samples=1, coverage=None, expected_coverage=None, uncertain_steps=())
    assert "cannot say where it is unsure" in checked(write_prediction_report(certain, tmp_path / "c.html")).text


def test_large_numbers_of_a_table_are_written_out():
    table = Table(("", "return"), (("a", -1559.4), ("b", 12.345), ("c", float("nan")), ("d", 2.5e7)))
    assert {"−1,559", "12.3", "–", "2.5e+07"} <= set(re.findall(r">([^<>]+)</td>", table.html()))

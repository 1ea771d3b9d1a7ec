"""Which learners the columns and the metadata of the episodes suggest."""

import pytest

from understudy.core import Feature
from understudy.methods import method_names
from understudy.methods.needs import suggest_learners

PLAIN = {"observation.state": Feature("float32", (2,)), "action": Feature("float32", (2,))}
GOAL = {**PLAIN, "observation.goal": Feature("float32", (2,))}


@pytest.mark.parametrize(("features", "metadata", "returns", "expected"), [
    (PLAIN, [{}, {}], None, []),
    (PLAIN, [{"success": True}, {"success": True}], (1.0, 1.0), []),
    (PLAIN, [{}, {}], (0.0, 1.0), ["iql"]),
    (PLAIN, [{}, {}], (-10.5, -10.0), []),
    (PLAIN, [{}, {}], (-10.5, -9.0), ["iql"]),
    (PLAIN, [{"success": True}, {"success": False}, {}], None, ["bc"]),
    (PLAIN, [{"success": False}, {"success": False}], None, []),
    (PLAIN, [{"expert": True}, {"expert": False}], None, ["recoil"]),
    (PLAIN, [{"expert": False}, {"expert": False}], None, []),
    (GOAL, [{}], None, ["gcivl"]),
    ({"observation.state": PLAIN["observation.state"]}, [{}], None, ["bco"]),
    ({"observation.goal": GOAL["observation.goal"]}, [{"success": True, "expert": True}, {"success": 0, "expert": 0}],
     (0.0, 1.0), ["bco"]),  # the others read actions
    (GOAL, [{"success": True, "expert": True}, {"success": 0, "expert": 0}], (0.0, 1.0),
     ["iql", "bc", "recoil", "gcivl"])])
def test_the_learners_that_data_suggest(features, metadata, returns, expected):
    suggested = suggest_learners(features, metadata, returns)
    assert list(suggested) == expected and set(expected) <= set(method_names())
    assert all(name in sentence for name, sentence in suggested.items())


def test_the_sentences_have_the_numbers_of_the_data():
    metadata = [{"success": True, "expert": True}, {"success": False, "expert": False}, {"success": False}]
    suggested = suggest_learners(PLAIN, metadata, (0.25, 1.0))
    assert "0.25 to 1 in" in suggested["iql"] and suggested["bc"].startswith("2 of 3 episodes did not succeed")
    assert "needs the column next.terminated" in suggested["iql"]
    ended = suggest_learners({**PLAIN, "next.terminated": Feature("bool", ())}, metadata, (0.25, 1.0))
    assert ended["iql"].endswith("the better steps from the others.")
    assert suggested["recoil"].startswith("1 of 2 episodes are of an expert")
    assert ["needs the column next.terminated" in s["recoil"] for s in (suggested, ended)] == [True, False]

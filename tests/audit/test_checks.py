"""Single checks of data."""

from understudy.audit import find_problems
from understudy.data.episode import Dataset
from understudy.data.formats.key_map import Doubt
from understudy.data.operations import Merge
from understudy.envs import make
from understudy.evaluate.rollout import rollout


def demonstrations(episodes, name="fork"):
    env = make(name, episodes)
    return rollout(env.expert(), env, episodes, seed=1)


def test_a_doubt_of_a_reader_is_a_warning_in_whatever_words_and_after_a_merge():
    data = demonstrations(5)
    doubtful = Dataset(data.source, {"warnings": [Doubt("two clocks"), "rows are left out"]}, range(3))
    for each, place in ((doubtful, ""), (Merge().apply(doubtful, data[3:]), "data set: ")):
        told = {f.message: f.severity for f in find_problems(each) if f.code == "reader"}
        assert told == {f"{place}two clocks": "warning", f"{place}rows are left out": "note"}

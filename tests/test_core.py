"""Randomness that belongs to a row, nested state, recipes as JSON, files that are whole."""

import dataclasses
import inspect
import json
import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from understudy import config, core, files
from understudy.core import (
    Batch,
    ConfigError,
    Context,
    DataError,
    Feature,
    UserError,
    keys,
    normal,
    put,
    replaceable,
    replaced,
    role,
    take,
    uniform,
)
from understudy.data.augment import ConditionDropout
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Goal, Window
from understudy.nets.encoders import TokenEncoder
from understudy.nets.transformer import Transformer

# -- keys -----------------------------------------------------------------------------------------------------------


def test_keys_of_neighbouring_seeds_never_meet():
    seeds = [*range(40), -1, 2**31, 2**32, 2**63 - 1, 2**64 - 1]  # -1 and 2^64 - 1 are the same seed
    all_keys = torch.cat([keys(seed, range(5000)) for seed in seeds])
    assert all_keys.dtype == torch.int64 and (all_keys >= 0).all()
    assert len(all_keys.unique()) == (len(seeds) - 1) * 5000


def test_a_key_is_of_its_number_alone():
    assert torch.equal(keys(7, [3, 900, 4]), keys(7, range(1000))[[3, 900, 4]])
    assert not torch.equal(keys(7, range(5)), keys(8, range(5)))


@pytest.mark.parametrize("bit", range(0, 62, 7))
def test_each_bit_of_a_key_is_a_fair_coin(bit):
    ones = int(((keys(1, range(20_000)) >> bit) & 1).sum())
    assert stats.binomtest(ones, 20_000).pvalue > 1e-4


# -- uniform and normal ---------------------------------------------------------------------------------------------


def words(key: tuple[int, int], counter: tuple[int, int, int, int]) -> list[int]:
    """One block of Philox4x32-10 with the block number in counter[0], read back from `uniform`."""
    first = counter[0]
    k, c = key[0] | key[1] << 32, counter[1] | counter[2] << 32
    as_int64 = [torch.from_numpy(np.array([v], np.uint64).astype(np.int64)) for v in (k, c)]
    out = uniform(*as_int64, (4 * first + 4,), stream=counter[3])[0, 4 * first:]
    return (out * 2.0**32 - 0.5).round().long().tolist()


def test_philox_says_what_random123_publishes():
    # kat_vectors of Random123, "philox4x32 10": counter, key, result
    assert words((0, 0), (0, 0, 0, 0)) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def philox(counter, key):
    """A second writing of Salmon et al. 2011, in Python's integers, held to the other published vectors."""
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(b >> 32) ^ c[1] ^ k[0], b % 2**32, (a >> 32) ^ c[3] ^ k[1], a % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


def test_the_second_writing_of_philox_keeps_the_published_vectors():
    full = 2**32 - 1
    assert philox((full,) * 4, (full,) * 2) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    assert philox((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)) == [
        0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


word = st.integers(0, 2**32 - 1)


@settings(max_examples=60, deadline=None)
@given(key=st.tuples(word, word), count=st.tuples(word, word), block=st.integers(0, 3), stream=word)
def test_every_key_count_and_stream_is_philox(key, count, block, stream):
    counter = (block, *count, stream)
    assert words(key, counter) == philox(counter, key)


def test_uniform_is_uniform_and_normal_is_normal():
    key, count = keys(0, range(1000)), torch.zeros(1000, dtype=torch.int64)
    u = uniform(key, count, (10, 100))
    assert u.shape == (1000, 10, 100) and u.dtype == torch.float64 and u.min() > 0 and u.max() < 1
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 1e-3
    z = normal(key, count, (10, 100))
    assert z.dtype == torch.float32 and stats.kstest(z.flatten().double().numpy(), "norm").pvalue > 1e-3
    assert z.isfinite().all() and z.abs().max() > 4.4  # a million draws reach that far: P(not) < 1e-4


def test_other_keys_counts_and_streams_are_independent():
    n = 100_000
    key, count = keys(3, [5]), torch.tensor([2])
    base = normal(key, count, (n,))[0]
    others = {"key": normal(keys(3, [6]), count, (n,)), "neighbour": normal(key + 1, count, (n,)),
              "count": normal(key, count + 1, (n,)), "stream": normal(key, count, (n,), stream=1)}
    for name, other in others.items():
        r = float(torch.corrcoef(torch.stack([base, other[0]]))[0, 1])
        assert abs(r) < 4.5 / math.sqrt(n), (name, r)
    assert abs(float(torch.corrcoef(torch.stack([base[:-1], base[1:]]))[0, 1])) < 4.5 / math.sqrt(n)


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.integers(0, 30), min_size=1, max_size=8), n=st.integers(0, 9), stream=st.integers(0, 3))
def test_noise_belongs_to_the_row(rows, n, stream):
    key, count = keys(1, range(31)), torch.arange(31) * 3
    whole = normal(key, count, (n, 2), stream)
    assert torch.equal(normal(key[rows], count[rows], (n, 2), stream), whole[rows])
    # A longer draw begins with the shorter one: the shape does not choose the numbers.
    assert torch.equal(normal(key, count, (n + 3, 2), stream)[:, :n], whole)


# -- batches, contexts, state ---------------------------------------------------------------------------------------


def test_take_and_put_reach_every_leaf_and_change_nothing_in_place():
    state = {"a": torch.zeros(3), "b": {"c": torch.ones(3, 2), "n": torch.arange(3)}}
    rows = torch.tensor([2, 0])
    new = put(state, rows, {"a": torch.tensor([7.0, 8.0]), "b": {"c": torch.zeros(2, 2), "n": torch.tensor([5, 6])}})
    assert new["a"].tolist() == [8, 0, 7] and new["b"]["n"].tolist() == [6, 1, 5]
    assert new["b"]["c"].tolist() == [[0, 0], [1, 1], [0, 0]]
    assert state["a"].tolist() == [0, 0, 0] and state["b"]["n"].tolist() == [0, 1, 2]
    assert take(new, rows)["b"]["n"].tolist() == [5, 6]
    assert put(state, rows, {"a": torch.ones(2).double(), "b": take(state, rows)["b"]})["a"].dtype == torch.float32


def test_a_flat_context_has_zeros_for_absent_tokens():
    context = Context(torch.arange(1.0, 9).reshape(1, 4, 2), torch.tensor([[True, False, True, False]]))
    assert context.flat().tolist() == [[1, 2, 0, 0, 5, 6, 0, 0]]
    twice = Context(torch.tensor([[[1.0]], [[2.0]]]), torch.tensor([[True], [False]])).repeat(2)
    assert twice.tokens.flatten().tolist() == [1, 1, 2, 2] and twice.mask.flatten().tolist() == [1, 1, 0, 0]


def test_a_batch_moves_whole():
    batch = Batch({"o": torch.ones(2, 1)}, torch.ones(2, 3, 1), torch.ones(2, 3, dtype=torch.bool),
                  {"index": torch.arange(2)}, {"o": torch.zeros(2, 1)})
    moved = batch.to("meta")
    assert len(moved) == 2 and {t.device.type for t in (
        moved.obs["o"], moved.action, moved.mask, moved.extra["index"], moved.next["o"])} == {"meta"}
    assert batch.replace(next=None).to("meta").next is None


@pytest.mark.parametrize("column, kind, shape", [
    (np.zeros((5, 3), np.float32), "vector", (3,)), (np.zeros((5, 8, 9, 3), np.uint8), "image", (8, 9, 3)),
    (np.zeros((5, 16), np.uint8), "text", (16,)), (np.zeros(5, np.int64), "discrete", ()),
    (np.array(["a"] * 5), "string", ()), (np.zeros((5, 1), bool), "vector", (1,))])
def test_a_column_says_what_it_is(column, kind, shape):
    feature = Feature.from_array(column)
    assert (feature.kind, feature.shape) == (kind, shape)


def test_names_say_what_columns_are_for():
    roles = {n: role(n) for n in ("observation.state", "action", "action.arm", "actions", "next.reward", "task",
                                  "timestamp", "intervention")}
    assert list(roles.values()) == ["observation", "action", "action", "other", "outcome", "task", "index", "other"]


# -- config ---------------------------------------------------------------------------------------------------------


def test_what_is_dumped_loads_equal_through_json():
    for value in (
        Window(2, 8, goals=(Goal("observation.state", p_randomgoal=0.25), Goal("a", "b", discount=0.9))),
        TokenEncoder(32, 4),
        Transformer(64, attention="joint"),
        (ConditionDropout("x", 0.5), None, "é", True, 3, 0.1),
    ):
        again = config.load(json.loads(json.dumps(config.dump(value))))
        assert again == value and type(again) is type(value)


def test_functions_at_the_top_of_a_module_are_data_and_lambdas_are_not():
    assert config.load(config.dump(files.write_text)) is files.write_text
    for value in (lambda x: x, object(), np.float32(1), {1, 2}, math.inf, math.nan, torch.ones(1)):
        with pytest.raises(TypeError):
            config.dump(value)


@pytest.mark.parametrize("data, said", [
    ({"$": "subprocess:Popen", "args": "true"}, "trust"),
    ({"$": "understudy.config:json"}, "not a frozen dataclass"),
    ({"$": "understudy.files:os", "call": False}, "not a function"),
    ({"$": "understudy.files:UserError"}, "not a frozen dataclass"),
    ({"$": "understudy.files:contextmanager", "call": False}, "not a function"),
])
def test_only_what_is_trusted_and_harmless_is_loaded(data, said):
    with pytest.raises(config.UntrustedCode, match=said):
        config.load(data)


def test_a_trusted_package_is_loaded():
    with pytest.raises(config.UntrustedCode, match="--trust numpy"):
        config.load({"$": "numpy.linalg:x"})
    assert config.load({"$": "understudy.data.window:Window"}, trust=("understudy",)) == Window()


def test_a_misspelt_key_names_the_nearest_and_its_place():
    data = {"a": {"goals": [{"$": "understudy.data.window:Goal", "column": "x", "discont": 0.9}]}}
    with pytest.raises(UserError) as error:
        config.load(data)
    assert "discont" in str(error.value) and "did you mean 'discount'" in str(error.value)
    assert "a.goals[0]" in str(error.value)
    with pytest.raises(UserError, match="remove the key"):
        config.load({"$": "understudy.data.window:Window", "zzz": 1})


def test_a_missing_field_without_a_default_is_named():
    with pytest.raises(UserError, match=r"policy\.json: PolicyConfig needs a field 'head', but has target"):
        config.load({"$": "understudy.policy:PolicyConfig", "target": "action"}, where="policy.json")


def test_a_missing_module_is_named():
    with pytest.raises(UserError, match="understudy.nothing_here"):
        config.load({"$": "understudy.nothing_here:X"})


def test_every_default_has_one_home():
    assert {f.name for f in dataclasses.fields(Window)} == set(config.dump(Window())) - {"$"}


# -- files ----------------------------------------------------------------------------------------------------------


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), files.whole_folder(tmp_path / "a" / "run") as part:
        (part / "half").write_text("half")
        assert not (tmp_path / "a" / "run").exists()
        raise RuntimeError
    assert list((tmp_path / "a").iterdir()) == []
    with files.whole_folder(tmp_path / "a" / "run") as part:
        (part / "deep").mkdir()
        (part / "deep" / "file").write_text("whole")
    assert (tmp_path / "a" / "run" / "deep" / "file").read_text() == "whole"
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["run"]


def test_a_folder_never_replaces_anything(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(UserError, match="already a file or folder"), files.whole_folder(tmp_path / "run"):
        pass
    assert (tmp_path / "run").read_text() == "mine"


def test_what_another_process_has_written_in_the_meantime_stays(tmp_path):
    for whole in (files.whole_folder, files.whole_file):
        path = tmp_path / whole.__name__
        with pytest.raises(UserError, match="already a file or folder"), whole(path) as part:
            path.write_text("theirs")
            (part / "a" if part.is_dir() else part).write_text("mine")
        assert path.read_text() == "theirs"
    assert len(list(tmp_path.iterdir())) == 2


def test_what_a_killed_process_left_is_removed_by_the_next_and_what_a_living_one_writes_is_not(tmp_path):
    abandoned, of_another = tmp_path / ".run.abcd_123.part", tmp_path / ".run.b.abcd_123.part"
    for folder in (abandoned, of_another):
        (folder / "deep").mkdir(parents=True)
    with files.whole_folder(tmp_path / "run") as part:
        assert abandoned.exists() == (os.name != "posix") and of_another.exists()
        with files.whole_file(tmp_path / "run") as file:
            assert part.exists()
            file.touch()
        (tmp_path / "run").unlink()
    assert (tmp_path / "run").is_dir() and of_another.exists()


def test_text_is_replaced_in_one_move(tmp_path, monkeypatch):
    path = tmp_path / "new" / "note.json"
    files.write_json(path, {"ü": [1, 2.5, None]})
    assert files.read_json(path) == {"ü": [1, 2.5, None]} and "ü" in path.read_text(encoding="utf-8")
    if os.name == "posix":
        assert path.stat().st_mode & 0o777 == 0o644
    monkeypatch.setattr(files.os, "replace", lambda *a: (_ for _ in ()).throw(OSError("power gone")))
    with pytest.raises(OSError, match="power gone"):
        files.write_text(path, "other")
    assert files.read_json(path) == {"ü": [1, 2.5, None]}
    assert [p.name for p in path.parent.iterdir()] == ["note.json"]


def test_json_that_is_damaged_or_missing_is_named(tmp_path):
    with pytest.raises(UserError, match="nothing.json"):
        files.read_json(tmp_path / "nothing.json")
    (tmp_path / "bad.json").write_text('{"a": 1,\n "b": }')
    with pytest.raises(UserError, match="line 2"):
        files.read_json(tmp_path / "bad.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="bytes.json"):
        files.read_json(tmp_path / "bytes.json")


def test_a_fingerprint_is_of_words_and_not_of_where_they_lie():
    def data(dtype):
        return Dataset([Episode({"action": np.zeros(2), "task": np.array(["put it down", "öffne"], dtype)})])
    assert data(object).fingerprint() == data("U").fingerprint() == data("U40").fingerprint()
    other = Dataset([Episode({"action": np.zeros(2), "task": np.array(["put it down", "offne"], object)})])
    assert other.fingerprint() != data(object).fingerprint()


# -- functions that can be replaced -------------------------------------------------------------------------------


@replaceable
def half(x: float, *, above: float = 0.0) -> float:
    """Half of a number."""
    return x / 2 + above


def test_a_replacement_is_called_with_the_same_arguments_until_the_context_ends():
    def negative(x, *, above=0.0):
        return -inspect.unwrap(half)(x, above=above)
    assert half(4.0, above=1.0) == 3.0
    with replaced({half: negative}):
        assert half(4.0, above=1.0) == -3.0
        with replaced({half: lambda x: 7.0}):
            assert half(4.0) == 7.0
        assert half(4.0) == -2.0
    with pytest.raises(KeyError), replaced({half: lambda x: {}[x]}):
        half(4.0)
    assert half(4.0) == 2.0


def test_a_replaceable_function_is_documented_and_sent_as_itself():
    assert half.__doc__ == "Half of a number." and list(inspect.signature(half).parameters) == ["x", "above"]
    assert pickle.loads(pickle.dumps(half)) is half


def test_what_trains_and_rolls_out_is_replaced_wherever_it_was_imported():
    from evidence import measures
    from understudy import fit
    from understudy.audit.scores import keyframes, network_scores
    from understudy.evaluate import rollout
    from understudy.learn import fit_method

    names = {fit: (fit_method, "fit"), rollout: (measures, "rollout"),
             network_scores.fit_regression: (keyframes, "fit_regression")}
    with replaced({function: lambda *args: (args, "replaced") for function in names}):
        for function, (module, name) in names.items():
            assert function(1) == getattr(module, name)(1) == ((1,), "replaced")


def test_an_unknown_name_is_told_the_known_ones_or_the_nearest_of_many():
    few = core.unknown_name("column", "stat", ["state", "action"], "data")
    assert type(few) is ConfigError
    assert str(few) == "data: there is no column 'stat'; there are state, action\n  -> did you mean 'state'?"
    with_all_names = core.unknown_name("task", "x", ["state"], owner="Robot", hint="leave it out", error=DataError)
    assert type(with_all_names) is DataError
    assert str(with_all_names) == "Robot has no task 'x'; it has state\n  -> leave it out"
    assert core.unknown_name("task", "x", []).problem == "there is no task 'x'; there are none"
    many = [f"door-{i}" for i in range(30)]
    with_suggestions = core.unknown_name("task", "DOOR-7", many, hint="list them")
    assert with_suggestions.problem == "there is no task 'DOOR-7'"
    assert with_suggestions.hint.startswith("did you mean 'door-7' or ")
    assert with_suggestions.hint.count(" or ") == 2 and with_suggestions.hint.endswith("? list them")
    assert core.unknown_name("task", "zzz", many).hint == f"there are {', '.join(many[:20])} and 10 more"


def test_near_names_are_found_in_one_place():
    for path in Path(core.__file__).parent.rglob("*.py"):
        assert path.name == "hints.py" or "get_close_matches" not in path.read_text(), path

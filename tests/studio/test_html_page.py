"""The page of a data set holds what the data set holds, runs no code but its own, and asks for nothing elsewhere."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from understudy import UserError
from understudy.audit.base import AuditReport, Finding, Location
from understudy.cli import main
from understudy.data import video
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import npz, open_dataset
from understudy.studio import html_page

STATE = "observation.state"
EVIL = "</script><script>document.title='ran'</script><!--<img src=x onerror=alert(1)> \u2028 \\u003c"


def read(file):
    """(facts, episodes) as the page's script would see them."""
    text = file.read_text(encoding="utf-8")
    blocks = dict(re.findall(r'<script type="application/json" id="([^"]+)">(.*?)</script>', text, re.DOTALL))
    facts = json.loads(blocks.pop("facts"))
    if facts["pieces"]["folder"] is not None:
        assert not blocks
        for i in range(len(facts["pieces"]["first"])):
            piece = (file.parent / facts["pieces"]["folder"] / f"{i}.js").read_text(encoding="utf-8")
            number, blocks[f"piece-{i}"] = re.fullmatch(r"understudyPiece\((\d+),(.*)\);\n", piece, re.DOTALL).groups()
            assert int(number) == i
    episodes = []
    for i, first in enumerate(facts["pieces"]["first"]):
        assert first == len(episodes)
        episodes += json.loads(blocks[f"piece-{i}"])
    return facts, episodes


def values(column):
    numbers = np.frombuffer(base64.b64decode(column["data"]), f"<{column['type']}")
    return numbers.reshape(column["rows"], -1)


def numbers(text, kind):
    return np.frombuffer(base64.b64decode(text), kind)


def some(n=6, rows=9):
    """Columns of many types, the first rows of which are told apart by episode."""
    def one(e):
        t = rows + e
        state = np.arange(2 * (t + 1), dtype=np.float32).reshape(-1, 2) + 100 * e
        state[1, 0] = np.nan
        return Episode({STATE: state, "action": np.linspace(0, 1 / 3, t)[:, None] + e,
                        "next.success": np.arange(t) == t - 1,
                        "count": np.arange(t) + 100_000_001, "task": np.array(["put", "away"] * t)[:t]},
                       {"success": e % 2 == 0, "who": f"person {e}"}, t)
    return Dataset([one(e) for e in range(n)], {"fps": 10.0, "path": "some", "format": "memory"})


@pytest.mark.parametrize("folder", [False, True])
def test_it_holds_every_value(tmp_path, folder, monkeypatch):
    if folder:
        monkeypatch.setattr(html_page, "MAX_INLINE_BYTES", 0)
        monkeypatch.setattr(html_page, "_PIECE_BYTES", 1500)
    data = some()
    report = AuditReport((Finding("odd", "warning", "what", "do", Location("f", 2, 3, "action")),),
                         {"fine": np.r_[np.nan, 1:6]})
    facts, episodes = read(html_page.write_dataset_page(tmp_path / "look.html", data, report, title="Some"))
    assert facts["pieces"]["folder"] == ("look-data" if folder else None)
    assert (len(facts["pieces"]["first"]) > 1) == folder and len(episodes) == len(data)
    for e, (on_page, recorded) in enumerate(zip(episodes, data, strict=True)):
        for name in (STATE, "action", "next.success", "count"):
            expected = np.asarray(recorded.steps[name]).reshape(len(recorded.steps[name]), -1)
            np.testing.assert_array_equal(values(on_page["columns"][name]), expected, strict=False)
        assert on_page["text"]["task"][:3] == [[0, "put"], [1, "away"], [2, "put"]]
        assert on_page["meta"]["who"] == f"person {e}" and not on_page["unread"]
    assert facts["lengths"] == [len(e) for e in data] and facts["success"] == [True, False] * 3
    assert facts["tasks"] == ["put"] and facts["task"] == [0] * 6 and facts["title"] == "Some"
    assert facts["scores"] == {"fine": [None, 1, 2, 3, 4, 5]}
    assert facts["findings"] == [{"code": "odd", "severity": "warning", "message": "what", "remedy": "do", "file": "f",
                                  "episode": 2, "step": 3, "feature": "action"}]


def test_the_tasks_are_those_of_the_metadata_where_there_is_no_column(tmp_path):
    steps = {STATE: np.zeros((3, 2), np.float32), "action": np.zeros((3, 1), np.float32)}
    data = Dataset([Episode(steps, {"task": task} if task else {}) for task in ("put", "", "away", "put")])
    facts, _ = read(html_page.write_dataset_page(tmp_path / "look.html", data, AuditReport(()), title="Words"))
    assert facts["tasks"] == ["put", "away"] and facts["task"] == [0, -1, 1, 0]


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(st.sampled_from(["?", "u1", "i1", "i4", "f2", "f4", "f8", ">f4"]), st.tuples(
    st.integers(0, 4), st.integers(1, 3))))
def test_numbers_are_packed_as_they_are(array):
    np.testing.assert_array_equal(values(html_page._encode_values(array)) if array.size else array, array)


def test_statistics_are_those_of_all_rows(tmp_path):
    data = some()
    facts, _ = read(html_page.write_dataset_page(tmp_path / "look.html", data))
    rows = {(s["column"], s["label"]): s for s in facts["statistics"]}
    for name, i, label in ((STATE, 0, "0"), (STATE, 1, "1"), ("action", 0, "0"), ("count", 0, "")):
        v = np.concatenate([np.asarray(e.steps[name], float).reshape(len(e.steps[name]), -1)[:, i] for e in data])
        s, there = rows[name, label], v[np.isfinite(v)]
        assert s["odd"] == len(v) - len(there) and (s["min"], s["max"]) == (there.min(), there.max())
        assert s["mean"] == pytest.approx(there.mean(), rel=1e-12) and s["std"] == pytest.approx(there.std(), rel=1e-6)
        assert sum(s["counts"]) > 0


def test_large_numbers_that_hardly_change_have_a_histogram(tmp_path):
    """As of a clock in nanoseconds, whose steps are less than float64 can divide into bins."""
    data = Dataset([Episode({"observation.state": np.stack([1.7e18 + 256 * np.arange(8), np.full(8, 2e18)], 1),
                             "action": np.zeros((8, 1))})], {"fps": 10})
    rows = read(html_page.write_dataset_page(tmp_path / "look.html", data))[0]["statistics"]
    assert [sum(r["counts"]) for r in rows] == [8, 8, 8] and sum(c > 0 for c in rows[0]["counts"]) == 8


def test_principal_components_in_closed_form():
    """Two components that rise together and one that is constant: one direction has all the variance, and
    half of what is standardised comes from each."""
    t = np.linspace(-1, 1, 11)
    mean, axes, share = html_page.principal_components(np.stack([5 + t, 1e6 + 1000 * t, np.full(11, 3.0)], 1))
    np.testing.assert_allclose(share, [1, 0], atol=1e-12)
    np.testing.assert_allclose(mean, [5, 1e6, 3])
    np.testing.assert_allclose(axes[:, 0], [1 / t.std() / 2**0.5, 1 / (1000 * t.std()) / 2**0.5, 0], rtol=1e-9)
    for still in (np.zeros((0, 3)), np.ones((4, 1))):
        _, axes, share = html_page.principal_components(still)
        assert axes.shape == (still.shape[1], 2) and not axes.any() and not share.any()


def test_the_points_of_a_map_are_the_rows_they_say(tmp_path, monkeypatch):
    monkeypatch.setattr(html_page, "_MAX_MAP_POINTS", 30)  # of 69 steps: every third, across the ends of episodes
    data = some()
    facts, _ = read(html_page.write_dataset_page(tmp_path / "look.html", data))
    m = next(m for m in facts["maps"] if m["title"] == "States")
    at = np.stack([numbers(m[k], "<i4") for k in ("episode", "step")], 1)
    ends = np.cumsum([0] + facts["lengths"])
    expected_rows = [(e, g - ends[e]) for g in range(0, ends[-1], 3) for e in [np.searchsorted(ends, g, "right") - 1]
                     if g - ends[e] != 1]  # step 1 is NaN
    assert at.tolist() == [list(w) for w in expected_rows] and m["count"] == len(expected_rows)
    rows = np.array([data[e].steps[STATE][s] for e, s in at])
    drawn = (rows - m["mean"]) @ np.array(m["axes"]).T
    np.testing.assert_allclose(np.stack([numbers(m[k], "<f4") for k in "xy"], 1), drawn, atol=1e-5)
    assert "Maps and histograms are of one step in 3." in facts["notes"]


def test_sparklines_lie_between_the_ends_of_all(tmp_path):
    facts, _ = read(html_page.write_dataset_page(tmp_path / "look.html", some()))
    lines = numbers(facts["spark"]["data"], "u1").reshape(6, 1, 32)
    assert lines[0, 0, 0] == 0 and lines[-1, 0, -1] == 254 and (np.diff(lines.astype(int)) >= 0).all()
    assert lines[1, 0, 0] == round(254 / (5 + 1 / 3))


def test_it_runs_no_code_but_its_own_and_asks_for_nothing(tmp_path, monkeypatch):
    evil = Dataset([Episode({STATE: np.zeros((3, 1)), EVIL: np.ones((3, 1)), "task": np.array([EVIL] * 3)},
                            {EVIL: EVIL}, 3)], {"format": EVIL, "path": EVIL})
    report = AuditReport((Finding(EVIL, "error", EVIL, EVIL, Location(EVIL, 0, 1, EVIL)),), {EVIL: np.ones(1)})
    for name, inline in (("one", 1e9), ("many", 0)):
        monkeypatch.setattr(html_page, "MAX_INLINE_BYTES", inline)
        file = html_page.write_dataset_page(tmp_path / f"{name}.html", evil, report, title=EVIL)
        text = file.read_text(encoding="utf-8")
        scripts = re.findall(r"<script([^>]*)>(.*?)</script>", text, re.DOTALL)
        assert len(scripts) == text.lower().count("<script") == text.lower().count("</script") == (3 if inline else 2)
        assert [a for a, _ in scripts if "json" not in a] == [""]
        digest = base64.b64encode(hashlib.sha256(scripts[-1][1].encode()).digest()).decode()
        policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
        assert "default-src 'none'" in policy and f"'sha256-{digest}'" in policy and "https" not in policy
        assert set(re.findall(r"\w+://[^\s\"'<]*", text)) <= {"http://www.w3.org/2000/svg"}  # a name, not an address
        assert not re.search(r"<(?:link|img|iframe|object)\b|@import|url\(", text.replace(r"\u003c", ""))
        facts, (episode,) = read(file)
        assert facts["title"] == facts["tasks"][0] == facts["findings"][0]["message"] == EVIL
        assert episode["meta"] == {EVIL: EVIL} and EVIL in episode["columns"]


def test_frames_are_those_of_their_rows(shared, tmp_path):
    source = open_dataset(shared / "fixtures/lerobot/v3.0/video_h264")
    camera = next(n for n, f in source.features().items() if f.kind == "image")
    report = AuditReport((Finding("here", "note", "", "", Location(None, 2, 7, None)),))
    _, episodes = read(html_page.write_dataset_page(tmp_path / "look.html", source, report))
    for on_page, recorded in zip(episodes, source, strict=True):
        sheet, frames = on_page["frames"][camera], np.asarray(recorded.steps[camera])
        assert sheet["rows"] == list(range(len(frames))) and sheet["of"] == len(frames)
        image = video.decode_image(base64.b64decode(sheet["src"].split(",")[1]), 3, "sheet")
        for i, row in enumerate(sheet["rows"]):
            y, x = i // sheet["across"] * sheet["high"], i % sheet["across"] * sheet["wide"]
            off = image[y:y + sheet["high"], x:x + sheet["wide"]].astype(int) - frames[row]
            assert np.abs(off).mean() < 6  # frames next to each other differ by 20 and more


def test_few_frames_of_many_episodes_are_those_that_findings_name(tmp_path, monkeypatch):
    monkeypatch.setattr(html_page, "_MAX_THUMBNAILS", 24)
    camera = "observation.images.front"
    data = Dataset([Episode({camera: np.full((30, 8, 12, 1), 9 * e, np.uint8), "action": np.ones((30, 1))}, {}, 30)
                    for e in range(20)])
    report = AuditReport((Finding("here", "error", "", "", Location(None, 13, 17, None)),))
    facts, episodes = read(html_page.write_dataset_page(tmp_path / "look.html", data, report))
    with_frames = [e for e, on_page in enumerate(episodes) if on_page["frames"]]
    assert 13 in with_frames and len(with_frames) <= 4 and 17 in episodes[13]["frames"][camera]["rows"]
    assert any(f"{len(with_frames)} of 20 episodes" in n for n in facts["notes"])


def test_long_and_wide_columns_are_cut_and_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(html_page, "_MAX_VALUES", 500)
    data = Dataset([Episode({STATE: np.arange(40 * 50.).reshape(40, 50), "action": np.arange(40.)[:, None]}, {}, 40)])
    facts, (episode,) = read(html_page.write_dataset_page(tmp_path / "look.html", data))
    every = facts["columns"][0]["every"]
    assert every == 3  # 41 rows at most of 33 numbers
    np.testing.assert_array_equal(values(episode["columns"][STATE]), data[0].steps[STATE][::3, :32])
    assert any("the first 32 of 50" in n for n in facts["notes"]) and any("one row in 3" in n for n in facts["notes"])


def test_an_episode_that_cannot_be_read_is_told_in_its_place(tmp_path):
    class Damaged(dict):
        def __getitem__(self, name):
            if name == "action":
                raise UserError("expected a whole file, found half of one")
            return super().__getitem__(name)
    good = some(3)
    bad = Episode(Damaged(good[1].steps), {}, len(good[1]), good[1].features())
    facts, episodes = read(html_page.write_dataset_page(tmp_path / "look.html", Dataset([good[0], bad, good[2]])))
    assert episodes[1]["unread"] == {"action": "expected a whole file, found half of one"}
    assert STATE in episodes[1]["columns"] and not episodes[2]["unread"]
    assert any(n.endswith("episodes: 1.") for n in facts["notes"])


def test_no_episode_is_a_page_too(tmp_path):
    facts, episodes = read(html_page.write_dataset_page(tmp_path / "look.html", Dataset([], {"path": "none"})))
    assert facts["lengths"] == episodes == []


def test_the_command_writes_it_and_overwrites_nothing(tmp_path, capsys, demos):
    source, file = tmp_path / "demos.npz", tmp_path / "look.html"
    npz.write(demos[:5], source)
    assert main(["inspect", str(source), "--json"]) == 0
    without = capsys.readouterr().out
    assert main(["inspect", str(source), "--json", "--html", str(file)]) == 0
    assert capsys.readouterr().out == without
    facts, episodes = read(file)
    assert facts["title"] == str(source) and len(episodes) == 5
    assert {f["message"] for f in facts["findings"]} == set(json.loads(without)["warnings"])
    before = file.read_bytes()
    assert main(["inspect", str(source), "--html", str(file)]) == 2
    assert "choose another name" in capsys.readouterr().err and file.read_bytes() == before


def test_rerun_shows_the_rows_end_to_end(tmp_path, shared):
    reader = pytest.importorskip("rerun.chunk", reason="extra rerun not installed")
    from understudy.studio import rrd

    data = some(3)
    file = rrd.write_rrd(tmp_path / "a.rrd", data)
    rows, scalars = [], []
    for chunk in reader.RrdReader(str(file)).stream():
        if chunk.entity_path == "/observation/state" and not chunk.is_static:
            table = chunk.to_record_batch()
            rows += table["row"].to_pylist()
            scalars += table["Scalars:scalars"].to_pylist()
    lengths = [len(e.steps[STATE]) for e in data]
    assert rows == list(range(sum(lengths)))  # here every episode has what was seen last, so that no row is free
    np.testing.assert_array_equal(scalars, np.concatenate([e.steps[STATE] for e in data]))
    with pytest.raises(UserError, match="there is already a file or folder"):
        rrd.write_rrd(file, data)


def test_rerun_has_the_frames(tmp_path, shared):
    reader = pytest.importorskip("rerun.chunk", reason="extra rerun not installed")
    from understudy.studio import rrd

    data = open_dataset(shared / "fixtures/lerobot/v3.0/video_h264")
    camera = next(n for n, f in data.features().items() if f.kind == "image")
    file, decoded = rrd.write_rrd(tmp_path / "a.rrd", data), {}
    for chunk in reader.RrdReader(str(file)).stream():
        if chunk.entity_path == "/" + camera.replace(".", "/"):
            table = chunk.to_record_batch()
            for row, (blob,) in zip(table["row"].to_pylist(), table["EncodedImage:blob"].to_pylist(), strict=True):
                decoded[row] = video.decode_image(bytes(blob), 3, "frame")
    first = 0
    for episode in data:
        for i, frame in enumerate(np.asarray(episode.steps[camera])):
            assert np.abs(decoded.pop(first + i).astype(int) - frame).mean() < 6
        first += len(episode) + 1
    assert not decoded


def test_without_the_extra_rerun_is_named(tmp_path, monkeypatch):
    from understudy.studio import rrd

    monkeypatch.setitem(__import__("sys").modules, "rerun", None)
    with pytest.raises(UserError, match="rerun-sdk") as error:
        rrd.write_rrd(tmp_path / "a.rrd", some(1))
    assert error.value.hint == "pip install 'understudy[rerun]'" and not list(tmp_path.iterdir())


@pytest.fixture
def dom(tmp_path):
    """dom(page, address): the main part of the page as a browser draws it."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no browser")

    def drawn(file, address):
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
                 "--virtual-time-budget=4000", "--dump-dom"]
        done = subprocess.run([browser, *flags, f"{file.as_uri()}#{address}"], capture_output=True, text=True,
                              timeout=120, check=True)
        return done.stdout.split('<main id="main">')[1].split("</main>")[0]
    return drawn


@pytest.mark.slow
def test_scores_are_ranked_and_constant_columns_take_one_line(tmp_path, dom):
    """Numbers of scores mean little by themselves; a column that does not move needs no plot."""
    data = Dataset([e.replace({"observation.goal": np.full((len(e) + 1, 2), 0.25, np.float32)}) for e in some(40)],
                   {"fps": 10.0})
    scores = {f"score{i}": np.arange(40.0) if i == 3 else np.roll(np.arange(40.0), 17) for i in range(12)}
    report = AuditReport((), {**scores, "same": np.ones(40)})
    file = html_page.write_dataset_page(tmp_path / "look.html", data, report, title="Some")
    page = dom(file, "episode=39&step=0")
    assert "13 scores" in page and "unusual: score3 highest<" in page and page.count("<details") == 1
    assert "<td class=\"n soft\">highest of 40</td>" in page and page.count("18th highest of 40") == 11
    assert page.count("equal in all 40") == 1
    assert "Constant in this episode" in page and "observation.goal: <b>0 0.25, 1 0.25</b>" in page
    assert page.count("<canvas") == 4, "the goal has no plot"
    assert "unusual: score3 2nd lowest<" in dom(file, "episode=1&step=0")
    assert "none unusual" in dom(file, "episode=5&step=0")


@pytest.mark.slow
@pytest.mark.parametrize("inline", [1e9, 0])
def test_a_browser_draws_it(tmp_path, inline, monkeypatch, dom):
    """The address opens the episode and the step; pieces come from the folder; nothing of strangers runs."""
    monkeypatch.setattr(html_page, "MAX_INLINE_BYTES", inline)
    monkeypatch.setattr(html_page, "_PIECE_BYTES", 1500)
    data = some()
    data = Dataset([e.replace({"task": np.array([EVIL] * len(e))}) for e in data], data.metadata)
    report = AuditReport((Finding("odd", "warning", EVIL, "do", Location(None, 4, 7, "action")),))
    file = html_page.write_dataset_page(tmp_path / "look.html", data, report, title="Some")

    page = dom(file, "episode=4&step=7")
    assert "<h2>Episode 4</h2>" in page and "step 7 of 13" in page and page.count("<canvas") == 4
    assert (
        "<b>421</b>" not in page and f"<b>{values(html_page._encode_values(data[4].steps[STATE]))[7, 0]:g}</b>" in page
    )
    assert "&lt;/script&gt;&lt;script&gt;" in page and "<img" not in page
    assert 'href="#episode=4&amp;step=7"' in dom(file, "findings")
    assert "States" in dom(file, "map") and "Statistics" in dom(file, "statistics")

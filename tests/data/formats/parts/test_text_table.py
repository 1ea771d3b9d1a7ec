"""Tables of text without a line of names, and with other separators than commas."""

from __future__ import annotations

import numpy as np
import pytest

from understudy.audit import audit
from understudy.cli import main
from understudy.core import UserError
from understudy.data.formats import open_dataset
from understudy.data.opening.column_selection import open_columns, parse_columns

STATE, ACTION = "observation.state", "action"
T = np.arange(40) * 0.1 + 0.037
ROWS = np.round(np.column_stack([T, np.sin(T), np.cos(T), 0.5 * np.cos(T), -0.3 * np.sin(T)]), 5)
NUMBERED = parse_columns(["timestamp=0", "state=1,2", "action=3,4"])
NAMED = parse_columns(["state=q1,q2", "action=u1,u2"])


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))


def text_of(rows, separator=","):
    return "".join(separator.join(map(str, row)) + "\n" for row in rows.tolist())


def is_closed(data, rows=ROWS, episodes=1):
    assert len(data) == episodes and data.steps == len(rows) and data.fps == 10
    for name, columns in ((STATE, slice(1, 3)), (ACTION, slice(3, 5))):
        np.testing.assert_array_equal(np.concatenate([e.steps[name] for e in data]), rows[:, columns])


@pytest.mark.parametrize("separator", [",", ";", "\t", "|", " ", "   ", ", ", " ; "])
@pytest.mark.parametrize("names", ["", "timestamp q1 q2 u1 u2", "# timestamp q1 q2 u1 u2"])
def test_separators_and_the_line_of_names_are_recognized(tmp_path, separator, names):
    path = tmp_path / "a.csv"
    path.write_text(names.replace("# ", "#").replace(" ", separator) + "\n" * bool(names) + text_of(ROWS, separator))
    is_closed(open_columns(path, NAMED if names else NUMBERED))
    assert main(["inspect", str(path), "--columns", "state=1" if not names else "state=q1"]) == 0


def test_what_numpy_and_pandas_write_is_read(tmp_path):
    np.savetxt(tmp_path / "plain.csv", ROWS, fmt="%.5f")
    is_closed(open_columns(tmp_path / "plain.csv", NUMBERED))
    np.savetxt(tmp_path / "names.csv", ROWS, fmt="%.5f", header="timestamp q1 q2 u1 u2")
    is_closed(open_columns(tmp_path / "names.csv", NAMED))
    (tmp_path / "pandas.csv").write_text("0,1,2,3,4\n" + text_of(ROWS))  # DataFrame(ROWS).to_csv(..., index=False)
    data = open_columns(tmp_path / "pandas.csv", NUMBERED)
    is_closed(data)
    assert data.metadata["warnings"] == [
        "line 1 is 0, 1, ..., which are read as names of columns, as pandas writes them"]


def test_no_row_is_lost_whatever_is_in_the_first(tmp_path):
    path = tmp_path / "a.csv"
    for first in ([0, 0.1, 0.1, 0.3, 0.4], [0.0, 1, 1, 0, 0], [0.0, -1e-3, 1e5, 0, 1]):
        rows = np.vstack([first, ROWS])
        path.write_text(text_of(rows))
        data = open_columns(path, NUMBERED)
        assert data.steps == 41 and any("line 1 has values and no names" in w for w in data.metadata["warnings"])
        np.testing.assert_array_equal(data[0].steps[STATE], rows[:, 1:3])
    path.write_text("".join(f"{t:.3f},pick,{i % 2 == 0},{i / 7}\n" for i, t in enumerate(T)))
    data = open_columns(path, parse_columns(["timestamp=0", "task=1", "state=2", "action=3"]))
    assert data.steps == 40 and set(data[0].steps["task"]) == {"pick"}
    np.testing.assert_allclose(data[0].steps[ACTION].reshape(-1), np.arange(40) / 7)
    path.write_text("1.5,2.5\n")
    assert open_columns(path, parse_columns(["state=0", "action=1"])).steps == 1


def test_words_and_names_that_are_numbers_are_a_line_of_names(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("action,0.5,0.9\n" + text_of(ROWS[:, :3]))  # columns of quantiles, perhaps
    data = open_columns(path, parse_columns(["state=0.5,0.9"]))
    np.testing.assert_array_equal(data[0].steps[STATE], ROWS[:, 1:3])
    path.write_text("task\npick up\nput down\n")
    assert list(open_dataset_of(path)) == ["task"]
    path.write_text('note,state,action\n"left; then right",0.5,1\n"a, b; c",0.25,2\n')
    np.testing.assert_array_equal(open_dataset(path)[0].steps[STATE].reshape(-1), [0.5, 0.25])


def open_dataset_of(path):
    return open_columns(path, parse_columns(["task=task"])).features()


def test_a_folder_and_tables_of_tabs(tmp_path):
    (tmp_path / "csv").mkdir()
    (tmp_path / "tsv").mkdir()
    for k in range(3):
        (tmp_path / f"csv/traj_{k}.csv").write_text(text_of(ROWS[k:]))
        (tmp_path / f"tsv/traj_{k}.tsv").write_text("timestamp\tstate_0\tstate_1\taction_0\taction_1\n"
                                                    + text_of(ROWS[k:], "\t"))
    every = np.vstack([ROWS[k:] for k in range(3)])
    is_closed(open_columns(tmp_path / "csv", NUMBERED), every, 3)
    is_closed(open_dataset(tmp_path / "tsv"), every, 3)
    is_closed(open_dataset(tmp_path / "tsv/traj_0.tsv"))
    assert not [f for f in audit(tmp_path / "tsv").findings if f.severity == "error"]
    with pytest.raises(UserError, match="there are 0, 1, 2, 3, 4: line 1 has values(.|\n)*--columns state=A,B"):
        open_columns(tmp_path / "csv")


def test_decimal_commas_are_refused(tmp_path):
    path = tmp_path / "a.csv"
    for names in ("", "timestamp;q1;q2;u1;u2\n"):
        for separator in (";", "\t"):
            path.write_text((names + text_of(ROWS, ";").replace(".", ",")).replace(";", separator))
            with pytest.raises(UserError, match=r"line 2: a number has a comma(.|\n)*'0,\d37'(.|\n)*decimal=','"):
                open_columns(path, NAMED if names else NUMBERED)


def test_rows_of_other_widths_are_named_with_their_line(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("state;action;note\n0.5;1;a\n0.5;1\n")
    with pytest.raises(UserError, match=r"line 3: there are 2 values for 3 names(.|\n)*a semicolon needs quotes"):
        open_dataset(path)
    path.write_text("state;action;note\n0.5;1\n")
    with pytest.raises(UserError, match="line 2: there are 2 values for 3 names"):
        open_dataset(path)

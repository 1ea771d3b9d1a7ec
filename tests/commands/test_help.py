"""Help, usage, and values that are refused before anything is looked at."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from itertools import pairwise

import pytest
from fixtures.cli import refused

from understudy import __version__
from understudy.cli import COMMANDS, main
from understudy.commands.parts.method import build_method
from understudy.commands.parts.options import change_fields, flag_of, parse_options, settable_fields
from understudy.commands.train import TrainOptions
from understudy.core import ConfigError
from understudy.methods import find_method


@pytest.mark.parametrize("columns", [60, 80, 100])
def test_help_lists_every_command_once_in_groups_and_fits_the_terminal(call, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    status, out, _ = call("--help")
    assert status == 0 and max(map(len, out.splitlines())) <= columns
    assert [out.count(f"\n  {name} ") for name in COMMANDS] == [1] * len(COMMANDS)
    headings = [line for line in out.splitlines()[3:] if re.fullmatch(r"[A-Z]\w+", line)]
    assert headings == ["Start", "Data", "Train", "Judge", "Improve", "Deploy", "Robot", "Words"]
    assert call()[:2] == (0, out)


@pytest.mark.parametrize("columns", [60, 80, 100])
def test_the_help_of_every_command_fits_the_terminal(call, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    pages = {name: call(name, "--help")[1] for name in COMMANDS}
    assert {name: [line for line in page.splitlines() if len(line) > columns] for name, page in pages.items()
            } == dict.fromkeys(pages, [])
    assert not [name for name, page in pages.items() if "\n\n\n" in page]


def test_version(call):
    assert call("--version")[:2] == call("-v")[:2] == call("-V")[:2] == (0, __version__ + "\n")


def completions(script, *words):
    """What bash proposes for the last of these words."""
    code = (f'source {script}; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${{#COMP_LINE}}; '
            '_tyro_understudy; printf "%s\\n" "${COMPREPLY[@]}"')
    process = subprocess.run(["bash", "-c", code, "bash", "understudy", *words], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return set(process.stdout.split())


def test_bash_completes_commands_options_and_choices(call, tmp_path):
    status, script, _ = call("completion", "bash")
    (tmp_path / "understudy").write_text(script)
    assert status == 0 and completions(tmp_path / "understudy", "rob") == {"robot", "robustness"}
    assert completions(tmp_path / "understudy", "train", "--val") == {"--val-fraction"}
    assert completions(tmp_path / "understudy", "eval", "--device", "") == {"auto", "cpu", "cuda", "mps"}
    assert "complete -o bashdefault -o default -F _tyro_understudy understudy" in script  # files, too


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_are_completed_too(call, shell):
    status, script, _ = call("completion", shell)
    assert status == 0 and all(name in script for name in COMMANDS) and "val-fraction" in script


def test_completion_of_an_unknown_shell(call):
    refused(call("completion", "tcsh"), "'tcsh' is not bash, zsh or fish")


def test_help_needs_no_pytorch():
    code = ("import sys, contextlib, io\nfrom understudy.cli import COMMANDS, main\n"
            "with contextlib.redirect_stdout(io.StringIO()) as out:\n"
            "    assert main(['--help']) == 0 and all(main([c, '--help']) == 0 for c in COMMANDS)\n"
            "assert out.getvalue().count('usage:') == len(COMMANDS) + 1\n"
            "print(*(m for m in ('torch', 'numpy', 'scipy', 'gymnasium') if m in sys.modules))")
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (process.returncode, process.stdout) == (0, "\n"), process.stderr


@pytest.mark.parametrize("terminal", [False, True])
def test_help_speaks_of_what_is_left_out_in_words(call, monkeypatch, terminal):
    """Also in colors, also over several lines; columns stay columns."""
    if terminal:
        monkeypatch.setattr("tyro._fmtlib._FORCE_ANSI", True)
    for columns in ("60", "100"):
        monkeypatch.setenv("COLUMNS", columns)
        for args in (*([name, "--help"] for name in COMMANDS), ["train", "bc", "--help"]):
            out = call(*args)[1]
            assert ("\x1b[" in out) == terminal
            plain = re.sub(r"\x1b\[[\d;]*m", "", out)
            assert "{None}" not in plain
            assert len({len(line) for line in plain.splitlines() if line.startswith("  -")}) == 1
    assert re.search(r"--threshold RATE +distinguish one rate from this bound \(default: None\)", re.sub(
        r"\x1b\[[\d;]*m", "", call("plan", "--help")[1]))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_does_not_contradict_itself(call, monkeypatch, name):
    """A default in words is the only one, None is no choice, and only a full line is broken."""
    monkeypatch.setenv("COLUMNS", "100")
    lines = [line.strip("│").rstrip() for line in call(name, "--help")[1].splitlines()]
    for line, following in pairwise(lines):
        if line.startswith("       ") and following.startswith("       "):
            assert len(line) + len(following.split()[0]) >= 96, line
    options = re.split(r"\n +--", "\n".join(lines))
    assert not [text for text in options if "{None" in text or "by default" in text and "(default: " in text]


def test_unknown_command(call):
    refused(call("recrod", "fork"), "no command 'recrod'", "understudy record fork")


@pytest.mark.parametrize("args", [["train", "bc"], ["train", "bc", "d", "--out", "r", "--stepz", "3"],
                                  ["eval", "r", "fork", "--episodes", "many"], ["record", "fork", "--by", "magic"]])
def test_usage(call, args):
    refused(call(*args), f"understudy {args[0]}")


@pytest.mark.parametrize(("args", "words"), [
    (["train", "bc", "d", "--out", "r", "--steps", "ten"], "--steps: 'ten' is not an integer\n"),
    (["train", "bc", "d", "--out", "r", "--val-fraction=much"], "--val-fraction: 'much' is not a number\n"),
    (["train", "bc", "d", "--out", "r", "--image-size", "96", "wide"],
     "--image-size: '96 wide' is not an integer or two integers\n"),
    (["eval", "r", "fork", "--episodes", "many"], "--episodes: 'many' is not an integer\n"),
])
def test_a_value_of_the_wrong_type_is_told_in_one_line(call, args, words):
    refused(call(*args), "understudy: " + words)


@pytest.mark.parametrize("count", [0, -1])
@pytest.mark.parametrize("args", [
    "record fork --out d --episodes", "record fork --out d --episodes 3 --rows",
    "record fork --out d --episodes 3 --workers", "replay d fork --rows", "train bc d --out r --steps",
    "train bc d --out r --save-freq", "train bc d --out r --rollouts", "train bc d --out r --buffer-size",
    "train bc d --out r --max-episode-steps", "eval r fork --episodes", "eval r fork --rows", "eval r fork --workers",
    "compare a b --env fork --episodes", "compare a b --env fork --rows", "compare a b --env fork --workers",
    "plan 0.7 0.8 --episodes", "robustness r fork --episodes", "robustness r fork --rows"])
def test_counts_below_one_are_refused_everywhere(call, tmp_path, monkeypatch, args, count):
    monkeypatch.chdir(tmp_path)
    option = args.split()[-1]
    refused(call(*args.split(), count), f"understudy: {option}: must be at least 1, but is {count}\n"
                                        f"  -> such as {option} ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("args", ["record fork --out d --episodes 3", "train bc d --out r", "eval r fork",
                                  "compare a b --env fork", "robustness r fork"])
def test_seeds_below_0_are_understudys_own(call, args):
    refused(call(*args.split(), "--seed", -1), "--seed: must be at least 0 and below 9223372036854775808, but is -1\n"
                                               "  -> negative seeds")


@pytest.mark.parametrize("args", ["eval r fork --labels", "robustness r fork --levels", "robustness r fork --shifts",
                                  "split d --by task --out o --names", "view make d --out v --select",
                                  "view make d --out v --delete"])
def test_a_list_of_nothing_is_not_the_same_as_no_list(call, args):
    option = args.split()[-1]
    refused(call(*args.split()), f"{option}: needs at least one value, but has none\n  -> name them, or leave")


@pytest.mark.parametrize(
    "args, says",
    [
        ("plan 0.7 0.8 --episodes 99999999999999999999", "--episodes: at most 100,000 can be planned, not 99,999,"),
        ("compare a a --env fork", "the policy a is named twice\n  -> there is nothing to tell apart"),
        (
            "compare --group x a b --group x c d --env fork",
            "--group: the name 'x' is given twice\n",
        ),
        (
            "eval a fork --repeats 1",
            "--repeats: one rollout of each start cannot show how rollouts differ\n",
        ),
        ("eval a fork --repeats -1", "but is -1\n  -> such as --repeats 8"),
        (
            "record fork --out d --episodes 3 --actor keyboard --workers 2",
            "one person cannot play for 2 workers\n",
        ),
    ])
def test_what_is_refused_before_anything_is_looked_at_says_what_to_do(call, args, says):
    refused(call(*args.split()), says)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize(("args", "message"), [
    (["train", "bc", "d", "--out", "r", "--image-sise", "3"],
     "understudy train bc: there is no option --image-sise\n  -> did you mean '--image-size'? understudy train bc --h"),
    (["train", "bc", "d", "--out", "r", "--image_sise=3"],
     "no option --image_sise\n  -> did you mean '--image-size'? "),
    (["record", "fork", "--out", "d", "--episodes", "3", "-x"],
     "understudy record: there is no option -x\n  -> understudy record --help says what can be set\n"),
    (["record", "fork", "--out", "d", "--episodes", "3", "--actor", "scriptd"],
     "--actor: 'scriptd' is not scripted, random or keyboard\n"
     "  -> did you mean 'scripted'? understudy record --help"),
    (["train", "bc", "d", "--out", "r", "--device", "gpu"],
     "--device: 'gpu' is not auto, cpu, cuda or mps\n  -> "),
    (["train", "bc"], "understudy train: missing --out RUN\n  -> understudy train --help"),
    (["train", "bc", "d", "--out"], "--out: needs a value, but has none\n  -> "),
    (["train", "bc", "d", "--out", "r", "--steps", "--seed", "3"], "--steps: needs a value, but has none\n  -> "),
    (["methods", "bc", "act"], "understudy methods: unexpected argument 'act'\n  -> "),
])
def test_usage_is_told_in_one_message_with_the_nearest_right_option(args, message, encoding, monkeypatch):
    """Whatever the terminal can draw, and however wide it is."""
    out, err = io.TextIOWrapper(io.BytesIO(), encoding), io.StringIO()
    monkeypatch.setenv("COLUMNS", "200" if encoding == "ascii" else "44")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert main(args) == 2
    assert err.getvalue().startswith("understudy: ") and message in err.getvalue() and err.getvalue().count("\n") == 2
    out.flush()
    assert out.buffer.getvalue() == b""


@pytest.mark.parametrize("args, inside", [(["--policy.head", "Regression"], "--policy.head.n-components"),
                                          (["--policy.trunk=unet"], "--policy.trunk.")])
def test_a_part_is_not_exchanged_on_the_command_line(args, inside):
    with pytest.raises(ConfigError, match=rf"there is no option --policy.\w+: .* such as {inside}.*\n  -> to exchange"):
        change_fields(find_method("bc-gmm"), args, "understudy train")


def test_counts_and_seeds_that_mean_nothing(call, place, tmp_path):
    refused(call("record", "fork", "--out", tmp_path / "d", "--episodes", 2, "--rows", 0), "--rows", "but is 0")
    refused(call("eval", place / "a", "CartPole-v1", "--rows", 0), "--rows", "but is 0")
    refused(call("replay", place / "demos", "fork", "--rows", -1), "--rows", "but is -1")
    train = ["train", "bc", place / "demos", "--out", tmp_path / "r"]
    refused(call(*train, "--eval", "fork", "--rollouts", 0), "--rollouts", "but is 0")
    refused(call(*train, "--seed", -1), "--seed", "but is -1")
    refused(call(*train, "--save-freq", 0), "--save-freq", "but is 0")
    assert not list(tmp_path.iterdir())


def test_the_demo_looks_for_its_device_first(call, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    refused(call("demo", "--out", tmp_path / "demo", "--device", "mps"), "this machine has no mps device")
    assert not (tmp_path / "demo").exists()


def test_help_of_a_recipe_lists_what_can_be_set(call):
    status, out, _ = call("train", "flow-policy", "--help")
    assert status == 0 and "--out RUN" in out
    for name, _, _ in settable_fields(find_method("flow-policy")):
        assert flag_of(name) in out


@pytest.mark.parametrize(("words", "flag", "problem"), [
    ("iql --expectile 1.5", "--expectile", "expectile is 1.5, but must be above 0 and below 1"),
    ("bc --batch-size 0", "--batch-size", "batch_size is 0, but must be at least 1"),
    ("iql --optimizer.lr -1", "--optimizer.lr", "lr is -1.0, but must be above 0"),
    ("diffusion-policy --horizon 0", "--horizon", "horizon is 0, but must be at least 1"),
    ("opal --stages.0.method.learner.batch-size 0", "--stages.0.method.learner.batch-size", "batch_size is 0"),
    ("bc --executor real-time-chunking --executor.delay -1", "--executor.delay", "delay is -1"),
])
def test_a_value_out_of_range_names_its_option(place, call, tmp_path, words, flag, problem):
    """Errors named the field of a class, such as IQL.expectile."""
    method, *options = words.split()
    refused(call("train", method, place / "demos", "--out", tmp_path / "run", *options), f"{flag}: {problem}")


@pytest.mark.parametrize("width", [60, 100])
@pytest.mark.parametrize("name", ["iql", "style-bc", "ccil", "hbc"])
def test_names_of_options_are_whole_in_narrow_terminals(capsys, monkeypatch, name, width):
    """Names of more than 20 characters were cut."""
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["methods", name]) == 0
    lines = capsys.readouterr().out.partition("\nto set")[2].partition("\nnext:")[0].splitlines()
    assert max(map(len, lines)) <= width
    rows = [line.split() for line in lines]
    for path, _, value in settable_fields(find_method(name)):
        if path != "learner.steps":
            i = [row[:1] for row in rows].index([flag_of(path)])
            assert len(rows[i]) > 1 or not str(value) or value == () or lines[i + 1].startswith(" ")


def test_the_options_of_a_method_are_explained_by_its_docstring(capsys):
    assert main(["methods", "hbc"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "--subgoal-steps 10 Number of steps to a subgoal" in said


def test_several_values_may_be_given_one_by_one():
    """The last one won: --condition time_left=5 made --condition return_to_go=9 disappear."""
    args = ["bc", "data", "--out", "run", "--from", "base", "--freeze", "net", "--freeze", "encoder", "codec"]
    options = parse_options(TrainOptions, args, "train")
    assert options.freeze == ("net", "encoder", "codec") and options.load == ("codec", "encoder", "net")
    assert parse_options(TrainOptions, [*args, "--load", "net"], "train").load == ("net",)


@pytest.mark.parametrize(("args", "question"), [
    ("train bc d --out r --device gpu", "did you mean 'cuda'?"),
    ("act --robot so100 r", "did you mean 'so100_follower'?"),
    ("eval r fork --episode 3", "did you mean '--episodes'?"),
    ("train bc d --out r --learner.lr 1e-3", "did you mean '--optimizer.lr'?"),
    ("train bc d --out r --method.learner.optimizer.lrr 1", "did you mean '--optimizer.lr'?"),
    ("train bc d --out r --learner.batch-size 8", "write --batch-size"),
    ("record --robot so101 --teleop keyboard --out d --episodes 3", "did you mean 'so101_follower'?"),
])
def test_what_is_nearest_to_an_unknown_value_is_proposed(call, tmp_path, monkeypatch, args, question):
    monkeypatch.chdir(tmp_path)
    refused(call(*args.split()), question)


@pytest.mark.parametrize(("change", "nearest"), [
    ("--lr", "--optimizer.lr"), ("--optimizr.lr", "--optimizer.lr"),
    ("--policy.n-obs-steps", "--policy.window.n-obs-steps"), ("--methd.horizon", "--horizon"),
    ("--optimizer.weight-decy", "--optimizer.weight-decay"),
])
def test_the_nearest_field_of_a_method_is_proposed_wherever_it_is(change, nearest):
    with pytest.raises(ConfigError, match=f"did you mean '{nearest}'"):
        build_method("bc", [], [change, "3"], None, ())


@pytest.mark.parametrize("command", ["eval", "robustness", "calibrate"])
def test_a_run_and_an_environment_that_are_exchanged_are_put_in_order(call, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "run.json").write_text("{}")
    refused(call(command, "fork", "mine", "--episodes", 3), "fork and mine are exchanged\n"
                                                            f"  -> understudy {command} mine fork --episodes 3")


def test_a_method_and_data_that_are_exchanged_are_put_in_order(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demos.npz").write_bytes(b"")
    refused(call("train", "demos.npz", "bc", "--out", "r"), "understudy train bc demos.npz --out r")

"""Every code block of the README, CONTRIBUTING and the site runs, page by page and in order, with small budgets.

- `python` runs in one namespace a page. With a title ("```python title="my_env.py"") it is saved under that name.
- `console` and `bash` run what begins with `understudy`; in `console`, lines without `$ ` are output.
- `json`, `text` and the like are not code; `js` runs in tests/deploy/test_export.py. A block that cannot run here has a
  comment above it with a reason that tests/expected_skips.txt lists: <!-- not run: installs packages -->, or
  <!-- needs mujoco --> where it depends.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import re
import shlex
import tomllib
from pathlib import Path

import numpy as np
import pytest
from fixtures.pages import Block, blocks, commands
from folders import REPOSITORY

from understudy import plugins
from understudy.commands.parts.method import method_options
from understudy.commands.parts.options import flag_of, settable_fields
from understudy.methods import find_method, method_names

PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
SLOW = ["CONTRIBUTING.md", *(f"docs/{n}.md" for n in (
    "choosing", "collecting", "deploy", "environments", "from-rewards", "method-parts", "other-libraries", "own-parts",
    "person-to-robot", "practise", "robustness", "runs", "take-over", "which-method"))]  # more than 5 s each
NOT_CODE = {"text", "diff", "js", "json", "jsonl", "toml", "mermaid", "bibtex", ""}


def cut(text: str) -> str:
    """The same with budgets of a test."""
    text = re.sub(r"(--(?:[\w.]+\.)?(?:steps|every)[ =])\d+", r"\g<1>2", text)
    text = re.sub(r"(--(?:episodes|compare)[ =])\d+", r"\g<1>4", text)
    text = re.sub(r"--budget \w+", "--budget 9s --methods knn vinn", text)
    text = re.sub(r"\b(steps=)[\d_]+", r"\g<1>1", text)
    return re.sub(r"\b(episodes=)[\d_]+", r"\g<1>4", text)


def install(project: Path) -> None:
    """What an editable installation leaves of a project whose folder is on sys.path already: its metadata."""
    about = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    folder = project / f"{about['name'].replace('-', '_')}-{about['version']}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {about['name']}\nVersion: {about['version']}\n")
    (folder / "entry_points.txt").write_text("".join(
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
        for group, entries in about["entry-points"].items()))
    plugins._registered.cache_clear()  # what comes next would run in another process


def run(block: Block, namespace: dict) -> None:
    if block.title:
        Path(block.title).write_text(block.text)
    elif block.language == "python":
        exec(compile("\n" * block.line + cut(block.text), str(block.page), "exec"), namespace)
    elif block.language in ("console", "bash"):
        for command in commands(block):
            words = shlex.split(cut(command), comments=True)
            if words == ["pip", "install", "-e", "."]:
                install(Path.cwd())
                continue
            assert words[0] == "understudy", f"{command!r} cannot be run here: say why above the block"
            if words[1] == "train" and "--help" not in words:
                words += [w for o in ("--steps", "--save-freq") if o not in words for w in (o, "2")]
                if "dagger" in words:  # --steps divides what is left among its rounds
                    words += ["--collection.initial-updates", "2"]
            from understudy.cli import main
            assert main(words[1:]) == 0, f"{block.name}: {command}"
    else:
        assert block.language in NOT_CODE, f"{block.name}: no way to check {block.language!r}"


@pytest.fixture
def here(tmp_path, monkeypatch, demos):
    """A folder with somebody's own data in it, as the pages assume: my_demos.npz and log.mcap."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    some = list(demos[:12])
    state = "observation.state"
    np.savez("my_demos.npz", observations=np.concatenate([e.steps[state][:len(e)] for e in some]),
             actions=np.concatenate([e.steps["action"] for e in some]),
             episode_ends=np.cumsum([len(e) for e in some]))
    if importlib.util.find_spec("mcap") is not None:
        write_log("log.mcap")
    return tmp_path


def write_log(path: str) -> None:
    """The recording of messages of docs/formats.md."""
    from mcap.writer import Writer
    with open(path, "wb") as file:
        writer = Writer(file)
        writer.start()
        schema = writer.register_schema("numbers", "jsonschema", b"{}")
        topics = {t: writer.register_channel(t, "json", schema) for t in ("/arm/state", "/arm/command")}
        for i in range(50):
            for topic, late in (("/arm/state", 0), ("/arm/command", 20_000_000)):
                at = i * 100_000_000 + late
                message = json.dumps({"position": [0.1 * i, 0.0]}).encode()
                writer.add_message(topics[topic], at, message, at)
        writer.finish()


@pytest.mark.parametrize("page", [
    pytest.param(p, id=name, marks=[pytest.mark.slow] if name in SLOW else [])
    for p in PAGES for name in [str(p.relative_to(REPOSITORY))]])
def test_the_page_runs(page, here):
    namespace = {"__name__": "__main__"}
    for block in blocks(page):
        if block.skip is None:
            try:
                run(block, namespace)
            except Exception as error:
                raise AssertionError(f"{block.name}: {type(error).__name__}: {error}") from error


@pytest.mark.slow
def test_the_lesson_of_the_tutorial_is_true_in_its_own_run(tmp_path, monkeypatch, capsys):
    """A method that represents several ways is better than the mean, by intervals that do not touch, without cuts."""
    from understudy.cli import main

    monkeypatch.chdir(tmp_path)
    page = blocks(REPOSITORY / "docs" / "tutorial.md")
    exec(compile(page[0].text, "tutorial.md", "exec"), {})
    lines = [c for b in page if b.language == "console" for c in commands(b) if "tasks" not in c]
    (judged,) = (i for i, line in enumerate(lines) if line.endswith("--against runs/mine") and "runs/plain" in line)
    for line in lines[:judged + 1]:
        capsys.readouterr()
        assert main(shlex.split(line)[1:]) == 0, line

    def limits(text):
        return {run: (float(low), float(high)) for run, low, high in re.findall(
            r"^(runs/\w+): [\d.]+%, 95% interval ([\d.]+)% to ([\d.]+)%\.$", text, re.MULTILINE)}
    out = capsys.readouterr().out
    for text in (out, (REPOSITORY / "docs" / "tutorial.md").read_text()):
        assert limits(text)["runs/mine"][0] > limits(text)["runs/plain"][1]
        assert "The policy in runs/mine succeeds more often than the policy in runs/plain" in text


@pytest.mark.parametrize("block", [b for p in PAGES for b in blocks(p) if b.skip is not None], ids=lambda b: b.name)
def test_a_block_that_is_not_run_has_a_listed_reason(block):
    pytest.skip(block.skip)


def test_no_fence_is_overlooked():
    """As many fences as the pattern finds blocks, two each: one that is not closed would hide what follows."""
    for page in PAGES:
        fences = re.findall(r"^[ ]*```", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(fences) == 2 * len(blocks(page)), page


def test_links_between_the_files_lead_somewhere():
    for page in PAGES:
        text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
        for link in links:
            target = link.split("#")[0]
            if target and "://" not in target and not target.startswith("mailto:"):
                assert (page.parent / target).exists(), f"{page.relative_to(REPOSITORY)}: {link}"


def anchors(page: Path) -> set[str]:
    """The anchors of the headings of a page, as the site makes them, and those that it sets itself."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = (re.sub(r"[^\w\s-]", "", title).strip().lower() for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE))
    return {re.sub(r"[-\s]+", "-", title) for title in titles} | set(re.findall(r"\{#([\w-]+)\}", text))


def test_pages_that_the_source_names_exist_with_their_anchors():
    named = {name for file in (REPOSITORY / "src").rglob("*.py")
             for name in re.findall(r"(?<![\w/])docs/[\w-]+\.md(?:#[\w-]+)?", file.read_text(encoding="utf-8"))}
    assert "docs/practise.md#a-classifier-of-success" in named
    for name in named:
        page, _, anchor = name.partition("#")
        assert (REPOSITORY / page).exists(), name
        assert not anchor or anchor in anchors(REPOSITORY / page), name


def paragraphs(text: str) -> list[str]:
    """Paragraphs and items of lists, without code, comments, tables and headings."""
    text = re.sub(r"^---\n.*?\n---\n|^[ ]*```.*?^[ ]*```[ ]*$|<!--.*?-->", "", text, flags=re.DOTALL | re.MULTILINE)
    parts = re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.)\s)", text)
    return [part for part in parts if not part.lstrip().startswith(("|", "#", "<"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_no_paragraph_has_more_than_80_words(page):
    long = [part for part in paragraphs(page.read_text(encoding="utf-8")) if len(part.split()) > 80]
    assert not long, f"split these: {[' '.join(part.split()[:12]) for part in long]}"


@pytest.fixture
def generate(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "docs"))
    monkeypatch.setenv("COLUMNS", "100")
    import generate
    return generate


def test_the_pages_of_methods_are_what_the_program_says(generate):
    pages = {"methods.md": generate.methods(), **generate.family_pages()}
    for name, text in pages.items():
        assert (REPOSITORY / "docs" / name).read_text(encoding="utf-8") == text, "make docs writes it anew"
    assert {f"methods/{p.name}" for p in (REPOSITORY / "docs/methods").glob("*.md")} == set(pages) - {"methods.md"}


def test_the_page_of_commands_has_every_option(generate):
    """Names only: how help is laid out is the parser's, and changes with its version."""
    def options(page):
        return {section.split("\n")[0]: set(re.findall(r"--[a-z][\w.-]*", section)) for section in page.split("\n## ")}
    page = (REPOSITORY / "docs/command-line.md").read_text(encoding="utf-8")
    assert options(page) == options(generate.command_line())


@functools.cache
def command_options() -> dict[str, set[str]]:
    """The options of each command, from the page of commands, which a test above compares with the program."""
    sections = (REPOSITORY / "docs/command-line.md").read_text(encoding="utf-8").split("\n## ")[1:]
    return {s.split("\n")[0]: {*re.findall(r"<code>(--[a-z][\w.-]*)", s), "--help"} for s in sections}


@functools.cache
def method_flags(name: str) -> set[str]:
    options = [*method_options(name), *(path for path, _, _ in settable_fields(find_method(name)))]
    return {flag_of(path) for path in options}


def unknown_words(command: str) -> list[str]:
    """The words of a command in a table that name no command, no method or no option of these."""
    _, name, *words = shlex.split(command)
    if name not in command_options():
        return [name]
    known, unknown = set(command_options()[name]), []
    if name == "train" and words and words[0] in method_names():
        known |= method_flags(words[0])
    elif name == "train" and words and words[0].islower() and ":" not in words[0] and not words[0].startswith("--"):
        unknown.append(words[0])
    return unknown + [w for word in words if (w := word.split("=")[0]).startswith("--") and w not in known]


def test_commands_in_tables_exist_with_their_options():
    rows = {page: [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
            for page in PAGES}
    written = [(page.name, command) for page in PAGES for row in rows[page]
               for command in re.findall(r"`(understudy [a-z][^`]*)`", row)]
    assert len([page for page, _ in written if page == "other-libraries.md"]) > 50
    assert unknown_words("understudy train bc DATA --out RUN --policy.head.norm l1 --widht 3") == ["--widht"]
    assert unknown_words("understudy trian bc DATA") == ["trian"]
    assert [(*at, words) for at in written if (words := unknown_words(at[1]))] == []


def test_names_beside_those_of_other_libraries_exist():
    """In the last column of the page for those who come from them: options, and methods with options."""
    page = (REPOSITORY / "docs/other-libraries.md").read_text(encoding="utf-8")
    here = [row.split(" | ")[-1] for row in page.splitlines() if row.startswith("| ")]
    names = [name for cell in here for name in re.findall(r"`([^`]+)`", cell)]
    with_options = [n for n in names if n.split()[0] in method_names() and " " in n]
    assert "dqn --double False" in with_options
    assert [(n, words) for n in with_options if (words := unknown_words(f"understudy train {n}"))] == []
    known = set.union(*command_options().values(), *map(method_flags, ("act", "dqn", "iql", "td3-bc")))
    alone = [word for n in names if n.startswith("--") for word in n.split() if word.startswith("--")]
    assert len(alone) > 20 and set(alone) - known == set()


def test_the_api_reference_lists_what_can_be_imported_from_understudy():
    import understudy
    page = (REPOSITORY / "docs/api/index.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| \[`(\w+)`\]", page, re.MULTILINE) == understudy.__all__


def test_the_api_reference_has_every_package():
    """Modules are found when the site is built; packages are named in the hook."""
    hook = ast.parse((REPOSITORY / "docs/api_pages.py").read_text(encoding="utf-8"))
    pages = next(ast.literal_eval(node.value) for node in hook.body
                 if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PAGES")
    named = {name for _, names in pages.values() for name in names}
    for name in named:
        assert importlib.util.find_spec(f"understudy.{name}"), f"docs/api_pages.py names {name}, which does not exist"
    source = REPOSITORY / "src/understudy"
    packages = {str(f.parent.relative_to(source)).replace("/", ".") for f in source.rglob("*/__init__.py")}
    # The commands are on the page of the command line. The readers of formats and the studio are no interface.
    for package in {p for p in packages if not f"{p}.".startswith(("commands.", "data.formats.", "studio.browser."))
                    or p == "data.formats"}:
        assert any(f"{name}.".startswith(f"{package}.") for name in named), \
            f"{package} has no page in docs/api_pages.py"


def test_the_recorded_session_is_the_page(monkeypatch):
    """The recording has the commands of the script, and the page some of them with what is shown after each."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "docs"))
    import real_arm_session as session
    head, *events = (json.loads(line) for line in session.CAST.read_text(encoding="utf-8").splitlines())
    assert head["version"] == 2 and {kind for _, kind, _ in events} == {"o"}
    assert [at for at, _, _ in events] == sorted(at for at, _, _ in events)
    recorded = session.shown("".join(text for _, _, text in events))
    page = session.PAGE.read_text(encoding="utf-8")
    assert session.page(recorded) == page
    assert max(len(line) for block in blocks(session.PAGE) for line in block.text.splitlines()) <= 80
    assert re.findall(r"^\$ (.+)$", recorded, re.MULTILINE) == [c for step in session.STEPS for c in step.commands]
    assert "is served at ws://127.0.0.1:8123" in recorded and '"event": "stopped"' in recorded


def test_the_recorded_takeover_is_the_page(monkeypatch):
    """Each screen of the page is one of the recording, and shows when its key was pressed."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "docs"))
    import takeover_session as session
    _, *events = (json.loads(line) for line in session.CAST.read_text(encoding="utf-8").splitlines())
    assert [at for at, _, _ in events] == sorted(at for at, _, _ in events)
    drawn = [text.removeprefix(session.CLEAR) for _, _, text in events]
    page = session.PAGE.read_text(encoding="utf-8")
    assert session.page(drawn) == page and "round 1 of 1: 2 episodes" in page
    assert session.picture(drawn) == session.PICTURE.read_text(encoding="utf-8")


def test_what_a_terminal_shows_in_the_end(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "docs"))
    import real_arm_session as session
    assert session.shown("$ ls\r\n\x1b[1ma\x1b[0m\r\nstep 1\x1b[K\rstep 12\x1b[K\r\x1b[Kend\r\n") == "$ ls\na\nend"
    rows = "\r{}one {}\x1b[K\r\ntwo {}\x1b[K\r\n"
    text = rows.format("", 1, 1) + "".join(rows.format("\x1b[2A", i, i) for i in range(2, 9)) + "done"
    assert session.shown(text) == "one 8\ntwo 8\ndone"
    [(_, thin)] = session.thinned([(0.1, text[:40]), (0.2, text[40:])])
    assert session.shown(thin) == session.shown(text) and len(thin) < len(text) / 2


def test_the_menu_has_at_most_25_pages_and_the_others_are_linked_from_the_home_page():
    _, _, menu = (REPOSITORY / "mkdocs.yml").read_text().partition("\nnav:\n")
    in_menu = re.findall(r": ([\w/-]+\.md)$", menu, re.MULTILINE)
    assert len(in_menu) <= 25
    home = re.findall(r"\]\(([\w/-]+\.md)\)", (REPOSITORY / "docs" / "index.md").read_text())
    pages = {p.relative_to(REPOSITORY / "docs").as_posix() for p in (REPOSITORY / "docs").glob("*.md")}
    assert pages - {*in_menu, *home} == set()


def test_the_pictures_are_those_of_the_stored_results(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "docs"))
    import pictures
    stale = [name for name, draw in pictures.PICTURES.items()
             if (pictures.IMAGES / f"{name}.svg").read_text(encoding="utf-8") != draw()]
    assert stale == [], "python docs/pictures.py draws them again"


def test_the_decision_page_repeats_advice_that_held_up():
    page = (REPOSITORY / "docs/which-method.md").read_text(encoding="utf-8")
    held_up = {a["sentence"] for a in json.loads((REPOSITORY / "src/understudy/advice.json").read_text("utf-8"))}
    repeated = page.split("## What held up")[1].split("\n## ")[0]
    assert set(re.findall(r"^- (.+)$", repeated, re.MULTILINE)) == held_up
    assert len(page.split()) <= 1500

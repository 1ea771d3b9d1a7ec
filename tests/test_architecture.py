"""The rules of the house, checked on the syntax trees."""

import ast
import re
import tomllib
from functools import cache
from itertools import chain
from pathlib import Path

from folders import REPOSITORY

ROOT = REPOSITORY / "src" / "understudy"
PEERS = {"lerobot", "robomimic", "imitation", "d3rlpy", "stable_baselines3", "diffusers", "diffusion_policy",
         "tianshou", "minari", "openpi", "skrl", "cleanrl", "torchrl", "robosuite"}
# Adapters of software that the user installs, each imported by one file.
ADAPTERS = {("envs/simulators/robosuite.py", "robosuite"), ("robots/lerobot.py", "lerobot"),
            ("serve/lerobot_child.py", "lerobot")}
UNSAFE = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FILES = sorted(ROOT.rglob("*.py"))
EVIDENCE = REPOSITORY / "evidence"


@cache
def trees():
    return [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in FILES]


@cache
def evidence_trees():
    return [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in sorted(EVIDENCE.rglob("*.py"))]


def benchmark_trees():
    return [(path, ast.parse(path.read_text(encoding="utf-8")))
            for path in sorted((REPOSITORY / "benchmarks").rglob("*.py"))]


def place(path):
    return path.relative_to(ROOT if path.is_relative_to(ROOT) else REPOSITORY).as_posix()


@cache
def nodes(tree):
    return list(ast.walk(tree))


@cache
def parts(path, root=ROOT):
    return path.relative_to(root).with_suffix("").parts


@cache
def imported(path, tree):
    """(line, absolute module parts) of every import, those inside functions too; ours begin with "understudy"."""
    names = []
    for node in nodes(tree):
        if isinstance(node, ast.Import):
            names += [(node.lineno, tuple(a.name.split("."))) for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            own = parts(path, ROOT.parent if path.is_relative_to(ROOT) else REPOSITORY)
            base = own[:-node.level] if node.level else ()
            module = (*base, *(node.module.split(".") if node.module else ()))
            names += [(node.lineno, (*module, a.name)) for a in node.names]
    return names


@cache
def places_of_folders():
    """The place of each folder and module in the table of docs/architecture.md."""
    section = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8").split("## The folders\n")[1]
    cells = [line.split("|")[1] for line in section.split("\n## ")[0].splitlines() if line.startswith("| `")]
    names = [re.findall(r"`([^`]+?)/?`", cell) for cell in cells if "at the top" not in cell]
    return {name: i for i, name in enumerate(chain.from_iterable(names))}


@cache
def position(module):
    """The place of a module, such as ("data", "formats", "npz"): that of the longest name in the table."""
    folder, *inside = module
    names = ["methods/<family>"] if folder == "methods" and len(inside) > 1 else []
    names += ["/".join(module[:n]) for n in range(len(module), 0, -1)]
    return next((places_of_folders()[name] for name in names if name in places_of_folders()), None)


def test_every_part_has_its_place():
    modules = {parts(path) for path in FILES} - {("__init__",)}
    assert not [m for m in modules if position(m) is None], "name them in the table of docs/architecture.md"
    folders = {Path(*m[:n]).as_posix() for m in modules for n in (1, 2, 3)}
    assert places_of_folders().keys() - folders == {"methods/<family>"}, "the table names what does not exist"


def test_imports_go_downward():
    upward = [f"{path.relative_to(ROOT)} imports {other.relative_to(ROOT)}" for path, tree in trees()
              for other in files_imported(path, tree)
              if ROOT / "__init__.py" not in (path, other) and position(parts(other)) > position(parts(path))]
    assert not upward, upward
    assert position(("data", "opening", "views")) > position(("data", "formats", "npz")) > position(("data", "episode"))
    assert position(("learn", "train")) > position(("learn", "critics", "ppo")) > position(("learn", "fit"))
    assert position(("methods", "offline_rl", "iql")) > position(("methods", "registry")) > position(("policy",))


def test_formats_do_not_know_each_other():
    from understudy.data.formats import READERS, WRITERS

    modules = {*WRITERS.values(), *(reader[0] for reader in READERS.values())}
    formats = {ROOT.joinpath("data", "formats", *name.split(".")).with_suffix(".py") for name in modules}
    bad = [f"{path.name} imports {other.name}" for path, tree in trees() if path in formats
           for other in files_imported(path, tree) if other in formats]
    assert not bad, f"move what two formats need to a file of its own: {bad}"


def test_rooms_of_environments():
    """Worlds and simulators know the base, and nothing but the registry and the shifts knows them."""
    allowed = {"toys": {"", "toys"}, "simulators": {"", "external"}, "": {""}, "registry": {"", "toys", "simulators"},
               "shifts": {"", "toys"}}
    violations = []
    for path, tree in trees():
        folder, *inside = parts(path)
        if folder != "envs":
            continue
        own = inside[0] if inside[0] in allowed else ""
        for line, name in imported(path, tree):
            if name[:2] == ("understudy", "envs") and len(name) > 3:
                room = name[2] if name[2] in ("toys", "simulators") else ""
                room = "external" if name[2:4] == ("simulators", "external") else room
                if room not in allowed[own]:
                    violations.append(f"{path.relative_to(ROOT)}:{line} imports {'.'.join(name)}")
    assert not violations, violations


MODULES = {parts(p)[:-1] if p.stem == "__init__" else parts(p): p for p in FILES}


def files_imported(path, tree):
    """The files of the package that a file imports, those inside functions too."""
    for _, name in imported(path, tree):
        if name[0] == "understudy":
            imported_file = MODULES.get(name[1:]) or MODULES.get(name[1:-1])
            if imported_file is not None and imported_file != path:
                yield imported_file


def circles(graph):
    """Groups of files that import each other, by way of others too."""
    def reached(start):
        visited, pending = set(), [start]
        while pending:
            for other in graph[pending.pop()] - visited:
                visited.add(other)
                pending.append(other)
        return visited
    reach = {path: reached(path) for path in graph}
    return {frozenset(p for p in reach[path] if path in reach[p]) for path in graph if path in reach[path]}


def test_no_circle_of_imports():
    graph = {path: set(files_imported(path, tree)) for path, tree in trees()}
    cycles = [sorted(str(p.relative_to(ROOT)) for p in circle) for circle in circles(graph)]
    assert not cycles, f"files that import each other: {cycles}"
    assert circles({1: {2}, 2: {3}, 3: {1}, 4: {1}}) == {frozenset({1, 2, 3})}


def test_every_mistake_is_told_a_way_out():
    kinds = {"UserError"}  # and what is derived from it
    for _ in range(3):
        kinds |= {node.name for _, tree in trees() for node in nodes(tree) if isinstance(node, ast.ClassDef)
                  and {getattr(b, "id", getattr(b, "attr", "")) for b in node.bases} & kinds}
    kinds -= {"UntrustedCode"}  # of some code there is nothing to be said but that it is not run

    def tells(call):
        hint = {k.arg: k.value for k in call.keywords}.get("hint", ast.Constant(None))
        return not (isinstance(hint, ast.Constant) and not hint.value)
    silent = [f"{path.relative_to(ROOT)}:{call.lineno}" for path, tree in trees() for call in nodes(tree)
              if isinstance(call, ast.Call) and getattr(call.func, "id", getattr(call.func, "attr", "")) in kinds
              and not tells(call)]
    assert {"NonFiniteAction", "Unsupported"} < kinds and not silent, f"say what to do: {silent}"


HEAD_PARTS = ("base", "coupling", "guidance", "paths", "solvers")  # what heads share


def test_heads_do_not_know_each_other():
    for path, tree in trees():
        if parts(path)[0] == "heads":
            assert len(parts(path)) == 3 or path.stem in ("__init__", *HEAD_PARTS), f"{path.name}: put it in its kind"
            for line, name in imported(path, tree):
                allowed = name[:2] != ("understudy", "heads") or name[2] in HEAD_PARTS
                assert allowed, f"{path.name}:{line} imports {name}"


def test_nothing_unsafe_and_no_peer_is_imported():
    bad = [f"{place(path)}:{line} {'.'.join(name)}" for path, tree in (*trees(), *evidence_trees())
           for line, name in imported(path, tree)
           if name[0] in UNSAFE | PEERS and (place(path), name[0]) not in ADAPTERS]
    assert not bad, bad


def test_lerobot_is_imported_when_the_user_names_it():
    """In functions alone: without LeRobot every robot of understudy's own works."""
    (tree,) = [tree for path, tree in trees() if path.relative_to(ROOT).as_posix() == "robots/lerobot.py"]
    early = [ast.unparse(node) for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert not [line for line in early if re.search(r"(import|from) (lerobot|draccus|yaml)", line)], early


def calls(tree):
    """(line, name of what is called: "eval", "yaml.load", ".load", ...), with keywords."""
    for node in nodes(tree):
        if isinstance(node, ast.Call):
            f = node.func
            yield node, f.id if isinstance(f, ast.Name) else ast.unparse(f) if isinstance(f, ast.Attribute) else ""


def test_no_file_can_run_code():
    bad = []
    for path, tree in (*trees(), *evidence_trees()):
        for node, name in calls(tree):
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if (name in ("eval", "exec", "compile", "__import__", "os.system", "builtins.eval", "builtins.exec")
                    or name in ("yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.load", "torch.save")
                    or keywords.get("shell") == "True"
                    or keywords.get("allow_pickle", "False") != "False"):
                bad.append(f"{place(path)}:{node.lineno} {name}")
    assert not bad, bad


def test_families_of_evidence_share_worlds_alone():
    """Nothing in understudy imports evidence."""
    for path, tree in evidence_trees():
        if path.is_relative_to(EVIDENCE / "families"):
            for line, name in imported(path, tree):
                other = name[:2] == ("evidence", "families") and name[2:3] != (path.parent.name,)
                assert not other, f"{place(path)}:{line} imports {name}"
    for path, tree in trees():
        assert not [line for line, name in imported(path, tree) if name[0] == "evidence"], f"{place(path)}"


def test_capabilities_are_interfaces():
    """A class is abstract or final: nobody asks an object whether it has a method."""
    bad = [f"{path.relative_to(ROOT)}:{node.lineno}" for path, tree in trees() for node, name in calls(tree)
           if name == "hasattr" and parts(path)[0] in ("core", "data", "nets", "heads", "policy", "execute", "learn")]
    assert not bad, bad


ROOMS_OF_PARTS = ("data", "nets", "execute", "learn", "improve", "deploy")  # heads are exchangeable, and stay in heads/
# Parts that one bundled method uses and that stay, because others can use them too.
ONE_USER = {
    "data/running_normalizer.py": "scales of any method whose first episodes are random",
    "execute/prefix_chunking.py": "runs any policy whose head has PrefixTimes; docs/execution.md compares it",
    "execute/streaming_flow.py": "the executor of the head StreamingFlow, for any trunk; benchmarks/heads.py runs it",
    "learn/cloning/attention_supervision.py": "two losses, of two rows of the ledger",
    "learn/objectives/frame_objectives.py": "objectives of any encoder; the contrast alone is that of R3M",
    "learn/objectives/latent_objectives.py": "two objectives, of two rows of the ledger",
    "learn/objectives/reconstruction_objectives.py": "objectives of any encoder, of several rows of the ledger",
    "learn/objectives/value_objectives.py": "an objective of any encoder; with same=1.0 it learns values of goals",
    "learn/rewards/denoising_preference.py": "two losses, of two rows of the ledger; one has no name",
    "nets/grid.py": "encodes maps of cells for any policy; docs/encoders.md names it",
    "nets/lstm.py": "a trunk, with which any head is combined",
    "nets/object_attention.py": "encodes objects for any policy; docs/encoders.md names it",
    "nets/pixels.py": "the encoder of the head Transport, with which docs/heads.md combines it, and FocusCrop",
}


def method_of(path):
    """(family, name) of the file of a method. Empty for other files."""
    folder, *inside = parts(path)
    return tuple(inside) if folder == "methods" and len(inside) == 2 and inside[1] != "__init__" else ()


def test_parts_of_one_method_are_in_its_file():
    users = {}
    for path, tree in trees():
        for part in set(files_imported(path, tree)):
            users.setdefault(part, set()).add(path)
    lone_parts = set()
    for part in FILES:
        own = list(users.get(part, ()))
        if parts(part)[0] in ROOMS_OF_PARTS and len(own) == 1 and method_of(own[0]):
            lone_parts.add(part.relative_to(ROOT).as_posix())
    assert not lone_parts - set(ONE_USER), "move them into the file of the method, or say in ONE_USER why they stay"
    assert not set(ONE_USER) - lone_parts, "more than one file uses them: ONE_USER need not list them"


def test_methods_share_functions_but_no_parts():
    bad = []
    for path, tree in trees():
        for line, name in imported(path, tree) if method_of(path) else ():
            if name[:2] == ("understudy", "methods") and name[2] not in ("needs", "registry"):
                family, method, attribute = (*name[2:], "")[:3]
                if attribute.lower().replace("_", "") != method.replace("_", ""):  # its function or class
                    bad.append(f"{path.relative_to(ROOT)}:{line} imports {'.'.join(name)}")
    assert not bad, f"move what two methods need to its room: {bad}"


def test_packages_of_methods_hold_no_logic():
    for path, tree in trees():
        if parts(path)[0] == "methods" and path.stem == "__init__":
            assert not [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))], path
    others = {p.stem for p in (ROOT / "methods").glob("*.py")}
    assert others == {"__init__", "needs", "registry"}, "a method is a file in the folder of its family"


def test_the_rules_can_fail(tmp_path):
    """The walker sees what it must: imports of every form, inside functions too."""
    tree = ast.parse("from ..policy import Policy\ndef f():\n    from . import base\n    import pickle as p\n")
    imported_names = {name for _, name in imported(ROOT / "heads" / "new.py", tree)}
    assert imported_names == {("understudy", "policy", "Policy"), ("understudy", "heads", "base"), ("pickle",)}
    names = {name for _, name in calls(ast.parse("eval('1'); yaml.load(x); torch.load(f)"))}
    assert names == {"eval", "yaml.load", "torch.load"}


def test_every_file_of_a_page_is_in_the_wheel():
    project = tomllib.loads((ROOT.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["understudy"]
    packed = {path for pattern in patterns for path in ROOT.glob(pattern)}
    pages = {path for kind in ("html", "css", "js", "mjs") for path in ROOT.rglob(f"*.{kind}")}
    assert {p.name for p in pages} >= {"live.html", "page.css", "inspect.js"}
    assert not pages - packed, "name them in package-data of pyproject.toml"


def test_commands_in_messages_are_quoted():
    """A path with a space in a hint must be one word in a shell: `hints.command_line` makes it so."""
    from understudy.cli import COMMANDS

    begun = re.compile(rf"understudy ({'|'.join(COMMANDS)})( [^;:,]*)? $|understudy ({'|'.join(COMMANDS)}) [^;:,()]* $")
    names = {"method", "subcommand", "name", "fps", "task", "command"}  # words of the program or of a fixed list
    unquoted = []
    for path, tree in trees():
        for node in (n for n in nodes(tree) if isinstance(n, ast.JoinedStr)):
            for text, value in zip(node.values, node.values[1:], strict=False):
                if not (isinstance(text, ast.Constant) and isinstance(value, ast.FormattedValue)
                        and begun.search(text.value)):
                    continue
                if not (isinstance(value.value, ast.Attribute) and value.value.attr in names):
                    unquoted.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not unquoted, f"write these with hints.command_line: {unquoted}"


MAX_LINES, MAX_PARAMETERS = 60, 8  # of a function, besides its docstring
BY_NAME = "is called by users, who give all but the first parameters by name"
LONG = {
    "choose.py:choose_method": BY_NAME,
    "data/recording/recorder.py:__init__": BY_NAME,
    "evaluate/recording.py:record_episodes": BY_NAME,
    "evaluate/teleoperate.py:teleoperate": BY_NAME,
    "heads/solvers.py:step": "what a solver gets is a contract with solvers of others",
    "commands/parts/method.py:build_method": "what a command says of one method; all but the first are given by name",
    "learn/fit_method.py:fit_method": BY_NAME,
    "robots/acting.py:act_on_robot": BY_NAME,
}


def length_and_parameters(function):
    has_docstring = ast.get_docstring(function) is not None
    docstring = function.body[0].end_lineno - function.body[0].lineno + 1 if has_docstring else 0
    arguments = function.args
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    n_parameters = len(names) - (names[:1] in (["self"], ["cls"])) + bool(arguments.vararg) + bool(arguments.kwarg)
    return function.end_lineno - function.lineno + 1 - docstring, n_parameters


def test_functions_are_short():
    """Functions of named methods are not counted, because their parameters are options of the command line."""
    example = ast.parse("def f(self, a, *b, c=1, **d):\n    '''One\n\n    two.'''\n    return a\n").body[0]
    assert length_and_parameters(example) == (2, 4)
    long = set()
    for path, tree in trees():
        for node in nodes(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (node.name,) != method_of(path)[-1:]:
                length, n_parameters = length_and_parameters(node)
                if length > MAX_LINES or n_parameters > MAX_PARAMETERS:
                    long.add(f"{path.relative_to(ROOT).as_posix()}:{node.name}")
    assert long == LONG.keys(), f"divide {long - LONG.keys()}, and leave {LONG.keys() - long} out of the list"


VAGUE = {"found", "seen", "shown", "said", "told", "known", "given", "left", "rest", "where", "wanted", "odd", "wrong",
         "ran", "made", "near", "far", "mine", "theirs", "held", "gone", "lost"}
# File: assignments to these words, all of them constants of experiments. A number may only fall.
VAGUE_LOCALS: dict[str, int] = {
    "evidence/advice.py": 1, "evidence/families/advice/sentences.py": 2,
    "evidence/families/bad_demonstrations/mixed_demonstrations.py": 1,
    "evidence/families/bad_demonstrations/spoiled_demonstrations.py": 1,
    "evidence/families/matching_rewards/composite_motion.py": 1,
    "evidence/families/matching_rewards/growing_discount.py": 1,
    "evidence/families/observations/styles_by_place.py": 1,
    "evidence/families/rewards_from_people/feature_traces.py": 1,
    "evidence/families/rewards_from_people/marked_steps.py": 1, "benchmarks/bf16_success.py": 1,
    "benchmarks/choose.py": 1, "benchmarks/eager_updates.py": 1, "benchmarks/history.py": 1, "benchmarks/latency.py": 1,
    "benchmarks/one_shot.py": 1, "benchmarks/processes.py": 1, "benchmarks/real_input.py": 1,
    "benchmarks/writing.py": 1}


def vague_locals(tree):
    """Number of assignments to these words, without fields of classes, which are no local names."""
    fields = {id(target) for node in nodes(tree) if isinstance(node, ast.ClassDef) for statement in node.body
              if isinstance(statement, ast.AnnAssign | ast.Assign) for target in ast.walk(statement)}
    return sum(isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
               and node.id.strip("_").lower() in VAGUE and id(node) not in fields for node in nodes(tree))


def test_local_names_say_what_they_hold():
    example = ast.parse("class A:\n    near: float = 0.1\n    def f(self, far):\n        left, (wrong, x) = far\n"
                        "        return [mine.seen for mine in x if (lost := mine)], self.rest\n_FAR = 1\n")
    assert vague_locals(example) == 5
    counts = {path.relative_to(REPOSITORY).as_posix(): vague_locals(tree)
              for path, tree in (*trees(), *evidence_trees(), *benchmark_trees())}
    risen = {file: n for file, n in counts.items() if n > VAGUE_LOCALS.get(file, 0)}
    assert not risen, f"name what these locals hold, which the words of VAGUE do not say: {risen}"
    fallen = {file: counts.get(file, 0) for file, n in VAGUE_LOCALS.items() if counts.get(file, 0) < n}
    assert not fallen, f"lower the numbers in VAGUE_LOCALS, and leave out files with 0: {fallen}"


# File: names of other kinds that are these words. A number may only fall. `where` is the place of an error.
VAGUE_NAMES: dict[str, int] = {  # what users write: memory(shown=), ParticleExpert(near=)
    "src/understudy/envs/toys/memory.py": 1, "src/understudy/envs/toys/particle.py": 1}
NAME_OF = {ast.arg: "arg", ast.alias: "asname", ast.ExceptHandler: "name", ast.MatchAs: "name", ast.MatchStar: "name",
           ast.MatchMapping: "rest", ast.FunctionDef: "name", ast.AsyncFunctionDef: "name", ast.ClassDef: "name"}


def vague_names(tree):
    """Number of parameters, fields, imports, errors, patterns, functions and classes with these words as names."""
    names = []
    for node in nodes(tree):
        if isinstance(node, ast.ClassDef):
            names += [s.target.id for s in node.body if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name)]
        if type(node) in NAME_OF:
            names.append(getattr(node, NAME_OF[type(node)]))
    return sum(name in VAGUE - {"where"} for name in names)


def test_other_names_say_what_they_are():
    example = ast.parse("import a as wrong\nclass seen:\n    near: int = 0\n    where: str = ''\n"
                        "def given(found, *told, where=None, far=lambda made: made):\n    try:\n        pass\n"
                        "    except ValueError as lost:\n        match told:\n            case [known, *rest]:\n"
                        "                pass\n            case {'a': shown, **gone}:\n                pass\n")
    assert vague_names(example) == 13
    counts = {path.relative_to(REPOSITORY).as_posix(): vague_names(tree)
              for path, tree in (*trees(), *evidence_trees(), *benchmark_trees())}
    changed = {file: n for file, n in counts.items() if n != VAGUE_NAMES.get(file, 0)}
    assert not changed, f"name what these are, or lower the numbers of VAGUE_NAMES: {changed}"
    assert VAGUE_NAMES.keys() <= counts.keys(), "files of VAGUE_NAMES that do not exist"

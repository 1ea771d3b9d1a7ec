"""The names of environments, and the functions that make them."""

from __future__ import annotations

import importlib
import inspect
import io
import re
from contextlib import redirect_stderr, redirect_stdout
from types import ModuleType

from ..config import UntrustedCode
from ..core import UserError, unknown_name
from ..headless import prefer_offscreen
from ..hints import is_standard_library, trust_hint
from ..plugins import find_plugins, load_plugin
from ..user_code import import_module
from .base import Env
from .physics import simulator_version

IMAGES = "@images"  # behind a name: what cameras see is observed
TRIALS = "@trials"  # behind a name: an episode is several trials
SIMULATORS = "pip install 'understudy[sim]' brings MuJoCo, Gymnasium-Robotics and Meta-World"
# module -> the extra that brings its simulator, where that is not sim
EXTRAS = {"ogbench": "ogbench", "dm_control": "dmcontrol", "minigrid": "minigrid", "pusht": "pusht",
          "highway": "highway", "block_pushing": "blockpush"}
ROBOSUITE_HINT = "it needs its own Python environment: see robosuite in the documents' page Environments"
GYM_ID = re.compile(r"(\w+/)?[A-Z]\w*(-\w+)*-v\d+")
REGISTRIES = ("gymnasium_robotics", "gym_pusht", "minigrid", "highway_env")  # name Gymnasium ids when imported

# what a name starts with -> the module of simulators/ whose `make` makes it
ADAPTERS = {
    "block_pushing/": "block_pushing", "metaworld/": "metaworld", "ogbench/": "ogbench",
    "dm_control/": "dm_control", "robosuite/": "robosuite",
    "AdroitHandDoor-v1$": "adroit", "(Adroit)?Hand[A-Z]|Fetch[A-Z]|(Point|Ant)Maze_|FrankaKitchen-": "robotics",
    "(MiniGrid|BabyAI)-": "minigrid", "gym_pusht/": "pusht",
    "(highway|merge|roundabout|parking|intersection|racetrack|exit|two-way|u-turn|lane-keeping)-": "highway"}

# name -> module of toys/ and definition in it, called with rows and options
TOYS = {"fork": ("fork", "Fork"), "particle": ("particle", "Particle"), "push": ("push", "Push"),
        "push-images": ("push", "push_images"), "blocks": ("blocks", "Blocks"), "memory": ("memory", "MemoryCorridor"),
        "maze": ("maze", "Maze"), "arms": ("arms", "Arms"), "drive": ("drive", "Drive"), "words": ("words", "Words"),
        "tabular": ("tabular", "Tabular"), "four_rooms": ("four_rooms", "FourRooms"),
        "gridworld_tasks": ("gridworld_tasks", "GridworldTasks"), "peg_insertion": ("peg_insertion", "PegInsertion"),
        "planar_arms": ("planar_arms", "PlanarArms"), "tabletop": ("tabletop", "Tabletop"),
        "lane_driving": ("lane_driving", "LaneDriving")}
# toy -> the option that stands behind its name after ":", and its type
VARIANTS = {"particle": ("dim", int), "tabular": ("task", str), "four_rooms": ("style", str),
            "maze": ("levels", int), "planar_arms": ("task", str), "tabletop": ("control", str)}
# what is recorded here has no goal, so that nothing is a success -> the same world with goals
WITH_GOALS = {f"four_rooms:{style}": "four_rooms" for style in ("play", "play-40", "play-80", "stitch", "noisy")}


def names() -> tuple[str, ...]:
    """Returns the names of the bundled toys."""
    return tuple(TOYS)


def entry_point(name: str) -> tuple[str, str] | None:
    """Returns the module and the definition that make an environment of this name.

    Args:
        name: Name of a toy, a Gymnasium id, or a name such as "metaworld/door-open-v3".

    Returns:
        Import path of the module, and a name in it. None for environments of other packages.
    """
    name = base_name(name)
    if (toy := name.partition(":")[0]) in TOYS:
        module, definition = TOYS[toy]
        return f"{__package__}.toys.{module}", definition
    if (module := _adapter(name)) is not None:
        return f"{__package__}.simulators.{module}", "make"
    return (f"{__package__}.mujoco", "Mujoco") if GYM_ID.fullmatch(name) else None


def _adapter(name: str) -> str | None:
    """Returns the module that makes environments of this name."""
    return next((module for pattern, module in ADAPTERS.items() if re.match(pattern, name)), None)


def make(name: str, rows: int = 1, trust: tuple[str, ...] = (), **options) -> Env:
    """Makes an environment with `rows` copies, by its name.

    Args:
        name: One of:

            - a toy (`names()`). "particle:8" is "particle" in eight dimensions, and "tabular:bandit" a task of
              "tabular";
            - a Gymnasium id, such as "Hopper-v4". Packages of `trust` are imported for the ids that they name;
            - "metaworld/door-open-v3", "ogbench/NAME", "dm_control/DOMAIN-TASK" or "robosuite/NAME";
            - "module:factory", a function or class of a package of `trust` that gives an Env, a gymnasium.Env or a
              gymnasium.vector.VectorEnv. Its parameter `rows`, if it has one, is how many run side by side; a single
              gymnasium.Env is asked for once a row;
            - a name that an installed package registers under the entry points `understudy.envs`. It stands for such
              a factory, and needs no trust;
            - one of these with "@images" behind it: images of 96 x 96 pixels are observed, and what only a simulator
              knows is hidden (see `image_obs.ImageObs`). "@images=64,corner2,gripperPOV" says the size and the cameras;
            - one of these with "@trials=5" behind it: an episode is 5 trials (see `episode_wrappers.MultiTrialEnv`),
              each from another start. "@trials=5,same" starts all trials of an episode alike.

    Returns:
        The environment. `metadata["simulator"]` is its version and physics, in words.

    Raises:
        UntrustedCode: For code that is not trusted.
    """
    if not isinstance(name, str):
        raise UserError(f"{name!r} is not the name of an environment", where="make",
                        hint='name it, such as "Pendulum-v1", or a function that makes it: "module:factory"')
    single, *_ = name.partition(TRIALS)
    if single != name:
        return _with_trials(single, name, rows, trust, options)
    base = base_name(name)
    env = _make(base, rows, trust, options)
    if type(env).__module__.startswith(f"{__package__}."):  # one of ours, or of Gymnasium's in ours
        env.metadata = {**env.metadata, "simulator": simulator_version(env)}
    return env if base == name else _with_images(env, name)


def base_name(name: str) -> str:
    """The name of an environment without what is added behind it: images, as in "metaworld/door-open-v3@images=64", or
    trials."""
    return name.partition(TRIALS)[0].partition(IMAGES)[0]


def _with_trials(single: str, name: str, rows: int, trust: tuple[str, ...], options: dict) -> Env:
    """Wraps an environment so that its episodes consist of as many trials as its name says."""
    from .episode_wrappers import MultiTrialEnv

    match = re.fullmatch(r"=(\d+)(,same)?", name.removeprefix(single + TRIALS))
    if match is None:
        raise UserError(f"{name.removeprefix(single)} is not understood", where=name,
                        hint=f"such as {single}{TRIALS}=5, or {single}{TRIALS}=5,same to start all trials alike")
    env = MultiTrialEnv(make(single, rows, trust, **options), int(match[1]), redraw=match[2] is None)
    env.metadata = {**env.metadata, "env": name}
    return env


def _with_images(env: Env, name: str) -> Env:
    """Wraps an environment so that it shows the images that its name asks for."""
    from .image_obs import SIZE, with_images

    settings = name.partition(IMAGES)[2]
    parts = settings.removeprefix("=").split(",") if settings else []
    if settings and not settings.startswith("=") or "" in parts:
        raise UserError(f"{IMAGES}{settings} is not understood", where=name,
                        hint=f"such as {IMAGES}, {IMAGES}=64 or {IMAGES}=64,corner2: pixels a side, then cameras")
    size = int(parts.pop(0)) if parts and parts[0].isdecimal() else SIZE
    return with_images(env, size, parts)


def _make(name, rows, trust, options) -> Env:
    toy, _, variant = name.partition(":")
    if toy in TOYS and (not variant or toy in VARIANTS):
        if variant:
            options = {**options, **_variant(toy, variant)}
        entry = entry_point(toy)
        assert entry is not None
        module, definition = entry
        build = getattr(importlib.import_module(module), definition)
        try:
            return build(rows, **options)
        except TypeError as error:
            raise UserError(f"the environment does not take the options {options} ({error})", where=name,
                            hint=f"it is made by {definition}{inspect.signature(build)}") from error
    prefer_offscreen()  # before any code that may import MuJoCo
    if (adapter := _adapter(name)) is not None:
        return _simulated(adapter, name, rows, options)
    if name in (plugins := find_plugins("envs")):
        return _make_with(load_plugin("envs", name), plugins[name].attr, name, rows, options)
    if ":" in name:
        return _make_from_factory(name, rows, trust, options)
    return _registered(name, name, rows, trust, options)


def _variant(toy: str, text: str) -> dict:
    """Returns the option behind a toy's name, such as 8 in "particle:8"."""
    option, kind = VARIANTS[toy]
    try:
        return {option: kind(text)}
    except ValueError:
        raise UserError(f"{text!r} is not a number", where=f"{toy}:{text}", hint=f"such as {toy}:8") from None


def _simulated(module, name, rows, options) -> Env:
    try:
        adapter = _import_quietly(f"{__package__}.simulators.{module}")
    except ImportError as error:
        brings = (ROBOSUITE_HINT if module == "robosuite" else SIMULATORS if module not in EXTRAS
                  else f"pip install 'understudy[{EXTRAS[module]}]' brings it")
        raise UserError(f"its simulator is not installed ({error})", where=name, hint=brings) from error
    import gymnasium

    try:
        return adapter.make(name, rows, **options)
    except ImportError as error:
        raise UserError(f"a part of its simulator is missing ({error})", where=name,
                        hint="install what is named there") from error
    except (gymnasium.error.Error, TypeError) as error:
        raise UserError(f"it cannot be made: {error}", where=name, hint="check its options") from error


def _registered(gym_id, name, rows, trust, options) -> Env:
    import gymnasium

    from . import gymnasium_adapter
    for package in (*trust, *REGISTRIES):
        if gym_id in gymnasium.registry:
            break
        if package in trust:
            import_module(package, f"--trust {package}")
            continue
        try:
            _import_quietly(package)
        except ImportError:
            continue
    if gym_id not in gymnasium.registry:
        raise unknown_name(
            "environment", name, [*names(), *gymnasium.registry], "environment",
            hint=f"Known are the toys {', '.join(names())}, Gymnasium's ids, metaworld/NAME, ogbench/NAME, "
            f"dm_control/NAME, robosuite/NAME and module:factory; {SIMULATORS}; --trust PACKAGE imports one that "
            "registers its own ids")
    try:
        env = gymnasium_adapter.build(gym_id, **options)
    except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
        brings = SIMULATORS if "mujoco" in str(error).lower() else "install what is named there"
        raise UserError(f"its simulator is not installed ({error})", where=name, hint=brings) from error
    except (gymnasium.error.Error, TypeError) as error:
        raise UserError(f"Gymnasium cannot make it: {error}", where=name, hint="check its options") from error
    return _adapt_gym_env(name, env, lambda: gymnasium_adapter.build(gym_id, **options), rows)


def _adapt_gym_env(name, env, again, rows, checked: bool = False) -> Env:
    """Wraps a gymnasium.Env in rows. checked: what it returns is compared with its spaces at every step."""
    from . import gymnasium_adapter

    gymnasium_adapter.check_api(env, name)
    first = [env]  # already built

    def build():
        env = first.pop() if first else again()
        return gymnasium_adapter.CheckedEnv(env) if checked else env
    vec = gymnasium_adapter.vectorize(build, rows)
    if len({id(e.unwrapped) for e in vec.envs}) < rows:
        raise UserError("the function must build a new environment at every call, but returned the same one again",
                        where=name, hint="build it inside the function")
    metadata = gymnasium_adapter.env_metadata(env, name)
    if gymnasium_adapter.is_mujoco(env):
        from .mujoco import Mujoco

        return Mujoco(vec, metadata)
    return gymnasium_adapter.wrap_vector(vec, metadata)


def _make_from_factory(name, rows, trust, options) -> Env:
    import gymnasium

    module, _, factory = name.partition(":")
    package = module.split(".")[0]
    if package not in trust:
        raise UntrustedCode(f"names code of the package {package!r}, which is not trusted", where=name,
                        hint=trust_hint(package) + ("" if is_standard_library(package) else
                                                       f" (in Python: trust=({package!r},))"))
    code = import_module(module, name)
    build = getattr(code, factory, None)
    if build is None and factory in gymnasium.registry:  # Gymnasium's own way of naming who registers an id
        return _registered(factory, name, rows, (), options)
    if build is None:
        raise unknown_name("function", factory, _own_callables(code), name, owner=module,
                           hint="an environment is named module:factory")
    if not callable(build):
        raise UserError(f"{factory!r} in {module} is not a function or class, but {type(build).__name__}", where=name,
                        hint="an environment is named module:factory")
    return _make_with(build, factory, name, rows, options)


def _own_callables(module: ModuleType) -> list[str]:
    """Returns the functions and classes that a module defines itself."""
    return [name for name, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", None) == module.__name__ and not name.startswith("_")]


def _make_with(build, factory: str, name: str, rows: int, options: dict) -> Env:
    """Calls a function or class of another package that makes an environment."""
    import gymnasium

    from . import gymnasium_adapter
    parameters = inspect.signature(build).parameters
    if "rows" in parameters:
        options = {"rows": rows, **options}
    try:
        inspect.signature(build).bind(**options)
    except TypeError as error:
        raise UserError(f"{factory}{inspect.signature(build)} needs more than rows",
                        where=name, hint=f"give what else it needs a default ({error})") from None
    env = build(**options)
    if isinstance(env, Env):
        return env
    if isinstance(env, gymnasium.vector.VectorEnv):
        return gymnasium_adapter.wrap_vector(
            env, {"env": name, "version": None, "fps": env.metadata.get("render_fps"), "limit": None}
        )
    if isinstance(env, gymnasium.Env):
        return _adapt_gym_env(name, env, lambda: build(**options), rows, checked=True)
    raise UserError(f"the factory returned {type(env).__name__}, not an Env, a gymnasium.Env or a VectorEnv",
                    where=name, hint="let the factory return one of these")


def _import_quietly(module: str) -> ModuleType:
    """Imports a module without its output, because simulators print greetings."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        return importlib.import_module(module)

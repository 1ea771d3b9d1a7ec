"""The command understudy serve."""

from __future__ import annotations

import asyncio
import contextlib
import math
import shlex
import signal
import sys
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg

from ..core import Above, AtLeast, AtMost, Below, ConfigError, Unsupported, UserError, keys
from ..hints import did_you_mean
from ..serve.address import address_host, lerobot_name, served_address
from .parts.common import Output, command_line, has_no_run, parse, trained_rate
from .parts.conditions import demonstration_source, parse_conditions, shown_demonstrations, tell_distant_conditions
from .parts.groups import ActingOptions, ConditionTexts, PositiveCount, SchemeName, TaskWords, command_options
from .parts.options import Advice, refuse_given, split_pairs
from .parts.policies import load_actor, load_policy, untrained_warning, weights_digest, weights_path
from .parts.unblocked_output import unblocked_output

if TYPE_CHECKING:
    from torch import Tensor

    from ..data.text_columns import TaskText
    from ..policy import Policy
    from ..serve.policy_service import PolicyService
    from ..serve.server import PolicyServer


@command_options
class ServeOptions(ActingOptions):
    """Serve a trained policy over websockets, to clients of understudy and of openpi.

    Clients get a chunk of actions for an observation, or single actions of the executor. The health of the server is at
    /healthz, and its metrics for Prometheus at /metrics. SIGTERM ends it after the replies that are being computed, and
    SIGHUP loads the newest checkpoint. The log on standard error has one JSON object a line.

    With --steer ENV, a page takes the place of the clients. The policy acts in this environment, and goes where you
    click.
    """

    run: Annotated[Path, Positional, arg(metavar="RUN")]
    """a run (its last checkpoint), RUN/best, a checkpoint, a file of understudy export, or a run of LeRobot;
    with --lerobot-python lerobot:PATH for any policy of LeRobot"""
    host: str = "127.0.0.1"
    """address to listen on; 0.0.0.0 for all, which needs --token-file or --open"""
    port: Annotated[int, AtLeast(0), AtMost(65535), Advice("choose another one, or 0 for any that is free")] = 8000
    """port; 0 for any that is free"""
    token_file: Annotated[Path | None, arg(metavar="FILE")] = None
    """file with one token a line; clients need one of them"""
    open: bool = False
    """let everybody in the network connect"""
    tls_cert: Annotated[Path | None, arg(metavar="PEM")] = None
    """certificate, for wss://"""
    tls_key: Annotated[Path | None, arg(metavar="PEM")] = None
    """private key of the certificate"""
    origin: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="URL")] = ()
    """a web page whose scripts may connect, such as https://lab.example"""
    executor: SchemeName = None
    """another execution scheme than the policy was trained with"""
    reply: Literal["chunk", "action"] | None = None
    """send whole chunks, or execute them here and send single actions; by default chunks if the executor has them"""
    deadline: Annotated[float | None, Above(0), Advice("such as --deadline 0.1"), arg(metavar="SECONDS")] = None
    """time after a request by which the reply must be ready"""
    fallback: Literal["hold", "last-chunk", "stop"] = "stop"
    """what a client gets if the reply is not ready by --deadline: its last action again, the rest of its last chunk, or
    an error, so that it stops"""
    max_message: Annotated[float, Above(0), arg(metavar="MB")] = 16.0
    """largest size of a message"""
    max_rate: Annotated[float, Above(0), arg(metavar="N")] = 1000.0
    """largest number of requests per second of one client; faster ones wait"""
    max_clients: PositiveCount = 256
    """largest number of clients at a time"""
    max_batch: PositiveCount = 64
    """largest number of requests that are planned together"""
    watch: bool = False
    """load each new checkpoint of the run as soon as it is complete"""
    rename: Annotated[tuple[str, ...], arg(metavar="NAME=COLUMN")] = ()
    """columns that clients send under other names: observation/image=observation.images.front"""
    action_convention: Annotated[str | None, arg(metavar="WORDS")] = None
    """what the actions mean, such as absolute or delta; clients that say otherwise are refused"""
    task: TaskWords = None
    """the task in words for clients that send none, for a policy that was trained with --language"""
    condition: ConditionTexts = ()
    """what the policy reads and clients do not send: return_to_go=100, or
    demonstration=DATA:3 for what episode 3 of DATA shows"""
    steer: Annotated[str | None, arg(metavar="ENV")] = None
    """serve a page on which the policy acts in this environment (fork, particle, push) and is steered by clicks"""
    steer_scale: Annotated[float, AtLeast(0), Below(math.inf), arg(metavar="X")] = 100.0
    """with --steer: strength of the steering"""


def main(args: list[str]) -> None:
    o = parse(ServeOptions, "serve", args)
    from ..serve.access import JsonLog, read_tokens, readable_tokens_warning, refuse_strangers, tls_context
    from ..serve.pauses import reduce_pauses

    try:
        from ..serve.server import PolicyServer, ServerOptions
    except ImportError as error:
        raise UserError(f"the package {error.name} is not installed", where="understudy serve",
                        hint="pip install 'understudy[serve]'") from None

    address = served_address(o.run)
    if address is not None and lerobot_name(address) is not None:
        refuse_given(o, ("watch",), "has no effect on a policy of LeRobot, which is loaded once")
    elif address is not None:
        raise Unsupported("a policy at an address is served already", where=str(o.run),
                          hint="give the run on the machine that serves it")
    if o.steer is None:
        refuse_given(o, ("steer_scale",), "has no effect without --steer ENV", "leave it out, or add --steer")
    else:
        refuse_given(o, vars(o).keys() - STEERING_OPTIONS, "has no effect with --steer")
    tokens = () if o.token_file is None else read_tokens(o.token_file)
    if not o.open:
        refuse_strangers(o.host, tokens, "give --open if that is meant" if o.steer is not None else
                         "give --token-file FILE, or --open if that is meant")
    if o.steer is not None:
        return _serve_steering(o)
    options = ServerOptions(o.host, o.port, tokens, tls_context(o.tls_cert, o.tls_key), o.origin,
                            int(o.max_message * 2**20), o.max_rate, o.max_clients, o.max_batch, o.deadline, o.fallback)
    service = load_service(o)
    log = JsonLog()
    if warning := untrained_warning(o.run, o.trust):
        log("warning", message=warning)
    if warning := readable_tokens_warning(o.host, tokens, options.tls is not None):
        log("warning", message=warning)
    reduce_pauses()
    with contextlib.suppress(KeyboardInterrupt), unblocked_output():
        asyncio.run(_serve(o, service, PolicyServer(service, options, log)))


STEERING_OPTIONS = {"run", "host", "port", "open", "executor", "task", "condition", "steer", "steer_scale", "seed",
                    "device", "trust"}  # options that --steer reads


def _serve_steering(o: ServeOptions) -> None:
    from ..envs import make
    from ..serve.page import open_page_port
    from ..serve.steering_page import SteeringPage

    assert o.steer is not None
    env = make(o.steer, 1, o.trust)
    actor, _ = load_actor(o.run, env, o, rows=None, tell=True)
    page = SteeringPage(actor, env, o.steer_scale, o.seed, f"{o.run} in {o.steer}")
    listening, address, origins = open_page_port(o.host, o.port, f"--host {o.host} --port {o.port}")
    Output().print(f"Open {address} and click on the picture. Ctrl-C ends it.")
    sys.stdout.flush()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(page.run(listening, None if o.open else origins))


async def _serve(o: ServeOptions, service: PolicyService, server: PolicyServer) -> None:
    from ..learn.training_curves import describe_checkpoint
    from ..serve.reload import Reloader
    from ..serve.remote import TOKEN_VARIABLE

    loop, out = asyncio.get_running_loop(), Output()
    reloader = Reloader(service, partial(load_service, o), partial(_newest, o), server.metrics, server.log)
    reloads: set[asyncio.Future] = set()

    def reload() -> None:
        reloads.add(asyncio.ensure_future(reloader.reload()))

    def announce() -> None:
        if not has_no_run(o.run) and (line := describe_checkpoint(o.run)) is not None:
            server.log("policy", message=line)
        with contextlib.suppress(NotImplementedError):  # on Windows
            loop.add_signal_handler(signal.SIGTERM, server.stop)
            loop.add_signal_handler(signal.SIGINT, server.stop)
            loop.add_signal_handler(signal.SIGHUP, reload)
        address = f"{'wss' if server.options.tls else 'ws'}://{address_host(o.host)}:{server.port}"
        out.print(f"{o.run} is served at {address}. Ctrl-C ends it.")
        token = f"{TOKEN_VARIABLE}={shlex.quote(str(o.token_file))} " if o.token_file else ""
        out.suggest(token + command_line("act", address, "--robot", "TYPE"),
                    token + command_line("eval", address, "ENV"))
        sys.stdout.flush()
        if o.watch:
            reloads.add(asyncio.ensure_future(reloader.watch()))
    await server.run(announce)
    for task in reloads:
        task.cancel()


def load_service(o: ServeOptions) -> PolicyService:
    """Loads the policy of a run for a server."""
    from ..data.text_columns import TaskText
    from ..execute.actor import TransformedActor
    from ..learn.method import Method
    from ..policy import Policy
    from ..serve.describe import policy_metadata, policy_schema
    from ..serve.policy_service import PolicyService, ServedPolicy
    from .parts.method import task_relabel

    while True:
        name = _newest(o)
        planner, actor, _ = load_policy(o.run, o, None)
        if _newest(o) == name:  # else a training has written another checkpoint meanwhile
            break
    computed: tuple[str, ...] = ()
    if isinstance(actor, TransformedActor):
        if all(isinstance(change, TaskText) and not change.optional for change in actor.transforms):
            actor = actor.actor  # clients give these columns
        else:
            computed = tuple(getattr(c, "into", "") for c in actor.transforms if not isinstance(c, TaskText))
    say = None if has_no_run(o.run) else task_relabel(Method.load(o.run, o.trust))
    texts, defaults, renamed = {} if say is None else {say.into: say.encode}, _default_columns(o, say), split_pairs(
        "--rename", o.rename, "observation/image=observation.images.front")
    for option, columns in (("--condition", defaults), ("--rename", renamed.values())):
        if unknown := [c for c in columns if c not in planner.inputs]:
            raise ConfigError(f"the policy does not read {unknown[0]!r}; it reads {', '.join(planner.inputs)}",
                              where=option, hint=did_you_mean(unknown[0], planner.inputs) or "leave it out")
    tell_distant_conditions(o.run, parse_conditions(o.condition, {}), o.trust)
    served = ServedPolicy(actor, planner, name, texts, renamed, defaults, computed)
    if o.reply == "chunk" and served.policy_actor is None:
        raise ConfigError("this policy is not executed in chunks", where="--reply chunk",
                          hint="leave it out, or choose an executor with chunks: --executor receding-horizon")
    schema = policy_schema(served, fps=trained_rate(o.run), action_convention=o.action_convention)
    metadata = policy_metadata(served, schema, name=o.run.name, deadline=o.deadline, fallback=o.fallback)
    if isinstance(planner, Policy):
        _warm_up(planner)
    return PolicyService(served, metadata, schema, reply=o.reply, seed=o.seed)


def _default_columns(o: ServeOptions, say: TaskText | None) -> dict[str, Tensor]:
    """Returns the values of --task and --condition, for clients that send none.

    Args:
        say: What encodes the task for the policy. None if it reads no words.
    """
    import torch

    defaults = parse_conditions(o.condition, {})
    if o.task is not None:
        if say is None:
            raise ConfigError("this policy was trained without words", where="--task", hint="leave it out")
        defaults[say.into] = torch.from_numpy(say.encode(o.task).copy())
    if any(demonstration_source(text) is not None for text in o.condition):  # otherwise clients send it
        if (demonstrated := shown_demonstrations(o.run, o.condition, o.trust)) is None:
            raise ConfigError("this policy does not read a demonstration", where="--condition", hint="leave it out")
        data, show = demonstrated
        if len(data) != 1:
            raise ConfigError(f"there are {len(data)} episodes, but a server shows one", where="--condition",
                              hint="name it: --condition demonstration=DATA:3")
        defaults |= dict(zip(show.into, torch.from_numpy(show.frames(data[0])), strict=True))
    return defaults


def _warm_up(policy: Policy) -> None:
    """Plans twice, so that no client waits for what is built at the first plan."""
    import torch

    from ..deploy.equivalence import random_observations

    with torch.no_grad():
        for rows in (1, 2):
            key = keys(0, range(rows)).to(policy.device)
            policy.plan(random_observations(policy, rows), policy.noise(key, torch.zeros_like(key)))


def _newest(o: ServeOptions) -> str:
    """Returns the digest of the newest checkpoint.

    Files are read only if they have changed, because --watch asks every second.
    """
    path = weights_path(o.run)
    if served_address(path) is not None:  # a process of LeRobot
        return weights_digest(path)
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return _digest(path, tuple((str(f), s.st_mtime_ns, s.st_size) for f in files for s in [f.stat()]))


@lru_cache(maxsize=1)
def _digest(path: Path, stamp: tuple[tuple[str, int, int], ...]) -> str:
    return weights_digest(path)

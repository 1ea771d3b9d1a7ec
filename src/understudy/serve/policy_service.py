"""Answers requests with a policy: the state of each client, and plans of several clients in one call of the network."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor

from ..core import State, UserError, keys, take, tree_map
from ..execute.actor import VALUE_NAMES, Actor, PolicyActor, dtype_fits
from ..execute.chunking import ChunkedExecutor, PlanRequest
from ..policy import Guide, Inpaint, LastChunk, Planner
from .service import Reply, Request, RequestError, Service
from .wire import as_array

MAX_ROWS = 1024  # of one request, and of one client that leaves its state on the server
OPS = ("infer", "plan", "start", "act")


@dataclass(frozen=True)
class ServedPolicy:
    """A policy that is served.

    Args:
        checkpoint: Which weights these are.
        texts: Functions that make a column from the words of a prompt, by the name of the column.
        renamed: Columns by other names of them that clients use.
        defaults: Columns that clients need not send.
        computed: Columns that the actor computes while acting.
    """

    actor: Actor
    planner: Planner
    checkpoint: str = ""
    texts: Mapping[str, Callable[[str], np.ndarray]] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Tensor] = field(default_factory=dict)
    computed: tuple[str, ...] = ()

    @property
    def policy_actor(self) -> PolicyActor | None:
        """The actor, if it is of a kind of which clients can get whole chunks. None otherwise."""
        return None if self.chunked_executor is None else cast(PolicyActor, self.actor)

    @property
    def chunked_executor(self) -> ChunkedExecutor | None:
        """The executor, if clients can get whole chunks. None otherwise."""
        executor = self.actor.executor if isinstance(self.actor, PolicyActor) else None
        return executor if isinstance(executor, ChunkedExecutor) else None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a client must send. Text may come as a prompt."""
        return tuple(n for n in self.planner.inputs if n not in self.defaults and n not in self.computed)


class PolicyService(Service):
    """Serves a policy to clients of openpi and of understudy.

    Args:
        schema: What the policy reads and plans.
        reply: "chunk" sends whole chunks, "action" executes them on the server. None for chunks if the executor has
            them. A client may ask for either kind.
    """

    def __init__(self, served: ServedPolicy, metadata: dict[str, object], schema: dict[str, object] | None = None, *,
                 reply: Literal["chunk", "action"] | None = None, seed: int = 0):
        self.served, self.metadata, self.schema, self.seed = served, metadata, schema, seed
        self.reply = reply or ("action" if served.policy_actor is None else "chunk")
        self._episodes, self._handles = itertools.count(), itertools.count()

    @property
    def checkpoint(self) -> str:
        return self.served.checkpoint

    def replace_policy(self, new: PolicyService) -> None:
        """Replaces the policy by another checkpoint from the next batch on. Clients and their episodes stay.

        Args:
            new: A service whose policy reads and plans the same. See `describe.same_interface`.
        """
        self.metadata, self.schema = new.metadata, new.schema
        self.served = new.served

    # -- in the thread of the event loop --------------------------------------------------------------------------

    def check(self, request):
        op = request.options.get("op", "infer")
        if op not in OPS:
            raise RequestError(f"there is no operation {op!r}; there are {', '.join(OPS)}")
        if (mode := self._mode(request)) not in ("chunk", "action"):
            raise RequestError(f"there is no mode {mode!r}; there are chunk and action")
        if mode == "chunk" and op == "infer" and self.served.policy_actor is None:
            raise RequestError(_NO_CHUNKS)
        for name in ("executed", "delay", "seed", "episode"):
            request.whole(name, None)

    def default_executed(self, request):
        executor = self.served.chunked_executor
        return executor.n_action_steps if executor is not None and self._mode(request) == "chunk" else 1

    def accept_fallback(self, request, actions):
        super().accept_fallback(request, actions)
        run, executor = request.session.state.get("run"), self.served.chunked_executor
        if run is not None and executor is not None and self._mode(request) == "chunk":
            # the chunk that is executed now
            chunk = run["chunk"].clone()
            chunk[0, executor.skip:] = torch.as_tensor(actions).to(chunk)
            request.session.state["run"] = {**run, "chunk": chunk}

    def _mode(self, request: Request) -> str:
        return str(request.options.get("mode") or self.reply)

    # -- in the thread of the network -----------------------------------------------------------------------------

    @torch.no_grad()
    def run(self, requests):
        served = self.served  # one version for the whole batch
        replies: dict[int, Reply | Exception] = {}
        groups: dict[object, dict[int, _Work]] = {}
        for i, request in enumerate(requests):
            try:
                work = self._prepare(served, request)
            except Exception as error:  # in one request: the server still answers the rest
                replies[i] = error
            else:
                groups.setdefault(work.kind(), {})[i] = work
        for group in groups.values():
            for i, reply in zip(group, _run_group(served, list(group.values())), strict=True):
                replies[i] = replace(reply, checkpoint=served.checkpoint) if isinstance(reply, Reply) else reply
        return [replies[i] for i in range(len(requests))]

    def _prepare(self, served: ServedPolicy, request: Request) -> _Work:
        op = request.options.get("op", "infer")
        if op == "plan":
            return _explicit_plan(served, request)
        if op in ("start", "act"):
            return self._remote_actor(served, request, op == "start")
        if self._mode(request) == "action":
            return self._next_action(served, request)
        return self._next_chunk(served, request)

    def _key(self, request: Request) -> Tensor:
        episode = request.whole("episode", None)
        seed = request.whole("seed", self.seed)
        return keys(self.seed if seed is None else seed, [next(self._episodes) if episode is None else episode])

    def _next_chunk(self, served: ServedPolicy, request: Request) -> _Work:
        """Prepares the reply with a whole chunk, which the client executes."""
        actor, executor, state = served.policy_actor, served.chunked_executor, request.session.state
        assert actor is not None and executor is not None
        planner = actor.planner
        steps, executed = observation_steps(served, request), request.whole("executed", executor.n_action_steps) or 0
        run, windows = state.get("run"), state.get("seen", {})
        if run is None or request.options.get("reset"):
            key = self._key(request)
            first, windows = actor.first_windows(steps[0], key)
            run = executor.start(planner, first, key.to(planner.device))
        else:
            steps = _new_steps(steps, executed, planner.window.n_obs_steps)
        for obs in steps:
            windows = actor.next_windows(obs, windows)
        if (delay := request.whole("delay", None)) is not None:
            executor = executor.with_delay(delay, planner)
        run = {**run, "cursor": torch.full_like(run["cursor"], executed)}
        plan = executor.request_plan(planner, windows, run, torch.zeros(1, dtype=torch.int64))
        if plan is None:
            raise RequestError(f"{type(executor).__name__} plans at times of its own, so the server executes it: ask "
                               "for single actions (mode 'action', or serve with --reply action)")

        def finish(chunk: Tensor) -> Reply:
            after = executor.accept_plan(planner, run, plan, chunk)
            actions = after["chunk"][0, executor.skip:].cpu().numpy().astype(np.float32)
            if not np.isfinite(actions).all():
                raise RequestError("the policy planned an action that is not finite")

            def commit(in_time: bool) -> None:
                state["seen"] = windows
                if in_time:
                    state["run"], request.session.sent = after, actions
            return Reply({"actions": actions}, commit)
        return _Plan(plan, finish)

    def _next_action(self, served: ServedPolicy, request: Request) -> _Work:
        """Prepares the reply with one action. The server executes the chunks."""
        session, steps = request.session, observation_steps(served, request)
        before = session.state.get("acting")
        if before is None or request.options.get("reset"):
            before = served.actor.start(steps[0], self._key(request))
            for obs in steps[:-1]:  # a window that the client sent as a whole
                if isinstance(served.actor, PolicyActor):
                    before = {**before, "seen": served.actor.next_windows(obs, before["seen"])}

        def finish(action: Tensor, after: State) -> Reply:
            actions = action.cpu().numpy().astype(np.float32)

            def commit(in_time: bool) -> None:
                session.state["acting"] = after
                if in_time:
                    session.sent = actions
            return Reply({"actions": actions}, commit)
        return _Act(steps[-1], before, finish)

    def _remote_actor(self, served: ServedPolicy, request: Request, start: bool) -> _Work:
        """Prepares the reply for several rows of a rollout, whose states the server keeps under handles."""
        obs, kept = batched_columns(served, request), request.session.state.get("rows", {})
        n = len(next(iter(obs.values())))
        if start:
            state, handles = served.actor.start(obs, _whole_numbers(request, "key", n)), [
                next(self._handles) for _ in range(n)]

            def commit(in_time: bool) -> None:
                kept = request.session.state.setdefault("rows", {})
                kept.update((h, take(state, [i])) for i, h in enumerate(handles))
                for old in list(kept)[:max(0, len(kept) - MAX_ROWS)]:
                    del kept[old]
            return _Done(Reply({"rows": np.asarray(handles, np.int64)}, commit))
        handles = _whole_numbers(request, "rows", n).tolist()
        if unknown_handles := [h for h in handles if h not in kept]:
            raise RequestError(f"the server has no state of row {unknown_handles[0]}; start the episode again")

        def finish(action: Tensor, after: State) -> Reply:
            def commit(in_time: bool) -> None:
                for i, h in enumerate(handles):
                    kept.pop(h, None)  # the last used are the last to go
                    kept[h] = take(after, [i])
            return Reply({"actions": action.cpu().numpy()}, commit)
        return _Act(obs, _joined([kept[h] for h in handles]), finish)


_NO_CHUNKS = ("this policy is not executed in chunks, so the server executes it: ask for single actions "
              "(mode 'action', or serve with --reply action)")


# -- batches ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Done:
    reply: Reply

    def kind(self):
        return "done"


@dataclass(frozen=True)
class _Plan:
    request: PlanRequest
    finish: Callable[[Tensor], Reply]

    def kind(self):
        """Returns the kind of the request. Requests of one kind are planned together."""
        guides = tuple(type(g) for g in self.request.guides)
        if type(self.request) is not PlanRequest or not set(guides) <= {LastChunk, Inpaint}:
            return self
        return ("plan", guides, self.request.n_samples, _signature(self.request.obs))

    def __hash__(self):
        return id(self)


@dataclass(frozen=True)
class _Act:
    obs: Mapping[str, Tensor]
    state: State
    finish: Callable[[Tensor, State], Reply]

    def kind(self):
        return ("act", _signature(self.obs))


_Work = _Done | _Plan | _Act


def _run_group(served: ServedPolicy, members: Sequence[_Work]) -> list[Reply | Exception]:
    """Returns the replies to requests of one kind, planned together. If that fails, each is planned alone."""
    try:
        return _run_together(served, members)
    except Exception as error:
        if len(members) == 1:
            return [error]
        return [reply for member in members for reply in _run_group(served, [member])]


def _run_together(served: ServedPolicy, members: Sequence[_Work]) -> list[Reply | Exception]:
    plans = [m for m in members if isinstance(m, _Plan)]
    if plans:
        chunks = _merged(plans).plan(served.planner)
        sizes = [len(m.request.rows) for m in plans]
        return [_finished(m.finish, chunk) for m, chunk in zip(plans, chunks.split(sizes), strict=True)]
    acts = [m for m in members if isinstance(m, _Act)]
    if acts:
        sizes = [len(next(iter(m.obs.values()))) for m in acts]
        obs = {name: torch.cat([m.obs[name] for m in acts]) for name in acts[0].obs}
        action, state = served.actor.act(obs, _joined([m.state for m in acts]))
        state = {k: v for k, v in state.items() if k != "record"}
        ends = list(itertools.accumulate(sizes))
        cuts = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
        return [_finished(m.finish, action[cut], take(state, cut)) for m, cut in zip(acts, cuts, strict=True)]
    return [m.reply for m in members if isinstance(m, _Done)]


def _finished(finish: Callable[..., Reply], *results) -> Reply | Exception:
    try:
        return finish(*results)
    except Exception as error:  # only one client fails
        return error


def _merged(plans: Sequence[_Plan]) -> PlanRequest:
    requests = [m.request for m in plans]
    if len(requests) == 1:
        return requests[0]
    guides = tuple(type(same[0])(*(torch.cat([getattr(g, f.name) for g in same]) for f in fields(same[0])))
                   for same in zip(*(r.guides for r in requests), strict=True))
    obs, noise = _joined([dict(r.obs) for r in requests]), _joined([r.noise for r in requests])
    return replace(requests[0], rows=torch.arange(sum(len(r.rows) for r in requests)), obs=obs, noise=noise,
                   guides=guides)


def _joined(trees):
    return trees[0] if len(trees) == 1 else tree_map(lambda *parts: torch.cat(parts), *trees)


def _signature(obs: Mapping[str, Tensor]):
    return tuple((name, tuple(obs[name].shape[1:]), obs[name].dtype) for name in sorted(obs))


# -- columns ----------------------------------------------------------------------------------------------------------


def observation_steps(served: ServedPolicy, request: Request) -> list[dict[str, Tensor]]:
    """Returns the observations in a request, (1, ...) a column. A client may send several steps, oldest first.

    Raises:
        RequestError: Two columns have unequal numbers of steps.
    """
    columns, steps = _columns(served, request), {}
    for name, value in columns.items():
        feature = served.planner.features.get(name)
        if feature is not None and value.ndim == len(feature.shape) + 1:
            steps[name] = len(value)
    if len(set(steps.values())) > 1:
        raise RequestError(f"columns have unequal numbers of steps: {steps}")
    n = next(iter(steps.values()), 1)
    if n > 1 and (single := [c for c in served.columns if c not in {*steps, *served.texts}]):
        raise RequestError(f"columns have unequal numbers of steps: {single[0]!r} has one, and {steps} have several")
    if not 1 <= n <= served.planner.window.n_obs_steps:
        raise RequestError(f"the columns have {n} steps, but the policy reads {served.planner.window.n_obs_steps}")
    return [{name: value[i][None] if name in steps else value[None] for name, value in columns.items()}
            for i in range(n)]


def _new_steps(steps: list[dict[str, Tensor]], executed: int, n_obs_steps: int) -> list[dict[str, Tensor]]:
    """Returns the steps of a request that follow the previous request.

    Args:
        executed: Number of steps since the request before.

    Raises:
        RequestError: The policy reads steps in between that were not sent.
    """
    if len(steps) < min(executed, n_obs_steps):
        raise RequestError(
            f"the policy reads the last {n_obs_steps} steps, and {executed} actions were executed since the request "
            f"before, but this request has {len(steps)} of them. Send the last {n_obs_steps} observations of each "
            f"column as one array ({n_obs_steps}, ...), oldest first, as RemoteRunner does. Or send every observation "
            "and let the server execute the chunks (mode 'action', or serve with --reply action). If fewer actions "
            "were executed, say so by the option 'executed'")
    return steps if len(steps) == n_obs_steps else steps[-max(executed, 1):]


def batched_columns(served: ServedPolicy, request: Request) -> dict[str, Tensor]:
    """Returns the columns of several rows in a request, (B, ...).

    Raises:
        RequestError: They have unequal numbers of rows, or too many.
    """
    columns = _columns(served, request, use_defaults=False)
    sizes = {name: len(value) if value.ndim else 0 for name, value in columns.items()}
    if len(set(sizes.values())) != 1 or not 1 <= (n := next(iter(sizes.values()))) <= MAX_ROWS:
        raise RequestError(f"the columns must have the same number of rows, from 1 to {MAX_ROWS}, but have {sizes}")
    return {**{name: value.expand(n, *value.shape) for name, value in served.defaults.items()}, **columns}


def _columns(served: ServedPolicy, request: Request, use_defaults: bool = True) -> dict[str, Tensor]:
    columns: dict[str, Tensor] = dict(served.defaults) if use_defaults else {}
    sent = dict(_flattened(request.columns))
    for name in served.texts:  # first, so that a column that is sent under its name counts more
        key, words = next(((k, sent[k]) for k in ("prompt", "task") if sent.get(k) is not None), ("", None))
        if isinstance(words, str):
            columns[name] = torch.from_numpy(served.texts[name](words).copy())
        elif words is not None and name not in sent:  # do not act on the default task instead
            raise RequestError(f"{key!r} must be the task in words, as one text, but is a {type(words).__name__}")
    read = {*served.columns, *served.defaults, *(n + "?" for n in served.planner.inputs)}
    for key, value in sent.items():
        name = served.renamed.get(key) or (key if key in read else key.replace("/", "."))
        if name in read and not isinstance(value, str):
            columns[name] = torch.from_numpy(np.ascontiguousarray(as_array(value, key)).reshape(np.shape(value)))
    if missing := [name for name in served.columns if name not in columns]:
        feature = served.planner.features[missing[0]]
        raise RequestError(f"the policy reads {missing[0]!r} ({feature.dtype} of shape {feature.shape}); the client "
                           f"sent {', '.join(sorted(sent)) or 'nothing'}")
    return columns


def _flattened(columns: Mapping[str, object], place: str = ""):
    for name, value in columns.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{place}{name}.")
        else:
            yield place + name, value


def _explicit_plan(served: ServedPolicy, request: Request) -> _Plan:
    """Prepares the plan for explicit observation windows, as a remote planner sends them."""
    planner, obs = served.planner, {}
    names = (*planner.inputs, *(masks := planner.window.pad_masks(planner.inputs)))
    constant = {name for name in names if name.removesuffix("?") in served.defaults} - {*request.columns}
    for name in names:
        if name in constant:
            continue
        if name not in request.columns:
            raise RequestError(f"the windows lack {name!r}; the client sent {', '.join(sorted(request.columns))}")
        value = torch.from_numpy(as_array(request.columns[name], name))
        shape = () if name.endswith("?") and name not in planner.features else planner.features[name].shape
        if name in served.texts and value.ndim == 3 and (missing := shape[0] - value.shape[2]) > 0:
            value = torch.nn.functional.pad(value, (0, missing))
        if tuple(value.shape[1:]) != (planner.window.n_obs_steps, *shape):
            raise RequestError(f"{name!r} has shape {tuple(value.shape)}, but a window is (rows, "
                               f"{', '.join(map(str, (planner.window.n_obs_steps, *shape)))})")
        if name in planner.features and not dtype_fits(kind := planner.features[name].kind, value):
            raise RequestError(f"{name!r} is {str(value.dtype).removeprefix('torch.')}, but the policy reads "
                               f"{VALUE_NAMES[kind]}")
        if value.is_floating_point() and name + "?" not in names and not value.isfinite().all():
            raise RequestError(f"{name!r} is not finite")
        obs[name] = (value.float() if value.is_floating_point() else value).to(planner.device)
    sizes = {len(value) for value in obs.values()}
    if len(sizes) != 1 or not 1 <= (n := sizes.pop()) <= MAX_ROWS:
        raise RequestError(f"the windows must have the same number of rows, from 1 to {MAX_ROWS}")
    pad_mask = next((obs[name] for name in masks if name in obs), None)  # the same for all columns
    for name in constant:
        if name in masks and pad_mask is not None:
            obs[name] = pad_mask
        else:
            value = served.defaults[name]
            obs[name] = value.to(planner.device).expand(n, planner.window.n_obs_steps, *value.shape)
    key, count = (_whole_numbers(request, k, n).to(planner.device) for k in ("key", "count"))

    def finish(chunk: Tensor) -> Reply:
        return Reply({"actions": chunk.cpu().numpy()})
    return _Plan(PlanRequest(torch.arange(n), obs, planner.noise(key, count), _guides(request, planner, n)), finish)


def _guides(request: Request, planner: Planner, n: int) -> tuple[Guide, ...]:
    guides: list[Guide] = []
    sent = request.options.get("guides") or []
    horizon, width = planner.window.horizon, planner.action_dim
    shapes = {"inpaint": {"action": (n, horizon, width), "weight": (n, horizon)},
              "last_chunk": {"chunk": (n, horizon, width), "cursor": (n,), "exists": (n,)}}
    if not isinstance(sent, list) or any(not isinstance(g, dict) or g.get("kind") not in shapes for g in sent):
        raise RequestError(f"guides are a list of {' and '.join(shapes)}")
    for guide in sent:
        kind, arrays = guide["kind"], {}
        for name, shape in shapes[kind].items():
            value = as_array(guide.get(name), name)
            if value.shape != shape or not np.isfinite(value).all():
                raise RequestError(f"{name!r} of the guide {kind} must be finite and of shape {shape}, but has shape "
                                   f"{value.shape}")
            value = torch.from_numpy(value).to(planner.device)
            arrays[name] = value.float() if value.is_floating_point() else value
        guides.append(Inpaint(**arrays) if kind == "inpaint" else LastChunk(**arrays))
    return tuple(guides)


def _whole_numbers(request: Request, name: str, n: int) -> Tensor:
    value = as_array(request.options.get(name), name)
    if value.shape != (n,) or value.dtype.kind not in "iu":
        raise RequestError(f"the option {name!r} must be {n} whole numbers, but is {value.dtype} of shape "
                           f"{value.shape}")
    return torch.from_numpy(value.astype(np.int64))


def describe_error(error: BaseException) -> str:
    """Returns the text of an error for a client: its kind and message, without places in files."""
    text = str(error)
    if isinstance(error, UserError):
        is_place = error.where is None or not {"/", "\\"}.isdisjoint(str(error.where))
        text = error.problem if is_place else f"{error.where}: {error.problem}"
    return f"{type(error).__name__}: {text}"

"""Distributes the episodes of an evaluation over processes or over a Ray cluster.

Each worker makes its own environment and loads the policy itself. The key determines an episode, networks see batches
of one size (`FixedBatch`), and every worker computes with one thread. The result is therefore bit-identical, whichever
worker runs an episode.
"""

from __future__ import annotations

import signal
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import connection, reduction
from pathlib import Path
from queue import SimpleQueue
from types import ModuleType
from typing import Any, Literal

import torch

from ..child_processes import end_processes, exit_reason, spawn, watch_parent
from ..core import UserError, is_out_of_memory
from ..data.episode import Dataset, Episode
from ..envs import make
from ..envs.base import Env, EnvWrapper
from ..execute.actor import Actor
from ..learn.method import load_actor
from ..user_code import locate_user_error
from .evaluation import Evaluation, evaluation_of
from .rollout import as_dataset, rollout
from .stats import LEVEL

WorkerSetup = Callable[[], tuple[Actor, Env]]
WorkerCount = int | Literal["ray"]
EpisodeCallback = Callable[[int, Episode], None]
EpisodeRange = tuple[int, int, int]  # first episode, how many, seed

# smallest part in multiples of all rows, if a worker gets several parts: rows are idle at the end of a part
SHARES_PER_WORKER = 4
CRASH_HINT = "the simulator crashes in it, or memory is full: fewer workers, or fewer rows each, take less"
STARTUP_HINT = ("memory may be full: take fewer. In a script of your own, what starts workers stands under "
                'if __name__ == "__main__": since every worker reads the script')


def load_actor_and_env(run: Path | str, env: str, rows: int = 16, *, device: str = "cpu",
                       trust: tuple[str, ...] = ()) -> tuple[Actor, Env]:
    """Loads the policy of a run and makes an environment for it: a setup for workers.

    Args:
        run: Run folder, checkpoint or exported policy.
    """
    built_env = make(env, rows, trust)
    return load_actor(run, device=device, rows=16, trust=trust, features=built_env.features), built_env


def evaluate_parallel(
    setup: WorkerSetup,
    episodes: int = 100,
    seed: int = 0,
    *,
    workers: WorkerCount = 1,
    level: float = LEVEL,
    watch: EpisodeCallback = lambda n, e: None,
) -> Evaluation:
    """Evaluates like `evaluation.evaluate`, with episodes distributed over workers, and with the same result.

    Example:
        >>> evaluate_parallel(partial(load_actor_and_env, "runs/bc", "fork"), episodes=1000, workers=4)
    """
    if episodes < 1:
        raise UserError(f"an evaluation needs at least one episode, not {episodes}", where="evaluate",
                        hint="such as 100")
    began = time.perf_counter()
    with WorkerPool(setup, workers) as crew:
        rollouts = crew.rollout(episodes, seed, watch=watch)
    return evaluation_of(rollouts, time.perf_counter() - began, level)


@contextmanager
def single_threaded() -> Iterator[None]:
    """Makes PyTorch compute with one thread, so that results are equal to the last bit. A context manager."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class WorkerPool:
    """Worker processes, each with an actor and an environment.

    As a context manager, it ends its workers in every case. A worker that dies (killed, out of memory, a crash of the
    simulator) is replaced, and its unfinished episodes are run again, one by one. A second death in the same episode is
    a UserError with its number.

    Args:
        setup: Makes the actor and the environment. A function of a module, or a functools.partial of one with picklable
            values. It is called in each worker and must return the same everywhere.
        count: Number of processes; "ray" for one per processor of a Ray cluster (started on this machine if none is
            running). 1 is this process.
        local: The result of `setup`, if this process has it already and closes it itself.
    """

    def __init__(self, setup: WorkerSetup, count: WorkerCount = 1, *, local: tuple[Actor, Env] | None = None):
        if count != "ray" and count < 1:
            raise UserError(f"at least one worker is needed, not {count}", where="workers", hint="1 is this process")
        self.setup, self._requested = setup, count
        self.count = 1 if count == "ray" else count  # for "ray", the count is known once it has begun
        self.metadata: Mapping[str, Any] = {}  # metadata of the environment, after the first episode
        self._borrowed, self._local = local, None
        self._backend: _ProcessBackend | _RayBackend | None = None

    def __enter__(self) -> WorkerPool:
        if self._requested == 1:
            with single_threaded():
                self._local = self._borrowed or self.setup()
        else:
            ray = self._requested == "ray"
            self._backend = _RayBackend(self.setup) if ray else _ProcessBackend(self.setup, self.count)
            self.count = self._backend.count
        return self

    def __exit__(self, *error) -> None:
        if self._backend is not None:
            self._backend.shutdown()
        if self._local is not None and self._local is not self._borrowed:
            self._local[1].close()
        self._backend = self._local = None

    def rollout(
        self, episodes: int, seed: int = 0, *, first: int = 0, watch: EpisodeCallback = lambda n, e: None
    ) -> Dataset:
        """Rolls episodes out, as `rollout.rollout`: the same episodes for any number of workers."""
        if self._local is not None:
            with single_threaded():
                rollouts = rollout(*self._local, episodes, seed, first=first, watch=watch)
            self.metadata = dict(self._local[1].metadata)
            return rollouts
        if self._backend is None:
            raise UserError("the workers have not been started", where="WorkerPool",
                            hint="with WorkerPool(setup, 4) as workers: ...")
        done: dict[int, Episode] = {}

        def keep(number: int, episode: Episode) -> None:
            done[number] = episode
            watch(number, episode)
        self._distribute(range(first, first + episodes), seed, keep)
        return as_dataset([done[n] for n in sorted(done)], self.metadata)

    def _distribute(self, numbers: range, seed: int, keep: EpisodeCallback) -> None:
        crew = self._backend
        assert crew is not None
        members = crew.workers
        # parts of the episodes; their size depends on the rows, which the first worker reports
        todo: deque[range] | None = None
        deaths: Counter[int] = Counter()
        stillborn = 0
        while todo is None or todo or any(m.is_busy for m in members):
            idle = [m for m in members if m.rows and not m.is_busy]
            if todo is None and idle:
                todo = deque(_split_episodes(numbers, idle[0].rows, crew.count))
            for member in idle:
                if todo:
                    crew.assign(member, todo.popleft(), seed)
            waiting = len(numbers) if todo is None else len(todo)
            while len(members) < crew.count and sum(not m.rows for m in members) < waiting:
                crew.start_worker()
            for member, kind, message in crew.receive():
                if kind == "ready":
                    stillborn, (member.rows, self.metadata) = 0, message
                elif kind == "episode":
                    member.pending.discard(message[0])
                    keep(*message)
                elif kind == "done":
                    member.is_busy, self.metadata = False, message
                elif kind == "failed":
                    raise message
                elif not member.rows:  # the worker died; report why
                    stillborn += 1
                    if stillborn > 1:
                        raise UserError(f"workers die while they start ({message})",
                                        where="workers", hint=STARTUP_HINT)
                else:
                    assert todo is not None  # shares were made when the first worker was ready
                    todo.extend(self._handle_death(member, message, deaths, seed))

    def _handle_death(self, member, message: str, deaths: Counter[int], seed: int) -> Iterator[range]:
        """Yields the work that a dead worker leaves undone: each begun episode alone, all other episodes together."""
        unfinished = sorted(member.pending)
        begun, not_begun = unfinished[:member.rows], unfinished[member.rows:]  # episodes start in their order
        deaths.update(begun)
        if twice := [n for n in begun if deaths[n] > 1]:
            raise UserError(f"two workers died in episode {twice[0]} ({message})",
                            where=f"{self.metadata['env']}, seed {seed}", hint=CRASH_HINT)
        yield from (range(n, n + 1) for n in begun)
        if not_begun:
            yield range(not_begun[0], not_begun[-1] + 1)


def _split_episodes(numbers: range, rows: int, count: int) -> list[range]:
    """Divides episodes among workers: one part each, or about four if there are many episodes."""
    size = max(-(-len(numbers) // count), 1)
    if size > SHARES_PER_WORKER * rows:
        size = max(SHARES_PER_WORKER * rows, size // 4 // rows * rows)
    return [numbers[i:i + size] for i in range(0, len(numbers), size)]


# -- inside a worker -----------------------------------------------------------------------------------


def _worker_loop(setup: WorkerSetup, shares: Iterator[EpisodeRange], send: Callable[[str, Any], None]) -> None:
    """The main loop of a worker. It sends ("ready", (rows, metadata)), ("episode", (number, episode)) and ("done",
    metadata) for each part, or ("failed", error)."""
    env = None
    torch.set_num_threads(1)
    try:
        player, env = setup()
        send("ready", (env.rows, dict(env.metadata)))
        for first, count, seed in shares:
            at = _SingleEpisodeEnv(env) if count == 1 else env
            rollout(player, at, count, seed, first=first, watch=lambda n, e: send("episode", (n, e)))
            send("done", dict(env.metadata))
    except (BrokenPipeError, EOFError):  # the parent is gone
        pass
    except Exception as error:
        send("failed", _picklable_error(error))
    finally:
        if env is not None:
            env.close()


class _SingleEpisodeEnv(EnvWrapper):
    """Wraps an environment so that all rows run the same episode, and no other one, which may crash."""

    def __init__(self, env: Env):
        super().__init__(env)
        self.metadata = env.metadata

    def reset(self, which, key):
        return self.env.reset(which, key[:1].expand(len(key)).clone())

    def step(self, action):
        out = self.env.step(action)
        self.metadata = self.env.metadata
        return out


def _picklable_error(error: Exception) -> Exception:
    """Converts an error to a form that can be sent to another process."""
    if isinstance(error, UserError):
        return error
    if is_out_of_memory(error):
        return MemoryError()
    if (user_error := locate_user_error(error)) is not None:
        return user_error
    if isinstance(error, OSError) and error.filename is not None:
        return OSError(error.errno, error.strerror, error.filename)
    return RuntimeError(f"in a worker:\n{traceback.format_exc()}")


@dataclass(eq=False)
class _Worker:
    """A worker and its state. `rows` is 0 until it is ready. `pending` has the episodes that have not come back."""

    handle: Any
    rows: int = 0
    is_busy: bool = False
    pending: set[int] = field(default_factory=set)


class _ProcessBackend:
    """Backend with workers that are processes of this machine."""

    def __init__(self, setup: WorkerSetup, count: int):
        try:
            reduction.ForkingPickler.dumps(setup)
        except Exception as error:
            raise UserError(f"the setup cannot be sent to another process: {setup} ({error})",
                            where="Workers", hint="give a function of a module, or functools.partial of one") from None
        self.setup, self.count, self.workers = setup, count, []

    def start_worker(self) -> None:
        self.workers.append(_Worker(spawn(_worker_process, self.setup, name="understudy worker")))

    def assign(self, member: _Worker, share: range, seed: int) -> None:
        member.is_busy, member.pending = True, set(share)
        with suppress(OSError):  # `receive` notices a dead worker
            member.handle[1].send((share.start, len(share), seed))

    def receive(self) -> Iterator[tuple[_Worker, str, Any]]:
        """Waits for messages of the workers and returns them."""
        ready_pipes = set(connection.wait([m.handle[1] for m in self.workers]))
        for member in [m for m in self.workers if m.handle[1] in ready_pipes]:
            process, pipe = member.handle
            try:
                yield member, *pipe.recv()
            except (EOFError, OSError):
                process.join()
                pipe.close()
                self.workers.remove(member)
                yield member, "died", exit_reason(process.exitcode)

    def shutdown(self) -> None:
        end_processes([m.handle for m in self.workers])
        self.workers = []


def _worker_process(pipe: connection.Connection, setup: WorkerSetup) -> None:
    watch_parent()
    _worker_loop(setup, iter(pipe.recv, None), lambda *message: pipe.send(message))


def connect_ray() -> tuple[ModuleType, bool]:
    """Connects to Ray, and returns it with whether this call started it.

    It uses the cluster of RAY_ADDRESS, one that runs here, or starts a local one.
    """
    try:
        import ray
    except ImportError:
        raise UserError("Ray is not installed", where="workers", hint="pip install 'understudy[cluster]'") from None
    if ray.is_initialized():
        return ray, False
    before = signal.getsignal(signal.SIGTERM)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        ray.init("auto", **quiet)
    except ConnectionError:
        try:
            ray.init("local", include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)
        except Exception as error:  # Ray has no special type for a start that took too long
            raise UserError(f"Ray did not start: {str(error).split('. ')[0]}", where="workers",
                            hint="start it first (ray start --head), or use processes (--workers N)") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)  # Ray takes it
    return ray, True


class _RayBackend:
    """Backend with workers in a Ray cluster, one for each processor."""

    def __init__(self, setup: WorkerSetup):
        ray, self.began = connect_ray()
        self.ray, self.setup, self.workers, self.talks = ray, setup, [], []
        self.count = max(int(ray.cluster_resources().get("CPU", 1)), 1)
        self.seat = ray.remote(num_cpus=1, max_restarts=0)(_RayWorker)

    def start_worker(self) -> None:
        member = _Worker(self.seat.remote(self.setup))
        self.workers.append(member)
        self._listen(member)

    def _listen(self, member: _Worker, *share: int) -> None:
        self.talks.append((member.handle.messages.options(num_returns="streaming").remote(*share), member))

    def assign(self, member: _Worker, share: range, seed: int) -> None:
        member.is_busy, member.pending = True, set(share)
        self._listen(member, share.start, len(share), seed)

    def receive(self) -> Iterator[tuple[_Worker, str, Any]]:
        ready = self.ray.wait([talk for talk, _ in self.talks], num_returns=1)[0]
        for talk, member in [t for t in self.talks if any(t[0] is r for r in ready)]:
            try:
                yield member, *self.ray.get(next(talk))
            except StopIteration:
                self.talks.remove((talk, member))
            except self.ray.exceptions.RayActorError:
                self.talks = [t for t in self.talks if t[1] is not member]
                self.workers.remove(member)
                yield member, "died", "Ray lost its process"

    def shutdown(self) -> None:
        for member in self.workers:
            self.ray.kill(member.handle)
        self.workers, self.talks = [], []
        if self.began:
            self.ray.shutdown()


class _RayWorker:
    """A worker in Ray, which works in its own thread, so that its messages are received meanwhile."""

    def __init__(self, setup: WorkerSetup):
        self.inbox, self.outbox = SimpleQueue(), SimpleQueue()
        threading.Thread(
            target=_worker_loop,
            args=(setup, iter(self.inbox.get, None), lambda *message: self.outbox.put(message)),
            daemon=True).start()

    def messages(self, *share: int) -> Iterator[tuple[str, Any]]:
        """Yields the messages of the worker: that it is ready, and the episodes of its share."""
        if share:
            self.inbox.put(share)
        while True:
            message = self.outbox.get()
            yield message
            if message[0] != "episode":
                return

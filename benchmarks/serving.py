"""The policy server under load, for long, with bad input, and killed: python benchmarks/serving.py [--seconds N]

one client    replies one after the other: the server's own time, which is all but that of the network
64 clients    10 observations a second each; a reply after 100 ms counts as missed, and so does an observation that is
              not sent, because the client still waits
soak          16 clients for N seconds (3,600 if not given), which also connect again: the growth of the server's memory
malformed     frames that are damaged, random or of the wrong kind, and meanwhile a client whose replies are checked
half-open     200 connections that never finish their handshake, to a server with 128 descriptors: /healthz, its log,
              and a client whose replies are checked
kills         SIGKILL of clients and of the server at random moments: every reply is compared with the policy's
lerobot       a policy in the process in which those of LeRobot plan: the time of a plan, less that of the policy with
              its processors. The policy is the one that stands in for LeRobot in the tests

The policy of the other parts is an MLP flow policy with observations of state that plans in about 1 ms. Server and
clients share the machine, and networks compute in one thread. `--only NAME` runs one part, whose lines replace those of
the last run.
"""

from __future__ import annotations

import measure

if __name__ == "__main__":
    measure.one_thread()

import argparse  # noqa: E402
import asyncio  # noqa: E402
import contextlib  # noqa: E402
import gc  # noqa: E402
import os  # noqa: E402
import random  # noqa: E402
import resource  # noqa: E402
import signal  # noqa: E402
import socket  # noqa: E402
import statistics  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
import urllib.error  # noqa: E402
import urllib.request  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from functools import partial  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402

from understudy.serve.client import Client, LinkLost, ServeError  # noqa: E402
from understudy.serve.wire import pack, unpack  # noqa: E402

STATE, SIZE, ACTIONS, HORIZON = "observation.state", 14, 14, 16
MISSED = 0.1  # s
N_ANSWERS = 64  # plans whose result is known beforehand


# -- the policy and its server ----------------------------------------------------------------------------------------


def make_policy():
    from understudy.core import Feature
    from understudy.data.window import Window
    from understudy.heads.denoising.flow import Flow
    from understudy.nets.mlp import MLP
    from understudy.policy import PolicyConfig
    from understudy.testing import random_batch

    config = PolicyConfig(Flow(n_steps=2), MLP(width=128, depth=1), inputs=(STATE,), window=Window(1, HORIZON))
    return random_batch(config, target=Feature("float32", (ACTIONS,)), inputs={STATE: Feature("float32", (SIZE,))})[0]


def serve(port: int, answers: Path) -> None:
    """A server on this port. First it writes what the policy plans for known observations."""
    import torch

    from understudy.core import keys
    from understudy.execute.actor import PolicyActor
    from understudy.execute.chunking import RecedingHorizon
    from understudy.serve.access import JsonLog
    from understudy.serve.describe import policy_metadata, policy_schema
    from understudy.serve.pauses import reduce_pauses
    from understudy.serve.policy_service import PolicyService, ServedPolicy
    from understudy.serve.server import PolicyServer, ServerOptions
    from understudy.serve.service import Reply

    policy = make_policy()
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(N_ANSWERS, 1, SIZE)).astype(np.float32)
    key, count = keys(0, range(N_ANSWERS)), torch.arange(N_ANSWERS)
    with torch.no_grad():
        chunks = policy.plan({STATE: torch.from_numpy(obs)}, policy.noise(key, count)).numpy()
    np.savez(answers.with_suffix(".part.npz"), obs=obs, key=key.numpy(), count=count.numpy(), chunks=chunks)
    answers.with_suffix(".part.npz").replace(answers)
    network: list[float] = []  # seconds of the plans of a batch, and of drawing their noise

    def timed(function):
        def call(*arguments):
            began = time.perf_counter()
            result = function(*arguments)
            network.append(time.perf_counter() - began)
            return result
        return call

    class TimedService(PolicyService):
        """Adds the time of the network to each reply. The policy's checks and histories count as the server's own."""

        def run(self, requests):
            network.clear()
            replies = super().run(requests)
            for reply in replies:
                if isinstance(reply, Reply):
                    reply.values["network_ms"] = 1000 * sum(network)
            return replies

    policy.plan, policy.noise = timed(policy.plan), timed(policy.noise)
    served = ServedPolicy(PolicyActor(policy, RecedingHorizon(8)), policy, "benchmark")
    schema = policy_schema(served, fps=10)
    service = TimedService(served, policy_metadata(served, schema, name="benchmark"), schema)
    reduce_pauses()
    asyncio.run(PolicyServer(service, ServerOptions(port=port, max_clients=1000), JsonLog()).run())


class Server:
    """A server in a process, whose log is in a file."""

    def __init__(self, folder: Path, port: int | None = None, descriptors: int | None = None):
        if port is None:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
        self.port, self.url, self.answers = port, f"ws://127.0.0.1:{port}", folder / "answers.npz"
        self.log = folder / "log"
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                [sys.executable, __file__, "--serve", str(port), str(self.answers)], stderr=log,
                preexec_fn=lambda: None if descriptors is None else resource.setrlimit(
                    resource.RLIMIT_NOFILE, (descriptors, descriptors)))

    def wait(self) -> Server:
        until = time.monotonic() + 300
        while time.monotonic() < until:
            try:
                Client(self.url, timeout=5).close()
                return self
            except LinkLost:
                time.sleep(0.05)
        self.process.kill()
        raise SystemExit("the server does not start")

    def memory(self) -> float:
        """Megabytes that it shares with no other process."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line.split()[1] for line in text.splitlines() if line.startswith("RssAnon"))) / 1024

    def cpu(self) -> float:
        """Seconds of processor time so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def __enter__(self) -> Server:
        return self.wait()

    def __exit__(self, *error) -> None:
        self.process.kill()
        self.process.wait()


@dataclass(frozen=True)
class Known:
    """Plans whose result is known."""

    obs: np.ndarray
    key: np.ndarray
    count: np.ndarray
    chunks: np.ndarray

    @staticmethod
    def load(path: Path) -> Known:
        with np.load(path) as file:
            return Known(*(file[name] for name in ("obs", "key", "count", "chunks")))

    def ask(self, client: Client, i: int) -> bool:
        """Whether the reply is what the policy plans."""
        one = slice(i, i + 1)
        options = {"op": "plan", "key": self.key[one], "count": self.count[one]}
        actions = client.request({STATE: self.obs[one], "understudy": options})["actions"]
        return bool(np.allclose(actions, self.chunks[one], atol=1e-4 * np.abs(self.chunks).max()))


# -- the parts ------------------------------------------------------------------------------------------------


def one_client(seconds: float) -> list[measure.Line]:
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder)) as server, Client(server.url) as client:
        obs, own, network, trip = {STATE: np.zeros(SIZE, np.float32)}, [], [], []
        until, last = time.monotonic() + seconds, 0.0
        for number in range(10**9):
            if time.monotonic() > until:
                break
            began = time.perf_counter()
            reply = client.infer(obs)
            if number > 50:
                trip.append(1000 * (time.perf_counter() - began))
                network.append(reply["network_ms"])
                own.append(reply["server_timing"]["prev_total_ms"] - last)
            last = reply["network_ms"]
    return [measure.milliseconds("one client, server without the network, p50", own, 50, 1.0, f"{len(own):,} requests"),
            measure.milliseconds("one client, server without the network, p99", own, 99),
            measure.milliseconds("one client, the policy's network, p50", network, 50),
            measure.milliseconds("one client, there and back, p50", trip, 50),
            measure.milliseconds("one client, there and back, p99", trip, 99)]


def many_clients(seconds: float, n: int = 64, rate: float = 10) -> list[measure.Line]:
    from websockets.asyncio.client import connect

    took: list[float] = []
    skipped = [0]  # observations that were not sent, because the reply to the one before was not there

    async def client(url: str, phase: float, until: float) -> None:
        async with connect(url, compression=None, max_size=None) as connection:
            await connection.recv()
            message = pack({STATE: np.zeros(SIZE, np.float32), "understudy": {}})
            due = time.perf_counter() + phase
            while due < until:
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                began = time.perf_counter()
                await connection.send(message)
                unpack(await connection.recv())
                took.append(time.perf_counter() - began)
                late = max(0, int((time.perf_counter() - due) * rate))
                skipped[0] += late
                due += (1 + late) / rate

    async def clients(url: str) -> None:
        until = time.perf_counter() + seconds
        await asyncio.gather(*(client(url, 1 + random.random() / rate, until) for _ in range(n)))
    gc.collect()
    gc.freeze()  # as the server does
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder)) as server:
        before = server.cpu()
        sleeper = subprocess.Popen([sys.executable, "-c", SLEEPER, str(time.monotonic() + 1 + seconds)],
                                   stdout=subprocess.PIPE, text=True)
        asyncio.run(clients(server.url))
        spent = 1000 * (server.cpu() - before) / len(took)
        longest, n_long = map(float, sleeper.communicate()[0].split())
    missed = sum(t > MISSED for t in took) + skipped[0]
    values = [1000 * t for t in took]
    return [measure.Line(f"{n} clients at {rate:g} Hz, replies after {1000 * MISSED:g} ms",
                         measure.Figure(missed, missed, missed, "missed"), bound=0,
                         note=f"of {len(took) + skipped[0]:,}, {skipped[0]:,} of them not sent, because the client "
                              f"still waited; meanwhile the machine held up a process that only slept by "
                              f"{1000 * longest:.0f} ms at most, and {n_long:.0f} times by more than 50 ms"),
            measure.Line(f"{n} clients, processor time of the server for a request",
                         measure.Figure(spent, spent, spent, "ms"),
                         note=f"with the network; {n * rate:g} requests a second fill "
                              f"{n * rate * spent / 1000:.2f} cores"),
            measure.milliseconds(f"{n} clients, there and back, p50", values, 50),
            measure.milliseconds(f"{n} clients, there and back, p99", values, 99),
            measure.milliseconds(f"{n} clients, there and back, longest", values, 100)]


SLEEPER = """
import sys, time
pauses = []
while time.monotonic() < float(sys.argv[1]):
    began = time.perf_counter()
    time.sleep(0.005)
    pauses.append(time.perf_counter() - began - 0.005)
print(max(pauses), sum(p > 0.05 for p in pauses))
"""


def soak(seconds: float) -> list[measure.Line]:
    """Clients ask up to 10 times a second each. Each starts an episode every 100 requests and a connection every 200.
    """
    from websockets.asyncio.client import connect

    asked, memory = [0], []

    async def client(url: str, until: float) -> None:
        while time.monotonic() < until:
            async with connect(url, compression=None, max_size=None) as connection:
                await connection.recv()
                for number in range(200):
                    options = {"reset": number % 100 == 0, "id": number}
                    await connection.send(pack({STATE: np.zeros(SIZE, np.float32), "understudy": options}))
                    await connection.recv()
                    asked[0] += 1
                    await asyncio.sleep(0.1)

    async def clients(server: Server) -> None:
        until = time.monotonic() + seconds

        async def look() -> None:
            while time.monotonic() < until:
                memory.append(server.memory())
                await asyncio.sleep(seconds / 60)
        await asyncio.gather(look(), *(client(server.url, until) for _ in range(16)))
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder)) as server:
        asyncio.run(clients(server))
    early, late = memory[len(memory) // 6:len(memory) // 2], memory[-len(memory) // 3:]
    grown = statistics.median(late) - statistics.median(early)
    return [measure.Line(f"soak of {seconds:,.0f} s, growth of memory", measure.Figure(
        max(grown, 0.0), min(memory), max(memory), "MB"), bound=2.0,
        note=f"{asked[0]:,} requests; {statistics.median(early):.0f} MB in the first half, "
             f"{statistics.median(late):.0f} MB in the last third")]


def bad_frames(rng: random.Random):
    """Frames that are no valid request."""
    good = pack({STATE: np.zeros(SIZE, np.float32), "prompt": "go", "understudy": {"executed": 1, "id": 3}})
    while True:
        kind = rng.randrange(6)
        if kind == 0:
            yield rng.randbytes(rng.randrange(200))
        elif kind == 1:
            yield good[:rng.randrange(len(good))]
        elif kind == 2:
            damaged = bytearray(good)
            for _ in range(rng.randrange(1, 8)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            yield bytes(damaged)
        elif kind == 3:
            yield "a text"
        elif kind == 4:
            yield pack({STATE: np.zeros(rng.randrange(30), rng.choice(["float32", "int64", "bool", "uint8"]))})
        else:
            options = {rng.choice(["op", "executed", "delay", "guides", "rows", "key", "mode", "deadline", "schema"]):
                       rng.choice([-1, 2**62, "x", None, [1], {"a": 1}, True, 1.5, [[]]])}
            yield pack({STATE: np.zeros(SIZE, np.float32), "understudy": options})


def malformed(frames: int) -> list[measure.Line]:
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.client import connect

    rng, n_wrong, right, answered, refused = random.Random(0), 0, 0, 0, 0
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder)) as server, Client(server.url) as checked:
        known_answers, sent, bad = Known.load(server.answers), 0, bad_frames(rng)
        while sent < frames:
            with connect(server.url, compression=None, max_size=None) as connection:
                connection.recv()
                with contextlib.suppress(ConnectionClosed):
                    while sent < frames:
                        sent += 1
                        connection.send(next(bad))
                        if isinstance(connection.recv(timeout=20), str):
                            refused += 1
                            break
                        answered += 1  # damage that left a valid request
            if sent % 10 == 0:
                good = known_answers.ask(checked, rng.randrange(N_ANSWERS))
                right, n_wrong = right + good, n_wrong + (not good)
        for _ in range(100):  # no websocket at all
            with socket.create_connection(("127.0.0.1", server.port)) as raw:
                raw.sendall(rng.randbytes(300))
        n_wrong += not known_answers.ask(checked, 0)
        alive = server.process.poll() is None
    assert alive, "the server has ended"
    return [measure.Line(f"{frames:,} malformed frames, wrong replies to another client", measure.Figure(
        n_wrong, n_wrong, n_wrong, "wrong"), bound=0, note=f"{refused:,} refused, {answered:,} still a valid request; "
        f"{right:,} replies checked; the server went on")]


def half_open(seconds: float, n: int = 200, descriptors: int = 128) -> list[measure.Line]:
    """Connections that are opened again whenever the server drops them."""
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder), None, descriptors) as server:
        known_answers, rng = Known.load(server.answers), random.Random(0)
        answered, failed, right, n_wrong = [], 0, 0, 0
        with Client(server.url) as checked, contextlib.ExitStack() as stack:
            for _ in range(n):
                stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                began = time.perf_counter()
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/healthz", timeout=5) as page:
                        failed += page.status != 200
                    answered.append(1000 * (time.perf_counter() - began))
                except (urllib.error.URLError, TimeoutError, ConnectionError):
                    failed += 1
                good = known_answers.ask(checked, rng.randrange(N_ANSWERS))
                right, n_wrong = right + good, n_wrong + (not good)
                stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))  # and one more
                time.sleep(0.05)
        lines = server.log.read_text(encoding="utf-8").splitlines()
    tracebacks = sum(not line.startswith("{") for line in lines)
    return [measure.Line(f"{n} half-open connections, {descriptors} descriptors: /healthz without an answer",
                         measure.Figure(failed, failed, failed, "missed"), bound=0,
                         note=f"of {len(answered) + failed:,}, the slowest after {max(answered, default=0):.0f} ms; "
                              f"{right:,} right and {n_wrong:,} wrong replies to a client; the log has "
                              f"{sum(map(len, lines)) / 1000:.1f} kB, {tracebacks:,} of {len(lines):,} lines are not "
                              "JSON")]


def checked_client(url: str, answers: Path, out: Path, seed: int) -> None:
    """Asks until it is killed, and writes down what became of each request."""
    known_answers, rng = Known.load(answers), random.Random(seed)
    client = None
    with open(out, "a", buffering=1) as log:
        while True:
            try:
                client = client or Client(url, timeout=5)
                log.write("right\n" if known_answers.ask(client, rng.randrange(N_ANSWERS)) else "WRONG\n")
            except ServeError:
                log.write("lost\n")
                time.sleep(0.05)


def kills(seconds: float) -> list[measure.Line]:
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder, killed = Path(name), {"client": 0, "server": 0}
        server = Server(folder).wait()
        clients: list[subprocess.Popen] = []

        def start() -> None:
            clients.append(subprocess.Popen([sys.executable, __file__, "--client", server.url, str(server.answers),
                                             str(folder / f"{len(list(folder.glob('*.txt')))}-{rng.random()}.txt"),
                                             str(rng.randrange(10**6))]))
        for _ in range(4):
            start()
        until = time.monotonic() + seconds
        try:
            while time.monotonic() < until:
                time.sleep(rng.uniform(0.2, 3.0))
                if rng.random() < 0.3:
                    killed["server"] += 1
                    server.process.send_signal(signal.SIGKILL)
                    server.process.wait()
                    server = Server(folder, server.port).wait()
                else:
                    killed["client"] += 1
                    victim = clients.pop(rng.randrange(len(clients)))
                    victim.send_signal(signal.SIGKILL)
                    victim.wait()
                    start()
        finally:
            for process in (*clients, server.process):
                process.kill()
                process.wait()
        printed_lines = [line for file in folder.glob("*.txt") for line in file.read_text().split()]
    counts = {word: printed_lines.count(word) for word in ("right", "WRONG", "lost")}
    assert counts["right"], "no client got a reply"
    return [measure.Line("kills, wrong replies", measure.Figure(
        counts["WRONG"], counts["WRONG"], counts["WRONG"], "wrong"), bound=0,
        note=f"{killed['server']} of the server and {killed['client']} of clients in {seconds:,.0f} s; "
             f"{counts['right']:,} right replies, {counts['lost']:,} requests without one")]


def lerobot(seconds: float) -> list[measure.Line]:
    import lerobot_process  # imports PyTorch, which clients do not need

    return lerobot_process.lines(seconds)


PARTS = {"one": lambda s: one_client(min(s, 30)), "many": lambda s: many_clients(min(s, 60)), "soak": soak,
         "malformed": lambda s: malformed(10_000 if s >= 60 else 500),
         "half-open": lambda s: half_open(min(s, 20)), "kills": lambda s: kills(min(s, 120)),
         "lerobot": lambda s: lerobot(min(s, 20))}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--serve", nargs=2)
    parser.add_argument("--client", nargs=4)
    o = parser.parse_args()
    if o.serve:
        serve(int(o.serve[0]), Path(o.serve[1]))
        return
    if o.client:
        checked_client(o.client[0], Path(o.client[1]), Path(o.client[2]), int(o.client[3]))
        return
    parts = {name: partial(part, o.seconds) for name, part in PARTS.items()}
    measure.save_parts("serving", parts, o.only, ("torch", "numpy", "websockets", "msgpack"))


if __name__ == "__main__":
    main()

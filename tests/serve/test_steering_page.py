"""The page on which a policy acts and is steered by clicks."""

import asyncio
import base64
import json
import re
import socket
import urllib.request
from contextlib import asynccontextmanager, suppress

import pytest

websockets = pytest.importorskip("websockets", reason="extra serve not installed")

from websockets.asyncio.client import connect  # noqa: E402

from understudy.cli import main  # noqa: E402
from understudy.core import Unsupported  # noqa: E402
from understudy.data.window import Window  # noqa: E402
from understudy.envs import make  # noqa: E402
from understudy.evaluate.rollout import rollout  # noqa: E402
from understudy.execute.actor import PolicyActor  # noqa: E402
from understudy.execute.chunking import RecedingHorizon  # noqa: E402
from understudy.heads.denoising.flow import Flow  # noqa: E402
from understudy.nets.mlp import MLP  # noqa: E402
from understudy.policy import Policy, PolicyConfig  # noqa: E402
from understudy.serve.steering_page import SteeringPage  # noqa: E402


def page(env="fork", **options):
    env = make(env, 1)
    policy = Policy(PolicyConfig(Flow(2), MLP(8), window=Window(1, 4)), env.features)
    policy.fit_statistics(rollout(env.expert(), env, 1))
    return SteeringPage(PolicyActor(policy, RecedingHorizon(2)), env, **options)


@asynccontextmanager
async def served(live):
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    running = asyncio.ensure_future(live.run(listening, [f"http://127.0.0.1:{port}"]))
    try:
        yield f"127.0.0.1:{port}"
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def message(socket, wanted):
    """The first message for which `wanted` holds."""
    async with asyncio.timeout(20):
        while True:
            if wanted(received := json.loads(await socket.recv())):
                return received


def test_a_click_steers_until_it_is_cleared():
    live = page()

    async def run():
        async with served(live) as address, connect(f"ws://{address}", origin=f"http://{address}") as socket:
            first = await message(socket, lambda m: m.get("step", 0) >= 2)
            assert base64.b64decode(first["frame"]).startswith(b"\x89PNG") and first["click"] is None
            await socket.send(json.dumps({"click": [0.5, 0.25]}))
            assert (await message(socket, lambda m: m["click"]))["click"] == [0.5, 0.25]
            assert live.points() == (pytest.approx((0.6, 0.4)),)  # the map is x from -0.2 to 1.4, y from -0.8 to 0.8
            await socket.send(json.dumps({"click": None}))
            await message(socket, lambda m: not m["click"])
            assert live.points() == ()
            async with connect(f"ws://{address}", origin=f"http://{address}") as other:
                await other.send(json.dumps({"click": [0.0, 1.0]}))
                await message(socket, lambda m: m["click"] == [0.0, 1.0])  # all pages show the same
    asyncio.run(run())


def test_what_is_no_click_ends_the_connection_and_other_pages_are_refused():
    live = page()

    async def run():
        async with served(live) as address:
            for malformed in ("{", "[]", '{"click": [0.5]}', '{"click": [2, 0]}', '{"click": [NaN, 0]}', "7",
                              '{"x": 1}'):
                async with connect(f"ws://{address}", origin=f"http://{address}") as socket:
                    await socket.send(malformed)
                    with pytest.raises(websockets.exceptions.ConnectionClosed):
                        await message(socket, lambda m: False)
                    assert socket.close_code == 1008 and live.points() == ()
            for origin in ("http://evil.example", None):
                with pytest.raises(websockets.exceptions.InvalidStatus):
                    await connect(f"ws://{address}", origin=origin)
    asyncio.run(run())


def test_the_page_loads_nothing_from_elsewhere():
    live = page(title="a <b> in fork")

    async def run():
        def fetch(path=""):
            with urllib.request.urlopen(f"http://{address}/{path}", timeout=20) as answer:
                return answer.headers, answer.read().decode()
        async with served(live) as address:
            headers, text = await asyncio.to_thread(fetch)
            assert headers["Content-Type"].startswith("text/html") and "a &lt;b&gt; in fork" in text
            assert "default-src 'none'" in headers["Content-Security-Policy"]
            assert not re.search(r"(?:src|href)=\"http", text)
            with pytest.raises(urllib.error.HTTPError, match="404"):
                await asyncio.to_thread(fetch, "other")
    asyncio.run(run())


def test_episodes_follow_each_other_and_are_counted(monkeypatch):
    monkeypatch.setattr("understudy.serve.steering_page.PAUSE", 0.01)
    live = page()
    live.env.period = 0.001

    async def run():
        async with served(live) as address, connect(f"ws://{address}", origin=f"http://{address}") as socket:
            ended = await message(socket, lambda m: m.get("episode") == 1 and m.get("outcome"))
            assert ended["outcome"] in ("success", "failure")
            assert ended["tally"] == re.sub(r"^\d", ended["tally"][0], "0 of 2 succeeded")
    asyncio.run(run())


def test_what_cannot_be_steered_is_refused(tmp_path, capsys):
    with pytest.raises(Unsupported, match="does not say which position a click"):
        page("maze")
    assert main(["serve", str(tmp_path), "--steer", "fork", "--deadline", "1"]) == 2
    assert "--deadline" in capsys.readouterr().err


@pytest.mark.parametrize("options, says", [
    (["--port", "70000"], "--port: must be at least 0 and at most 65535"),
    (["--port", "-1"], "--port: must be at least 0 and at most 65535"),
    (["--steer", "fork", "--port", "70000"], "--port: must be at least 0 and at most 65535"),
    (["--steer", "fork", "--steer-scale", "nan"], "--steer-scale: must be at least 0"),
    (["--steer-scale", "10"], "no effect without --steer")])
def test_options_out_of_range_are_named(options, says, tmp_path, capsys):
    assert main(["serve", str(tmp_path), *options]) == 2
    assert says in capsys.readouterr().err

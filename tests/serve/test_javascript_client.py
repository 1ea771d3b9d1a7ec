"""The JavaScript client, in Node.js."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("websockets", reason="extra serve not installed")

from fixtures.served import ANY, Slow, policy_service, state  # noqa: E402

import understudy.serve  # noqa: E402
from understudy.data.window import Window  # noqa: E402
from understudy.serve.client import Client  # noqa: E402
from understudy.serve.server import BackgroundServer  # noqa: E402

CLIENT = Path(understudy.serve.__file__).parent / "client.js"


def node(tmp_path, code, *args):
    if shutil.which("node") is None:
        pytest.skip("no node")
    shutil.copy(CLIENT, tmp_path / "client.mjs")
    (tmp_path / "main.mjs").write_text('import * as us from "./client.mjs"; import { readFileSync } from "node:fs";\n'
                                       "const args = process.argv.slice(2);\n" + code)
    process = subprocess.run(["node", "--experimental-websocket", "--no-warnings", tmp_path / "main.mjs", *args],
                             capture_output=True, text=True, timeout=60)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def test_it_gets_what_the_python_client_gets(tmp_path):
    token = "0123456789abcdef?"
    service = policy_service()
    with BackgroundServer(service, replace(ANY, tokens=(token,))) as server:
        with Client(server.url, token=token) as client:
            want = client.infer(state(1), episode=3)["actions"]
        output = node(tmp_path, """
const client = await us.Client.connect(args[0], { token: args[1], schema: { fps: 10 } });
const obs = { "observation.state": new Float32Array([1, 1, 1]) };
const reply = await client.infer(obs, { episode: 3 });
const all = await Promise.all([1, 2, 3].map(() => client.infer(obs, { episode: 3, reset: true })));
const errors = [];
try { await client.infer({ "observation.state": new Float32Array(4) }); } catch (e) { errors.push(e); }
try { await client.infer(obs); } catch (e) { errors.push(e); }
for (const options of [{ token: "wrong" }, { token: args[1], schema: { fps: 30 } }]) {
  try { await us.Client.connect(args[0], options); } catch (e) { errors.push(e); }
}
console.log(JSON.stringify({
  actions: [...reply.actions.data], shape: reply.actions.shape, row: [...reply.actions.row(2)],
  same: all.every((r) => r.actions.data.every((x, i) => Math.abs(x - reply.actions.data[i]) < 1e-5)),
  horizon: client.policy.horizon, errors: errors.map((e) => [e.constructor.name, e.message]) }));
client.close();
""", server.url, token)
    np.testing.assert_allclose(np.reshape(output["actions"], output["shape"]), want, atol=2e-6)
    np.testing.assert_allclose(output["row"], want[2], atol=2e-6)
    assert output["same"] and output["horizon"] == 8
    names = [name for name, _ in output["errors"]]
    assert names == ["RequestRefused", "RequestRefused", "LinkLost", "RequestRefused"]
    assert "shape" in output["errors"][0][1] and "fps: the policy has 10, the client 30" in output["errors"][3][1]


def test_it_sends_the_steps_since_its_last_request(tmp_path):
    service = policy_service(window=Window(3, 8))
    with BackgroundServer(service) as server:
        with Client(server.url) as client:
            client.infer(state(0), episode=3)
            want = client.infer({"observation.state": np.float32([2, 3, 4])[:, None].repeat(3, 1)})["actions"]
        output = node(tmp_path, """
const client = await us.Client.connect(args[0]);
const seen = [0, 1, 2, 3, 4].map((x) => new Float32Array(3).fill(x));
await client.infer({ "observation.state": seen[0] }, { episode: 3 });
const { actions } = await client.infer({ "observation.state": us.stack(seen.slice(-client.policy.n_obs_steps)) });
let refused = "";
try { await client.infer({ "observation.state": seen[4] }); } catch (e) { refused = e.message; }
try { us.stack([seen[0], new Float32Array(2)]); } catch (e) { refused += e.message; }
console.log(JSON.stringify({ actions: [...actions.data], shape: actions.shape, refused }));
""", server.url)
    np.testing.assert_allclose(np.reshape(output["actions"], output["shape"]), want, atol=2e-6)
    assert "the last 3 steps" in output["refused"] and "unequal shapes" in output["refused"]


def test_it_reads_frames_of_openpi_and_writes_them_byte_by_byte(tmp_path, shared):
    """The scalars of NumPy are read as numbers, so only messages without them are written again."""
    folder = shared / "fixtures" / "openpi_wire"
    names = ["00_server", "02_server", "04_server", "05_client"]
    output = node(tmp_path, """
const out = [];
for (const file of args) {
  const raw = new Uint8Array(readFileSync(file));
  const again = us.pack(us.unpack(raw));
  out.push(raw.length === again.length && raw.every((x, i) => x === again[i]));
}
const bad = [[], [0x91], [0x81, 0xa1], [0xc1], [0x81, 1, 1], [0xdf, 255, 255, 255, 255], [0x80, 0], [3],
  Array(100).fill(0x91)].map((b) => { try { us.unpack(new Uint8Array(b)); return "read"; } catch (e) {
    return e.constructor.name; } });
const deep = us.unpack(us.pack({ a: [1, -1, -33, 300, 70000, 2 ** 40, -(2 ** 40), 1.5, null, true, "ü".repeat(40)],
  b: new BigInt64Array([5n]), c: new us.NdArray(new Uint8Array(6), [1, 2, 3]), d: {} }));
console.log(JSON.stringify({ out, bad, a: deep.a, c: deep.c.shape, b: String(deep.b.data[0]) }));
""", *(str(folder / f"{name}.msgpack") for name in names))
    assert output["out"] == [True] * 4
    assert output["bad"] == ["WireError"] * 9
    assert output["a"] == [1, -1, -33, 300, 70000, 2**40, -2**40, 1.5, None, True, "ü" * 40]
    assert output["c"] == [1, 2, 3] and output["b"] == "5"


def test_a_late_reply_is_never_taken_for_the_next_one(tmp_path):
    service = policy_service()
    Slow(service, 1.0)
    with BackgroundServer(service) as server:
        output = node(tmp_path, """
const client = await us.Client.connect(args[0], { timeout: 0.5 });
const errors = [];
for (let i = 0; i < 2; i++) {
  try { await client.infer({ "observation.state": new Float32Array(3) }); } catch (e) { errors.push(e.message); }
}
console.log(JSON.stringify(errors));
""", server.url)
    assert output == ["no reply within 0.5 s"] * 2


def test_a_runtime_without_websockets_is_told_which_version_has_them(tmp_path):
    output = node(tmp_path, """
delete globalThis.WebSocket;
console.log(JSON.stringify(await us.Client.connect("ws://127.0.0.1:1").catch((e) => e.message)));
""")
    assert "use Node.js 22 or newer" in output

// Replays recorded episodes through onnx_runner.mjs: node onnx_runner_check.mjs RUNNER RECORDED.json, or with the name
// of an absent package, says so with status 3.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [runnerPath, recordedPath] = process.argv.slice(2);
let ort;
try {
  ort = createRequire(process.cwd() + "/")("onnxruntime-node");
} catch {
  process.exit(3);
}
const { OnnxRunner } = await import(pathToFileURL(runnerPath));
const { file, noise, episodes } = JSON.parse(readFileSync(recordedPath));
let drawn = 0;
const runner = await OnnxRunner.load(ort, new Uint8Array(readFileSync(file)), () => noise[drawn++]);
const actions = [];
for (const steps of episodes) {
  runner.reset();
  for (const obs of steps) actions.push(await runner.act(obs));
}
console.log(JSON.stringify({ actions, drawn }));

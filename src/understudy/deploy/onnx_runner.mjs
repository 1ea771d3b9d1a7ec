// Runs an exported policy in a browser (onnxruntime-web) or in Node.js (onnxruntime-node). This file needs no other,
// so it can be copied and used alone.

const ARRAYS = { float32: Float32Array, int64: BigInt64Array, uint8: Uint8Array, bool: Uint8Array };

/** Acts from a file of `understudy export`: plans a chunk, executes its first actions, plans again. */
export class OnnxRunner {
  /**
   * @param ort The module onnxruntime-web or onnxruntime-node.
   * @param bytes The ONNX file, a Uint8Array. It contains the names of the inputs and how many actions are executed.
   * @param normal Returns standard normal numbers, for policies that sample.
   */
  static async load(ort, bytes, normal = gaussian) {
    const runner = new OnnxRunner();
    const said = JSON.parse(metadataOf(bytes));
    if (!said.executor.$.endsWith(":RecedingHorizon"))
      throw new Error(`the executor of the file is ${said.executor.$}, but this runner is for RecedingHorizon only. ` +
        "Load it with understudy (understudy.deploy.onnx.load_onnx_actor), or train a method with RecedingHorizon.");
    const session = await ort.InferenceSession.create(bytes);
    Object.assign(runner, { ort, said, session, normal, nObsSteps: said.window.n_obs_steps });
    runner.reset();
    return runner;
  }

  /** Starts an episode. */
  reset() {
    this.history = [];
    this.actions = [];
  }

  /** Returns the next action, an array, for an observation {column: value as recorded}. Call it at every step. */
  async act(obs) {
    this.history = [...this.history, structuredClone(obs)].slice(-this.nObsSteps); // the caller may reuse its arrays
    if (!this.actions.length) {
      const feed = {};
      for (const column of this.said.tensors.inputs) feed[column.name] = this.tensor(column);
      const { data, dims } = (await this.session.run(feed)).action;
      const actions = [];
      for (let i = this.said.skip; i < this.said.skip + this.said.n_action_steps; i++)
        actions.push(Array.from(data.slice(i * dims[2], (i + 1) * dims[2]), Number));
      if (!actions.flat().every(Number.isFinite)) throw new Error("the policy planned an action that is not finite");
      this.actions = actions;
    }
    return this.actions.shift();
  }

  tensor({ name, dtype, shape }) {
    const missing = this.nObsSteps - this.history.length; // before an episode, its first row is repeated
    const rows = [...Array(missing).fill(this.history[0]), ...this.history];
    const dims = [1, ...shape.slice(1)], size = dims.reduce((a, b) => a * b);
    let values;
    if (name === "noise") values = Array.from({ length: size }, this.normal);
    else if (name.endsWith("?") && !(name in this.history[0])) values = rows.map((_, i) => i >= missing);
    else values = rows.flatMap((row) => numbersOf(row, name, size / rows.length));
    if (dtype === "uint8" && !values.every((v) => Number.isInteger(v) && v >= 0 && v <= 255))
      throw new Error(`"${name}" is read as whole numbers from 0 to 255, as it was recorded, but this has others`);
    if (!this.said.inputs.includes(name + "?") && !values.every((v) => Number.isFinite(Number(v))))
      throw new Error(`"${name}" is not finite`); // with a mask it may lack values
    return new this.ort.Tensor(dtype, ARRAYS[dtype].from(values, dtype === "int64" ? BigInt : Number), dims);
  }
}

/** The numbers of one column of an observation. */
function numbersOf(obs, name, count) {
  const values = flat(obs[name]).filter((value) => value !== undefined);
  if (values.length !== count)
    throw new Error(`the observation has ${values.length} numbers of "${name}", but the policy reads ${count}. ` +
      `Give act() all ${count} of them, in the order of the data.`);
  return values;
}

const flat = (value) =>
  ArrayBuffer.isView(value) ? Array.from(value) : Array.isArray(value) ? value.flatMap(flat) : [value];

/** A standard normal number (Box and Muller). */
function gaussian() {
  return Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
}

/** The entry "understudy" of the model's metadata_props: ModelProto's field 14, of pairs of strings. */
function metadataOf(bytes) {
  let at = 0;
  const number = () => {
    let value = 0, place = 1, byte;
    do {
      byte = bytes[at++];
      value += (byte & 127) * place;
      place *= 128;
    } while (byte > 127);
    return value;
  };
  const text = () => {
    at++; // the tag of the string
    const size = number(), value = new TextDecoder().decode(bytes.subarray(at, at + size));
    at += size;
    return value;
  };
  while (at < bytes.length) {
    const tag = number(), size = number();
    if (tag % 8 !== 2) continue; // a number, which was read
    const end = at + size;
    if (tag === 8 * 14 + 2) {
      const key = text(), value = text();
      if (key === "understudy") return value;
    }
    at = end;
  }
  throw new Error("this is not a file of understudy export. Make one: understudy export RUN --out FILE.onnx");
}

// A client of `understudy serve` for browsers and Node.js, in one file and without dependencies.
//
//   import { Client } from "./client.js";
//   const client = await Client.connect("ws://gpu:8000", { token: "..." });
//   const { actions } = await client.infer({ "observation.state": new Float32Array([0.1, 0.2]) });
//   actions.shape; actions.data;   // [steps, components], Float32Array
//   client.close();
//
// Arrays are typed arrays (of one dimension) or NdArray(data, shape). Replies have NdArray. A policy that reads several
// steps (client.policy.n_obs_steps) gets them as one array: stack([oldest, ..., newest]). Node.js older than 22 needs
// --experimental-websocket, or { WebSocket } from a package.

const TYPES = {
  b1: Uint8Array, i1: Int8Array, i2: Int16Array, i4: Int32Array, i8: BigInt64Array,
  u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, u8: BigUint64Array, f4: Float32Array, f8: Float64Array,
};
const MAX_DEPTH = 32;

/** An array of numbers: `data` is a typed array in C order. `dtype` is NumPy's, such as "<f4". */
export class NdArray {
  constructor(data, shape, dtype) {
    this.data = data;
    this.shape = shape ?? [data.length];
    this.dtype = dtype ?? dtypeOf(data);
    if (this.shape.reduce((a, b) => a * b, 1) !== data.length) {
      throw new WireError(`an array of shape [${this.shape}] does not have ${data.length} numbers`);
    }
  }
  /** Row i of the first axis. */
  row(i) {
    const size = this.data.length / this.shape[0];
    return this.data.subarray(i * size, (i + 1) * size);
  }
}

/** The arrays of several steps as one, [steps, ...]. */
export function stack(arrays) {
  const steps = arrays.map((array) => (array instanceof NdArray ? array : new NdArray(array)));
  const { data, shape, dtype } = steps[0];
  if (steps.some((step) => step.data.length !== data.length)) throw new WireError("the steps have unequal shapes");
  const joined = new data.constructor(steps.length * data.length);
  steps.forEach((step, i) => joined.set(step.data, i * data.length));
  return new NdArray(joined, [steps.length, ...shape], dtype);
}

/** A message cannot be read or written. */
export class WireError extends Error {}
/** The server refused a request. The text is the server's. */
export class RequestRefused extends Error {}
/** The connection was lost, or no reply came in time. */
export class LinkLost extends Error {}

function dtypeOf(data) {
  if (data instanceof Uint8ClampedArray) return "|u1";
  const found = Object.entries(TYPES).find(([name, type]) => name !== "b1" && data instanceof type);
  if (!found) throw new WireError(`${data?.constructor?.name} is not an array of numbers`);
  return (data.BYTES_PER_ELEMENT === 1 ? "|" : "<") + found[0];
}

// -- msgpack --------------------------------------------------------------------------------------------------------

class Writer {
  constructor() {
    this.bytes = new Uint8Array(1024);
    this.view = new DataView(this.bytes.buffer);
    this.length = 0;
  }
  room(n) {
    if (this.length + n > this.bytes.length) {
      const larger = new Uint8Array(Math.max(2 * this.bytes.length, this.length + n));
      larger.set(this.bytes);
      this.bytes = larger;
      this.view = new DataView(larger.buffer);
    }
    this.length += n;
    return this.length - n;
  }
  u8(x) { const at = this.room(1); this.view.setUint8(at, x); }
  u16(x) { const at = this.room(2); this.view.setUint16(at, x); }
  u32(x) { const at = this.room(4); this.view.setUint32(at, x); }
  raw(x) { const at = this.room(x.length); this.bytes.set(x, at); }
  sized(n, fixed, limit, codes) {
    if (n < limit) this.u8(fixed | n);
    else if (codes[0] !== null && n < 256) { this.u8(codes[0]); this.u8(n); }
    else if (n < 65536) { this.u8(codes[1]); this.u16(n); }
    else { this.u8(codes[2]); this.u32(n); }
  }
  text(x) {
    const raw = new TextEncoder().encode(x);
    this.sized(raw.length, 0xa0, 32, [0xd9, 0xda, 0xdb]);
    this.raw(raw);
  }
  binary(x) { this.sized(x.length, 0, 0, [0xc4, 0xc5, 0xc6]); this.raw(x); }
  integer(x) {
    const n = BigInt(x);
    if (n >= 0n && n < 128n) this.u8(Number(n));
    else if (n < 0n && n >= -32n) this.u8(Number(n) + 256);
    else if (n >= 0n && n < 2n ** 32n) { this.u8(0xce); this.u32(Number(n)); }
    else if (n >= -(2n ** 63n) && n < 2n ** 63n) { this.u8(0xd3); const at = this.room(8); this.view.setBigInt64(at, n); }
    else if (n >= 0n && n < 2n ** 64n) { this.u8(0xcf); const at = this.room(8); this.view.setBigUint64(at, n); }
    else throw new WireError(`${x} has more than 64 bits`);
  }
  array(x) {
    this.u8(0x84);
    this.binary(new TextEncoder().encode("__ndarray__")); this.u8(0xc3);
    this.binary(new TextEncoder().encode("data"));
    this.binary(new Uint8Array(x.data.buffer, x.data.byteOffset, x.data.byteLength));
    this.binary(new TextEncoder().encode("dtype")); this.text(x.dtype);
    this.binary(new TextEncoder().encode("shape"));
    this.sized(x.shape.length, 0x90, 16, [null, 0xdc, 0xdd]);
    x.shape.forEach((n) => this.integer(n));
  }
  value(x, name, depth) {
    if (depth > MAX_DEPTH) throw new WireError(`${name} is nested too deep`);
    if (x === null || x === undefined) this.u8(0xc0);
    else if (typeof x === "boolean") this.u8(x ? 0xc3 : 0xc2);
    else if (typeof x === "bigint" || Number.isSafeInteger(x)) this.integer(x);
    else if (typeof x === "number") { this.u8(0xcb); const at = this.room(8); this.view.setFloat64(at, x); }
    else if (typeof x === "string") this.text(x);
    else if (x instanceof NdArray) this.array(x);
    else if (ArrayBuffer.isView(x) && !(x instanceof DataView)) this.array(new NdArray(x));
    else if (Array.isArray(x)) {
      this.sized(x.length, 0x90, 16, [null, 0xdc, 0xdd]);
      x.forEach((inner) => this.value(inner, name, depth + 1));
    } else if (Object.getPrototypeOf(x) === Object.prototype || Object.getPrototypeOf(x) === null) {
      const entries = Object.entries(x).filter(([, inner]) => inner !== undefined);
      this.sized(entries.length, 0x80, 16, [null, 0xde, 0xdf]);
      for (const [key, inner] of entries) { this.text(key); this.value(inner, key, depth + 1); }
    } else throw new WireError(`${name} cannot be written: ${x.constructor?.name ?? typeof x}`);
  }
}

/** Writes a message. */
export function pack(message) {
  const writer = new Writer();
  writer.value(message, "the message", 0);
  return writer.bytes.slice(0, writer.length);
}

class Reader {
  constructor(bytes) {
    this.bytes = bytes;
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.at = 0;
  }
  take(n) {
    if (this.at + n > this.bytes.length) throw new WireError("the message ends too early");
    this.at += n;
    return this.at - n;
  }
  u8() { return this.view.getUint8(this.take(1)); }
  u16() { return this.view.getUint16(this.take(2)); }
  u32() { return this.view.getUint32(this.take(4)); }
  raw(n) { const at = this.take(n); return this.bytes.subarray(at, at + n); }
  text(n) {
    try { return new TextDecoder("utf-8", { fatal: true }).decode(this.raw(n)); }
    catch (error) { if (error instanceof WireError) throw error; throw new WireError("a text is not UTF-8"); }
  }
  big(x) { return x >= -(2n ** 53n) && x <= 2n ** 53n ? Number(x) : x; }
  value(depth) {
    if (depth > MAX_DEPTH) throw new WireError("the message is nested too deep");
    const c = this.u8();
    if (c < 0x80) return c;
    if (c < 0x90) return this.map(c & 15, depth);
    if (c < 0xa0) return this.list(c & 15, depth);
    if (c < 0xc0) return this.text(c & 31);
    if (c >= 0xe0) return c - 256;
    switch (c) {
      case 0xc0: return null;
      case 0xc2: return false;
      case 0xc3: return true;
      case 0xc4: return this.raw(this.u8());
      case 0xc5: return this.raw(this.u16());
      case 0xc6: return this.raw(this.u32());
      case 0xca: return this.view.getFloat32(this.take(4));
      case 0xcb: return this.view.getFloat64(this.take(8));
      case 0xcc: return this.u8();
      case 0xcd: return this.u16();
      case 0xce: return this.u32();
      case 0xcf: return this.big(this.view.getBigUint64(this.take(8)));
      case 0xd0: return this.view.getInt8(this.take(1));
      case 0xd1: return this.view.getInt16(this.take(2));
      case 0xd2: return this.view.getInt32(this.take(4));
      case 0xd3: return this.big(this.view.getBigInt64(this.take(8)));
      case 0xd9: return this.text(this.u8());
      case 0xda: return this.text(this.u16());
      case 0xdb: return this.text(this.u32());
      case 0xdc: return this.list(this.u16(), depth);
      case 0xdd: return this.list(this.u32(), depth);
      case 0xde: return this.map(this.u16(), depth);
      case 0xdf: return this.map(this.u32(), depth);
      default: throw new WireError(`the message has the unknown code ${c}`);
    }
  }
  list(n, depth) {
    if (n > this.bytes.length - this.at) throw new WireError("the message ends too early");
    return Array.from({ length: n }, () => this.value(depth + 1));
  }
  map(n, depth) {
    const found = Object.create(null);
    let special = false;
    for (let i = 0; i < n; i++) {
      let key = this.value(depth + 1);
      if (key instanceof Uint8Array) { key = new TextDecoder().decode(key); special = true; }
      if (typeof key !== "string") throw new WireError("a name in the message is not text");
      found[key] = this.value(depth + 1);
    }
    return special ? arrayOf(found) : found;
  }
}

function arrayOf(found) {
  if (found.__npgeneric__) return found.data;
  const [, order, name] = /^([<|=>]?)([biuf][1248])$/.exec(found.dtype) ?? [];
  const Type = TYPES[name];
  if (!found.__ndarray__ || !Type || !(found.data instanceof Uint8Array) || !Array.isArray(found.shape)) {
    throw new WireError(`an array of dtype ${found.dtype} cannot be read`);
  }
  if (found.data.length % Type.BYTES_PER_ELEMENT) throw new WireError("an array has a wrong number of bytes");
  const bytes = found.data.slice(); // aligned
  if (order === ">") {
    for (let i = 0; i < bytes.length; i += Type.BYTES_PER_ELEMENT) {
      bytes.subarray(i, i + Type.BYTES_PER_ELEMENT).reverse();
    }
  }
  return new NdArray(new Type(bytes.buffer), found.shape, found.dtype.replace(">", "<"));
}

/** Reads a message. */
export function unpack(bytes) {
  const reader = new Reader(bytes instanceof Uint8Array ? bytes : new Uint8Array(bytes));
  const message = reader.value(0);
  if (reader.at !== reader.bytes.length) throw new WireError("there are bytes after the message");
  if (message === null || typeof message !== "object" || Array.isArray(message) || message instanceof NdArray) {
    throw new WireError("a message is a map with names as keys");
  }
  return message;
}

// -- the client -----------------------------------------------------------------------------------------------------

/** A connection to a policy server. Make it with `await Client.connect(url, options)`. */
export class Client {
  /**
   * Connects.
   * @param {string} url such as "ws://gpu:8000"
   * @param {{token?: string, schema?: object, timeout?: number, WebSocket?: Function}} options timeout in seconds.
   *   `schema` is what the client sends and expects; the server refuses a difference.
   */
  static async connect(url, { token, schema, timeout = 10, WebSocket = globalThis.WebSocket } = {}) {
    if (WebSocket === undefined) {
      throw new Error("this version of Node.js has no WebSocket: use Node.js 22 or newer, start it with " +
        "--experimental-websocket, or pass { WebSocket } of the package ws");
    }
    const coded = token === undefined ? null : btoa(token).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
    const socket = new WebSocket(url, coded === null ? ["understudy"] : ["understudy", `token.${coded}`]);
    socket.binaryType = "arraybuffer";
    const client = new Client(socket, timeout);
    client.metadata = await client._next(null);
    if (schema !== undefined) await client.request({ understudy: { op: "hello", schema } });
    return client;
  }

  constructor(socket, timeout) {
    this.socket = socket;
    this.timeout = timeout;
    this.number = 0;
    this.waiting = null;
    this.queue = Promise.resolve();
    this.lost = null;
    socket.onmessage = ({ data }) => this._settle(data);
    socket.onerror = () => this._fail(new LinkLost("no connection"));
    socket.onclose = ({ code, reason }) => this._fail(new LinkLost(`the connection was closed (${code}) ${reason}`));
  }

  /** What the server says of its policy: schema, horizon, n_action_steps and others. */
  get policy() { return this.metadata.understudy ?? {}; }

  /**
   * The reply to an observation: {actions: NdArray, server_timing}, and fallback if the deadline has passed.
   * @param {object} obs columns by name; text under "prompt". A policy that reads several steps needs all of them:
   *   give those since the last request, or the last n_obs_steps, as one array (see `stack`).
   * @param {object} options executed, delay, reset, deadline, mode, seed, episode
   */
  infer(obs, options = {}) { return this.request({ ...obs, understudy: options }); }

  /** Sends a message and returns its reply. One request is under way at a time. */
  request(message) {
    const run = async () => {
      const id = this.number++;
      const sent = pack({ ...message, understudy: { ...message.understudy, id } });
      const reply = await this._next(sent);
      if (reply.understudy?.id !== id) {
        this.close();
        throw new LinkLost("the reply belongs to another request");
      }
      return reply;
    };
    const result = this.queue.then(run);
    this.queue = result.catch(() => {});
    return result;
  }

  close() { this.socket.close(); }

  _next(sent) {
    return new Promise((resolve, reject) => {
      if (this.lost) { reject(this.lost); return; }
      const timer = setTimeout(() => {
        this._fail(new LinkLost(`no reply within ${this.timeout} s`));
        this.close(); // a late reply must not be taken for that to the next request
      }, 1000 * this.timeout);
      this.waiting = { resolve, reject, timer };
      if (sent !== null) this.socket.send(sent);
    });
  }

  _settle(data) {
    const waiting = this.waiting;
    if (!waiting) return;
    if (typeof data === "string") {
      this._fail(new RequestRefused(data));
      return;
    }
    this.waiting = null;
    clearTimeout(waiting.timer);
    try { waiting.resolve(unpack(data)); } catch (error) { this.close(); waiting.reject(error); }
  }

  _fail(error) {
    this.lost ??= error;
    if (this.waiting) {
      clearTimeout(this.waiting.timer);
      this.waiting.reject(error);
      this.waiting = null;
    }
  }
}

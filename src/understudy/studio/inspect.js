"use strict";
// The page of a data set. Facts of all episodes are in the page; an episode's columns and pictures are in a piece,
// which is in the page too, or a script beside it. What data sets say is only ever set as text, never as markup.

const facts = JSON.parse(document.getElementById("facts").textContent);
const count = facts.lengths.length;
const byId = (id) => document.getElementById(id);
const SEVERITIES = ["error", "warning", "note"];
const DASHES = [[], [7, 4], [2, 4], [9, 3, 2, 3]];
const VIEWS = { episode: "Episode", map: "Map", findings: "Findings", statistics: "Statistics" };
const ROW = 46; // px, of the list

function el(tag, attributes = {}, ...children) {
  const svg = tag === "svg" || tag === "path" || tag === "rect";
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function number(v, digits = 5) {
  if (v === null || v === undefined || !Number.isFinite(v)) return v === Infinity ? "∞" : v === -Infinity ? "−∞" : "NaN";
  if (v !== 0 && (Math.abs(v) < 1e-3 || Math.abs(v) >= 1e7)) return v.toExponential(Math.min(3, digits - 2)).replaceAll("-", "−");
  return String(Number.isInteger(v) ? v : Number(v.toPrecision(digits))).replace("-", "−");
}

const plural = (n, what) => `${n.toLocaleString("en")} ${what}${n === 1 ? "" : "s"}`;

function array(text, type) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const kinds = { u1: Uint8Array, i2: Int16Array, i4: Int32Array, f4: Float32Array, f8: Float64Array };
  return new kinds[type](bytes.buffer);
}

// -- colours ----------------------------------------------------------------------------------------------------------

let colours = {};

function readColours() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["paper", "panel", "ink", "soft", "line", "edge", "good", "bad", "s0", "s1", "s2", "s3"])
    colours[name] = style.getPropertyValue(`--${name}`).trim();
}

const mixed = (a, b, t) => `rgb(${[1, 3, 5].map((i) => {
  const [x, y] = [a, b].map((c) => parseInt(c.slice(i, i + 2), 16));
  return Math.round(x + (y - x) * t);
})})`;

function ramp(t) { // from blue over grey to orange, in light and dark
  const grey = "#8b939c";
  return t < 0.5 ? mixed(colours.good, grey, t * 2) : mixed(grey, colours.bad, t * 2 - 1);
}

function theme(next) {
  if (next) {
    const dark = document.documentElement.dataset.theme
      ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    document.documentElement.dataset.theme = dark ? "light" : "dark";
    try { localStorage.setItem("understudy-theme", document.documentElement.dataset.theme); } catch { /* not allowed */ }
  }
  readColours();
}

// -- episodes, and the pieces they are in -----------------------------------------------------------------------------

const pieces = new Map(); // number -> its episodes; the last few that were asked for
const asked = new Map(); // number -> functions to call when it is there

globalThis.understudyPiece = (n, episodes) => {
  pieces.set(n, episodes);
  if (pieces.size > 12) pieces.delete(pieces.keys().next().value);
  for (const [done] of asked.get(n) ?? []) done();
  asked.delete(n);
};

function piece(n) { // resolves when it is there
  if (pieces.has(n)) return Promise.resolve();
  if (facts.pieces.folder === null) {
    globalThis.understudyPiece(n, JSON.parse(byId(`piece-${n}`).textContent));
    return Promise.resolve();
  }
  return new Promise((done, failed) => {
    if (asked.has(n)) return asked.get(n).push([done, failed]);
    asked.set(n, [[done, failed]]);
    const src = `${encodeURIComponent(facts.pieces.folder)}/${n}.js`;
    const script = el("script", { src, onload: () => script.remove(), onerror: () => {
      script.remove();
      for (const [, fail] of asked.get(n) ?? []) fail(new Error(`${decodeURIComponent(src)} could not be loaded. ` +
        "The folder belongs beside this page: move both together."));
      asked.delete(n);
    } });
    document.head.append(script);
  });
}

async function load(e) {
  const first = facts.pieces.first;
  let n = first.length - 1;
  for (let low = 0; low <= n;) { // the last piece that begins at or before e
    const middle = (low + n) >> 1;
    if (first[middle] <= e) low = middle + 1; else n = middle - 1;
  }
  await piece(n);
  const found = pieces.get(n)[e - first[n]];
  for (const column of Object.values(found.columns)) column.values ??= array(column.data, column.type);
  return found;
}

// -- state: what is open, and the address that says so ----------------------------------------------------------------

let view = "episode", open = 0, step = 0, opened = null; // opened: the loaded content of episode `open`
let player = null; // what the episode's view redraws when the step changes
let playing = 0;

function address(what = view, e = open, s = step) {
  const where = count ? `episode=${e}&step=${s}` : "";
  return what === "episode" ? `#${where}` : `#${what}${where && "&"}${where}`;
}

function remember() {
  try { history.replaceState(null, "", address()); } catch { /* some browsers: not for files */ }
}

async function follow() {
  const words = new URLSearchParams(location.hash.slice(1));
  const named = ["map", "findings", "statistics"].find((name) => words.has(name)) ?? "episode";
  const whole = (name) => { const n = Number(words.get(name) ?? 0); return Number.isInteger(n) && n >= 0 ? n : 0; };
  await go(named, whole("episode"), whole("step"));
}

async function go(what, e = open, s = step) {
  stop();
  view = what;
  e = Math.max(0, Math.min(count - 1, e));
  if (count && (e !== open || opened === null)) {
    open = e;
    opened = null;
    const wanted = e;
    try { opened = await load(e); } catch (error) { opened = { failed: error.message }; }
    if (open !== wanted) return; // another was asked for meanwhile
  }
  step = Math.max(0, Math.min(last(), s));
  remember();
  draw();
}

function last() { // the last row of any column: one more than there are steps where what was seen last is kept
  if (!count) return 0;
  const rows = Object.entries(opened?.columns ?? {}).map(([name, c]) => (c.rows - 1) * column(name).every);
  return Math.max(facts.lengths[open] - 1, ...rows.filter((r) => r <= facts.lengths[open]), 0);
}

const column = (name) => facts.columns.find((c) => c.name === name);

function draw() {
  for (const button of byId("views").children) button.setAttribute("aria-pressed", button.dataset.view === view);
  player = null;
  const draws = { episode: drawEpisode, map: drawMaps, findings: drawFindings, statistics: drawStatistics };
  byId("main").replaceChildren(...draws[view]().filter(Boolean));
  byId("main").scrollTop = 0;
  list.draw(true);
  player?.();
  for (const later of byId("main").querySelectorAll("canvas")) later.redraw?.();
}

function move(to) {
  step = Math.max(0, Math.min(last(), to));
  player?.();
  clearTimeout(move.later);
  move.later = setTimeout(remember, 300);
}

function play() {
  if (playing) return stop();
  if (view !== "episode" || !count) return;
  if (step >= last()) step = 0;
  const rate = Math.min(facts.about.fps || 10, 1000), began = performance.now(), from = step;
  const tick = (now) => {
    move(from + Math.floor((now - began) / 1000 * rate));
    if (step >= last()) stop(); else playing = requestAnimationFrame(tick);
  };
  playing = requestAnimationFrame(tick);
  player?.();
}

function stop() {
  cancelAnimationFrame(playing);
  playing = 0;
  player?.();
}

// -- the list ---------------------------------------------------------------------------------------------------------

const found = new Map(); // episode -> its findings
for (const f of facts.findings) if (f.episode !== null) found.set(f.episode, [...found.get(f.episode) ?? [], f]);

const sparks = facts.spark && count ? array(facts.spark.data, "u1") : null;
const longest = facts.lengths.reduce((a, b) => Math.max(a, b), 1);

function spark(e) { // as long as the episode is, of the longest
  const svg = el("svg", { viewBox: "0 0 100 30", preserveAspectRatio: "none", "aria-hidden": "true" });
  if (!sparks) return svg;
  const { lines, points } = facts.spark, wide = Math.max(6, 100 * facts.lengths[e] / longest);
  for (let i = 0; i < lines; i++) {
    let d = "", pen = "M";
    for (let p = 0; p < points; p++) {
      const v = sparks[(e * lines + i) * points + p];
      if (v === 255) { pen = "M"; continue; }
      d += `${pen}${(wide * p / (points - 1)).toFixed(1)} ${(28 - 26 * v / 254).toFixed(1)}`;
      pen = "L";
    }
    if (d) svg.append(el("path", { d, stroke: `var(--s${i})`, "stroke-width": 1.3, "vector-effect": "non-scaling-stroke" }));
  }
  return svg;
}

const outcome = (e) => facts.success[e] === true ? "✓" : facts.success[e] === false ? "✕" : "";

const list = {
  order: [],
  choose() {
    const words = byId("search").value.trim().toLowerCase(), by = byId("sort").value;
    const keep = (e) => !words || String(e) === words || words === "success" && facts.success[e] === true
      || words === "failure" && facts.success[e] === false
      || (facts.tasks[facts.task[e]] ?? "").toLowerCase().includes(words)
      || (found.get(e) ?? []).some((f) => f.code.includes(words) || f.severity === words);
    this.order = [...Array(count).keys()].filter(keep);
    const [name, down] = [by.slice(1), by[0] === "-"];
    const values = name === "length" ? facts.lengths : name === "findings"
      ? facts.lengths.map((_, e) => found.get(e)?.length ?? 0) : facts.scores[name.slice(6)];
    if (values) this.order.sort((a, b) => { // what has no number comes last
      const [x, y] = [values[a], values[b]];
      return x === null || y === null ? (x === null) - (y === null) || a - b : (down ? y - x : x - y) || a - b;
    });
    byId("found").textContent = this.order.length === count ? plural(count, "episode")
      : `${this.order.length.toLocaleString("en")} of ${plural(count, "episode")}`;
    byId("rows").style.height = `${this.order.length * ROW}px`;
    byId("list").scrollTop = 0;
    this.draw(true);
  },
  draw(reveal = false) {
    const box = byId("list"), at = this.order.indexOf(open);
    if (reveal && at >= 0) {
      if (at * ROW < box.scrollTop) box.scrollTop = at * ROW;
      if ((at + 1) * ROW > box.scrollTop + box.clientHeight) box.scrollTop = (at + 1) * ROW - box.clientHeight;
    }
    const first = Math.max(0, Math.floor(box.scrollTop / ROW) - 4);
    const end = Math.min(this.order.length, Math.ceil((box.scrollTop + box.clientHeight) / ROW) + 4);
    byId("rows").replaceChildren(...this.order.slice(first, end).map((e, i) => this.row(e, first + i)));
  },
  row(e, at) {
    const worst = SEVERITIES.find((s) => (found.get(e) ?? []).some((f) => f.severity === s));
    const task = facts.tasks[facts.task[e]] ?? "";
    const node = el("div", { class: "row", role: "option", "aria-selected": String(e === open), title: task,
      "data-episode": e, onclick: () => go("episode", e, 0) },
    el("div", {}, el("b", { class: "n" }, String(e)), el("small", { class: "n" }, `${facts.lengths[e]}`)), spark(e),
    el("div", { class: "right" },
      el("div", { class: facts.success[e] ? "good" : "bad", title: facts.success[e] ? "success" : "failure" }, outcome(e)),
      worst ? el("small", { class: worst === "error" ? "bad" : "", title: `${plural(found.get(e).length, "finding")}` },
        `${worst === "note" ? "i" : "!"} ${found.get(e).length}`) : null));
    node.style.top = `${at * ROW}px`;
    return node;
  },
  turn(by) {
    const at = this.order.indexOf(open);
    const next = this.order[at < 0 ? 0 : Math.max(0, Math.min(this.order.length - 1, at + by))];
    if (next !== undefined && next !== open) go(view === "map" ? "map" : "episode", next, 0);
  },
};

// -- one episode ------------------------------------------------------------------------------------------------------

function drawEpisode() {
  if (!count) return [el("p", { class: "soft" }, "There is no episode."), ...notes()];
  const e = open, n = facts.lengths[e], task = facts.tasks[facts.task[e]];
  const head = el("div", { class: "head" }, el("h2", {}, `Episode ${e}`),
    el("span", { class: "soft n" }, plural(n, "step") + (facts.about.fps ? `, ${number(n / facts.about.fps)} s` : "")),
    facts.success[e] === null ? null : el("span", { class: facts.success[e] ? "good" : "bad" },
      facts.success[e] ? "✓ success" : "✕ failure"),
    el("span", { class: "turn" }, el("button", { onclick: () => list.turn(-1), "aria-label": "Previous episode" }, "↑"),
      el("button", { onclick: () => list.turn(1), "aria-label": "Next episode" }, "↓")));
  if (!opened || opened.failed) return [head, opened && el("p", { class: "bad" }, opened.failed), ...notes()];
  const known = Object.entries(opened.meta).filter(([name]) => name !== "success" && name !== "task")
    .map(([name, value]) => `${name} ${typeof value === "string" ? value : JSON.stringify(value)}`);
  const lines = [task, known.join(" · ")].filter(Boolean)
    .map((text) => el("p", { class: "facts" }, text.length > 600 ? text.slice(0, 600) + " …" : text));
  const unread = Object.entries(opened.unread).map(([name, why]) => el("p", { class: "bad" }, `${name}: ${why}`));

  const slider = el("input", { type: "range", min: 0, max: last(), value: step, "aria-label": "Step",
    oninput: () => { stop(); move(Number(slider.value)); } });
  const button = el("button", { onclick: play, "aria-label": "Play or stop", title: "Space" }, "▶");
  const at = el("span", { class: "at n soft" });
  const there = facts.columns.filter((c) => opened.columns[c.name]);
  const still = there.filter((c) => isConstant(c, opened.columns[c.name]));
  const plots = there.filter((c) => !still.includes(c)).map((c) => plot(c, opened.columns[c.name]));
  const said = facts.columns.filter((c) => opened.text[c.name]).map((c) => words(c.name, opened.text[c.name]));
  const films = Object.entries(opened.frames).filter(([, f]) => f).map(([name, f]) => film(name, f));
  player = () => {
    slider.value = step;
    button.textContent = playing ? "❚❚" : "▶";
    at.textContent = `step ${step} of ${n}` + (facts.about.fps ? ` · ${(step / facts.about.fps).toFixed(2)} s` : "");
    for (const part of [...plots, ...said, ...films]) part.at(step);
  };
  const seen = el("div", { class: `both${films.length ? " seen" : ""}` },
    el("div", {}, ...plots.map((p) => p.node), constants(still), ...said.map((s) => s.node)),
    films.length ? el("div", { class: "cameras" }, ...films.map((f) => f.node)) : null);
  return [head, ...lines, scores(e), ...unread, findings(found.get(e) ?? []),
    el("div", { class: "player" }, button, slider, at), seen, ...notes()];
}

// Ranks say more than values of scores that nobody knows by heart. Few are unusual, and these are named.
function scores(e) {
  const rows = [], unusual = [];
  for (const [name, values] of Object.entries(facts.scores)) {
    const v = values[e], all = values.filter((x) => x !== null), n = all.length;
    if (v === null || n < 2) { rows.push([name, v, null, n]); continue; }
    const above = all.filter((x) => x > v).length, below = all.filter((x) => x < v).length;
    const few = Math.floor(0.05 * n); // a twentieth of the episodes at either end
    if (above < few && above < below) unusual.push(`${name} ${above ? `${ordinal(above + 1)} highest` : "highest"}`);
    if (below < few && below < above) unusual.push(`${name} ${below ? `${ordinal(below + 1)} lowest` : "lowest"}`);
    rows.push([name, v, [above, below], n]);
  }
  if (!rows.length) return null;
  const bar = (share) => el("svg", { viewBox: "0 0 120 12", class: "rank", "aria-hidden": "true" },
    el("path", { d: "M4 6H116", stroke: "var(--edge)", "stroke-width": 2 }),
    el("rect", { x: 4 + 112 * share - 3, y: 1, width: 6, height: 10, rx: 2, fill: "var(--s0)" }));
  const row = ([name, v, at, n]) => el("tr", {}, el("td", {}, name), el("td", { class: "n" }, v === null ? "–" : number(v, 3)),
    el("td", {}, at && at[0] + at[1] ? bar(at[1] / (at[0] + at[1])) : ""),
    el("td", { class: "n soft" }, at ? rank(at, n) : ""));
  return el("details", { class: "scores" }, el("summary", {}, plural(rows.length, "score"),
    el("span", { class: "soft" }, unusual.length ? ` · unusual: ${unusual.join(", ")}` : " · none unusual among the episodes")),
  el("div", { class: "scroll", tabindex: 0 }, el("table", {}, el("tbody", {}, ...rows.map(row)))));
}

const rank = ([above, below], n) => above + below === 0 ? `equal in all ${n}` : above ? `${ordinal(above + 1)} highest of ${n}`
  : `highest of ${n}`;
const ordinal = (n) => `${n}${n % 100 > 10 && n % 100 < 14 ? "th" : ["th", "st", "nd", "rd"][n % 10] ?? "th"}`;

function isConstant(about, { rows, values }) { // and finite, with no finding to be shown over time
  const width = about.labels.length;
  if (rows < 2 || (found.get(open) ?? []).some((f) => f.step !== null && f.feature === about.name)) return false;
  return values.every((v, i) => Number.isFinite(v) && v === values[i % width]);
}

function constants(some) {
  if (!some.length) return null;
  return el("div", { class: "constants" }, el("h3", {}, "Constant in this episode"), ...some.map((c) => {
    const values = opened.columns[c.name].values, shown = Math.min(c.labels.length, 8);
    const each = c.labels.slice(0, shown).map((label, i) => `${c.labels.length > 1 ? `${label} ` : ""}${number(values[i], 4)}`);
    const more = c.labels.length > shown ? ` and ${c.labels.length - shown} more` : "";
    return el("p", { class: "said soft" }, `${c.name}${c.unit ? ` (${c.unit})` : ""}: `, el("b", {}, each.join(", ") + more));
  }));
}

function words(name, runs) {
  const value = el("b");
  return { node: el("p", { class: "said soft" }, `${name}: `, value), at(s) {
    value.textContent = runs.findLast(([row]) => row <= s)?.[1] ?? "";
  } };
}

function film(name, frames) {
  const canvas = el("canvas", { width: frames.wide, height: frames.high, role: "img", "aria-label": name });
  const caption = el("figcaption"), image = new Image();
  if (frames.wide < 100) canvas.style.imageRendering = "pixelated";
  let shown = -1;
  const at = (s) => {
    const i = Math.max(0, frames.rows.findLastIndex((row) => row <= s));
    if (i === shown || !image.complete) return;
    shown = i;
    const [x, y] = [i % frames.across * frames.wide, Math.floor(i / frames.across) * frames.high];
    canvas.getContext("2d").drawImage(image, x, y, frames.wide, frames.high, 0, 0, frames.wide, frames.high);
    caption.textContent = `${name} · step ${frames.rows[i]}` + (frames.rows.length < frames.of
      ? ` (${frames.rows.length} of ${frames.of} frames)` : "");
  };
  image.onload = () => at(step);
  image.src = frames.src;
  return { node: el("figure", {}, canvas, caption), at };
}

function key(i) { // a colour and a dash of its own for each of 16
  const dash = DASHES[(i >> 2) % 4].join(" ");
  return el("svg", { viewBox: "0 0 22 8", "aria-hidden": "true" },
    el("path", { d: "M1 4H21", stroke: `var(--s${i % 4})`, ...(dash ? { "stroke-dasharray": dash } : {}) }));
}

function plot(about, data) {
  const width = about.labels.length, rows = data.rows, every = about.every, values = data.values;
  const shown = Math.min(width, 16), numbers = [];
  const legend = el("div", { class: "legend" });
  for (let i = 0; i < shown; i++) {
    numbers.push(el("b"));
    legend.append(el("span", {}, key(i), width > 1 ? about.labels[i] : "", numbers[i]));
  }
  if (width > shown) legend.append(`and ${width - shown} more`);
  let low = Infinity, high = -Infinity;
  for (const v of values) if (Number.isFinite(v)) { low = Math.min(low, v); high = Math.max(high, v); }
  if (low > high) [low, high] = [0, 1];
  if (low === high) [low, high] = [low - 0.5, high + 0.5];
  const canvas = el("canvas", { role: "img", "aria-label": `${about.name} over the episode, from ${low} to ${high}` });
  const cursor = el("div", { class: "cursor" }), left = 64, right = 6, top = 6, foot = 6;
  const steps = about.kind === "discrete" || about.dtype === "bool"; // what is not between two values is not drawn so
  const area = el("div", { class: steps || about.name.startsWith("next.") ? "area low" : "area" }, canvas, cursor);
  const x = (row, w) => left + (w - left - right) * (last() ? row / last() : 0.5);
  const marks = (found.get(open) ?? []).filter((f) => f.step !== null && (!f.feature || f.feature === about.name));

  canvas.redraw = () => {
    const w = area.clientWidth, h = area.clientHeight, dense = devicePixelRatio || 1, g = canvas.getContext("2d");
    if (!w) return;
    [canvas.width, canvas.height] = [w * dense, h * dense];
    g.scale(dense, dense);
    const y = (v) => h - foot - (h - top - foot) * (v - low) / (high - low);
    g.font = `11.5px ${getComputedStyle(document.body).fontFamily}`;
    g.textAlign = "right"; g.textBaseline = "middle";
    for (const v of low < 0 && high > 0 && Math.min(-low, high) > 0.12 * (high - low) ? [low, 0, high] : [low, high]) {
      g.strokeStyle = colours.line; g.beginPath(); g.moveTo(left, y(v)); g.lineTo(w - right, y(v)); g.stroke();
      g.fillStyle = colours.soft; g.fillText(number(v, 3), left - 6, Math.max(8, Math.min(h - 8, y(v))));
    }
    for (const f of marks) {
      g.strokeStyle = f.severity === "error" ? colours.bad : colours.s1; g.lineWidth = 2;
      g.beginPath(); g.moveTo(x(f.step, w), 0); g.lineTo(x(f.step, w), h); g.stroke();
    }
    g.lineJoin = "round";
    for (let i = 0; i < width; i++) {
      g.strokeStyle = g.fillStyle = colours[`s${i % 4}`]; g.lineWidth = width > 8 ? 1.1 : 1.6;
      g.setLineDash(DASHES[(i >> 2) % 4]);
      trace(g, i, (row) => x(row * every, w), y, w - left - right);
      g.setLineDash([]);
    }
  };

  function trace(g, i, across, y, pixels) { // where rows outnumber pixels, the lowest and the highest in each
    const stride = Math.max(1, Math.floor(rows / Math.max(1, pixels)));
    let pen = false, before = 0;
    g.beginPath();
    for (let row = 0; row < rows; row += stride) {
      let a = NaN, b = NaN, gap = false;
      for (let r = row; r < Math.min(rows, row + stride); r++) {
        const v = values[r * width + i];
        if (!Number.isFinite(v)) gap = true;
        else { a = a < v ? a : v; b = b > v ? b : v; }
      }
      if (Number.isFinite(a)) {
        const px = across(row);
        if (pen && steps) g.lineTo(px, before);
        before = y(b);
        if (pen) g.lineTo(px, y(a)); else g.moveTo(px, y(a));
        if (b > a) g.lineTo(px, y(b));
        if (!pen && (row + stride >= rows || !Number.isFinite(values[(row + stride) * width + i])))
          g.fillRect(px - 1.5, y(a) - 1.5, 3, 3); // one alone has no line
      }
      pen = Number.isFinite(a) && !gap;
    }
    g.stroke();
  }

  const point = (event) => {
    const box = area.getBoundingClientRect();
    stop();
    move(Math.round((event.clientX - box.left - left) / (box.width - left - right) * last()));
  };
  area.addEventListener("pointerdown", (event) => { area.setPointerCapture(event.pointerId); point(event); });
  area.addEventListener("pointermove", (event) => { if (event.buttons) point(event); });
  sizes.observe(area);
  const at = (s) => {
    const row = Math.min(rows - 1, Math.floor(s / every)), beyond = s / every >= rows;
    cursor.style.transform = `translateX(${x(s, area.clientWidth)}px)`;
    numbers.forEach((node, i) => { node.textContent = beyond || row < 0 ? "" : number(values[row * width + i]); });
  };
  const unit = about.unit ? ` (${about.unit})` : "";
  return { node: el("div", { class: "plot-of" }, el("div", { class: "top" }, el("h3", {}, about.name + unit), legend),
    area), at };
}

const sizes = new ResizeObserver((entries) => {
  for (const entry of entries) entry.target.querySelector("canvas")?.redraw?.();
  player?.();
});

// -- the map ----------------------------------------------------------------------------------------------------------

let painted = null; // how the points are coloured

function drawMaps() {
  if (!facts.maps.length) return [el("h2", {}, "Map"), el("p", { class: "soft" }, "There are no numbers to draw one of."),
    ...notes()];
  const ways = { "time": "time in the episode", "episode": "number of the episode" };
  if (facts.success.some((s) => s !== null)) ways.success = "success";
  if (facts.tasks.length > 1) ways.task = "task";
  for (const name of Object.keys(facts.scores)) ways[`score ${name}`] = name;
  if (!(painted in ways)) painted = ways.success ? "success" : "time";
  const select = el("select", { id: "paint", "aria-label": "Colour by",
    onchange: () => { painted = select.value; select.blur(); draw(); } });
  for (const [value, text] of Object.entries(ways)) select.append(el("option", { value, selected: value === painted }, text));
  const { value, legend } = paint();
  return [el("h2", {}, "Where states and actions lie"),
    el("p", { class: "soft said" }, "The two directions in which they vary most (principal components), each component in "
      + "units of its standard deviation. The line is the open episode; a point opens its own."),
    el("div", { class: "bar" }, el("label", {}, "Colour by ", select), legend),
    el("div", { class: "maps" }, ...facts.maps.map((m) => map(m, value))), ...notes()];
}

function paint() { // {value(episode, step) -> 0..1, null or a colour's name; legend}
  const over = (text, low, high) => {
    const bar = el("span", { class: "ramp" });
    bar.style.background = `linear-gradient(90deg,${ramp(0)},${ramp(0.5)},${ramp(1)})`;
    return el("span", { class: "key" }, number(low), bar, `${number(high)} ${text}`);
  };
  if (painted === "success" || painted === "task") {
    const named = painted === "task" ? facts.tasks.slice(0, 4).map((t, i) => [`s${i}`, t]) : [["good", "success"], ["bad", "failure"]];
    if (painted === "task" && facts.tasks.length > 4) named.push(["edge", "others"]);
    const legend = el("span", { class: "key" });
    for (const [colour, text] of named) {
      const dot = el("span", { class: "dot" });
      dot.style.background = `var(--${colour})`;
      legend.append(dot, text.length > 48 ? text.slice(0, 47) + "…" : text);
    }
    const value = painted === "task" ? (e) => facts.task[e] < 0 || facts.task[e] > 3 ? "edge" : `s${facts.task[e]}`
      : (e) => facts.success[e] === null ? "edge" : facts.success[e] ? "good" : "bad";
    return { value, legend };
  }
  if (painted === "time") return { legend: over("of the episode", 0, 1),
    value: (e, s) => s / Math.max(1, facts.lengths[e] - 1) };
  if (painted === "episode") return { legend: over("", 0, count - 1), value: (e) => e / Math.max(1, count - 1) };
  const scores = facts.scores[painted.slice(6)], there = scores.filter((v) => v !== null).sort((a, b) => a - b);
  const [low, high] = [there[Math.floor(0.02 * there.length)], there[Math.ceil(0.98 * there.length) - 1]];
  return { legend: there.length ? over("(2nd to 98th percentile)", low, high) : el("span"), value: (e) =>
    scores[e] === null ? null : high > low ? Math.max(0, Math.min(1, (scores[e] - low) / (high - low))) : 0.5 };
}

function map(m, value) {
  m.points ??= { episode: array(m.episode, "i4"), step: array(m.step, "i4"), x: array(m.x, "f4"), y: array(m.y, "f4") };
  const { episode, step: steps, x, y } = m.points, canvas = el("canvas", { role: "img", "aria-label": m.title });
  const tip = el("div", { class: "tip", hidden: "" }), box = el("div", { class: "map" }, canvas, tip);
  let place = null;
  const range = (v) => v.reduce(([a, b], c) => [Math.min(a, c), Math.max(b, c)], [Infinity, -Infinity]);
  canvas.redraw = () => {
    const w = canvas.clientWidth, h = canvas.clientHeight, dense = devicePixelRatio || 1, g = canvas.getContext("2d");
    if (!w) return;
    [canvas.width, canvas.height] = [w * dense, h * dense];
    g.scale(dense, dense);
    const [[x0, x1], [y0, y1]] = [range(x), range(y)], edge = 22;
    const unit = Math.min((w - 2 * edge) / Math.max(x1 - x0, 1e-9), (h - 2 * edge) / Math.max(y1 - y0, 1e-9));
    place = (a, b) => [w / 2 + (a - (x0 + x1) / 2) * unit, h / 2 - (b - (y0 + y1) / 2) * unit];
    g.globalAlpha = Math.max(0.35, Math.min(0.85, 40 / Math.sqrt(m.count)));
    for (let i = 0; i < m.count; i++) {
      const v = value(episode[i], steps[i]), [px, py] = place(x[i], y[i]);
      g.fillStyle = typeof v === "string" ? colours[v] : v === null ? colours.edge : ramp(v);
      g.beginPath();
      if (v === "bad") g.rect(px - 2, py - 2, 4, 4); else g.arc(px, py, 2.1, 0, 7); // not by colour alone
      g.fill();
    }
    g.globalAlpha = 1;
    const way = project(m);
    if (!way.length) return;
    for (const [colour, wide] of [[colours.panel, 4.5], [colours.ink, 1.8]]) {
      g.strokeStyle = colour; g.lineWidth = wide; g.lineJoin = "round"; g.beginPath();
      way.forEach(([, a, b]) => g.lineTo(...place(a, b)));
      g.stroke();
    }
    const here = way.find(([row]) => row >= step) ?? way.at(-1);
    g.fillStyle = colours.paper; g.strokeStyle = colours.ink; g.lineWidth = 2;
    g.beginPath(); g.arc(...place(here[1], here[2]), 5, 0, 7); g.fill(); g.stroke();
  };
  const nearest = (event) => {
    const rect = canvas.getBoundingClientRect(), [a, b] = [event.clientX - rect.left, event.clientY - rect.top];
    let best = -1, far = 144;
    for (let i = 0; place && i < m.count; i++) {
      const [px, py] = place(x[i], y[i]), d = (px - a) ** 2 + (py - b) ** 2;
      if (d < far) [best, far] = [i, d];
    }
    return best;
  };
  canvas.addEventListener("mousemove", (event) => {
    const i = nearest(event);
    tip.hidden = i < 0;
    if (i < 0) return;
    const name = painted.startsWith("score ") ? painted.slice(6) : "";
    tip.textContent = `episode ${episode[i]}, step ${steps[i]}` + (name ? `: ${number(facts.scores[name][episode[i]])}` : "")
      + (facts.success[episode[i]] === null ? "" : ` ${outcome(episode[i])}`);
    const [px, py] = place(x[i], y[i]);
    tip.style.left = `${Math.min(px + 10, box.clientWidth - tip.offsetWidth - 4)}px`;
    tip.style.top = `${Math.max(4, py - 34)}px`;
  });
  canvas.addEventListener("mouseleave", () => { tip.hidden = true; });
  canvas.addEventListener("click", (event) => {
    const i = nearest(event);
    if (i >= 0) location.hash = address("episode", episode[i], steps[i]);
  });
  sizes.observe(box);
  const share = m.share.map((v) => `${Math.round(100 * v)}%`).join(" and ");
  return el("figure", {}, el("h3", {}, m.title), box, el("figcaption", { class: "soft said" },
    `${m.columns.join(", ")}: ${share} of the variance; ${plural(m.count, "point")}.`));
}

function project(m) { // [row, x, y] of the open episode's rows
  const parts = m.columns.map((name) => [opened?.columns?.[name], column(name)]);
  if (parts.some(([data]) => !data)) return [];
  const out = [], rows = Math.min(...parts.map(([data]) => data.rows));
  for (let r = 0; r < rows; r++) {
    let [a, b, k] = [0, 0, 0];
    for (const [data, about] of parts)
      for (let i = 0; i < about.labels.length; i++, k++) {
        const v = data.values[r * about.labels.length + i] - m.mean[k];
        a += v * m.axes[0][k];
        b += v * m.axes[1][k];
      }
    if (Number.isFinite(a) && Number.isFinite(b)) out.push([r * parts[0][1].every, a, b]);
  }
  return out;
}

// -- findings, statistics, what was left out --------------------------------------------------------------------------

function link(f) {
  const where = [f.file, f.episode === null ? null : `episode ${f.episode}`, f.step === null ? null : `step ${f.step}`,
    f.feature].filter((part) => part !== null).join(", ");
  return f.episode === null || f.episode >= count ? where
    : el("a", { href: address("episode", f.episode, f.step ?? 0) }, where);
}

function findings(some) {
  if (!some.length) return null;
  return el("ul", { class: "list" }, ...some.slice(0, 20).map((f) => el("li", {}, el("span", { class: `tag ${f.severity}` },
    f.severity), `${f.code}: ${f.message} `, f.step === null ? "" : link(f))),
  some.length > 20 ? el("li", { class: "soft" }, `and ${some.length - 20} more`) : null);
}

function drawFindings() {
  const tally = SEVERITIES.map((s) => plural(facts.findings.filter((f) => f.severity === s).length, s)).join(", ");
  const rows = facts.findings.map((f) => el("tr", {}, el("td", {}, el("span", { class: `tag ${f.severity}` }, f.severity)),
    el("td", {}, f.code), el("td", {}, link(f)), el("td", {}, f.message), el("td", { class: "soft" }, f.remedy)));
  return [el("h2", {}, "Findings"), el("p", { class: "soft said" }, facts.findings.length ? tally : "None: no check found anything."),
    rows.length ? el("div", { class: "scroll", tabindex: 0 }, el("table", {}, el("thead", {}, el("tr", {},
      ...["", "code", "where", "what was found", "what to do"].map((t) => el("th", {}, t)))), el("tbody", {}, ...rows))) : null,
    ...notes()];
}

function bars(counts) {
  const most = Math.max(...counts, 1), svg = el("svg", { viewBox: `0 0 ${counts.length * 5} 26`, preserveAspectRatio: "none",
    role: "img", "aria-label": `histogram: ${counts.join(" ")}` });
  counts.forEach((n, i) => n && svg.append(el("rect", { x: 5 * i + 0.5, width: 4, y: 25 - 24 * n / most,
    height: 24 * n / most + 1, fill: "var(--s0)" })));
  return svg;
}

function drawStatistics() {
  const numbers = facts.statistics.map((s) => el("tr", {}, el("td", {}, s.label ? `${s.column}[${s.label}]` : s.column),
    ...["min", "mean", "std", "max"].map((k) => el("td", { class: "n" }, s[k] === null ? "–" : number(s[k]))),
    el("td", { class: s.odd ? "n bad" : "n" }, s.odd ? s.odd.toLocaleString("en") : ""), el("td", {}, bars(s.counts))));
  const of = (c) => [c.name, c.role ?? "observation", c.kind ?? "image", c.dtype ?? "uint8", c.shape.join(" × ") || "1", c.unit ?? ""];
  const columns = [...facts.columns, ...facts.cameras].map((c) => el("tr", {}, ...of(c).map((t) => el("td", {}, t))));
  const each = [...facts.tasks.keys()].map((i) => [i, facts.task.filter((t) => t === i).length]).sort((a, b) => b[1] - a[1]);
  const tasks = each.slice(0, 200).map(([i, n]) => el("tr", {}, el("td", {}, facts.tasks[i]), el("td", { class: "n" }, String(n))));
  const table = (head, body) => el("div", { class: "scroll", tabindex: 0 }, el("table", {}, el("thead", {}, el("tr", {},
    ...head.map((t) => el("th", { class: /^(min|mean|std|max|not finite|episodes)$/.test(t) ? "n" : null }, t)))),
  el("tbody", {}, ...body)));
  const [low, high] = facts.lengths.reduce(([a, b], n) => [Math.min(a, n), Math.max(b, n)], [Infinity, 0]);
  const counts = Array(24).fill(0);
  for (const n of facts.lengths) counts[high > low ? Math.min(23, Math.floor(24 * (n - low) / (high - low))) : 0]++;
  const ended = facts.success.filter((s) => s !== null);
  return [el("h2", {}, "Statistics"), count ? el("p", { class: "soft said" }, `Episodes of ${low} to ${high} steps`
    + (ended.length ? `; ${ended.filter(Boolean).length} of ${ended.length} succeeded.` : ".")) : null,
  count ? table(["length of the episodes"], [el("tr", {}, el("td", {}, bars(counts)))]) : null,
  numbers.length ? table(["numbers", "min", "mean", "std", "max", "not finite", "histogram"], numbers) : null,
  columns.length ? table(["column", "role", "kind", "dtype", "shape", "unit"], columns) : null,
  tasks.length ? table(["task", "episodes"], tasks) : null, ...notes()];
}

function notes() {
  return [facts.notes.length ? el("ul", { class: "notes" }, ...facts.notes.map((n) => el("li", {}, n))) : null];
}

// -- keys, and the beginning ------------------------------------------------------------------------------------------

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const inside = event.target.tagName, dialog = byId("help");
  if (dialog.open && event.key !== "?") return;
  if (inside === "INPUT" && event.target.type === "search" || inside === "SELECT") {
    if (event.key === "Escape" || event.key === "Enter") event.target.blur();
    return;
  }
  const far = event.shiftKey ? 10 : 1, names = Object.keys(VIEWS);
  const keys = {
    ArrowDown: () => list.turn(1), j: () => list.turn(1), ArrowUp: () => list.turn(-1), k: () => list.turn(-1),
    ArrowRight: () => { stop(); move(step + far); }, ArrowLeft: () => { stop(); move(step - far); },
    Home: () => { stop(); move(0); }, End: () => { stop(); move(last()); }, " ": play,
    "/": () => byId("search").focus(), t: () => { theme(true); draw(); },
    "?": () => dialog.open ? dialog.close() : dialog.showModal(),
    ...Object.fromEntries(names.map((name, i) => [String(i + 1), () => go(name)])),
  };
  if (!keys[event.key] || event.key === " " && inside === "BUTTON") return;
  event.preventDefault();
  keys[event.key]();
});

byId("title").textContent = facts.title;
byId("about").textContent = [facts.about.format, facts.about.robot, plural(count, "episode"),
  plural(facts.lengths.reduce((a, b) => a + b, 0), "step"),
  facts.about.fps ? `${number(facts.about.fps)} steps a second` : null].filter(Boolean).join(" · ");
for (const [name, text] of Object.entries(VIEWS))
  byId("views").append(el("button", { "data-view": name, onclick: () => go(name) },
    name === "findings" && facts.findings.length ? `${text} (${facts.findings.length})` : text));
const sorts = { "+": "in their order", "-length": "longest first", "+length": "shortest first", "-findings": "most findings first" };
for (const name of Object.keys(facts.scores)) Object.assign(sorts, { [`-score ${name}`]: `highest ${name} first`,
  [`+score ${name}`]: `lowest ${name} first` });
for (const [value, text] of Object.entries(sorts)) byId("sort").append(el("option", { value }, text));
byId("sort").addEventListener("change", () => { list.choose(); byId("sort").blur(); });
byId("search").addEventListener("input", () => list.choose());
byId("list").addEventListener("scroll", () => list.draw());
byId("theme").addEventListener("click", () => { theme(true); draw(); });
byId("asks").addEventListener("click", () => byId("help").showModal());
addEventListener("hashchange", follow);
addEventListener("resize", () => list.draw());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { theme(false); draw(); });
try {
  const liked = localStorage.getItem("understudy-theme");
  if (liked === "light" || liked === "dark") document.documentElement.dataset.theme = liked;
} catch { /* not allowed */ }
theme(false);
list.choose();
follow();

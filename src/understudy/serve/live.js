"use strict";
const by = id => document.getElementById(id);
const make = (tag, parent, values = {}, kind) => {
  const node = kind ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(values)) node.setAttribute(name, value);
  return parent.appendChild(node);
};
const token = location.hash.slice(1);
const coded = btoa(token).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
const socket = new WebSocket(`ws://${location.host}/`, ["understudy", `token.${coded}`]);
const steps = [], cameras = new Map(), panels = [];
let now = 0, seconds = 10, opened = false;

const set = (id, text, bad = false) => {
  by(id).textContent = text;
  by(id).className = bad ? "bad" : "";
};

const showCamera = ({name, frame, width, height, rate, dropped}) => {
  if (!cameras.has(name)) {
    const figure = make("figure", by("cameras"), {class: "camera"});
    const image = make("img", figure, {alt: `Camera ${name}`, width, height});
    const caption = make("figcaption", figure);
    make("b", caption).textContent = name;
    cameras.set(name, {image, text: make("span", caption)});
  }
  const {image, text} = cameras.get(name);
  image.src = `data:image/jpeg;base64,${frame}`;
  const lost = dropped === null ? "" : `, ${dropped} dropped`;
  text.textContent = `${width} × ${height}, ${rate.toFixed(0)} frames/s${lost}`;
  text.className = dropped > 0 ? "bad" : "soft";
};

const makePanel = name => {
  const joint = make("div", by("joints"), {class: "joint"});
  const head = make("p", joint);
  make("b", head).textContent = name;
  const values = make("span", head);
  const numbers = ["measured", "sent"].map(kind => make("span", values, {class: kind, title: kind}));
  const field = make("div", joint, {class: "field"});
  const plot = make("svg", field, {viewBox: "0 0 100 100", preserveAspectRatio: "none", role: "img",
    "aria-label": `${name}: measured and sent`}, true);
  make("path", plot, {class: "axis", d: "M0 50H100"}, true);
  const paths = ["command", "measured", "sent"].map(kind => make("path", plot, {class: kind}, true));
  const ends = ["top", "bottom"].map(end => make("span", field, {class: `end ${end}`}));
  const scale = make("p", joint, {class: "scale"});
  make("span", scale).textContent = `${seconds} s ago`;
  make("span", scale).textContent = "now";
  panels.push({numbers, paths, ends});
};

const line = (points, low, high) => points.map(([t, y]) => y === null ? null :
  `${(100 * (1 + t / seconds)).toFixed(2)} ${(98 - 96 * (y - low) / (high - low)).toFixed(2)}`)
  .reduce((path, point) => [path[0] + (point === null ? "" : `${path[1] ? "L" : "M"}${point}`), point !== null],
    ["", false])[0];

const drawJoints = () => panels.forEach(({numbers, paths, ends}, i) => {
  const rows = steps.map(({time, position, command, sent}) => [time - now, position[i], sent[i],
    Math.abs(command[i] - sent[i]) > 1e-2 ? command[i] : null]);
  const all = rows.flatMap(row => row.slice(1)).filter(y => y !== null);
  if (!all.length) return;
  const middle = (Math.min(...all) + Math.max(...all)) / 2;
  const half = Math.max((Math.max(...all) - Math.min(...all)) * .55, 1);
  [3, 1, 2].forEach((column, k) => paths[k].setAttribute("d",
    line(rows.map(row => [row[0], row[column]]), middle - half, middle + half)));
  const [, position, sent] = rows[rows.length - 1];
  numbers[0].textContent = position.toFixed(1);
  numbers[1].textContent = sent.toFixed(1);
  ends[0].textContent = (middle + half).toFixed(half < 5 ? 1 : 0);
  ends[1].textContent = (middle - half).toFixed(half < 5 ? 1 : 0);
});

socket.onmessage = ({data}) => {
  const {names, state, keys, loop, cameras: shown, samples, ...rest} = JSON.parse(data);
  opened = true;
  seconds = rest.seconds;
  now = rest.now;
  if (!panels.length) names.forEach(makePanel);
  for (const [, time, position, command, sent] of samples) steps.push({time, position, command, sent});
  while (steps.length && steps[0].time < now - seconds) steps.shift();
  by("legend").hidden = !steps.length;
  set("state", state.charAt(0).toUpperCase() + state.slice(1) || (steps.length ? "Running" : "Waiting for the first step"));
  by("keys").textContent = keys.replaceAll(" | ", " · ");
  const rests = loop.age === null || loop.age > 1;
  set("rate", `${rests ? 0 : loop.rate.toFixed(0)} of ${loop.fps} steps/s`, !rests && loop.rate < .9 * loop.fps);
  set("slowest", loop.slowest ? `${loop.slowest} ms` : "–", loop.slowest > 1500 / loop.fps && !rests);
  set("age", loop.age === null ? "none yet" : rests ? `${loop.age} s ago` : "now");
  shown.forEach(showCamera);
  drawJoints();
};
socket.onclose = () => set("state", opened ? "The command has ended. Reload the page when it runs again." :
  "The page needs the token of the printed address: open exactly that address.", true);

"use strict";
const by = id => document.getElementById(id);
const socket = new WebSocket(`ws://${location.host}/`);
const send = click => socket.readyState === 1 && socket.send(JSON.stringify({click}));

socket.onmessage = ({data}) => {
  const {frame, episode, step, outcome, tally, click} = JSON.parse(data);
  if (frame) by("frame").setAttribute("href", `data:image/png;base64,${frame}`);
  by("target").toggleAttribute("hidden", !click);
  if (click) by("target").setAttribute("transform", `translate(${100 * click[0]} ${100 * click[1]})`);
  by("clear").disabled = !click;
  if (episode === undefined) return;
  by("now").textContent = `Episode ${episode}, step ${step ?? 0}${outcome ? `: ${outcome}` : ""}`;
  by("now").className = {success: "good", failure: "bad"}[outcome] ?? "";
  by("tally").textContent = tally ?? "";
};
socket.onclose = () => {
  by("now").textContent = "The server has ended. Reload the page when it runs again.";
  by("now").className = "bad";
};
by("picture").addEventListener("click", event => {
  const box = by("frame").getBoundingClientRect();
  const within = x => Math.min(1, Math.max(0, x));
  send([within((event.clientX - box.left) / box.width), within((event.clientY - box.top) / box.height)]);
});
by("clear").addEventListener("click", () => send(null));
document.addEventListener("keydown", event => event.key === "Escape" && send(null));

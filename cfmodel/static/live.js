"use strict";
// The page asks for a chunk when too little of the film is left in front of the picture on screen;
// the server makes what is asked for. So generation follows playback and stops with it.

const TICK_MS = 50;
const ALIVE_MS = 3000;
const KEEP_S = 15; // of what was shown, before the browser is told to forget it
const SLACK_S = 0.4; // beyond twice the time that a chunk takes to come
const FADE = 0.9; // of a slow chunk, from one to the next
const MOST_LINES = 200; // of a list
const THUMB = { width: 68, height: 40 };
const THUMBS_BEHIND = 60; // latent frames whose picture is kept though no slot holds them

const at = (name) => document.getElementById("live-" + name);
const video = at("video");
let about = null;
let kind = null;
let now = null; // what is on: session, source, buffer, states to come, prompts, pictures

function say(text, bad = false) {
  at("message").textContent = text;
  at("message").className = bad ? "bad" : "";
}

function post(route, body, more = {}) {
  return fetch("/api/" + route, {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body),
    ...more,
  });
}

function phase(name) {
  document.body.dataset.phase = name;
  at("go").textContent = name === "on" ? "Change prompt" : "Start";
  at("stop").disabled = name !== "on";
}

const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const once = (target, name) =>
  new Promise((done) => target.addEventListener(name, done, { once: true }));

// --- starting, changing, stopping ---

async function submit(event) {
  event.preventDefault();
  const prompt = at("prompt").value;
  at("go").disabled = true;
  try {
    await (now === null ? start(prompt) : change(now, prompt));
  } catch (error) {
    say("the server cannot be reached: " + error.message, true);
  }
  at("go").disabled = false;
}

async function start(prompt) {
  say("starting …");
  const reply = await post("start", { prompt, kind: kind.kind });
  const tree = await reply.json();
  if (!reply.ok) { say(tree.error, true); return; }
  at("prompts").textContent = at("promotions").textContent = at("memory").textContent = "";
  at("stalls").textContent = "0";
  document.body.dataset.prompt = 0;
  const source = new MediaSource();
  const run = {
    session: tree.session, source, buffer: null, next: 0, took_s: 0, states: [], started: false,
    leave: new AbortController(),
    prompts: new Map([[1, { text: prompt, asked: performance.now() }]]), thumbs: new Map(),
    held: new Set(), last: null,
  };
  now = run;
  phase("on");
  say(tree.warnings.join(" "));
  video.src = URL.createObjectURL(source);
  await once(source, "sourceopen");
  URL.revokeObjectURL(video.src);
  if (run !== now) return;
  run.buffer = source.addSourceBuffer(kind.mime);
  run.alive = setInterval(() => post("alive", { session: run.session }).catch(() => null), ALIVE_MS);
  fetchAll(run).catch((error) => finish(run, "the stream broke off: " + error.message, true));
}

async function change(run, prompt) {
  const asked = performance.now();
  const reply = await post("prompt", { session: run.session, prompt });
  const tree = await reply.json();
  if (!reply.ok) { say(tree.error || tree.ended, true); return; }
  run.prompts.set(tree.number, { text: prompt, asked });
  say([`prompt ${tree.number} comes with the next chunk.`, ...tree.warnings].join(" "));
}

function finish(run, text, bad = false) {
  if (run !== now) return;
  now = null;
  clearInterval(run.alive);
  run.leave.abort();
  phase("idle");
  say(text, bad);
}

function stop() {
  const run = now;
  if (run === null) return;
  finish(run, `stopped after ${video.currentTime.toFixed(1)} s`);
  video.pause();
  post("stop", { session: run.session }, { keepalive: true }).catch(() => null);
}

// --- the film ---

function ahead() {
  const ranges = video.buffered;
  return ranges.length ? Math.max(0, ranges.end(ranges.length - 1) - video.currentTime) : 0;
}

async function fetchAll(run) {
  while (run === now) {
    if (ahead() > Math.min(about.ahead_s, SLACK_S + 2 * run.took_s)) {
      await pause(TICK_MS);
      continue;
    }
    const began = performance.now();
    const ask = { session: run.session, chunk: run.next };
    const reply = await post("chunk", ask, { signal: run.leave.signal });
    if (run !== now) return;
    if (reply.status === 204) continue;
    if (!reply.ok) { await end(run, await reply.json()); return; }
    const told = reply.headers.get("x-live");
    await add(run, await reply.arrayBuffer());
    run.took_s = Math.max((performance.now() - began) / 1000, FADE * run.took_s);
    run.next += 1;
    if (told) run.states.push(JSON.parse(told));
  }
}

async function add(run, bytes) {
  run.buffer.appendBuffer(bytes);
  await once(run.buffer, "updateend");
  if (video.currentTime > 2 * KEEP_S && video.buffered.start(0) < video.currentTime - 2 * KEEP_S) {
    run.buffer.remove(0, video.currentTime - KEEP_S);
    await once(run.buffer, "updateend");
  }
  if (!run.started && video.buffered.length) {
    run.started = true;
    video.play().catch((error) => finish(run, "the film does not play: " + error.message, true));
  }
}

async function end(run, tree) {
  if (tree.ended && run.source.readyState === "open") {
    run.source.endOfStream();
    while (run === now && !video.ended) await pause(TICK_MS);
  }
  finish(run, tree.ended ? `the film has ended: ${tree.ended}` : tree.error, !tree.ended);
}

// --- what is told, in time with the picture ---

function tick() {
  at("seconds").textContent = video.currentTime.toFixed(1);
  at("ahead").textContent = ahead().toFixed(1);
  const run = now;
  if (run === null || !run.started) return;
  while (run.states.length && run.states[0].start_s <= video.currentTime + 0.001) {
    show(run, run.states.shift());
  }
  picture(run);
}

function show(run, state) {
  at("fps").textContent = state.fps.toFixed(1);
  const prompt = run.prompts.get(state.prompt);
  if (String(state.prompt) !== document.body.dataset.prompt && prompt) {
    document.body.dataset.prompt = state.prompt;
    const waited = ((performance.now() - prompt.asked) / 1000).toFixed(1);
    line("prompts", `${state.start_s.toFixed(1)} s: ${prompt.text} (on screen after ${waited} s)`);
    if (state.prompt > 1) say(`prompt ${state.prompt} is on screen, after ${waited} s`);
  }
  for (const frame of state.promoted) {
    line("promotions", `${seconds(frame).toFixed(1)} s: frame ${frame} entered slow memory`, true);
  }
  run.held = new Set(state.slots.map((slot) => slot.frame));
  run.last = state;
  slots(run, state);
}

function line(list, text, first = false) {
  const item = document.createElement("li");
  item.textContent = text;
  if (first) at(list).prepend(item); else at(list).append(item);
  if (at(list).childElementCount > MOST_LINES) {
    at(list)[first ? "lastElementChild" : "firstElementChild"].remove();
  }
}

const seconds = (frame) => (frame ? 1 + about.stride * (frame - 1) : 0) / about.fps;

function slots(run, state) {
  const rows = ["sink", "slow", "fast"].map((role) => {
    const row = document.createElement("div");
    row.className = "role " + role;
    const name = document.createElement("b");
    name.textContent = role;
    const held = document.createElement("div");
    held.id = "live-" + role;
    for (const slot of state.slots.filter((one) => one.role === role)) {
      held.append(slotFigure(run, slot.frame, state.promoted.includes(slot.frame)));
    }
    row.append(name, held);
    return row;
  });
  at("memory").replaceChildren(...rows);
}

function slotFigure(run, frame, isNew) {
  const figure = document.createElement("figure");
  figure.dataset.frame = frame;
  figure.title = `latent frame ${frame}, at ${seconds(frame).toFixed(2)} s`;
  if (isNew) figure.className = "new";
  const canvas = Object.assign(document.createElement("canvas"), THUMB);
  const caption = document.createElement("figcaption");
  caption.textContent = `${frame} · ${seconds(frame).toFixed(1)} s`;
  figure.append(canvas, caption);
  paint(run, canvas, frame);
  return figure;
}

function paint(run, canvas, frame) {
  const thumb = run.thumbs.get(frame);
  if (thumb) canvas.getContext("2d").drawImage(thumb, 0, 0);
}

// The picture on screen belongs to a latent frame; the first of its pixel frames seen is kept.
function picture(run) {
  const shown = Math.floor(video.currentTime * about.fps + 0.001);
  const frame = Math.ceil(shown / about.stride);
  if (video.readyState < 2 || run.thumbs.has(frame)) return;
  const thumb = Object.assign(document.createElement("canvas"), THUMB);
  thumb.getContext("2d").drawImage(video, 0, 0, THUMB.width, THUMB.height);
  run.thumbs.set(frame, thumb);
  for (const old of run.thumbs.keys()) {
    if (old < frame - THUMBS_BEHIND && !run.held.has(old)) run.thumbs.delete(old);
  }
  for (const figure of document.querySelectorAll(`figure[data-frame="${frame}"]`)) {
    paint(run, figure.firstChild, frame);
  }
}

// --- the page itself ---

function count() {
  const size = new TextEncoder().encode(at("prompt").value).length;
  at("bytes").textContent = `${size} / ${about.max_bytes} bytes`;
}

function example(text) {
  const button = document.createElement("button");
  button.type = "submit";
  button.textContent = text.split(". ").pop();
  button.title = text;
  button.addEventListener("click", () => { at("prompt").value = text; count(); });
  return button;
}

async function main() {
  about = await (await fetch("/api/about")).json();
  at("preset").textContent = `${about.preset}, ${about.label}`;
  at("facts").textContent =
    `${about.width} x ${about.height} at ${about.fps} frames/s on ${about.device}, seed ` +
    `${about.seed}; ${about.limit}.`;
  at("rule").textContent =
    `sink ${about.sink}, slow ${about.slow}, fast ${about.fast ?? "without end"} latent frames; ` +
    `promotion ${about.promotion}, tau ${about.tau}; a new prompt: ${about.switch}. ` +
    "A slot names its latent frame and that frame's time.";
  for (const text of about.examples) at("examples").append(example(text));
  at("prompt").value = about.examples[0] ?? "";
  count();
  const plays = (one) => "MediaSource" in window && MediaSource.isTypeSupported(one.mime);
  kind = about.kinds.find(plays) ?? null;
  if (kind === null) {
    at("go").disabled = true;
    say("this browser plays neither H.264 nor VP9 through Media Source; try another one", true);
    return;
  }
  document.body.dataset.kind = kind.kind;
  at("form").addEventListener("submit", submit);
  at("stop").addEventListener("click", stop);
  at("prompt").addEventListener("input", count);
  video.addEventListener("waiting", () => {
    if (now === null || now.last === null) return;
    at("stalls").textContent = Number(at("stalls").textContent) + 1;
  });
  addEventListener("pagehide", stop);
  setInterval(tick, TICK_MS);
}

main().catch((error) => say("the server cannot be reached: " + error.message, true));

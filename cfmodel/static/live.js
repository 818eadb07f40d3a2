"use strict";
// The server makes a chunk when the page asks for it, which is when little of the film is left in
// front of the picture on screen: generation follows playback.

const TICK_MS = 50;
const KEEP_S = 15; // of what was shown, before the browser is told to forget it
const SLACK_S = 0.4; // ahead, beyond twice the time that a chunk takes to come
const FADE = 0.9; // of a slow chunk, from one to the next
const WIDTH = 68, HEIGHT = 40; // of a slot's picture
const PICTURES = 60; // latent frames back whose picture is kept though no slot holds them

const at = (name) => document.getElementById("live-" + name);
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const once = (target, name) => new Promise((done) => target.addEventListener(name, done, { once: true }));
const video = at("video");
let about, kind;
let now = null; // what is on

function say(text, bad = false) {
  at("message").textContent = text;
  at("message").className = bad ? "bad" : "";
}

function post(route, body, more = {}) {
  const headers = { "content-type": "application/json" };
  return fetch("/api/" + route, { method: "POST", headers, body: JSON.stringify(body), ...more });
}

function phase(name) {
  document.body.dataset.phase = name;
  at("go").textContent = name === "on" ? "Change prompt" : "Start";
  at("stop").disabled = name !== "on";
}

async function submit(event) {
  event.preventDefault();
  at("go").disabled = true;
  await (now ? change(now, at("prompt").value) : start(at("prompt").value)).catch(unreached);
  at("go").disabled = false;
}

const unreached = (error) => say("the server cannot be reached: " + error.message, true);

async function start(prompt) {
  const asked = performance.now();
  const reply = await post("start", { prompt, kind: kind.kind });
  const tree = await reply.json();
  if (!reply.ok) { say(tree.error, true); return; }
  at("prompts").replaceChildren();
  document.body.dataset.prompt = 0;
  const run = now = {
    session: tree.session, source: new MediaSource(), leave: new AbortController(), next: 0,
    took_s: 0, states: [], prompts: { 1: { prompt, asked } }, pictures: new Map(), held: [],
  };
  phase("on");
  say(tree.warnings.join(" "));
  video.src = URL.createObjectURL(run.source);
  await once(run.source, "sourceopen");
  URL.revokeObjectURL(video.src);
  if (run !== now) return;
  run.buffer = run.source.addSourceBuffer(kind.mime);
  stream(run).catch((error) => finish(run, "the stream broke off: " + error.message, true));
}

async function change(run, prompt) {
  const asked = performance.now();
  const reply = await post("prompt", { session: run.session, prompt });
  const tree = await reply.json();
  if (!reply.ok) { say(tree.error || tree.ended, true); return; }
  run.prompts[tree.number] = { prompt, asked };
  say([`prompt ${tree.number} comes with the next chunk.`, ...tree.warnings].join(" "));
}

function finish(run, text, bad = false) {
  if (run !== now) return;
  now = null;
  post("stop", { session: run.session }, { keepalive: true }).catch(() => 0);
  run.leave.abort();
  phase("idle");
  say(text, bad);
}

function stop() {
  if (!now) return;
  finish(now, `stopped after ${video.currentTime.toFixed(1)} s`);
  video.pause();
}

function ahead() {
  const ranges = video.buffered;
  return ranges.length ? Math.max(0, ranges.end(ranges.length - 1) - video.currentTime) : 0;
}

async function stream(run) {
  while (run === now) {
    if (ahead() > Math.min(about.ahead_s, SLACK_S + 2 * run.took_s)) {
      await pause(TICK_MS);
      continue;
    }
    const began = performance.now(), ask = { session: run.session, chunk: run.next };
    const reply = await post("chunk", ask, { signal: run.leave.signal });
    if (reply.status === 204) continue;
    if (!reply.ok) {
      const { ended, error } = await reply.json();
      if (ended) run.source.endOfStream();
      while (ended && run === now && !video.ended) await pause(TICK_MS);
      finish(run, error ?? `the film has ended: ${ended}`, Boolean(error));
      return;
    }
    const told = reply.headers.get("x-live");
    await add(run, await reply.arrayBuffer());
    run.took_s = Math.max((performance.now() - began) / 1000, FADE * run.took_s);
    run.next += 1;
    if (told) run.states.push(JSON.parse(told));
    if (run.next === 1) video.play().catch((error) => finish(run, error.message, true));
  }
}

async function add(run, bytes) {
  run.buffer.appendBuffer(bytes);
  await once(run.buffer, "updateend");
  if (video.currentTime > 2 * KEEP_S && video.buffered.start(0) < video.currentTime - 2 * KEEP_S) {
    run.buffer.remove(0, video.currentTime - KEEP_S);
    await once(run.buffer, "updateend");
  }
}

// What is told of a chunk is shown when its first picture is.
function tick() {
  at("seconds").textContent = video.currentTime.toFixed(1);
  if (!now) return;
  while (now.states.length && now.states[0].start_s <= video.currentTime + 0.001) {
    show(now, now.states.shift());
  }
  picture(now);
}

function show(run, state) {
  at("fps").textContent = state.fps.toFixed(1);
  const given = run.prompts[state.prompt];
  if (given && Number(document.body.dataset.prompt) !== state.prompt) {
    document.body.dataset.prompt = state.prompt;
    const waited = ((performance.now() - given.asked) / 1000).toFixed(1);
    const text = `${state.start_s.toFixed(1)} s: ${given.prompt} (seen after ${waited} s)`;
    at("prompts").prepend(tag("li", text));
    say("");
  }
  run.held = state.slots.map(([frame]) => frame);
  at("memory").replaceChildren(...["sink", "slow", "fast"].map((role) => {
    const slots = state.slots.filter((slot) => slot[1] === role);
    const row = tag("div", tag("b", role), tag("div", ...slots.map(([frame]) => slot(run, frame))));
    row.id = "live-" + role;
    return row;
  }));
}

function tag(name, ...children) {
  const one = document.createElement(name);
  one.append(...children);
  return one;
}

function caption(frame) {
  const { fps, vae_stride } = about.experiment.geometry;
  return `${frame} · ${((frame ? 1 + vae_stride[0] * (frame - 1) : 0) / fps).toFixed(1)} s`;
}

const canvas = () => Object.assign(tag("canvas"), { width: WIDTH, height: HEIGHT });

function slot(run, frame) {
  const figure = tag("figure", canvas(), tag("figcaption", caption(frame)));
  figure.dataset.frame = frame;
  paint(figure, run.pictures.get(frame));
  return figure;
}

function paint(figure, drawn) {
  if (drawn) figure.firstChild.getContext("2d").drawImage(drawn, 0, 0, WIDTH, HEIGHT);
}

// The picture on screen belongs to a latent frame; the first of its pixel frames seen is kept.
function picture(run) {
  const { fps, vae_stride } = about.experiment.geometry;
  const frame = Math.ceil(Math.floor(video.currentTime * fps + 0.001) / vae_stride[0]);
  if (video.readyState < 2 || run.pictures.has(frame)) return;
  const figure = tag("figure", canvas());
  paint(figure, video);
  run.pictures.set(frame, figure.firstChild);
  for (const old of run.pictures.keys()) {
    if (old < frame - PICTURES && !run.held.includes(old)) run.pictures.delete(old);
  }
  document.querySelectorAll(`[data-frame="${frame}"]`).forEach((one) => paint(one, video));
}

async function main() {
  about = await (await fetch("/api/about")).json();
  const { geometry, memory } = about.experiment;
  at("preset").textContent = about.preset;
  at("facts").textContent = `${geometry.width} x ${geometry.height} at ${geometry.fps} frames/s on ` +
    `${about.device}, seed ${about.seed}; ${about.limit}.`;
  at("rule").textContent = `promotion ${memory.promotion}, tau ${memory.tau}; a new prompt: ` +
    `${memory.switch}`;
  for (const text of about.examples) {
    const button = tag("button", text.split(". ").pop());
    button.title = text;
    button.addEventListener("click", () => { at("prompt").value = text; });
    at("examples").append(button);
  }
  at("prompt").value = about.examples[0] ?? "";
  kind = about.kinds.find((one) => window.MediaSource?.isTypeSupported(one.mime));
  if (!kind) {
    at("go").disabled = true;
    say("this browser plays neither H.264 nor VP9 through Media Source; try another one", true);
    return;
  }
  document.body.dataset.kind = kind.kind;
  at("form").addEventListener("submit", submit);
  at("stop").addEventListener("click", stop);
  addEventListener("pagehide", stop);
  setInterval(tick, TICK_MS);
}

main().catch(unreached);

"use strict";
// Plays two to four films of one prompt and seed in step. The first film is the clock; the others
// are steered by their speed and, when far off, by a seek.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const DRIFT_S = 0.04;
  const JUMP_S = 0.5;
  const MIN_SYSTEMS = 2;
  const MAX_SYSTEMS = 4;
  const films = new Map(data.films.map((film) => [`${film.system} ${film.prompt} ${film.seed}`, film]));
  const prompts = new Map(data.prompts.map((prompt) => [prompt.id, prompt]));
  const state = { stratum: "", prompt: "", seed: "", systems: [], time: 0, playing: false };
  let videos = [];
  let waiting = false;

  const element = (tag, properties = {}, ...children) => {
    const node = Object.assign(document.createElement(tag), properties);
    node.append(...children);
    return node;
  };
  const clockText = (time) => {
    const minutes = Math.floor(time / 60);
    return `${minutes}:${(time - 60 * minutes).toFixed(1).padStart(4, "0")}`;
  };
  const shownPrompts = () => data.prompts.filter((p) => !state.stratum || p.stratum === state.stratum);
  const currentFilms = () =>
    state.systems.map((name) => films.get(`${name} ${state.prompt} ${state.seed}`));
  const duration = () => {
    const lengths = currentFilms().filter((film) => film && film.src).map((film) => film.seconds);
    return lengths.length ? Math.min(...lengths) : 60;
  };

  // State in the address, so that a view can be linked to.
  const remember = () => {
    const fields = new URLSearchParams({
      prompt: state.prompt, seed: state.seed, systems: state.systems.join(","), stratum: state.stratum,
    });
    history.replaceState(null, "", `#${fields}`);
  };
  const recall = () => {
    const fields = new URLSearchParams(location.hash.slice(1));
    const names = new Set(data.systems.map((system) => system.id));
    const wanted = (fields.get("systems") || "").split(",").filter((name) => names.has(name));
    state.stratum = data.prompts.some((p) => p.stratum === fields.get("stratum")) ? fields.get("stratum") : "";
    const first = shownPrompts()[0];
    state.prompt = prompts.has(fields.get("prompt")) ? fields.get("prompt") : first ? first.id : "";
    state.systems = wanted.length >= MIN_SYSTEMS ? wanted.slice(0, MAX_SYSTEMS) : data.start.slice();
    state.seed = fields.get("seed") || "";
  };

  const fill = (select, options, value) => {
    select.replaceChildren(...options.map(([key, text]) => element("option", { value: key, textContent: text })));
    select.value = value;
  };
  const drawChoices = () => {
    const strata = [...new Set(data.prompts.map((p) => p.stratum))].filter(Boolean);
    fill(byId("stratum"), [["", "all"], ...strata.map((name) => [name, name])], state.stratum);
    fill(byId("prompt"), shownPrompts().map((p) => [p.id, p.id]), state.prompt);
    const seeds = [...new Set(data.films.filter((f) => f.prompt === state.prompt).map((f) => String(f.seed)))];
    if (!seeds.includes(state.seed)) state.seed = seeds[0] || "";
    fill(byId("seed"), seeds.map((seed) => [seed, seed]), state.seed);
    byId("systems").replaceChildren(...data.systems.map((system) => {
      const isOn = state.systems.includes(system.id);
      const button = element("button", {
        type: "button", textContent: system.label, className: system.reference ? "reference" : "",
        disabled: isOn ? state.systems.length <= MIN_SYSTEMS : state.systems.length >= MAX_SYSTEMS,
        onclick: () => toggleSystem(system.id),
      });
      button.dataset.system = system.id;
      button.setAttribute("aria-pressed", String(isOn));
      return button;
    }));
  };

  const segmentStarts = () => {
    let start = 0;
    return (prompts.get(state.prompt)?.segments || []).map((segment) => {
      const from = start;
      start += segment.seconds;
      return { text: segment.text, from };
    });
  };
  const drawSegments = () => {
    const parts = segmentStarts();
    byId("segments").replaceChildren(...parts.map((part) =>
      element("button", { type: "button", onclick: () => seek(part.from) },
        element("small", { textContent: clockText(part.from) }), part.text)));
    byId("marks").replaceChildren(...parts.slice(1).filter((part) => part.from < duration()).map((part) => {
      const mark = element("span");
      mark.style.left = `${(100 * part.from) / duration()}%`;
      return mark;
    }));
  };

  const drawScores = (film) => {
    const rows = data.dimensions.map((dimension) => {
      const value = film.scores[dimension.id];
      const isNull = value === null || value === undefined;
      const bar = element("i");
      bar.style.width = isNull ? "0" : `${Math.max(0, Math.min(100, value))}%`;
      return element("tr", { className: isNull ? "null" : "" },
        element("td", { textContent: dimension.label }),
        element("td", { className: "meter" }, bar),
        element("td", { textContent: isNull ? "–" : value.toFixed(1), title: film.reasons[dimension.id] || "" }));
    });
    return element("table", { className: "scores" }, element("tbody", {}, ...rows));
  };
  const drawFilm = (system, film) => {
    const screen = element("div", { className: "screen" });
    const figure = element("figure", {},
      element("figcaption", { textContent: system.label, className: system.id === "ours" ? "ours" : "" }), screen);
    screen.style.aspectRatio = film ? `${film.width} / ${film.height}` : "16 / 10";
    if (!film || !film.src) {
      screen.append(element("p", { textContent: film ? "The film is not in the store." : "No film of this prompt and seed." }));
      return { figure, video: null };
    }
    // Only films on screen are loaded at all.
    const video = element("video", { src: film.src, muted: true, playsInline: true, preload: "auto" });
    video.addEventListener("error", () => screen.append(element("p", { textContent: "This film cannot be played." })));
    screen.append(video);
    const heads = ["total", "quality", "semantic"].map((name) => {
      const value = film.scores[name];
      const text = value === null || value === undefined ? "–" : value.toFixed(1);
      return element("span", {}, `${name} `, element("b", { textContent: text }));
    });
    figure.append(element("div", { className: "heads" }, ...heads), drawScores(film));
    return { figure, video };
  };
  const drawFilms = () => {
    for (const video of videos) { video.pause(); video.removeAttribute("src"); video.load(); }
    const drawn = state.systems.map((name, index) =>
      drawFilm(data.systems.find((system) => system.id === name), currentFilms()[index]));
    byId("films").style.setProperty("--columns", String(state.systems.length));
    byId("films").replaceChildren(...drawn.map((item) => item.figure));
    videos = drawn.map((item) => item.video).filter(Boolean);
    byId("seek").max = String(duration());
    seek(Math.min(state.time, duration()));
    if (state.playing) start();
  };

  const ready = (video) => video.error || video.readyState >= HTMLMediaElement.HAVE_FUTURE_DATA;
  const start = () => {
    state.playing = true;
    byId("play").textContent = "Pause";
    waiting = true;
    if (state.time >= duration() - 0.05) seek(0);
  };
  const pause = () => {
    state.playing = false;
    waiting = false;
    byId("play").textContent = "Play";
    for (const video of videos) { video.pause(); video.playbackRate = 1; }
    seek(state.time);
  };
  const seek = (time) => {
    state.time = Math.max(0, Math.min(time, duration()));
    for (const video of videos) video.currentTime = state.time;
    if (state.playing) { for (const video of videos) video.pause(); waiting = true; }
    drawClock();
  };
  const steer = (speed) => {
    const [leader, ...others] = videos;
    leader.playbackRate = speed;
    for (const video of others) {
      const drift = video.currentTime - leader.currentTime;
      if (Math.abs(drift) > JUMP_S) video.currentTime = leader.currentTime;
      video.playbackRate = Math.abs(drift) > DRIFT_S ? speed * (drift > 0 ? 0.94 : 1.06) : speed;
    }
    state.time = leader.currentTime;
  };
  const tick = () => {
    if (state.playing && videos.length) {
      if (waiting && videos.every((video) => ready(video) && !video.seeking)) {
        waiting = false;
        for (const video of videos) video.play().catch(() => pause());
      } else if (!waiting) {
        steer(Number(byId("speed").value));
        if (state.time >= duration() - 0.03 || videos[0].ended) {
          if (byId("loop").checked) seek(0);
          else pause();
        }
      }
      drawClock();
    }
    requestAnimationFrame(tick);
  };
  const drawClock = () => {
    byId("clock").textContent = `${clockText(state.time)} / ${clockText(duration())}`;
    byId("seek").value = String(state.time);
    const parts = segmentStarts();
    let now = 0;
    parts.forEach((part, index) => { if (state.time >= part.from) now = index; });
    [...byId("segments").children].forEach((node, index) => node.classList.toggle("now", index === now));
  };

  const draw = () => { drawChoices(); remember(); drawSegments(); drawFilms(); };
  const toggleSystem = (name) => {
    const kept = state.systems.filter((system) => system !== name);
    const next = kept.length < state.systems.length ? kept : [...state.systems, name];
    if (next.length < MIN_SYSTEMS || next.length > MAX_SYSTEMS) return;
    const order = data.systems.map((system) => system.id);
    state.systems = next.sort((a, b) => order.indexOf(a) - order.indexOf(b));
    draw();
  };
  const movePrompt = (step) => {
    const shown = shownPrompts();
    const at = shown.findIndex((prompt) => prompt.id === state.prompt);
    if (shown[at + step]) { state.prompt = shown[at + step].id; state.time = 0; draw(); }
  };

  byId("stratum").onchange = (event) => {
    state.stratum = event.target.value;
    if (!shownPrompts().some((prompt) => prompt.id === state.prompt)) state.prompt = shownPrompts()[0].id;
    draw();
  };
  byId("prompt").onchange = (event) => { state.prompt = event.target.value; state.time = 0; draw(); };
  byId("seed").onchange = (event) => { state.seed = event.target.value; draw(); };
  byId("previous").onclick = () => movePrompt(-1);
  byId("next").onclick = () => movePrompt(1);
  byId("play").onclick = () => (state.playing ? pause() : start());
  byId("seek").oninput = (event) => seek(Number(event.target.value));
  byId("theme").onclick = () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
    const fps = data.films.length ? data.films[0].fps : 16;
    const step = event.shiftKey ? 10 : 1;
    const actions = {
      " ": () => (state.playing ? pause() : start()),
      ArrowLeft: () => seek(state.time - step), ArrowRight: () => seek(state.time + step),
      ",": () => { pause(); seek(state.time - 1 / fps); }, ".": () => { pause(); seek(state.time + 1 / fps); },
      p: () => movePrompt(-1), n: () => movePrompt(1),
    };
    if (!actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
  });
  // Space on a focused button would press it on key up as well.
  document.addEventListener("keyup", (event) => { if (event.key === " ") event.preventDefault(); });

  recall();
  draw();
  requestAnimationFrame(tick);
})();

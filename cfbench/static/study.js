// The rater's page: two films in step, questions that open once both were watched, answers that are
// stored one by one. Everything goes through /api; see cfbench/study/routes.py.
(() => {
  "use strict";
  const DRIFT_S = 0.04, STEP_S = 1, TICK_MS = 100, LEAST_WIDTH = 1000, RETRIES_MS = 1000;
  const KEYS = { 1: "left", 2: "tie", 3: "right" };
  const ANSWERS = [["left", "1  Left"], ["tie", "2  About equal"], ["right", "3  Right"]];
  const at = (id) => document.getElementById(`study-${id}`);
  const client = document.querySelector('meta[name="study-client"]')?.content ?? "";
  let token = "", state = null, here = 0, now = 0, trained = false, waiting = 0;
  let seen = fresh(), ticking = 0, example = 0, last = 0, stored = Promise.resolve(), leaving = false;
  const kept = new Map(), looks = [];

  function fresh() {
    return { left: new Set(), right: new Set(), replays: 0, hidden: 0, began: performance.now(),
             ended: false, open: false };
  }

  async function call(name, body) {
    for (let attempt = 0; ; attempt++) {
      try {
        const answer = await fetch(`/api/${name}`, {
          method: "POST", body: JSON.stringify(body), credentials: "same-origin",
          headers: { "content-type": "application/json", "x-study-token": token },
        });
        const tree = await answer.json();
        if (answer.ok) return tree;
        if (answer.status < 500 && answer.status !== 429) throw Object.assign(new Error(tree.error), { final: true });
      } catch (error) {
        if (error.final) throw error;
      }
      // The same request again is harmless: an answer that is stored already is not stored twice.
      at("saved").textContent = "connection lost; trying again";
      await new Promise((done) => setTimeout(done, RETRIES_MS * Math.min(attempt + 1, 5)));
    }
  }

  function fail(error) {
    at("error").textContent = error.message;
    at("error").hidden = false;
  }

  function show(name) {
    for (const one of ["consent", "training", "pair", "end", "phone"]) at(one).hidden = one !== name;
    at("error").hidden = true;
    at("link").hidden = !token;
  }

  function keep(found) {
    token = found.token ?? token;
    state = found.state;
    localStorage.setItem("study-token", token);
    if (named()) localStorage.setItem("study-participant", named());
    if (location.hash !== `#${token}`) history.replaceState(null, "", `#${token}`);
  }

  // --- two films in step ---------------------------------------------------------------------

  const films = () => [at("left"), at("right")];
  const ready = () => films().every((film) => film.readyState >= 3);
  const duration = () => state.duration_s;
  const position = () => films()[0].currentTime;

  function play() {
    if (!ready()) { waiting = 1; return; }
    waiting = 0;
    if (position() >= duration() - DRIFT_S) { seek(0); if (seen.ended) seen.replays += 1; }
    films().forEach((film) => film.play().catch(() => {}));
  }

  function pause() {
    waiting = 0;
    films().forEach((film) => film.pause());
  }

  function seek(seconds) {
    const to = Math.min(Math.max(seconds, 0), duration());
    films().forEach((film) => { film.currentTime = to; });
  }

  const playing = () => waiting || !films()[0].paused;

  function watched(side) {
    return Math.min(seen[side].size / 10, duration());
  }

  function mark(side, film) {
    // Tenths of a second of the film that were on screen while it played.
    if (film.paused && !film.ended) return;
    const until = Math.floor(film.currentTime * 10);
    const from = film.lastTenth !== undefined && until - film.lastTenth <= 5 && until >= film.lastTenth
      ? film.lastTenth : until;
    for (let tenth = from; tenth <= until; tenth++) if (tenth < duration() * 10) seen[side].add(tenth);
    film.lastTenth = until;
  }

  function tick() {
    const [left, right] = films(), time = performance.now();
    if (document.hidden) seen.hidden += time - last;
    last = time;
    if (waiting && ready()) play();
    at("loading").textContent = !ready() ? "Loading both films; they start together." : "";
    if (!document.hidden) { mark("left", left); mark("right", right); }
    const apart = right.currentTime - left.currentTime;
    if (!left.paused && !left.ended && !right.ended && Math.abs(apart) > DRIFT_S) right.currentTime = left.currentTime;
    if (!left.paused && !right.ended && right.readyState < 3 && right.currentTime < duration() - 0.2) {
      pause(); waiting = 1;
    }
    if (left.ended && right.ended) {
      seen.ended = true;
      if (at("loop").checked && !waiting) { seen.replays += 1; seek(0); waiting = 1; }
    }
    at("seek").value = String(Math.round(1000 * position() / duration()));
    at("clock").textContent = `${position().toFixed(1)} s`;
    at("play").textContent = playing() && !left.ended ? "Pause" : "Play";
    const least = state.watch * duration(), share = Math.min(watched("left"), watched("right")) / duration();
    at("watched").textContent = seen.open ? "watched" : `watched ${Math.floor(100 * share)} %`;
    if (!seen.open && Math.min(watched("left"), watched("right")) >= least - 1e-6) { seen.open = true; paint(); }
  }

  // --- questions ------------------------------------------------------------------------------

  const item = () => state.items[here];
  const answered = (one) => one.questions.every((question) => one.answers[question.id]);

  function button(text, pressed, act) {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = text;
    made.setAttribute("aria-pressed", String(pressed));
    made.addEventListener("click", act);
    return made;
  }

  function question(one, index) {
    const box = document.createElement("fieldset"), legend = document.createElement("legend");
    box.className = `study-question${index === now ? " study-now" : ""}`;
    legend.textContent = one.text;
    const row = document.createElement("div");
    row.className = "study-answers";
    const given = item().answers[one.id] ?? {};
    for (const [value, text] of ANSWERS) {
      const made = button(text, given.answer === value, () => choose(index, value));
      made.disabled = !seen.open;
      row.append(made);
    }
    const cannot = button("Cannot judge", given.answer === "cannot", () => reason(box, index));
    cannot.classList.add("study-cannot");
    row.append(cannot);
    box.append(legend, row);
    if (given.answer === "cannot") {
      const why = document.createElement("div");
      why.textContent = `Reason: ${given.reason}`;
      box.append(why);
    }
    return box;
  }

  function reason(box, index) {
    if (box.querySelector("input")) return;
    const field = document.createElement("input");
    field.className = "study-reason";
    field.placeholder = "Why? Enter stores it";
    field.setAttribute("aria-label", "why you cannot judge");
    field.maxLength = 500;
    field.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Escape") { paint(); return; }
      if (event.key !== "Enter") return;
      event.preventDefault();
      if (field.value.trim()) choose(index, "cannot", field.value.trim());
    });
    box.append(field);
    field.focus();
  }

  async function choose(index, answer, why = "") {
    const one = item(), asked = one.questions[index], place = here;
    if (!asked) return;
    if (answer !== "cannot" && !seen.open) return;
    const before = one.answers[asked.id];
    if (before && before.answer === answer && before.reason === why) return;
    const given = one.answers[asked.id] = { answer, reason: why };
    now = one.questions.findIndex((other) => !one.answers[other.id]);
    if (now < 0) now = index;
    paint();
    at("saved").textContent = "storing";
    const vote = {
      item: place, question: asked.id, answer, reason: why, client,
      watched_left_s: watched("left"), watched_right_s: watched("right"),
      replays: seen.replays, hidden_s: seen.hidden / 1000,
      response_s: (performance.now() - seen.began) / 1000,
    };
    // One after another: an earlier answer that is sent again must not arrive behind a later one.
    const storing = stored.then(() => call("vote", vote));
    stored = storing.catch(() => {});
    try {
      await storing;
      at("saved").textContent = "stored";
    } catch (error) {
      if (one.answers[asked.id] === given) one.answers[asked.id] = before;
      at("saved").textContent = "";
      paint();
      fail(error);
    }
  }

  function paint() {
    const done = state.items.filter(answered).length;
    at("progress").max = state.items.length;
    at("progress").value = done;
    at("count").textContent = `pair ${here + 1} of ${state.items.length}`;
    at("text").textContent = item().text;
    at("questions").replaceChildren(...item().questions.map(question));
    at("next").disabled = !answered(item());
    at("next").textContent = here + 1 < state.items.length ? "Next pair" : "Finish";
    at("back").disabled = here === 0;
  }

  // --- moving through the study -----------------------------------------------------------------

  function load(pair) {
    pause();
    films().forEach((film, side) => {
      film.lastTenth = undefined;
      const url = side ? pair.right : pair.left;
      film.src = kept.get(url) ?? url;
      film.load();
    });
    at("watched").textContent = "";
    last = performance.now();
    clearInterval(ticking);
    ticking = setInterval(tick, TICK_MS);
  }

  const place = (films_in) => at(films_in).append(at("films"), document.querySelector(".study-bar"), at("loading"));

  function go(to) {
    here = to;
    seen = looks[here] ??= fresh();
    now = Math.max(0, item().questions.findIndex((one) => !item().answers[one.id]));
    show("pair");
    at("questions").before(at("films"), document.querySelector(".study-bar"), at("loading"));
    if (history.state?.pair !== here) history.pushState({ pair: here }, "");
    load(item());
    paint();
    preload();
    at("play").focus({ preventScroll: true });
  }

  async function preload() {
    const next = state.items[here + 1], from = here;
    at("preload").textContent = "";
    if (!next) return;
    // In the browser's memory only: films are never stored by it.
    for (const [count, url] of [next.left, next.right].entries()) {
      if (from !== here) return;
      if (!kept.has(url)) {
        const answer = await fetch(url, { credentials: "same-origin" }).catch(() => null);
        if (!answer?.ok) return;
        kept.set(url, URL.createObjectURL(await answer.blob()));
      }
      if (from === here) at("preload").textContent = `next pair: ${count + 1} of 2 films loaded`;
    }
  }

  async function forward() {
    if (leaving || at("pair").hidden || !answered(item())) return;
    leaving = true;
    await stored;
    for (const url of [item().left, item().right]) { URL.revokeObjectURL(kept.get(url)); kept.delete(url); }
    await refresh(state.items.findIndex((one) => !answered(one)));
    leaving = false;
  }

  async function refresh(open) {
    try { keep(await call("resume", { token })); } catch (error) { fail(error); return; }
    const first = state.items.findIndex((one) => !answered(one));
    if (state.finished) finish(); else go(first >= 0 ? first : open);
  }

  function finish() {
    clearInterval(ticking);
    pause();
    show("end");
    at("code").textContent = state.code;
    at("more").hidden = !state.more;
    at("comment").focus();
  }

  function train() {
    const one = state.training[example];
    if (!one) { trained = true; localStorage.setItem(`study-trained`, token); start(); return; }
    show("training");
    at("training-note").textContent = `Example ${example + 1} of ${state.training.length}: ${one.text}`;
    at("training-answer").textContent = one.note;
    place("training-films");
    seen = fresh();
    load(one);
    at("quiz").hidden = example + 1 < state.training.length;
    at("training-next").focus({ preventScroll: true });
  }

  function start() {
    const begun = state.items.some((one) => Object.keys(one.answers).length);
    if (state.finished) { finish(); return; }
    if (!begun && !trained && localStorage.getItem("study-trained") !== token) { train(); return; }
    go(state.items.findIndex((one) => !answered(one)));
  }

  function named() {
    const query = new URLSearchParams(location.search);
    return (query.get("PROLIFIC_PID") ?? query.get("participant") ?? "").slice(0, 100);
  }

  async function begin() {
    at("begin").disabled = true;
    try { keep(await call("session", { consent: true, participant: named() })); start(); } catch (error) { fail(error); }
  }

  function key(event) {
    if (event.target.matches("textarea, input:not([type=checkbox]):not([type=range])")) return;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const inFilms = !at("pair").hidden || !at("training").hidden;
    if (!inFilms) return;
    const onButton = event.target.matches("button") && event.target.id !== "study-play";
    if (event.key === " " && !event.target.matches("input")) {
      if (onButton) return;
      event.preventDefault();
      if (playing() && !films()[0].ended) pause(); else play();
    } else if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      event.preventDefault();
      seek(position() + (event.key === "ArrowRight" ? STEP_S : -STEP_S));
    } else if (!at("pair").hidden && KEYS[event.key]) {
      event.preventDefault();
      choose(now, KEYS[event.key]);
    } else if (event.key === "Enter" && !at("pair").hidden && !onButton) {
      event.preventDefault();
      if (!event.repeat) forward();
    }
  }

  function listen() {
    document.addEventListener("keydown", key);
    at("agree").addEventListener("change", () => { at("begin").disabled = !at("agree").checked; });
    at("begin").addEventListener("click", begin);
    at("training-next").addEventListener("click", () => { example += 1; train(); });
    at("quiz").addEventListener("change", (event) => {
      at("quiz-told").textContent = event.target.value === "tie"
        ? "Right: About equal is an answer like the others." : "Here About equal says it best. Just go on.";
    });
    at("play").addEventListener("click", () => (playing() && !films()[0].ended ? pause() : play()));
    at("play").addEventListener("keyup", (event) => { if (event.key === " ") event.preventDefault(); });
    at("seek").addEventListener("input", () => seek(at("seek").value / 1000 * duration()));
    at("next").addEventListener("click", forward);
    at("back").addEventListener("click", () => { if (here > 0) go(here - 1); });
    at("questions").addEventListener("submit", (event) => event.preventDefault());
    document.querySelectorAll(".study-full").forEach((one) =>
      one.addEventListener("click", () => at(one.dataset.side).requestFullscreen().catch(() => {})));
    films().forEach((film) => film.addEventListener("contextmenu", (event) => event.preventDefault()));
    window.addEventListener("popstate", (event) => {
      const to = event.state?.pair;
      const open = state ? state.items.findIndex((one) => !answered(one)) : -1;
      if (Number.isInteger(to) && state && to < state.items.length && (open < 0 || to <= open)) go(to);
    });
    at("send").addEventListener("click", async () => {
      const text = at("comment").value.trim();
      if (!text) return;
      at("send").disabled = true;
      try { await call("comment", { text }); at("sent").textContent = "Stored, thank you."; }
      catch (error) { fail(error); at("send").disabled = false; }
    });
    at("more").addEventListener("click", async () => {
      try { keep(await call("block", {})); start(); } catch (error) { fail(error); }
    });
  }

  async function open() {
    listen();
    if (window.innerWidth < LEAST_WIDTH) {
      show("phone");
      window.addEventListener("resize", () => location.reload(), { once: true });
      return;
    }
    // Another participant at the same computer goes on with nobody else's session.
    const same = !named() || named() === localStorage.getItem("study-participant");
    token = location.hash.slice(1) || (same && localStorage.getItem("study-token")) || "";
    if (!token) { show("consent"); return; }
    try {
      keep(await call("resume", { token }));
      start();
    } catch (error) {
      token = "";
      localStorage.removeItem("study-token");
      show("consent");
      if (location.hash) fail(error);
    }
  }

  // Gradio puts the parts in place after it has loaded.
  const there = setInterval(() => {
    if (!at("consent") || !at("pair") || !at("end")) return;
    clearInterval(there);
    open();
  }, 50);
})();

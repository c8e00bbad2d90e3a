// The page of `quire watch`. It asks its own server, beside which it lies, for a snapshot every
// interval, and draws it. Every text from a server goes into the page by textContent, and the
// page's policy (require-trusted-types-for) refuses any other way.
"use strict";

const HISTORY = 120; // snapshots kept
const MAX_ROWS = 20; // open requests shown
const MAX_ANSWERS = 12;
const WINDOW = 3; // seconds over which rates are taken
const STATES = [
  ["free", "--free"],
  ["cached", "--cached"],
  ["in use", "--used"],
  ["shared", "--shared"],
];
const KINDS = [
  ["decode", "--first", "first"],
  ["prefill", "--second", "second"],
  ["mixed", "--third", "third"],
];

const history = []; // oldest first, of one life of the server
const mine = new Set(); // names of the requests sent from this page
let shown = null; // the newest snapshot

// ---------------------------------------------------------------- rates

// The snapshot that lies WINDOW seconds before history[i], or as near to that as there is one.
function before(i) {
  let k = i - 1;
  while (k > 0 && history[i].uptime - history[k].uptime < WINDOW) k -= 1;
  return history[Math.max(k, 0)];
}

function change(i, read) {
  return read(history[i]) - read(before(i));
}

function rate(i, read) {
  const passed = history[i].uptime - before(i).uptime;
  return passed > 0 ? change(i, read) / passed : null;
}

// A share of what came within the window; null where nothing came.
function ratio(i, part, whole) {
  const more = change(i, whole);
  return more > 0 ? change(i, part) / more : null;
}

const ofKind = (kind, field) => (s) => (s.steps.kinds[kind] || { count: 0, seconds: 0 })[field];
const stepTime = (i, kind) => ratio(i, ofKind(kind, "seconds"), ofKind(kind, "count"));
const hitRate = (i) =>
  ratio(i, (s) => s.cache.prefix_tokens_hit, (s) => s.cache.prefix_tokens_queried);
const every = (make) => history.map((_, i) => make(i));

// ---------------------------------------------------------------- charts

// lines: {values (null: nothing known), colour}; marks: places where something happened.
function chart(id, lines, marks, label, fixedTop) {
  const height = 120;
  const [context, width] = pen(at(id), height);
  const [left, right, top, bottom] = [1, width - 2, 16, height - 4];
  const known = lines.flatMap((line) => line.values).filter((value) => value !== null);
  const most = fixedTop || ceiling(Math.max(...known, 0) || 1);
  const x = (i) => right - ((history.length - 1 - i) * (right - left)) / (HISTORY - 1);
  const y = (value) => bottom - ((bottom - top) * Math.min(value, most)) / most;
  context.font = "12px system-ui, 'DejaVu Sans', sans-serif";
  context.fillStyle = colour("--faint");
  context.fillText(label(most), left, 11);
  context.textAlign = "right";
  context.fillText(`last ${count(HISTORY * shown.interval)} s`, right, 11);
  context.strokeStyle = colour("--line");
  for (const value of [0, most / 2, most]) stroke(context, [[left, y(value)], [right, y(value)]]);
  context.fillStyle = colour("--bad");
  for (const i of marks) context.fillRect(x(i) - 1, bottom - 10, 2, 10);
  for (const line of lines) drawLine(context, line, x, y);
}

// ---------------------------------------------------------------- parts of the page

function drawHead(now) {
  const model = now.model;
  at("model").textContent = `${model.name} on ${model.device}`;
  at("model").title =
    `${model.architecture}, ${count(model.parameters)} parameters, ${model.dtype},` +
    ` up to ${count(model.max_model_len)} tokens`;
  at("up").textContent = `up ${span(now.uptime)}, Quire ${now.version}`;
  document.title = `${model.name} · Quire`;
}

function drawTiles(now, last) {
  const perSecond = (read) => {
    const found = rate(last, read);
    return found === null ? "–" : count(found);
  };
  const { cache, requests } = now;
  const decode = stepTime(last, "decode");
  const tiles = [
    ["output tokens/s", perSecond((s) => s.tokens.delivered)],
    ["prefill tokens/s", perSecond((s) => s.tokens.prefill_computed)],
    ["running", count(requests.running), `+ ${count(requests.waiting)} waiting`],
    ["decode step", decode === null ? "–" : seconds(decode)],
    ["prompt tokens cached", percent(cache.prefix_tokens_hit, cache.prefix_tokens_queried)],
    ["preemptions", count(cache.preemptions)],
    ["finished", count(requests.finished), tail(requests)],
  ];
  at("tiles").replaceChildren(
    ...tiles.map(([name, value, more]) => {
      const tile = element("div", "tile");
      const figure = element("div", "value", value);
      if (more) figure.append(" ", element("small", "", more));
      tile.append(figure, element("div", "name", name));
      return tile;
    }),
  );
}

function tail(requests) {
  const parts = ["refused", "cancelled", "failed"].filter((name) => requests[name] > 0);
  return parts.map((name) => `${count(requests[name])} ${name}`).join(", ");
}

function drawMap(now) {
  const { cells, per_cell: perCell } = now.map;
  const { cache } = now;
  at("map-words").textContent =
    `${count(cache.blocks_total)} blocks of ${cache.block_size} tokens, ` +
    `${percent(cache.blocks_in_use, cache.blocks_total)} in use, ` +
    `${count(cache.evictions)} evicted so far` +
    (perCell > 1 ? `; a cell is ${perCell} blocks, and shows the busiest` : "");
  const only = cache.blocks_in_use - cache.blocks_shared;
  const counts = [cache.blocks_free - cache.blocks_cached, cache.blocks_cached, only];
  counts.push(cache.blocks_shared);
  const classes = ["free", "cached", "used", "shared"];
  legend("map-legend", STATES.map(([name], i) => [name, count(counts[i]), classes[i]]));
  const canvas = at("map");
  const cell = cells.length > 1500 ? 9 : cells.length > 500 ? 12 : 16;
  const columns = Math.max(1, Math.floor(canvas.clientWidth / cell));
  const height = Math.max(1, Math.ceil(cells.length / columns)) * cell;
  canvas.style.height = `${height}px`;
  const [context] = pen(canvas, height);
  const colours = STATES.map(([, name]) => colour(name));
  for (let i = 0; i < cells.length; i += 1) {
    context.fillStyle = colours[cells.charCodeAt(i) - 48];
    context.fillRect((i % columns) * cell, Math.floor(i / columns) * cell, cell - 2, cell - 2);
  }
}

function drawCharts(now, last) {
  const value = (number, words) => (number === null ? "–" : words(number));
  const output = every((i) => rate(i, (s) => s.tokens.delivered));
  const prefill = every((i) => rate(i, (s) => s.tokens.prefill_computed));
  const lines = (...pairs) => pairs.map(([values, name]) => ({ values, colour: name }));
  legend("tokens-legend", [
    ["output", value(output[last], count), "first"],
    ["prefill", value(prefill[last], count), "second"],
  ]);
  chart("tokens", lines([prefill, "--second"], [output, "--first"]), [], count);
  const running = history.map((s) => s.requests.running);
  const waiting = history.map((s) => s.requests.waiting);
  const pushed = every((i) => i > 0 && history[i].cache.preemptions > history[i - 1].cache.preemptions);
  legend("requests-legend", [
    ["running", count(now.requests.running), "first"],
    ["waiting", count(now.requests.waiting), "second"],
    ["preempted", count(now.cache.preemptions), "bad"],
  ]);
  const marks = pushed.flatMap((is, i) => (is ? [i] : []));
  chart("requests", lines([waiting, "--second"], [running, "--first"]), marks, count);
  const kinds = KINDS.filter(([kind]) => ofKind(kind, "count")(now) > 0);
  const times = kinds.map(([kind, name]) => [every((i) => stepTime(i, kind)), name]);
  const steps = kinds.map(([kind, , style], k) => [kind, value(times[k][0][last], seconds), style]);
  legend("steps-legend", steps.length ? steps : [["no step yet", "", "free"]]);
  chart("steps", lines(...times), [], seconds);
  const hits = every(hitRate);
  legend("hits-legend", [["of prompt tokens", value(hits[last], (n) => percent(n, 1)), "good"]]);
  chart("hits", lines([hits, "--good"]), [], (top) => percent(top, 1), 1);
}

function drawRows(now) {
  const rows = now.open.slice(0, MAX_ROWS);
  const all = now.requests.running + now.requests.waiting;
  const more = Math.max(now.open.length, all) - rows.length;
  at("flow-words").textContent = rows.length === 0 ? "none" : more > 0 ? `and ${count(more)} more, which began later` : "";
  legend("flow-legend", rows.length === 0 ? [] : [
    ["prompt, cached", "", "cached"],
    ["prompt, computed", "", "used"],
    ["output", "", "shared"],
  ]);
  const longest = Math.max(1, ...rows.map((row) => row.prompt_tokens + row.completion_tokens));
  at("rows").replaceChildren(...rows.map((row) => requestRow(row, longest)));
}

function requestRow(row, longest) {
  const item = element("li", `row ${row.started ? "" : "waiting"} ${mine.has(row.request_id) ? "yours" : ""}`);
  const name = mine.has(row.request_id) ? `${row.request_id} (yours)` : row.request_id;
  const id = element("span", "id", name);
  id.title = `${row.request_id}, asked by ${row.client}`;
  const state = element("span", "state", row.started ? "running" : "waiting");
  if (row.preemptions > 0) {
    state.textContent = `preempted ×${row.preemptions}`;
    state.classList.add("again");
  }
  const bar = element("div", "bar");
  const computed = row.started ? row.prompt_tokens - row.cached_tokens : 0;
  const parts = [["cached", row.cached_tokens], ["used", computed], ["shared", row.completion_tokens]];
  for (const [className, tokens] of parts) {
    const part = element("div", className);
    part.style.width = `${(100 * tokens) / longest}%`;
    bar.append(part);
  }
  const sizes = `${count(row.prompt_tokens)} → ${count(row.completion_tokens)} tokens`;
  item.append(id, state, bar, element("span", "fact", `${sizes}, ${seconds(row.open_seconds)}`));
  return item;
}

function drawRanks(now) {
  const { ranks } = now.memory;
  at("ranks").hidden = ranks.length === 0;
  at("rank-rows").replaceChildren(
    ...ranks.map((rank, i) =>
      element("li", "", `rank ${i}: ${size(rank.allocated_bytes)} held, ${size(rank.peak_bytes)} at most`)),
  );
}

// ---------------------------------------------------------------- looking

function take(now) {
  if (history.length && now.uptime < history[history.length - 1].uptime) history.length = 0;
  history.push(now);
  if (history.length > HISTORY + 1) history.shift();
  shown = now;
  draw();
}

function draw() {
  if (shown === null) return;
  const last = history.length - 1;
  document.body.classList.toggle("guest", !shown.operator);
  at("note").hidden = shown.operator;
  at("note").textContent =
    "This key is no operator's, so the server tells what it serves and no more. For counters," +
    " requests and the block map, start quire watch with an operator's key: --api-key.";
  drawHead(shown);
  if (!shown.operator) return;
  drawTiles(shown, last);
  drawMap(shown);
  drawCharts(shown, last);
  drawRows(shown);
  drawRanks(shown);
}

function trouble(words) {
  at("trouble").hidden = words === null;
  at("trouble").textContent = words || "";
  document.body.classList.toggle("stale", words !== null);
}

async function look() {
  let wait = 1;
  try {
    const answer = await fetch("state");
    const now = await answer.json();
    wait = now.interval || wait;
    trouble(now.error === undefined ? null : now.error);
    if (now.error === undefined) take(now);
  } catch {
    trouble("quire watch has ended: start it again, and open the address that it prints.");
  }
  setTimeout(whenSeen, 1e3 * wait);
}

function whenSeen() {
  if (!document.hidden) look();
  else document.addEventListener("visibilitychange", whenSeen, { once: true });
}

// ---------------------------------------------------------------- asking

function refuse(words) {
  at("refused").hidden = words === "";
  at("refused").textContent = words;
}

async function ask(event) {
  event.preventDefault();
  refuse("");
  const given = at("temperature").value;
  const wanted = {
    prompt: at("prompt").value,
    max_tokens: Number(at("max-tokens").value),
    temperature: given === "" ? null : Number(given),
  };
  const stop = new AbortController();
  try {
    const answer = await fetch("generate", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(wanted),
      signal: stop.signal,
    });
    if (!answer.ok) refuse((await answer.json()).error);
    else await read(answer, new Answer(wanted.prompt, stop));
  } catch {
    refuse("quire watch has ended: start it again, and open the address that it prints.");
  }
}

async function read(answer, view) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) view.add(JSON.parse(line));
    }
  } catch {
    // stopped by the viewer, or cut: the view says so
  }
  view.ended();
}

class Answer {
  constructor(prompt, stop) {
    const box = element("article", "answer");
    const head = element("div", "head");
    this.facts = element("p", "fact", "waiting for its turn");
    this.button = element("button", "stop", "Stop");
    this.button.type = "button";
    this.button.addEventListener("click", () => stop.abort());
    head.append(this.facts, this.button);
    this.thought = element("p", "thought");
    this.text = element("p", "text");
    box.append(element("p", "asked", prompt), head, this.thought, this.text);
    at("answers").prepend(box);
    while (at("answers").children.length > MAX_ANSWERS) at("answers").lastChild.remove();
    this.tokens = 0;
    this.prompt = "";
    this.over = false;
  }

  add(event) {
    if (event.event === "started") {
      mine.add(event.request_id);
      this.prompt = `${count(event.prompt_tokens)} prompt tokens, ${count(event.cached_tokens)} of them cached`;
    } else if (event.event === "delta") {
      this.tokens += event.tokens;
      this.thought.append(event.reasoning);
      this.text.append(event.text);
    } else if (event.event === "finished") {
      this.finish(event);
      return;
    } else {
      this.fail(event.message);
      return;
    }
    this.facts.textContent = `${this.prompt}; ${count(this.tokens)} tokens so far`;
  }

  finish(end) {
    this.over = true;
    const speed = end.decode > 0 ? `, ${count((end.tokens - 1) / end.decode)} tokens/s` : "";
    const again = end.preemptions > 0 ? `, preempted ×${end.preemptions}` : "";
    this.facts.textContent =
      `${this.prompt}; ${count(end.tokens)} tokens, ${end.reason}${again}; queued ` +
      `${seconds(end.queued)}, prefill ${seconds(end.prefill)}, decode ${seconds(end.decode)}${speed}`;
  }

  fail(words) {
    this.over = true;
    this.facts.textContent = words;
    this.facts.classList.add("failed");
  }

  ended() {
    this.button.remove();
    if (!this.over) this.facts.textContent = `${this.prompt || "not begun"}; stopped after ${count(this.tokens)} tokens`;
  }
}

// ---------------------------------------------------------------- the beginning

at("ask").addEventListener("submit", ask);
at("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("ask").requestSubmit();
});
window.addEventListener("resize", draw);
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
whenSeen();

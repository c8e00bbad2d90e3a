// What the page of `quire watch` is drawn with: elements, numbers as words, lines on a canvas.
// Knows nothing of a server. Loaded before watch.js.
"use strict";

const at = (id) => document.getElementById(id);

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// ---------------------------------------------------------------- words

const count = (number) => Math.round(number).toLocaleString("en");
const percent = (part, whole) => (whole > 0 ? `${+((100 * part) / whole).toFixed(1)} %` : "–");

function seconds(value) {
  if (value >= 1) return `${value.toFixed(value < 10 ? 2 : 0)} s`;
  return `${(1e3 * value).toPrecision(value >= 0.1 ? 3 : 2)} ms`;
}

function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let power = 0;
  while (bytes >= 1024 && power < units.length - 1) [bytes, power] = [bytes / 1024, power + 1];
  return `${power ? bytes.toFixed(1) : bytes} ${units[power]}`;
}

function span(value) {
  const total = Math.floor(value);
  const two = (number) => String(number).padStart(2, "0");
  return `${Math.floor(total / 3600)}:${two(Math.floor(total / 60) % 60)}:${two(total % 60)}`;
}

// ---------------------------------------------------------------- drawing

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function pen(canvas, height) {
  const scale = window.devicePixelRatio || 1;
  const width = canvas.clientWidth;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  return [context, width];
}

// A round number that is not below `value`: the top of a scale.
function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((top) => top >= value * 0.999);
}

function drawLine(context, line, x, y) {
  context.strokeStyle = context.fillStyle = colour(line.colour);
  context.lineWidth = 2;
  let run = [];
  const end = () => {
    if (run.length === 1) context.fillRect(run[0][0] - 1.5, run[0][1] - 1.5, 3, 3);
    else stroke(context, run);
    run = [];
  };
  line.values.forEach((value, i) => {
    if (value === null) end();
    else run.push([x(i), y(value)]);
  });
  end();
  context.lineWidth = 1;
}

function stroke(context, points) {
  context.beginPath();
  for (const [px, py] of points) context.lineTo(px, py);
  context.stroke();
}

function legend(id, entries) {
  const items = entries.map(([name, value, className]) => {
    const item = element("li");
    item.append(element("i", className), `${name} `, element("b", "", value));
    return item;
  });
  at(id).replaceChildren(...items);
  const canvas = at(id.replace("-legend", ""));
  if (canvas instanceof HTMLCanvasElement) {
    canvas.setAttribute("aria-label", entries.map(([n, v]) => `${n} ${v}`).join(", "));
  }
}

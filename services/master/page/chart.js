// The hit rate over the last hour: lines over columns that say of how many keys. Where nobody asked there is no rate.
import { count, percent, put } from "./words.js";

const SVG = "http://www.w3.org/2000/svg";
const WINDOWS_MIN = [4, 20, 60], HEIGHT = 1000, COLUMNS_HEIGHT = 250;
const KINDS = ["match", "lookup"];
const plot = document.getElementById("plot");
const readout = document.getElementById("readout");
let shown = null, pointed = null, width = 1;

function shape(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function linesOf(kind, steps, first) {
  let line = "", dots = "";
  steps.forEach(([asked, there], index) => {
    if (!asked) return;
    const at = `${first + index + 0.5},${HEIGHT * (1 - there / asked)}`, before = steps[index - 1]?.[0];
    line += `${before ? "L" : "M"}${at}`;
    if (!before && !steps[index + 1]?.[0]) dots += `M${at}h0.001`;
  });
  return [shape("path", { class: `line ${kind}`, d: line }), shape("path", { class: `line dots ${kind}`, d: dots })];
}

// The master may be younger than an hour: then the window is smaller.
function setWindow(length, stepS) {
  const minutes = WINDOWS_MIN.find((each) => length <= each * 60 / stepS + 1) ?? WINDOWS_MIN.at(-1);
  width = minutes * 60 / stepS + 1;
  [1, 0.75, 0.5, 0.25].forEach((share, index) =>
    put(document.getElementById("ticks").children[index], `${minutes * share}${index ? "" : " min ago"}`));
}

export function draw(asked, at) {
  shown = { asked, at };
  const series = KINDS.filter((kind) => asked.steps[kind]);
  const length = asked.steps[series[0]].length;
  setWindow(length, asked.step_s);
  const first = width - length;
  const sums = Array.from({ length }, (_, index) => series.reduce((sum, kind) => sum + asked.steps[kind][index][0], 0));
  const most = Math.max(...sums);
  plot.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  plot.replaceChildren(
    ...sums.flatMap((sum, index) => sum ? [shape("rect", { class: "column", x: first + index, width: 1,
      y: HEIGHT - COLUMNS_HEIGHT * sum / most, height: COLUMNS_HEIGHT * sum / most })] : []),
    ...[0, 0.5, 1].map((y) => shape("path", { class: "grid", d: `M0,${y * HEIGHT}H${width}` })),
    ...series.toReversed().flatMap((kind) => linesOf(kind, asked.steps[kind], first)));
  document.getElementById("nothing").hidden = most > 0;
  plot.setAttribute("aria-label", `Hit rate over the last hour. ${series.map((kind) => said(kind, asked.hour[kind])).join(" ")}`);
  table(asked, series, length);
  point();
}

function said(kind, [keys, there]) {
  const who = kind === "match" ? "Matches" : "Lookups";
  return keys ? `${who}: ${count(keys)} keys, ${percent(there / keys)} there.` : `${who}: none.`;
}

function table(asked, series, length) {
  const rows = [];
  for (let from = 0; from < 60; from += 5) {
    const cells = KINDS.flatMap((kind) => {
      const steps = series.includes(kind) ? asked.steps[kind] : [];
      const some = steps.filter((_, index) => Math.floor((length - 1 - index) * asked.step_s / 300) === from / 5);
      const [keys, there] = some.reduce(([a, b], [c, d]) => [a + c, b + d], [0, 0]);
      return [count(keys), keys ? percent(there / keys) : "–"];
    });
    const row = document.createElement("tr");
    row.append(...[`${from} to ${from + 5}`, ...cells].map((text) => Object.assign(document.createElement("td"), { textContent: text })));
    rows.push(row);
  }
  document.getElementById("table").replaceChildren(...rows);
}

function point() {
  plot.querySelector(".cursor")?.remove();
  if (!shown) return;
  const { asked, at } = shown, kinds = KINDS.filter((kind) => asked.steps[kind]);
  const length = asked.steps[kinds[0]].length;
  const index = pointed === null ? -1 : Math.floor(pointed * width) - (width - length);
  if (index < 0 || index >= length) { put(readout, kinds.map((kind) => said(kind, asked.hour[kind])).join(" ")); return; }
  const ago = index === length - 1 ? 0 : asked.since_step_s + (length - 2 - index) * asked.step_s;
  const x = width - length + index + 0.5;
  plot.append(shape("path", { class: "cursor", d: `M${x},0V${HEIGHT}` }));
  const when = new Date((at - ago) * 1000).toLocaleTimeString("en-GB");
  put(readout, `Until ${when}: ${kinds.map((kind) => said(kind, asked.steps[kind][index])).join(" ")}`);
}

plot.addEventListener("pointermove", (event) => {
  const box = plot.getBoundingClientRect();
  pointed = (event.clientX - box.left) / box.width;
  point();
});
plot.addEventListener("pointerleave", () => { pointed = null; point(); });

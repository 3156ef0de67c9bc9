// Asks the master for the cluster at a glance every two seconds and shows it. All that comes from there is text here.
import { draw } from "./chart.js";
import { bytes, count, duration, make, nodes, percent, put } from "./words.js";

const EVERY_MS = 2000, PATIENCE_MS = 5000, FILTER_FROM = 13;
const byId = (id) => document.getElementById(id);
const STATES = {
  suspect: ["does not answer", "bad", 0],
  attaching: ["attaching", "busy", 1],
  draining: ["draining", "busy", 2],
  attached: ["attached", "good", 3],
};
const USES = ["live", "reserved", "quarantined"];
let answeredAt = null;
const rows = new Map();

// ---- the verdict and the numbers

function stateOf(node) { return node.state === "attached" && node.draining ? "draining" : node.state; }

function reasons(data) {
  const found = [], having = (state) => data.nodes.filter((node) => stateOf(node) === state).length;
  if (!data.nodes.length) found.push(["bad", "no storage node is attached"]);
  if (having("suspect")) found.push(["bad", `no answer from ${having("suspect")} of ${nodes(data.nodes.length)}`]);
  if (having("attaching")) found.push(["busy", `${nodes(having("attaching"))} attaching`]);
  if (having("draining")) found.push(["busy", `${nodes(having("draining"))} draining`]);
  if (data.below_target) found.push(["busy", `${count(data.below_target)} objects lack copies`]);
  if (data.rest_s) found.push(["busy", `free space rests for ${duration(Math.ceil(data.rest_s))} more, until writes from before the master's start can no longer land; what is stored is served`]);
  if (data.waiting_puts) found.push(["busy", `${count(data.waiting_puts)} puts wait for room`]);
  return found;
}

function judge(data) {
  const found = reasons(data), worst = found.some(([kind]) => kind === "bad") ? "bad" : found.length ? "busy" : "good";
  const [first] = found.filter(([kind]) => kind === worst);
  const texts = { good: "All well", busy: "Serving, and busy with itself", bad: first && first[1][0].toUpperCase() + first[1].slice(1) };
  verdict(worst, texts[worst]);
  const others = found.filter((reason) => worst !== "bad" || reason !== first);
  byId("reasons").hidden = !others.length;
  if (byId("reasons").textContent !== others.map(([, text]) => text).join(""))
    byId("reasons").replaceChildren(...others.map(([, text]) => make("li", "", text)));
}

function verdict(kind, text) {
  byId("verdict").className = `verdict ${kind}`;
  put(byId("verdict"), text);
  document.title = kind === "good" ? "Larder" : `${kind === "bad" ? "⚠ " : ""}Larder: ${text}`;
}

function tile(name, value, text, below) {
  byId(name).dataset.value = value;
  put(byId(name), text);
  put(byId(`${name}-of`), below);
}

function numbers(data) {
  const kind = data.asked.hour.match?.[0] ? "match" : "lookup", [keys, there] = data.asked.hour[kind];
  const who = kind === "match" ? "that engines asked for" : "that were looked up";
  tile("hit-rate", keys ? there / keys : "", keys ? percent(there / keys) : "–", keys ? `of ${count(keys)} keys ${who}` : "nobody asked for a key");
  const rates = Object.entries(data.requests_per_s).sort(([, a], [, b]) => b - a);
  const sum = rates.reduce((total, [, rate]) => total + rate, 0);
  const rate = (number) => number >= 10 ? count(Math.round(number)) : number.toFixed(1);
  tile("requests", sum, rate(sum), rates.slice(0, 3).map(([op, number]) => `${op} ${rate(number)}`).join(" · ") || "over the last ten seconds");
  tile("objects", data.objects, count(data.objects), `${bytes(data.object_bytes)}, copies not counted`);
  const { capacity, free } = data.bytes, used = capacity - free;
  tile("used", used, capacity ? percent(used / capacity) : "–", capacity ? `${bytes(used)} of ${bytes(capacity)}` : "no pools");
  tile("lacking", data.below_target, count(data.below_target), data.repairs ? `${count(data.repairs)} in repair` : "nothing to repair");
  byId("lacking").classList.toggle("alarm", data.below_target > 0);
  tile("writes", data.writes, count(data.writes), data.waiting_puts ? `${count(data.waiting_puts)} calls wait for room` : "none waits for room");
  put(byId("about"), `Version ${data.version} · up ${duration(data.up_s)}`);
}

// ---- storage nodes

function row() {
  const name = make("strong", ""), where = make("span", "where sub"), state = make("span", "state");
  const bar = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  bar.setAttribute("class", "bar");
  bar.setAttribute("viewBox", "0 0 1000 10");
  bar.setAttribute("preserveAspectRatio", "none");
  bar.setAttribute("aria-hidden", "true");
  const parts = USES.map((use) => {
    const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    rect.setAttribute("class", use);
    rect.setAttribute("height", "10");
    bar.append(rect);
    return rect;
  });
  const amounts = make("span", ""), copies = make("span", "");
  const item = make("li", "node", make("div", "", name, where), state,
    make("div", "pool", bar, make("div", "amounts sub", amounts, copies)));
  return { item, name, where, state, parts, amounts, copies };
}

function fill(shown, node) {
  const state = stateOf(node), [word, kind] = STATES[state] ?? [state, "busy"];
  put(shown.name, node.id);
  const where = [node.zone && `zone ${node.zone}`, node.host, node.address, node.version].filter(Boolean).join(" · ");
  put(shown.where, where);
  shown.item.title = `${node.id}\n${where}`;
  shown.item.className = `node ${state === "suspect" ? "away" : ""}`;
  shown.item.dataset.id = node.id;
  put(shown.state, word);
  shown.state.className = `state ${kind}`;
  let x = 0;
  USES.forEach((use, index) => {
    const width = node.capacity ? 1000 * node[use] / node.capacity : 0;
    shown.parts[index].setAttribute("x", x);
    shown.parts[index].setAttribute("width", width && Math.max(width, 2));
    shown.item.dataset[use] = node[use];
    x += width;
  });
  const said = ["live", "reserved", "quarantined", "pinned"].filter((use) => node[use] || use === "live")
    .map((use) => use === "pinned" ? `${bytes(node.pinned)} of it pinned` : `${bytes(node[use])} ${use}`);
  put(shown.amounts, `${said.join(", ")}, ${bytes(node.free)} free of ${bytes(node.capacity)}`);
  put(shown.copies, node.copies === 1 ? "1 copy" : `${count(node.copies)} copies`);
}

function showNodes(list) {
  const rank = (node) => STATES[stateOf(node)]?.[2] ?? 1;
  const sorted = [...list].sort((a, b) => rank(a) - rank(b) || a.id.localeCompare(b.id, "en", { numeric: true }));
  byId("filter").hidden = list.length < FILTER_FROM && !byId("wanted").value;
  const wanted = byId("wanted").value.trim().toLowerCase();
  const kept = sorted.filter((node) => [node.id, node.zone, node.host, node.address, STATES[stateOf(node)]?.[0] ?? ""]
    .some((text) => text.toLowerCase().includes(wanted)));
  for (const node of list) {
    if (!rows.has(node.id)) rows.set(node.id, row());
    fill(rows.get(node.id), node);
  }
  const known = new Set(list.map((node) => node.id));
  for (const id of rows.keys()) if (!known.has(id)) rows.delete(id);
  const items = kept.map((node) => rows.get(node.id).item), place = byId("nodes");
  if (items.length !== place.children.length || items.some((item, index) => place.children[index] !== item))
    place.replaceChildren(...items);
  put(byId("count"), list.length ? `(${kept.length < list.length ? `${kept.length} of ` : ""}${list.length})` : "");
  byId("none").hidden = list.length > 0;
  byId("unmatched").hidden = !list.length || kept.length > 0;
}

// ---- events

function showEvents(events, now) {
  const stamp = JSON.stringify(events), place = byId("events");
  byId("calm").hidden = events.length > 0;
  if (place.dataset.shown === stamp) return;
  place.dataset.shown = stamp;
  place.replaceChildren(...events.map(({ at, text, grave }) => {
    const date = new Date(at * 1000), time = make("time", "");
    time.dateTime = date.toISOString();
    time.title = date.toLocaleString("en-GB");
    const today = date.toDateString() === new Date(now * 1000).toDateString();
    time.textContent = today ? date.toLocaleTimeString("en-GB") : date.toLocaleDateString("en-GB", { day: "numeric", month: "short" });
    return make("li", "", time, make("span", grave ? "grave" : "", text));
  }));
}

// ---- asking

let last = null;

function show(data) {
  last = data;
  answeredAt = new Date();
  document.body.classList.remove("stale");
  byId("gone").hidden = true;
  judge(data);
  numbers(data);
  draw(data.asked, data.at);
  showNodes(data.nodes);
  showEvents(data.events, data.at);
}

function showGone() {
  verdict("bad", "No answer");
  document.body.classList.toggle("stale", answeredAt !== null);
  byId("gone").hidden = false;
  put(byId("gone"), answeredAt === null
    ? "The master does not answer. This page asks again every two seconds."
    : `The master has not answered since ${answeredAt.toLocaleTimeString("en-GB")}: what is below is from then. This page asks again every two seconds.`);
}

async function ask() {
  try {
    const answer = await fetch("api/overview", { signal: AbortSignal.timeout(PATIENCE_MS), cache: "no-store" });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    show(await answer.json());
  } catch (error) {
    if (!(error instanceof TypeError || error instanceof DOMException || error instanceof SyntaxError || error.message.startsWith("status"))) throw error;
    showGone();
  }
}

let resume = () => {};

async function watch() {
  for (;;) {
    if (!document.hidden) await ask();
    await new Promise((resolve) => {
      resume = resolve;
      setTimeout(resolve, EVERY_MS);
    });
  }
}

document.addEventListener("visibilitychange", () => resume());
byId("wanted").addEventListener("input", () => last && showNodes(last.nodes));
watch();

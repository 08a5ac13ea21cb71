"use strict";
// What every part of the page uses: elements, numbers, arrays, the tip, tables that sort and filter.

const DATA = JSON.parse(document.getElementById("data").textContent);
const MODELS = ["static", "tsae"];
const NAMES = { static: "static SAE", tsae: "TSAE" };
const slugOf = (name) => (String(name).startsWith("TSAE") ? "tsae" : "static");

/** An element; text goes in as text, never as HTML. Attributes that are functions are listeners. */
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child != null));
  return node;
}

const $ = (id) => document.getElementById(id);

/** A number for a reader: three or four digits, "-" for what is not there. */
function show(value, digits = 3) {
  if (value == null || Number.isNaN(value)) return "-";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return d3.format(",")(value);
  const size = Math.abs(value);
  if (size >= 1000) return d3.format(",.0f")(value);
  if (size < 1e-4) return d3.format(".1e")(value);
  return size < 0.1 ? d3.format(`.${digits - 1}~r`)(value) : d3.format(`.${digits}~r`)(value);
}

/** Half-precision floats of their 16 bits. */
function halves(bits) {
  return Float32Array.from(bits, (h) => {
    const sign = h & 0x8000 ? -1 : 1, exponent = (h >> 10) & 31, rest = h & 1023;
    if (exponent === 0) return sign * rest * 2 ** -24;
    if (exponent === 31) return rest ? NaN : sign * Infinity;
    return sign * (1 + rest / 1024) * 2 ** (exponent - 15);
  });
}

/** The arrays of an explorer by name, each flat with its `shape`. */
async function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed.data), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const buffer = await new Response(stream).arrayBuffer();
  const types = { uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array,
    float16: Uint16Array, float32: Float32Array };
  const arrays = {};
  for (const [name, [type, start, shape]] of Object.entries(packed.layout)) {
    const raw = new types[type](buffer, start, shape.reduce((a, b) => a * b, 1));
    arrays[name] = { values: type === "float16" ? halves(raw) : raw, shape };
  }
  return arrays;
}

/** Row `i` of an array. */
function rowOf(array, i) {
  const width = array.shape.slice(1).reduce((a, b) => a * b, 1);
  return array.values.subarray(i * width, (i + 1) * width);
}

// ------------------------------------------------------------------------------------------- tip

function showTip(event, ...lines) {
  const tip = $("tip");
  tip.replaceChildren(...lines.flat().map((line) => (line instanceof Node ? line : el("div", {}, line))));
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const anchor = event.clientX != null && event.type !== "focus"
    ? { x: event.clientX, y: event.clientY }
    : (({ left, bottom }) => ({ x: left, y: bottom }))(event.target.getBoundingClientRect());
  const x = Math.min(anchor.x + 14, document.documentElement.clientWidth - box.width - 8);
  const y = anchor.y + 18 + box.height > window.innerHeight ? anchor.y - box.height - 12 : anchor.y + 18;
  tip.style.transform = `translate(${Math.max(8, x)}px, ${Math.max(8, y)}px)`;
}

const hideTip = () => { $("tip").hidden = true; };

/** A list of names and values for a tip or a card. */
function facts(pairs) {
  return el("dl", { class: "facts" }, pairs.map(([name, value]) =>
    [el("dt", {}, name), el("dd", {}, value instanceof Node ? value : show(value))]));
}

// ---------------------------------------------------------------------------------------- tables

/** Rows of a table that is kept by column. */
function rowsOf(table) {
  if (!table) return [];
  const names = Object.keys(table);
  const n = names.length ? table[names[0]].length : 0;
  return d3.range(n).map((i) => Object.fromEntries(names.map((name) => [name, table[name][i]])));
}

const PATTERNS = new Set(DATA.definitions.map((one) => one.pattern));
const UNITS = {
  lag: "tokens", t: "tokens", count: "onsets", reverse: "onsets", active: "tokens", births: "runs",
  deaths: "runs", oldest: "tokens", restricted_mean_64: "tokens", lifetime: "tokens",
  duration: "tokens", offset: "tokens", logits: "nats", at_risk: "runs", strength: "× difference",
  kl: "nats",
  normalised: "share of the full patch", full_patch_here: "share of the full patch",
};

/** Columns of a table from its names, with the unit and a link to the definition in the head. */
function columnsFor(rows, names) {
  return (names || Object.keys(rows[0] || {})).map((key) => ({
    key, label: key.replaceAll("_", " "), unit: UNITS[key] || "",
    definition: PATTERNS.has(key) && key !== "births" ? key : null, // a feature's births are counts
    cell: ["feature", "source", "target"].includes(key) ? (row) => String(row[key] ?? "-") : null,
    number: rows.some((row) => typeof row[key] === "number")
      && rows.every((row) => row[key] == null || typeof row[key] === "number" || key === "offset" || key === "k"),
  }));
}

/** A table that sorts by its heads and filters by words. Options: shown, sort, caption, pick. */
function makeTable(place, rows, columns, options = {}) {
  const state = { sort: options.sort || null, down: options.down || false, words: "", all: false };
  const most = options.shown || 12;
  const body = el("tbody"), count = el("span", { class: "count" });
  const more = el("button", { type: "button", class: "more", click: () => { state.all = !state.all; draw(); } });
  const heads = columns.map((column) => {
    const button = el("button", { type: "button", click: () => {
      state.down = state.sort === column.key ? !state.down : column.number;
      state.sort = column.key;
      draw();
    } }, column.label, column.unit ? el("span", { class: "unit" }, column.unit) : null);
    const link = column.definition
      ? el("a", { href: `#def-${column.definition}`, class: "def", title: "definition", "aria-label": `definition of ${column.label}` }, "?") : null;
    return el("th", { scope: "col", class: column.number ? "number" : "" }, button, link);
  });
  const filter = el("input", { type: "search", placeholder: "filter", "aria-label": `filter ${options.name || "the table"}`,
    input: (event) => { state.words = event.target.value.toLowerCase(); draw(); } });
  const textOf = (row) => columns.map((c) => (c.text ? c.text(row) : row[c.key] ?? "")).join(" ").toLowerCase();

  function draw() {
    const words = state.words.split(/\s+/).filter(Boolean);
    let seen = rows.filter((row) => { const text = textOf(row); return words.every((w) => text.includes(w)); });
    if (state.sort) {
      const key = state.sort;
      const none = (value) => value == null || Number.isNaN(value);
      const order = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
      seen = [...seen].sort((a, b) => none(a[key]) - none(b[key]) || (state.down ? -1 : 1) * order(a[key], b[key]));
    }
    const cut = state.all ? seen : seen.slice(0, most);
    body.replaceChildren(...cut.map((row) => el("tr", options.pick ? { class: "pick", tabindex: 0,
      click: () => options.pick(row), keydown: (e) => { if (e.key === "Enter") options.pick(row); } } : {},
    columns.map((column) => el("td", { class: column.number ? "number" : "", ...(column.number ? {} : { dir: "auto" }) },
      column.cell ? column.cell(row) : show(row[column.key]))))));
    heads.forEach((head, i) => head.setAttribute("aria-sort",
      columns[i].key !== state.sort ? "none" : state.down ? "descending" : "ascending"));
    count.textContent = `${d3.format(",")(seen.length)} of ${d3.format(",")(rows.length)} rows`;
    more.hidden = seen.length <= most;
    more.textContent = state.all ? "show fewer" : `show all ${d3.format(",")(seen.length)}`;
  }

  draw();
  const caption = options.caption ? el("caption", {}, options.caption) : null;
  place.replaceChildren(
    el("div", { class: "table-tools" }, filter, count),
    el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": options.name || "table" },
      el("table", {}, caption, el("thead", {}, el("tr", {}, heads)), body)), more);
}

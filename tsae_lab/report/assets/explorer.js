"use strict";
// The feature explorer: one document's words under both models, a timeline, and a card per feature.

const CELL = 11, ROW = 18; // pixels of a token and of a feature in a timeline
const Explorer = { place: null, texts: {}, state: null };

/** A word with what cannot be seen made visible; it is only ever put in as text. */
const visible = (word) => word.replace(/[\0-\x09\x0b-\x1f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0)))
  .replaceAll("\x7f", "\u2421").replaceAll("\n", "\u21b5");
const label = (words, n = 3) => words.split(" ").slice(0, n).map(visible).join(" ");

async function openText(name) {
  const source = [...document.querySelectorAll("script.explorer")].find((one) => one.dataset.text === name);
  if (!source) return null;
  if (!Explorer.texts[name]) {
    const about = JSON.parse(source.textContent);
    const arrays = await unpack(about);
    delete about.data;
    const models = about.models.map((model) => {
      const own = Object.fromEntries(Object.entries(arrays).filter(([key]) => key.startsWith(`${model.slug}.`))
        .map(([key, array]) => [key.slice(model.slug.length + 1), array]));
      const rows = new Map(Array.from(own.feature.values, (f, i) => [f, i]));
      return { ...model, arrays: own, rows };
    }).sort((a, b) => MODELS.indexOf(a.slug) - MODELS.indexOf(b.slug));
    let first = 0;
    const documents = about.models[0].timelines.map((line, i) => {
      const slots = line.slots, words = slots.map((s) => about.words[arrays.tokens.values[s]]);
      const document = { ...line, i, first, words, n: slots.length };
      first += slots.length;
      return document;
    });
    Explorer.texts[name] = { about, arrays, models, documents };
  }
  return Explorer.texts[name];
}

// ------------------------------------------------------------------------------- values of a token

/** What made the value of a feature at a token; null where it is not among the token's k. */
function entry(model, document, token, feature) {
  const row = document.first + token, k = model.k, { idx, pre, added, gate } = model.arrays;
  for (let j = row * k; j < (row + 1) * k; j += 1) {
    if (idx.values[j] === feature) {
      const value = Math.max(pre.values[j], 0) * gate.values[j];
      if (value > 0) return { feature, value, pre: pre.values[j], added: added.values[j], gate: gate.values[j] };
    }
  }
  return null;
}

function entries(model, document, token) {
  const row = document.first + token, { idx } = model.arrays;
  return Array.from(rowOf(idx, row), (f) => entry(model, document, token, f)).filter(Boolean)
    .sort((a, b) => b.value - a.value);
}

const valuesOf = (model, document, feature) => Float32Array.from(document.words,
  (_, t) => entry(model, document, t, feature)?.value ?? 0);

/** Births and deaths seen, and the stage at each token: as the library's lifecycle counts them. */
function lifecycle(values, document) {
  const seams = new Set([0, ...document.seams]);
  let ended = false, begun = false;
  return Array.from(values, (value, t) => {
    const opens = seams.has(t), on = value > 0, before = !opens && values[t - 1] > 0;
    const birth = on && (opens ? document.index[t] === 0 : !before), death = !on && before;
    ended ||= death;
    begun ||= on;
    return { on, birth, death, stage: on ? (ended ? "active" : "born") : begun ? "dormant" : "unborn" };
  });
}

const cardRow = (model, feature) => model.rows.get(feature);
const wordsOf = (model, feature) => (model.rows.has(feature) ? model.words[cardRow(model, feature)] : "");

// ------------------------------------------------------------------------------------ the document

function wordLine(model, document, feature) {
  const values = valuesOf(model, document, feature), row = cardRow(model, feature);
  const peak = Math.max(d3.max(values) || 0, row == null ? 0 : model.arrays.peak.values[row]) || 1;
  const line = el("p", { class: "words", dir: "auto", tabindex: 0, "aria-label": `words coloured by feature ${feature} of the ${model.name}; arrow keys move the token`, keydown: moveToken });
  document.words.forEach((word, t) => {
    if (document.seams.includes(t)) line.append(el("span", { class: "seam", title: "a new chunk: the state starts anew" }, "‖"));
    const span = el("span", { class: "w", "data-t": t }, visible(word));
    if (values[t] > 0) { span.style.setProperty("--heat", (values[t] / peak).toFixed(3)); span.classList.add("on"); }
    if (values[t] / peak > 0.62) span.classList.add("hot");
    line.append(span);
    if (word.includes("\n")) line.append("\n");
  });
  line.addEventListener("pointerover", (event) => {
    const t = event.target.dataset?.t;
    if (t != null) showTip(event, ...tokenTip(model, document, Number(t), feature));
  });
  line.addEventListener("pointerleave", hideTip);
  line.addEventListener("click", (event) => { if (event.target.dataset?.t != null) pickToken(Number(event.target.dataset.t)); });
  return line;
}

function tokenTip(model, document, token, feature) {
  const own = entry(model, document, token, feature);
  const head = el("strong", {}, el("bdi", {}, `“${visible(document.words[token])}”`), ` · token ${document.index[token]}`);
  if (!own) return [head, `feature ${feature} is off in the ${model.name}`];
  const parts = [["value", own.value], ["pre-activation", own.pre]];
  if (model.slug === "tsae") parts.push(["memory added", own.added], ["gate", own.gate]);
  return [head, `feature ${feature}, ${model.name}`, facts(parts)];
}

function timeline(model, document, feature) {
  const line = model.timelines[document.i];
  const rows = line.leading.includes(feature) ? line.leading : [feature, ...line.leading];
  const width = document.n * CELL, height = rows.length * ROW + 4;
  const names = el("div", { class: "names" });
  const svg = d3.create("svg").attr("width", width).attr("height", height).attr("role", "img")
    .attr("aria-label", `timeline of ${rows.length} features of the ${model.name} over ${document.n} tokens`);
  let births = 0, deaths = 0;
  rows.forEach((f, r) => {
    const alike = line.alike[line.leading.indexOf(f)] || 1, values = valuesOf(model, document, f);
    names.append(el("button", { type: "button", class: f === feature ? "picked" : "", title: alike > 1 ? `${alike} features are on at exactly these tokens` : wordsOf(model, f),
      click: () => pickFeature(model.slug, f) }, el("span", { class: "num" }, String(f)), el("bdi", {}, label(wordsOf(model, f), 2)), alike > 1 ? ` +${alike - 1}` : ""));
    const most = d3.max(values) || 1, g = svg.append("g").attr("class", f === feature ? "row picked" : "row").attr("transform", `translate(0,${r * ROW + 2})`);
    lifecycle(values, document).forEach((at, t) => {
      if (at.on) g.append("rect").attr("class", "heat").attr("x", t * CELL).attr("width", CELL - 0.6).attr("height", ROW - 6).attr("fill-opacity", (0.12 + 0.88 * values[t] / most).toFixed(3)).attr("data-f", f).attr("data-t", t);
      if (at.stage !== "unborn") g.append("line").attr("class", `stage ${at.stage}`).attr("x1", t * CELL).attr("x2", (t + 1) * CELL).attr("y1", ROW - 4).attr("y2", ROW - 4);
      if (at.birth) { births += 1; g.append("path").attr("class", "birth").attr("d", `M${t * CELL},0 l4,0 l-4,5 z`); }
      if (at.death) { deaths += 1; g.append("path").attr("class", "death").attr("d", `M${t * CELL + 2},4 l4,4 m0,-4 l-4,4`); }
    });
  });
  for (const seam of document.seams) svg.append("line").attr("class", "seam").attr("x1", seam * CELL).attr("x2", seam * CELL).attr("y2", height);
  svg.append("rect").attr("class", "token-cursor").attr("width", CELL).attr("height", height).attr("x", -CELL);
  svg.on("pointermove", (event) => {
    const [px, py] = d3.pointer(event), t = Math.min(document.n - 1, Math.max(0, Math.floor(px / CELL))), f = rows[Math.max(0, Math.min(rows.length - 1, Math.floor((py - 2) / ROW)))];
    showTip(event, ...tokenTip(model, document, t, f));
  }).on("pointerleave", hideTip).on("click", (event) => {
    const [px, py] = d3.pointer(event), f = rows[Math.floor((py - 2) / ROW)];
    pickToken(Math.floor(px / CELL), false);
    if (f != null) pickFeature(model.slug, f);
  });
  const scroll = el("div", { class: "lane", tabindex: 0, "aria-label": "timeline; arrow keys move the token", keydown: moveToken,
    scroll: () => document.lanes?.forEach((lane) => { if (lane !== scroll && Math.abs(lane.scrollLeft - scroll.scrollLeft) > 1) lane.scrollLeft = scroll.scrollLeft; }) }, svg.node());
  return { node: el("div", { class: "timeline", "data-births": births, "data-deaths": deaths }, names, scroll), scroll };
}

function tokenPanel(model, document, token) {
  const own = entries(model, document, token);
  const heads = ["feature", "top words", "value", "pre", ...(model.slug === "tsae" ? ["memory", "gate"] : [])];
  return el("details", { class: "at-token", open: model.open ?? false, toggle: (e) => { model.open = e.target.open; } },
    el("summary", {}, `${own.length} features on at `, el("bdi", {}, `“${visible(document.words[token])}”`)),
    el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, heads.map((h, i) => el("th", { scope: "col", class: i === 1 ? "" : "number" }, h)))),
      el("tbody", {}, own.map((one) => el("tr", { class: "pick", tabindex: 0, click: () => pickFeature(model.slug, one.feature), keydown: (e) => { if (e.key === "Enter") pickFeature(model.slug, one.feature); } },
        el("td", { class: "number" }, String(one.feature)), el("td", {}, el("bdi", {}, label(wordsOf(model, one.feature)))), [one.value, one.pre, ...(model.slug === "tsae" ? [one.added, one.gate] : [])].map((v) => el("td", { class: "number" }, show(v)))))))));
}

// ---------------------------------------------------------------------------------------- the card

function featureCard(model, text, feature) {
  const row = cardRow(model, feature), a = model.arrays, { about } = text;
  const title = el("h4", {}, `Feature ${feature}`, el("bdi", { class: "label" }, row == null ? "" : label(model.words[row], 5)));
  if (row == null) return el("div", { class: "card" }, title, el("p", { class: "none" }, notAlive(model, about, feature)));
  const risk = Array.from(rowOf(a.at_risk, row)), ended = Array.from(rowOf(a.ended, row));
  const card = el("div", { class: "card" }, title,
    el("p", { class: "about" }, `on at ${show(a.active.values[row])} of ${show(about.tokens)} tokens · peak ${show(a.peak.values[row])} · ${show(a.births.values[row])} births seen · persistence ${show(a.persistence.values[row])} · mean life up to 64 tokens ${show(a.mean_64.values[row])}`),
    el("h5", {}, "Strongest contexts"), contexts(model, text, row));
  const [bar, life, stable] = ["Activations", "Survival", "Stability by lag"].map((name) => {
    const place = el("div", { class: "chart small" });
    return { place, node: el("div", {}, el("h5", {}, name), place) };
  });
  card.append(el("div", { class: "trio" }, bar.node, life.node, stable.node));
  requestAnimationFrame(() => {
    bars(bar.place, { counts: Array.from(rowOf(a.histogram, row)), most: a.peak.values[row], x: "activation", style: model.slug, height: 130 });
    survivalOf(life.place, model, risk, ended);
    const kappa = Array.from(rowOf(a.kappa, row));
    lineChart(stable.place, { height: 130, x: "lag, tokens", y: "kappa", rule: 0, ticks: { x: 4 }, series: [{ name: "", style: model.slug, points: kappa.map((y, i) => ({ x: i + 1, y: Number.isNaN(y) ? null : y })) }] });
    if (!a.eligible.values[row]) stable.node.append(el("p", { class: "about" }, "not counted in TSS: too rare or nearly always on"));
  });
  card.append(...[followers, probesOf, effectsOf].map((make) => make(model, about, feature)).filter(Boolean));
  return card;
}

function notAlive(model, about, feature) {
  if (feature < 0 || feature >= model.d_sae) return `There is no feature ${feature}: the ${model.name} has features 0 to ${model.d_sae - 1}.`;
  if (model.alive > model.rows.size) return `Feature ${feature} is not among the ${show(model.rows.size)} most active features, of which cards are kept here; or it is never active on this text.`;
  return `Feature ${feature} is not alive: it is active at none of the ${show(about.tokens)} tokens of this text.`;
}

function contexts(model, text, row) {
  const { about, arrays } = text, places = rowOf(model.arrays.places, row), strengths = rowOf(model.arrays.strengths, row), width = strengths.length / places.length, reach = (width - 1) / 2;
  return el("ul", { class: "contexts" }, Array.from(places).filter((p) => p !== 4294967295).map((place, i) => {
    const chunk = Math.floor(place / about.seq), end = chunk * about.seq + arrays.lengths.values[chunk];
    const item = el("li", { dir: "auto", title: `document ${arrays.document.values[chunk]}` });
    for (let j = 0; j < width; j += 1) {
      const slot = place - reach + j, heat = strengths[i * width + j] / 255;
      if (slot < chunk * about.seq || slot >= end) continue;
      const span = el("span", { class: `w ${heat > 0 ? "on" : ""} ${heat > 0.62 ? "hot" : ""} ${j === reach ? "peak" : ""}` }, visible(about.words[arrays.tokens.values[slot]]));
      if (heat > 0) span.style.setProperty("--heat", heat.toFixed(3));
      item.append(span);
    }
    return item;
  }));
}

function survivalOf(place, model, risk, ended) {
  if (!risk[1]) return place.replaceChildren(el("p", { class: "none" }, "No run was followed for a token."));
  let s = 1;
  const points = risk.flatMap((r, t) => {
    if (!r) return [];
    s *= 1 - ended[t] / r;
    const cut = r - ended[t] - (risk[t + 1] ?? r - ended[t]);
    return [{ x: t, y: s, cut: t > 0 && cut > 0 }];
  });
  lineChart(place, { height: 130, x: "tokens on", y: "share still on", step: true, ticks: { x: 4 }, series: [{ name: "", style: model.slug, points }],
    label: `Kaplan-Meier survival of the feature's ${risk[0]} runs; a plus marks censored runs` });
}

const tableOf = (about, name) => rowsOf(DATA.texts.find((t) => t.name === about.text)?.tables?.[name]);

function followers(model, about, feature) {
  const rows = tableOf(about, `transitions_${model.slug}`);
  const side = (name, from, to) => {
    const own = rows.filter((r) => r[from] === feature).sort((a, b) => b.lift - a.lift).slice(0, 6);
    return el("div", {}, el("h5", {}, name), own.length ? el("ul", { class: "links" }, own.map((r) => el("li", {}, el("button", { type: "button", click: () => pickFeature(model.slug, r[to]) }, `${r[to]} `, el("bdi", {}, label(String(r[`${to}_words`] ?? ""), 2))),
      ` lag ${r.lag} · lift ${show(r.lift)} · ${r.beyond_token_pairs === "yes" ? "beyond token pairs" : "token pairs explain it"}`))) : el("p", { class: "none" }, rows.length ? "None among the listed transitions." : "Not measured."));
  };
  return el("div", { class: "duo" }, side("Comes after", "target", "source"), side("Leads to", "source", "target"));
}

function probesOf(model, about, feature) {
  const rows = tableOf(about, "probe_weights").filter((r) => r.feature === feature && r.model === model.slug);
  if (!rows.length) return null;
  return el("div", {}, el("h5", {}, "Weights in probes"), el("ul", { class: "links" }, rows.map((r) => el("li", {}, `${r.task}${r.unit && r.unit !== r.task ? ` (${r.unit})` : ""}: ${show(r.weight)}`))));
}

function effectsOf(model, about, feature) {
  const own = (name) => tableOf(about, name).filter((r) => r.feature === feature && slugOf(r.model) === model.slug);
  const decay = own("effect_decay"), lasts = own("durations"), [numbered] = own("number_features");
  if (!decay.length && !lasts.length && !numbered) return null;
  const box = el("div", {}, el("h5", {}, "Causal effect"));
  if (numbered) box.append(...numberEffects(model, about, numbered));
  for (const r of lasts) box.append(el("p", { class: "about" }, `ablated at one token, ${r.mode}: the effect lasts ${show(r.duration)} tokens on average`));
  if (decay.length) {
    const place = el("div", { class: "chart small" });
    box.append(place);
    const modes = [...new Set(decay.map((r) => r.mode))];
    const pointsOf = (r) => Object.keys(r).filter((key) => /^kl_\d+$/.test(key)).map((key) => ({ x: Number(key.slice(3)), y: r[key] }));
    requestAnimationFrame(() => lineChart(place, { height: 130, x: "tokens after the ablation", y: "KL, nats", ticks: { x: 4 }, series: modes.map((mode, i) => ({ name: mode, style: model.slug, dash: i > 0, points: pointsOf(decay.find((r) => r.mode === mode)) })) }));
  }
  return box;
}

/** The effect at the verb, by offset, of the set of features that this one was swapped with. */
function numberEffects(model, about, numbered) {
  const rows = tableOf(about, "effects").filter((r) => slugOf(r.model) === model.slug && r.edit === "effect" && typeof r.offset === "number");
  const place = el("div", { class: "chart small" }), modes = [...new Set(rows.map((r) => r.mode))];
  requestAnimationFrame(() => lineChart(place, { height: 130, x: "offset to the verb, tokens", y: "share of the full patch", rule: 0, ticks: { x: 6 }, series: modes.map((mode, i) => ({ name: mode, style: model.slug, dash: i > 0,
    points: rows.filter((r) => r.mode === mode).map((r) => ({ x: r.offset, y: r.normalised, low: r.low, high: r.high })) })) }));
  return [el("p", { class: "about" }, `number ${numbered.rank} of the features that tell a subject's number; swapped together before a verb, they have this effect:`), place];
}

// --------------------------------------------------------------------------------------- the whole

function pickFeature(slug, feature) {
  const { state } = Explorer;
  for (const model of state.text.models) if (model.slug === slug || state.linked) state.feature[model.slug] = feature;
  drawExplorer();
}

function pickToken(token, draw = true) {
  const { state } = Explorer;
  state.token = Math.max(0, Math.min(state.document.n - 1, token));
  if (draw) markToken(true);
}

function moveToken(event) {
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10 }[event.key];
  if (!step) return;
  event.preventDefault();
  pickToken(Explorer.state.token + step);
}

function markToken(follow) {
  const { state, place } = Explorer;
  for (const span of place.querySelectorAll(".words .w")) span.classList.toggle("here", Number(span.dataset.t) === state.token);
  d3.select(place).selectAll(".token-cursor").attr("x", state.token * CELL);
  if (follow) for (const lane of state.document.lanes) {
    const x = state.token * CELL;
    if (x < lane.scrollLeft || x > lane.scrollLeft + lane.clientWidth - 2 * CELL) lane.scrollLeft = Math.max(0, x - lane.clientWidth / 2);
  }
  for (const model of state.text.models) {
    place.querySelector(`.model.${model.slug} .at-token`).replaceWith(tokenPanel(model, state.document, state.token));
    place.querySelector(`.model.${model.slug} .now`).replaceChildren(...tokenTip(model, state.document, state.token, state.feature[model.slug]).map((line) => (line instanceof Node ? line : el("span", {}, line))));
  }
}

function drawExplorer() {
  const { state, place } = Explorer, { text, document } = state;
  hideTip();
  const scrolled = document.lanes?.[0]?.scrollLeft ?? 0;
  document.lanes = [];
  const columns = text.models.map((model) => {
    const feature = state.feature[model.slug], lines = timeline(model, document, feature);
    document.lanes.push(lines.scroll);
    return el("div", { class: `model ${model.slug}` },
      el("h3", {}, el("span", { class: "swatch" }), model.name, el("span", { class: "about" }, `${show(model.alive)} of ${show(model.d_sae)} features alive · FVE ${show(model.fve, 4)}`)),
      wordLine(model, document, feature), el("div", { class: "now", "aria-live": "polite" }), lines.node, el("details", { class: "at-token" }), featureCard(model, text, feature));
  });
  place.querySelector(".pair").replaceChildren(...columns);
  place.querySelector(".pair").classList.toggle("single", columns.length === 1);
  place.querySelector("#feature").value = state.feature[state.text.models.at(-1).slug];
  for (const lane of document.lanes) lane.scrollLeft = scrolled;
  markToken(false);
}

function openDocument(i) {
  const { state } = Explorer;
  state.document = state.text.documents[i];
  state.token = 0;
  const model = state.text.models.at(-1), [lead] = model.timelines[i].leading;
  if (lead != null) {
    for (const one of state.text.models) state.feature[one.slug] = lead;
    state.token = Math.max(0, valuesOf(model, state.document, lead).findIndex((v) => v > 0));
  } else for (const one of state.text.models) state.feature[one.slug] ??= 0;
  drawExplorer();
  markToken(true);
}

function searched(words) {
  const needle = words.trim().toLowerCase(), results = $("results");
  const hits = needle ? Explorer.state.text.models.flatMap((model) => model.words.map((w, i) => ({ model, words: w, feature: model.arrays.feature.values[i] }))
    .filter((h) => String(h.feature) === needle || h.words.toLowerCase().split(" ").some((w) => w.startsWith(needle)))).slice(0, 60) : [];
  hits.sort((a, b) => b.model.arrays.active.values[cardRow(b.model, b.feature)] - a.model.arrays.active.values[cardRow(a.model, a.feature)]);
  results.replaceChildren(...hits.slice(0, 10).map((h) => el("li", {}, el("button", { type: "button", class: h.model.slug, click: () => { results.replaceChildren(); pickFeature(h.model.slug, h.feature); } },
    el("span", { class: "swatch" }), `${h.feature} `, el("bdi", {}, label(h.words, 5)), el("span", { class: "about" }, h.model.name)))));
  if (needle && !hits.length) results.replaceChildren(el("li", { class: "none" }, "no feature has such a top word"));
}

/** Builds the explorer of a text into the page; says so where there is none. */
async function showExplorer(name) {
  const place = Explorer.place = $("explorer-body");
  if (!place) return;
  const text = await openText(name);
  if (!text) return place.replaceChildren(el("p", { class: "none" }, "There is no explorer of this text: see what is not in this report."));
  Explorer.state = { text, feature: {}, token: 0, linked: text.models.length > 1 };
  const { about, documents } = text, n = documents.length, cards = d3.max(text.models, (m) => m.rows.size);
  const choice = el("select", { id: "document", change: (e) => openDocument(Number(e.target.value)) }, documents.map((d, i) => el("option", { value: i },
    `${d.document}: ${d.words.slice(0, 9).join("").trim().slice(0, 44)}…`)));
  const both = el("input", { type: "checkbox", id: "linked", change: (e) => { Explorer.state.linked = e.target.checked; } });
  both.checked = Explorer.state.linked;
  place.replaceChildren(
    el("div", { class: "controls" },
      n > 1 ? el("label", {}, "Document", choice) : null,
      el("label", {}, "Feature", el("input", { type: "number", id: "feature", min: 0, max: text.models[0].d_sae - 1, change: (e) => { if (e.target.value !== "") pickFeature(text.models.at(-1).slug, Number(e.target.value)); } })),
      el("label", { class: "search" }, "Search top words", el("input", { type: "search", id: "search", placeholder: "press /", autocomplete: "off", input: (e) => searched(e.target.value),
        keydown: (e) => { if (e.key === "Enter") $("results").querySelector("button")?.click(); if (e.key === "Escape") { e.target.value = ""; searched(""); } } }), el("ul", { id: "results" })),
      text.models.length > 1 ? el("label", { class: "check", title: "the TSAE was trained from the static SAE's weights, so that equal numbers began as one feature" }, both, "same number in both") : null),
    el("p", { class: "about" }, `${n} of ${show(about.n_documents)} document${about.n_documents === 1 ? "" : "s"}${n < about.n_documents ? " drawn by chance (seed 0)" : ""}, at most ${show(d3.max(documents, (d) => d.n))} tokens of each; cards of ${show(cards)} features from all ${show(about.tokens)} tokens. Models of seed ${about.seed}. A feature's label is the tokens it is most active on.`),
    el("ul", { class: "legend marks" }, [["heat", "activation by row maximum"], ["birth", "birth"], ["death", "death, first token off"], ["born", "born: in its first run"], ["active", "active again"], ["dormant", "dormant"]].map(([mark, words]) => el("li", {}, el("span", { class: `key ${mark}` }), words))),
    el("div", { class: "pair" }));
  openDocument(0);
}

document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.ctrlKey || event.metaKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
  const search = $("search");
  if (!search) return;
  event.preventDefault();
  search.focus();
  search.scrollIntoView({ block: "center" });
});

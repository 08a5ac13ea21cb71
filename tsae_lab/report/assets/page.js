"use strict";
// The page of a text: pictures, tables and sections; and the switch from text to text.

const OTHER = ["rival-0", "rival-1", "rival-2", "rival-3", "rival-4", "rival-5"];

/** Class and symbol of a system by its name. */
function look(systems) {
  let others = 0;
  return new Map(systems.map(({ system }) => {
    if (system === "TSAE") return [system, { style: "tsae", symbol: 0 }];
    if (system === "static SAE") return [system, { style: "static", symbol: 1 }];
    others += 1;
    return [system, { style: OTHER[(others - 1) % 6], symbol: 2 + (Math.floor((others - 1) / 6) % 4) }];
  }));
}

function pictures(text) {
  const looks = look(text.systems);
  const many = text.systems.length > 8;
  $("system-names").replaceChildren(...(many ? [el("ul", { class: "legend" }, text.systems.map((s) => el("li", { class: looks.get(s.system).style }, symbolOf(looks.get(s.system).symbol), s.system)))] : []));
  const points = (key) => text.systems.map((s) => ({ name: s.system, ...looks.get(s.system), x: s.means[key], y: s.means.fve, ex: s.stderrs[key], ey: s.stderrs.fve, label: !many || looks.get(s.system).style.length < 7,
    detail: [["measured in", s.run]] })).sort((a, b) => (a.style.length < 7) - (b.style.length < 7));
  const stable = d3.greatest(["jaccard", "tss_mean"], (key) => text.systems.filter((s) => s.means[key] != null).length + (key === "tss_mean") / 2);
  scatter($("chart-stability"), { points: points(stable), x: stable === "jaccard" ? "overlap of neighbouring codes (Jaccard)" : "stability beyond chance (TSS, mean over lags)", y: "FVE", height: many ? 290 : 230 });
  scatter($("chart-events"), { points: points("births"), x: "births, features per token", y: "FVE", height: many ? 290 : 230 });
}

/** A number with this many digits, zeros at its end too. */
const exact = (value, digits) => (value === 0 ? "0" : Math.abs(value) < 1e-4 || Math.abs(value) >= 1e4 ? show(value) : d3.format(`,.${digits}r`)(value));
const plusMinus = (value, error, digits = 4) => (value == null ? "-" : error == null ? exact(value, digits) : `${exact(value, digits)} ± ${exact(error, 2)}`);
const between = (low, high) => (low == null ? "-" : `${exact(low, 3)} to ${exact(high, 3)}`);

function measures(text) {
  const n = text.n_seeds, spread = n > 1 ? `mean ± standard error, n = ${n} seeds` : "one seed";
  const name = (row) => [el("a", { href: `#def-${row.pattern}` }, row.label), row.static == null && row.difference == null && row.tsae != null ? el("span", { class: "about" }, " of the run") : null];
  const columns = [
    { key: "label", label: "measure", cell: name, text: (r) => `${r.label} ${r.group} ${r.key}` },
    { key: "group", label: "group" }, { key: "unit", label: "unit", cell: (r) => r.unit || "share or ratio" },
    { key: "static", label: "static SAE", unit: spread, number: true, cell: (r) => plusMinus(r.static, r.static_error) },
    { key: "tsae", label: "TSAE", unit: spread, number: true, cell: (r) => plusMinus(r.tsae, r.tsae_error) },
    { key: "difference", label: "difference", unit: "TSAE − static", number: true, cell: (r) => plusMinus(r.difference, r.difference_error, 3) },
    { key: "seeds_low", label: "95 %, seeds", unit: `t, n = ${n}`, number: true, cell: (r) => between(r.seeds_low, r.seeds_high) },
    { key: "documents_low", label: "95 %, documents", unit: "bootstrap, seed 0", number: true, cell: (r) => between(r.documents_low, r.documents_high) },
  ].filter((c) => !/_low$/.test(c.key) || text.measures.some((r) => r[c.key] != null));
  makeTable($("table-measures"), text.measures, columns, { name: "measures", shown: 14, caption: `${text.name}: ${spread}` });
}

const byModel = (rows, x, y, extra = () => ({})) => [...d3.group(rows, (r) => r.model)].map(([name, own]) => ({
  name, style: slugOf(name), dash: slugOf(name) === "static", points: own.map((r) => ({ x: r[x], y: r[y], low: r.low, high: r.high, ...extra(r) })) }));

/** A section's parts: a figure with its caption, then a table. */
function figure(place, caption) {
  const chart = el("div", { class: "chart" });
  let box = place.querySelector(".figures");
  if (!box) place.append(box = el("div", { class: "figures" }));
  box.append(el("figure", {}, chart, el("figcaption", {}, caption)));
  return chart;
}

function table(place, rows, name, options = {}) {
  const box = el("div", { class: "block" });
  place.append(box);
  if (!rows.length) return box.append(el("p", { class: "none" }, `${name}: not measured.`));
  makeTable(box, rows, options.columns || columnsFor(rows, options.names), { name, caption: name, shown: 8, ...options });
}

const SECTIONS = {
  stability(place, text, rows) {
    const by = rows("stability_by_lag");
    lineChart(figure(place, "Stability beyond chance by lag: 0 is what tokens in random order give."), { series: byModel(by, "lag", "tss"), x: "lag, tokens", y: "TSS" });
    table(place, by, "Stability by lag");
  },
  lifetimes(place, text, rows) {
    const last = d3.max(rows("survival").filter((r) => r.survival >= 0.001), (r) => r.t), by = rows("survival").filter((r) => r.t <= last);
    lineChart(figure(place, "Share of runs still on after so many tokens (Kaplan-Meier), with 95 % bands, until fewer than one in a thousand are."), { series: byModel(by, "t", "survival"), x: "tokens on", y: "share still on", step: true });
    for (const slug of MODELS) table(place, rows(`features_${slug}`), `Features of the ${NAMES[slug]}`, { sort: "active", down: true, pick: (r) => { pickFeature(slug, r.feature); $("explorer").scrollIntoView(); } });
  },
  transitions(place, text, rows) {
    const graph = el("div");
    place.append(graph);
    transitionGraph(graph, text);
    for (const slug of MODELS) table(place, rows(`strongest_transitions_${slug}`), `Strongest transitions of the ${NAMES[slug]}`, { names: ["rank", "source", "source_words", "target", "target_words", "lag", "count", "lift", "beyond_token_pairs", "example_1"], shown: 5 });
  },
  probes(place, text, rows) {
    const by = rows("probes"), names = { tsae: "TSAE", static: "static SAE", resid: "residual stream" };
    const own = by.filter((r) => r.items === "all" && r.k === 5 && (r.chosen || "raw") === "raw" && names[r.model]);
    const styles = { tsae: "tsae", static: "static", resid: "neutral" };
    dotChart(figure(place, "Accuracy of probes that see 5 features, on held-out groups; bars: 95 % over groups; the line: chance."), { rule: 0.5, x: "accuracy",
      rows: [...d3.group(own, (r) => r.task)].map(([task, values]) => ({ label: task, values: values.map((r) => ({ name: names[r.model], style: styles[r.model], symbol: ["tsae", "static", "resid"].indexOf(r.model), value: r.accuracy, low: r.low, high: r.high })) })) });
    table(place, by, "Probes");
  },
  interventions(place, text, rows) {
    const by = rows("effects"), single = by.filter((r) => r.edit === "effect" && typeof r.offset === "number");
    const lines = [...d3.group(single, (r) => `${r.model}, ${r.mode}`)].map(([name, own]) => ({ name, style: slugOf(name), dash: name.endsWith("local"), points: own.map((r) => ({ x: r.offset, y: r.normalised, low: r.low, high: r.high })) }));
    lineChart(figure(place, "Effect of swapping ten number features at one token before the verb, as a share of what the full patch does."), { series: lines, x: "offset to the verb, tokens", y: "effect", rule: 0 });
    const steering = rows("steering");
    if (steering.length) lineChart(figure(place, "Steering: change of the plural's advantage by strength."), { series: [...d3.group(steering, (r) => `${r.model}, ${r.mode}`)].map(([name, own]) => ({ name, style: slugOf(name), dash: name.endsWith("local"), points: own.map((r) => ({ x: r.strength, y: r.logits })) })), x: "strength", y: "nats", rule: 0 });
    table(place, by, "Effects at the verb");
  },
  ablations(place, text) {
    const own = text.systems.filter((s) => s.run === "run_4"), looks = look(text.systems);
    if (!own.length) return place.append(el("p", { class: "none" }, "There is no run_4 here: nothing was ablated, no rival trained."));
    const keys = { fve: "FVE", tss_mean: "TSS, mean over lags", births: "births, features per token", kl: "KL, nats per token" };
    for (const [key, name] of Object.entries(keys)) dotChart(figure(place, `${name}, of every system, ± one standard error.`), { x: name, names: false,
      rows: own.map((s) => ({ label: s.system, values: [{ name: s.system, ...looks.get(s.system), value: s.means[key], low: s.stderrs[key] == null ? null : s.means[key] - s.stderrs[key], high: s.stderrs[key] == null ? null : s.means[key] + s.stderrs[key] }] })) });
    table(place, own.map((s) => ({ system: s.system, ...s.means })), "Systems");
  },
};

function showText(text) {
  for (const node of document.querySelectorAll("main [data-text]")) node.hidden = node.dataset.text !== text.name;
  pictures(text);
  measures(text);
  const rows = (name) => rowsOf(text.tables[name]);
  for (const [name, fill] of Object.entries(SECTIONS)) {
    const place = $(`${name}-body`);
    place.replaceChildren();
    fill(place, text, rows);
  }
}

async function start() {
  const texts = DATA.texts, choice = $("text");
  const open = async (name) => {
    const text = texts.find((one) => one.name === name);
    if (text) showText(text);
    await showExplorer(name);
    document.documentElement.dataset.ready = name;
  };
  choice?.addEventListener("change", () => open(choice.value));
  const [first] = [...document.querySelectorAll("script.explorer")].map((one) => one.dataset.text);
  await open(texts[0]?.name ?? first);
}

start();

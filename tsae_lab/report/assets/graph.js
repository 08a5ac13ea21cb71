"use strict";
// The transition graph: features as nodes, transitions as arrows; pan, zoom, filter, click.

const MOST_EDGES = 90, MOST_NARROW = 30;

function transitionGraph(place, text) {
  const models = MODELS.filter((slug) => text.tables[`transitions_${slug}`]);
  if (!models.length) return place.replaceChildren(el("p", { class: "none" }, "Not measured."));
  const state = { slug: models.at(-1), lift: 1, lag: 16, beyond: false };
  const drawing = el("div", { class: "graph", tabindex: 0, "aria-label": "transition graph; drag to move it; the wheel zooms once it has the focus" });
  const said = el("p", { class: "about" });
  const lift = el("output", {}, "1"), lag = el("output", {}, "16");
  const range = (name, output, most, value, set, shown) => el("label", {}, name, el("input", { type: "range", min: 0, max: most, step: 1, value, "aria-label": name, input: (e) => { set(Number(e.target.value)); output.textContent = shown(); draw(); } }), output);
  place.replaceChildren(el("div", { class: "controls" },
    el("label", {}, "Model", el("select", { id: "graph-model", change: (e) => { state.slug = e.target.value; draw(); } }, models.map((slug) => { const o = el("option", { value: slug }, NAMES[slug]); o.selected = slug === state.slug; return o; }))),
    range("Lift at least", lift, 40, 0, (v) => { state.lift = 10 ** (v / 20); }, () => show(state.lift, 2)),
    range("Lag at most", lag, 16, 16, (v) => { state.lag = Math.max(1, v); }, () => String(state.lag)),
    el("label", { class: "check" }, el("input", { type: "checkbox", id: "beyond", change: (e) => { state.beyond = e.target.checked; draw(); } }), "beyond token pairs only")), drawing, said);

  function draw() {
    const all = rowsOf(text.tables[`transitions_${state.slug}`]).filter((r) => r.lift >= state.lift && r.lag <= state.lag && (!state.beyond || r.beyond_token_pairs === "yes"));
    const strongest = new Map(), most = place.clientWidth < 600 ? MOST_NARROW : MOST_EDGES;
    for (const r of [...all].sort((a, b) => (b.beyond_token_pairs === "yes") - (a.beyond_token_pairs === "yes") || b.lift * Math.log1p(b.count) - a.lift * Math.log1p(a.count))) {
      const key = `${r.source} ${r.target}`;
      if (!strongest.has(key) && strongest.size < most) strongest.set(key, r);
    }
    const edges = [...strongest.values()];
    said.textContent = `${edges.length} arrows of ${show(all.length)} transitions that pass; of two features the strongest lag. Thick: beyond what equal pairs of tokens explain. Click a feature to open it in the explorer.`;
    drawGraph(drawing, edges, state.slug);
  }
  draw();
}

function drawGraph(place, edges, slug) {
  const width = place.clientWidth || 800, height = Math.max(330, Math.min(560, width * 0.62));
  const words = new Map(edges.flatMap((e) => [[e.source, e.source_words], [e.target, e.target_words]]));
  const nodes = [...words.keys()].map((id) => ({ id, words: String(words.get(id) ?? "") }));
  const links = edges.map((e) => ({ ...e, row: e }));
  const svg = d3.create("svg").attr("viewBox", [0, 0, width, height]).attr("width", width).attr("height", height).attr("role", "group")
    .attr("aria-label", `graph of ${nodes.length} features and ${edges.length} transitions of the ${NAMES[slug]}`).attr("class", slug);
  svg.append("defs").append("marker").attr("id", "arrow").attr("viewBox", "0 -4 8 8").attr("refX", 13).attr("markerWidth", 7).attr("markerHeight", 7).attr("markerUnits", "userSpaceOnUse").attr("orient", "auto").append("path").attr("d", "M0,-4L8,0L0,4").attr("class", "arrow-head");
  if (!nodes.length) { place.replaceChildren(el("p", { class: "none" }, "No transition passes.")); return; }
  const tight = Math.min(1, width / 640);
  const pull = d3.forceSimulation(nodes).force("link", d3.forceLink(links).id((d) => d.id).distance(64 * tight).strength(0.7))
    .force("charge", d3.forceManyBody().strength(-150 * tight)).force("x", d3.forceX(width / 2).strength(0.05)).force("y", d3.forceY(height / 2).strength(0.09)).force("collide", d3.forceCollide(24 * tight)).stop();
  pull.tick(240);
  const g = svg.append("g");
  const arc = ({ source: s, target: t }) => { const r = Math.hypot(t.x - s.x, t.y - s.y) * 1.6; return `M${s.x},${s.y}A${r},${r} 0 0,1 ${t.x},${t.y}`; };
  g.selectAll("path.edge").data(links).join("path").attr("class", (l) => `edge ${l.beyond_token_pairs === "yes" ? "beyond" : ""}`).attr("d", arc).attr("marker-end", "url(#arrow)")
    .on("pointerenter", (event, l) => showTip(event, `${l.source.id} → ${l.target.id}`, facts([["lag, tokens", l.lag], ["lift", l.lift], ["count", l.count], ["beyond token pairs", l.beyond_token_pairs]]))).on("pointerleave", hideTip);
  const open = (event, n) => { hideTip(); if (Explorer.state) { pickFeature(slug, n.id); $("explorer").scrollIntoView(); } };
  const node = g.selectAll("g.node").data(nodes).join("g").attr("class", "node").attr("tabindex", 0).attr("role", "button").attr("data-f", (n) => n.id)
    .attr("aria-label", (n) => `feature ${n.id}, ${label(n.words)}`).attr("transform", (n) => `translate(${n.x},${n.y})`)
    .on("click", open).on("keydown", (event, n) => { if (event.key === "Enter") open(event, n); });
  node.append("circle").attr("r", 5.5);
  node.append("text").attr("y", -9).attr("text-anchor", "middle").text((n) => `${n.id} ${label(n.words, 1).slice(0, 12)}`);
  const [x0, x1] = d3.extent(nodes, (n) => n.x), [y0, y1] = d3.extent(nodes, (n) => n.y);
  const zoom = d3.zoom().scaleExtent([0.2, 6]).filter((event) => (event.type === "wheel" ? event.ctrlKey || event.metaKey || place.contains(document.activeElement) : event.touches ? event.touches.length > 1 : !event.button)).on("zoom", (event) => g.attr("transform", event.transform));
  const scale = Math.min(1.4, width / (x1 - x0 + 120), height / (y1 - y0 + 70));
  const whole = d3.zoomIdentity.translate(width / 2, height / 2).scale(scale).translate(-(x0 + x1) / 2, -(y0 + y1) / 2);
  svg.call(zoom).call(zoom.transform, whole);
  const button = (sign, name, act) => el("button", { type: "button", "aria-label": name, title: name, click: act }, sign);
  place.replaceChildren(svg.node(), el("div", { class: "zoom" }, button("+", "zoom in", () => svg.call(zoom.scaleBy, 1.4)), button("−", "zoom out", () => svg.call(zoom.scaleBy, 1 / 1.4)), button("↺", "show all", () => svg.call(zoom.transform, whole))));
}

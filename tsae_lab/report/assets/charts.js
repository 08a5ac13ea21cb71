"use strict";
// Charts in SVG: lines with bands, points with errors, dots by row, bars. Colours are classes, so
// that dark mode and print need no other drawing; each chart has its words in aria-label.

const MARGIN = { top: 12, right: 16, bottom: 40, left: 52 };

/** A drawing that fits its place and is made again when the place changes its width. */
function drawn(place, height, label, draw) {
  place.chart?.disconnect();
  let width = 0;
  const redraw = () => {
    const now = Math.round(place.clientWidth);
    if (!now || now === width) return;
    width = now;
    place.querySelector("svg")?.remove();
    const svg = d3.create("svg").attr("viewBox", [0, 0, width, height]).attr("width", width)
      .attr("height", height).attr("role", "img").attr("aria-label", label);
    draw(svg, width, height);
    place.append(svg.node());
  };
  place.replaceChildren();
  place.chart = new ResizeObserver(redraw);
  place.chart.observe(place);
  redraw();
}

function axes(svg, x, y, width, height, names, ticks = {}) {
  const bottom = d3.axisBottom(x).ticks(ticks.x ?? Math.max(3, width / 90)).tickSizeOuter(0);
  if (ticks.log) bottom.ticks(ticks.x, "~g");
  if (ticks.whole) bottom.tickValues(x.ticks(ticks.x ?? Math.max(3, width / 90)).filter(Number.isInteger)).tickFormat(d3.format("d"));
  svg.append("g").attr("class", "grid").attr("transform", `translate(${MARGIN.left},0)`)
    .call(d3.axisLeft(y).ticks(5).tickSize(-(width - MARGIN.left - MARGIN.right)).tickFormat(""));
  svg.append("g").attr("class", "axis").attr("transform", `translate(0,${height - MARGIN.bottom})`).call(bottom);
  svg.append("g").attr("class", "axis").attr("transform", `translate(${MARGIN.left},0)`)
    .call(d3.axisLeft(y).ticks(5).tickSizeOuter(0));
  svg.append("text").attr("class", "axis-name").attr("x", width - MARGIN.right).attr("y", height - 6)
    .attr("text-anchor", "end").text(names.x);
  svg.append("text").attr("class", "axis-name").attr("x", 4).attr("y", 10).text(names.y);
}

function legend(place, series) {
  place.prepend(el("ul", { class: "legend" }, series.map((one) => el("li", { class: one.style },
    el("span", { class: `swatch ${one.dash ? "dashed" : ""}` }), one.name))));
}

/** Lines through points {x, y, low, high}; `step` for survival; `rule` a horizontal line. */
function lineChart(place, { series, x, y, step, rule, height = 280, ticks, from0 = true, label }) {
  series = series.filter((one) => one.points.some((p) => p.y != null));
  if (!series.length) return place.replaceChildren(el("p", { class: "none" }, "Not measured."));
  const points = series.flatMap((one) => one.points.filter((p) => p.y != null));
  const said = label || `${y} by ${x}: ${series.map((s) => s.name).join(", ")}`;
  drawn(place, height, said, (svg, width) => {
    const sx = d3.scaleLinear(d3.extent(points, (p) => p.x), [MARGIN.left, width - MARGIN.right]);
    const values = points.flatMap((p) => [p.y, p.low ?? p.y, p.high ?? p.y]).concat(from0 ? 0 : [], rule ?? []);
    const sy = d3.scaleLinear(d3.extent(values), [height - MARGIN.bottom, MARGIN.top + 10]).nice();
    axes(svg, sx, sy, width, height, { x, y }, { ...ticks, whole: points.every((p) => Number.isInteger(p.x)) });
    const curve = step ? d3.curveStepAfter : d3.curveLinear;
    if (rule != null) svg.append("line").attr("class", "rule").attr("x1", MARGIN.left).attr("x2", width - MARGIN.right).attr("y1", sy(rule)).attr("y2", sy(rule));
    for (const one of series) {
      const own = one.points.filter((p) => p.y != null), band = own.filter((p) => p.low != null && p.high != null);
      const g = svg.append("g").attr("class", one.style);
      g.append("path").attr("class", "band").attr("d", d3.area((p) => sx(p.x), (p) => sy(p.low), (p) => sy(p.high)).curve(curve)(band));
      g.append("path").attr("class", `line ${one.dash ? "dashed" : ""}`).attr("d", d3.line((p) => sx(p.x), (p) => sy(p.y)).curve(curve)(own));
      if (!step) g.selectAll("circle").data(own).join("circle").attr("cx", (p) => sx(p.x)).attr("cy", (p) => sy(p.y)).attr("r", 2.6);
      g.selectAll("text.cut").data(own.filter((p) => p.cut)).join("text").attr("class", "cut").attr("x", (p) => sx(p.x)).attr("y", (p) => sy(p.y) + 4).attr("text-anchor", "middle").text("+");
    }
    const mark = svg.append("line").attr("class", "cursor").attr("y1", MARGIN.top).attr("y2", height - MARGIN.bottom).attr("visibility", "hidden");
    svg.on("pointermove", (event) => {
      const place = sx.invert(d3.pointer(event)[0]);
      const nearest = d3.least(points, (p) => Math.abs(p.x - place));
      mark.attr("visibility", "visible").attr("x1", sx(nearest.x)).attr("x2", sx(nearest.x));
      showTip(event, `${x}: ${show(nearest.x)}`, facts(series.flatMap((one) => {
        const at = one.points.find((p) => p.x === nearest.x);
        return at && at.y != null ? [[one.name, at.low == null ? show(at.y) : `${show(at.y)} (${show(at.low)} to ${show(at.high)})`]] : [];
      }).map(([name, value]) => [name, el("span", {}, value)])));
    }).on("pointerleave", () => { mark.attr("visibility", "hidden"); hideTip(); });
  });
  if (series.length > 1 || series[0].name) legend(place, series);
}

const SYMBOLS = [d3.symbolCircle, d3.symbolSquare, d3.symbolDiamond, d3.symbolTriangle, d3.symbolCross, d3.symbolStar];

/** A symbol of its own in a legend. */
function symbolOf(i) {
  return d3.create("svg").attr("width", 12).attr("height", 12).attr("viewBox", "-6 -6 12 12").attr("class", "point").attr("aria-hidden", "true")
    .call((svg) => svg.append("path").attr("d", d3.symbol(SYMBOLS[i], 50)())).node();
}

/** Points {x, y, ex, ey, name, style, detail} with error bars and their names. */
function scatter(place, { points, x, y, height = 300, label }) {
  const own = points.filter((p) => p.x != null && p.y != null);
  if (!own.length) return place.replaceChildren(el("p", { class: "none" }, "Not measured."));
  const said = label || `${y} against ${x}. ${own.slice(0, 12).map((p) => `${p.name}: ${show(p.y, 4)}, ${show(p.x)}`).join("; ")}`;
  drawn(place, height, said, (svg, width) => {
    const span = (get, error) => {
      const values = own.flatMap((p) => [p[get] - (p[error] || 0), p[get] + (p[error] || 0)]);
      const [low, high] = d3.extent(values), room = (high - low || Math.abs(high) || 1) * 0.18;
      return [low - room, high + room];
    };
    const [least, most] = d3.extent(own, (p) => p.x), wide = least > 0 && most / least > 8; // then on a logarithmic scale
    const sx = (wide ? d3.scaleLog([least / 1.4, most * 1.4], [MARGIN.left, width - MARGIN.right]) : d3.scaleLinear(span("x", "ex"), [MARGIN.left, width - MARGIN.right])).nice();
    const sy = d3.scaleLinear(span("y", "ey"), [height - MARGIN.bottom, MARGIN.top + 10]).nice();
    axes(svg, sx, sy, width, height, { x: wide ? `${x} (logarithmic)` : x, y }, wide ? { x: 5, log: true } : {});
    const g = svg.selectAll("g.point").data(own).join("g").attr("class", (p) => `point ${p.style}`).attr("tabindex", 0)
      .attr("aria-label", (p) => `${p.name}: ${x} ${show(p.x)}, ${y} ${show(p.y, 4)}`);
    g.append("line").attr("class", "error").attr("x1", (p) => sx(wide ? Math.max(p.x - (p.ex || 0), least / 1.4) : p.x - (p.ex || 0))).attr("x2", (p) => sx(p.x + (p.ex || 0))).attr("y1", (p) => sy(p.y)).attr("y2", (p) => sy(p.y));
    g.append("line").attr("class", "error").attr("y1", (p) => sy(p.y - (p.ey || 0))).attr("y2", (p) => sy(p.y + (p.ey || 0))).attr("x1", (p) => sx(p.x)).attr("x2", (p) => sx(p.x));
    g.append("path").attr("d", (p, i) => d3.symbol(SYMBOLS[p.symbol ?? 0], p.size ?? 70)()).attr("transform", (p) => `translate(${sx(p.x)},${sy(p.y)})`);
    placeNames(g.filter((p) => p.label !== false), sx, width, sy);
    g.on("pointerenter focus", (event, p) => showTip(event, el("strong", {}, p.name), facts([[x, p.ex ? el("span", {}, `${show(p.x)} ± ${show(p.ex, 2)}`) : p.x], [y, p.ey ? el("span", {}, `${show(p.y, 4)} ± ${show(p.ey, 2)}`) : el("span", {}, show(p.y, 4))], ...(p.detail || [])])))
      .on("pointerleave blur", hideTip);
  });
}

/** Names beside points, moved apart where they would cover one another; none where there is no room. */
function placeNames(g, sx, width, sy) {
  const taken = [];
  g.append("text").attr("class", "name").each(function place(p) {
    const left = sx(p.x) > width * 0.62, size = p.name.length * 6.4;
    let yy = sy(p.y) - 9;
    const x0 = left ? sx(p.x) - 9 - size : sx(p.x) + 9;
    for (let tries = 0; tries < 4 && taken.some((t) => Math.abs(t.y - yy) < 13 && x0 < t.x1 && x0 + size > t.x0); tries += 1) yy += 13;
    if (taken.some((t) => Math.abs(t.y - yy) < 12 && x0 < t.x1 && x0 + size > t.x0)) return;
    taken.push({ x0, x1: x0 + size, y: yy });
    d3.select(this).attr("x", left ? sx(p.x) - 9 : sx(p.x) + 9).attr("y", yy).attr("text-anchor", left ? "end" : "start").text(p.name);
  });
}

/** A row per label, a dot with its interval per value {name, style, value, low, high, dash}. */
function dotChart(place, { rows, x, rule, label, names = true }) {
  const own = rows.filter((row) => row.values.some((v) => v.value != null));
  if (!own.length) return place.replaceChildren(el("p", { class: "none" }, "Not measured."));
  const gap = own.some((row) => row.values.length > 1) ? 30 : 21, height = own.length * gap + 54;
  const all = own.flatMap((row) => row.values.filter((v) => v.value != null));
  const styles = [...new Map(all.map((v) => [v.name, v])).values()];
  drawn(place, height, label || `${x}. ${own.map((r) => `${r.label}: ${r.values.map((v) => `${v.name} ${show(v.value)}`).join(", ")}`).join("; ")}`, (svg, width) => {
    const left = Math.min(230, width * 0.4);
    const ends = d3.extent(all.flatMap((v) => [v.value, v.low ?? v.value, v.high ?? v.value]).concat(rule ?? []));
    const sx = d3.scaleLinear(ends, [left + 8, width - 16]).nice();
    svg.append("g").attr("class", "axis").attr("transform", `translate(0,${height - 36})`).call(d3.axisBottom(sx).ticks(Math.max(3, width / 110)).tickSizeOuter(0));
    svg.append("text").attr("class", "axis-name").attr("x", width - 16).attr("y", height - 4).attr("text-anchor", "end").text(x);
    if (rule != null) svg.append("line").attr("class", "rule").attr("x1", sx(rule)).attr("x2", sx(rule)).attr("y1", 4).attr("y2", height - 36);
    own.forEach((row, i) => {
      const middle = 16 + i * gap;
      svg.append("line").attr("class", "guide").attr("x1", left).attr("x2", width - 16).attr("y1", middle).attr("y2", middle);
      svg.append("text").attr("class", "row-name").attr("x", left - 4).attr("y", middle + 4).attr("text-anchor", "end").text(row.label.length * 6.7 > left ? `${row.label.slice(0, Math.floor(left / 6.7) - 1)}…` : row.label).append("title").text(row.label);
      const seen = row.values.filter((v) => v.value != null);
      seen.forEach((v, j) => {
        const yy = middle + (j - (seen.length - 1) / 2) * 6.5;
        const g = svg.append("g").attr("class", `point ${v.style}`);
        if (v.low != null) g.append("line").attr("class", "error").attr("x1", sx(v.low)).attr("x2", sx(v.high)).attr("y1", yy).attr("y2", yy);
        g.append("path").attr("d", d3.symbol(SYMBOLS[v.symbol ?? 0], 42)()).attr("transform", `translate(${sx(v.value)},${yy})`);
        g.on("pointerenter", (event) => showTip(event, row.label, facts([[v.name, v.value], ...(v.low != null ? [["95 %", el("span", {}, `${show(v.low)} to ${show(v.high)}`)]] : [])]))).on("pointerleave", hideTip);
      });
    });
  });
  if (names) legend(place, styles);
}

/** Bars of counts over equal bins from 0 to `most`. */
function bars(place, { counts, most, x, style, height = 96, label }) {
  const left = 8, bottom = 22;
  drawn(place, height, label || `histogram of ${x}: ${counts.join(", ")}`, (svg, width) => {
    const sx = d3.scaleLinear([0, counts.length], [left, width - 8]);
    const sy = d3.scaleSymlog([0, d3.max(counts) || 1], [height - bottom, 8]).constant(1);
    const g = svg.append("g").attr("class", style);
    g.selectAll("rect").data(counts).join("rect").attr("class", "bar").attr("x", (c, i) => sx(i) + 0.5).attr("width", sx(1) - sx(0) - 1)
      .attr("y", (c) => sy(c)).attr("height", (c) => height - bottom - sy(c))
      .on("pointerenter", (event, c) => showTip(event, `${show(c)} tokens`)).on("pointerleave", hideTip);
    svg.append("g").attr("class", "axis").attr("transform", `translate(0,${height - bottom})`)
      .call(d3.axisBottom(d3.scaleLinear([0, most], [left, width - 8])).ticks(4).tickSizeOuter(0));
  });
}

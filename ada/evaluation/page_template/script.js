"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const make = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) name in node ? (node[name] = value) : node.setAttribute(name, value);
  node.append(...children);
  return node;
};
const measured = data.methods.filter((method) => !method.reason);
const named = Object.fromEntries(measured.map((method) => [method.name, method]));
const reference = measured[0];
const minus = (text) => text.replace("-", "−");
const show = (value, column) => minus((value * column.scale).toFixed(column.decimals));
const unit = (column) => (column.unit ? `${column.heading}, ${column.unit}` : column.heading);
const options = (select, entries, chosen) => {
  for (const [value, text] of entries) select.append(make("option", { value, textContent: text, selected: value === chosen }));
};

/* --- statistics: paired differences with a percentile bootstrap, as in the package --- */
const random = (seed) => () => ((seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0), seed / 4294967296);
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
function difference(method, baseline, metric) {
  const own = method.per_prompt[metric], other = baseline.per_prompt[metric];
  const values = own.map((value, place) => value - other[place]);
  const draw = random(1), count = values.length, means = [];
  for (let sample = 0; sample < 1000; sample++) {
    let sum = 0;
    for (let each = 0; each < count; each++) sum += values[Math.floor(draw() * count)];
    means.push(sum / count);
  }
  means.sort((a, b) => a - b);
  return { value: mean(values), low: means[25], high: means[974] };
}
const verdictOf = (estimate, column) => {
  if (estimate.low <= 0 && estimate.high >= 0) return ["no clear difference", ""];
  return (estimate.value > 0) === column.higher_is_better ? ["better", "better"] : ["worse", "worse"];
};

/* --- header --- */
function header() {
  const distance = data.columns.perceptual_distance, saved = data.columns.compute_saved;
  byId("title").textContent = `What speeds up ${(data.settings.base_model || "this model").replaceAll("-", "\u2011")}, and what it costs`;
  byId("lead").textContent = `${measured.length} ways to run the same model on ${data.prompts.length} held-out prompts, with the same noise and on the same machine, each beside the simplest alternative: taking fewer steps.`;
  const facts = [];
  const ours = measured.filter((method) => method.family === "Ada" && method.same_latency);
  const losses = ours.map((method) => verdictOf(method.same_latency.differences.perceptual_distance, distance)[0]);
  if (ours.length) {
    const count = (word) => losses.filter((each) => each === word).length;
    facts.push([`${count("better")} better, ${count("worse")} worse`, `of ${ours.length} settings of Ada, beside plain pipelines that are just as fast (perceptual distance); ${count("no clear difference")} without a clear difference`]);
  }
  const others = measured.filter((method) => !method.family.startsWith("Ada") && method.same_latency);
  const winners = others.filter((method) => verdictOf(method.same_latency.differences.perceptual_distance, distance)[0] === "better");
  winners.sort((a, b) => b.estimates.speed_up.value - a.estimates.speed_up.value);
  if (others.length) facts.push([`${winners.length} of ${others.length}`, winners.length ? `other methods keep images closer to the reference than plain pipelines that are just as fast; the fastest of them: ${winners[0].name}, ${show(winners[0].estimates.speed_up.value, data.columns.speed_up)} ×` : "other methods keep images closer to the reference than plain pipelines that are just as fast"]);
  const safe = (method) => method.estimates.quality_difference.low >= -0.005 * Math.abs(reference.estimates.quality.value);
  const plain = measured.filter((method) => method.family === "Fewer steps" && safe(method)).sort((a, b) => a.num_inference_steps - b.num_inference_steps)[0];
  if (plain) facts.push([`${plain.num_inference_steps} of ${reference.num_inference_steps} steps`, `are enough for a quality that is surely within half a percent of full compute, with nothing to install (${show(plain.estimates.compute_saved.value, saved)} % of the compute saved)`]);
  byId("facts").append(...facts.map(([big, text]) => make("div", { className: "fact" }, make("b", { textContent: big }), make("span", { textContent: text }))));
}

/* --- the curve --- */
const families = [...new Set(measured.map((method) => method.family))];
const hidden = new Set();
function plot() {
  const across = byId("across").value, upwards = byId("upwards").value;
  const columns = [data.columns[across], data.columns[upwards]];
  const narrow = window.innerWidth < 640;
  const width = narrow ? 520 : 1080, height = narrow ? 520 : 560, left = 74, right = 16, top = 12, bottom = 52;
  const shown = measured.filter((method) => !hidden.has(method.family) && method.estimates[across] && method.estimates[upwards]);
  const at = (method, name, column) => { const estimate = method.estimates[name]; return ["value", "low", "high"].map((part) => (estimate[part] ?? estimate.value) * column.scale); };
  const points = shown.map((method) => ({ method, x: at(method, across, columns[0]), y: at(method, upwards, columns[1]) }));
  const sizes = points.map((point) => Math.abs(point.y[0])).filter((size) => size > 0).sort((a, b) => a - b);
  const signed = points.some((point) => point.y[0] < 0) && points.some((point) => point.y[0] > 0);
  const knee = sizes[Math.floor(sizes.length * (signed ? 0.75 : 0.1))] || 1;
  const curved = sizes.length && sizes[sizes.length - 1] / knee > (signed ? 3 : 100);
  const bend = (value) => (curved ? Math.sign(value) * Math.log1p(Math.abs(value) / knee) : value);
  const range = (values) => { const low = Math.min(...values), high = Math.max(...values), pad = (high - low || 1) * 0.06; return [low - pad, high + pad]; };
  const spanX = range(points.map((point) => point.x[0])), spanY = range(points.map((point) => bend(point.y[0])));
  const px = (value) => { const share = (value - spanX[0]) / (spanX[1] - spanX[0]); return left + (width - left - right) * (columns[0].higher_is_better ? 1 - share : share); };
  const py = (value) => { const share = (bend(value) - spanY[0]) / (spanY[1] - spanY[0]); return top + (height - top - bottom) * (columns[1].higher_is_better ? 1 - share : share); };
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  const parts = [];
  const ticks = (low, high, count) => { const raw = (high - low) / count, step = 10 ** Math.floor(Math.log10(raw)); const nice = [1, 2, 5, 10].find((factor) => factor * step >= raw) * step; const all = []; for (let tick = Math.ceil(low / nice) * nice; tick <= high; tick += nice) all.push(tick); return all; };
  const label = (value) => minus(Math.abs(value) < 1e-12 ? "0" : Number(value.toPrecision(2)).toString());
  const unbend = (value) => (curved ? Math.sign(value) * Math.expm1(Math.abs(value)) * knee : value);
  for (const tick of ticks(spanX[0], spanX[1], narrow ? 4 : 8)) parts.push(`<line class="grid" x1="${px(tick)}" x2="${px(tick)}" y1="${top}" y2="${height - bottom}"/><text x="${px(tick)}" y="${height - bottom + 18}" text-anchor="middle" font-size="13">${label(tick)}</text>`);
  for (const bent of ticks(spanY[0], spanY[1], 6)) { const tick = Number(unbend(bent).toPrecision(1)); if (bend(tick) < spanY[0] || bend(tick) > spanY[1]) continue; parts.push(`<line class="grid" x1="${left}" x2="${width - right}" y1="${py(tick)}" y2="${py(tick)}"/><text x="${left - 8}" y="${py(tick) + 4}" text-anchor="end" font-size="13">${label(tick)}</text>`); }
  parts.push(`<text x="${(left + width) / 2}" y="${height - 12}" text-anchor="middle" font-size="14">${unit(columns[0])} (${columns[0].higher_is_better ? "higher" : "lower"} is better)</text>`);
  parts.push(`<text transform="translate(16 ${height / 2}) rotate(-90)" text-anchor="middle" font-size="14">${unit(columns[1])}</text>`);
  for (const family of families) {
    const line = points.filter((point) => point.method.family === family).sort((a, b) => a.x[0] - b.x[0]);
    if (!line.length) continue;
    const colour = data.styles[family], ours = family === "Ada";
    if (!data.points_only.includes(family)) parts.push(`<polyline fill="none" stroke="${colour}" stroke-width="${ours ? 3.2 : 1.6}" points="${line.map((point) => `${px(point.x[0])},${py(point.y[0])}`).join(" ")}"/>`);
    for (const point of line) {
      const x = px(point.x[0]), y = py(point.y[0]);
      if (byId("bars").checked) parts.push(`<path stroke="${colour}" stroke-opacity=".5" d="M${clamp(px(point.x[1]), left, width - right)} ${y}H${clamp(px(point.x[2]), left, width - right)}M${x} ${clamp(py(point.y[1]), top, height - bottom)}V${clamp(py(point.y[2]), top, height - bottom)}"/>`);
      parts.push(`<circle class="point" data-name="${point.method.name}" cx="${x}" cy="${y}" r="${ours ? 7 : 5}" fill="${colour}" stroke="var(--paper)" stroke-width="1.2" tabindex="0"/>`);
    }
  }
  const svg = byId("plot");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.innerHTML = parts.join("");
}
function tip(event) {
  const name = event.target.dataset && event.target.dataset.name, box = byId("tip");
  if (!name) { box.hidden = true; return; }
  const method = named[name], lines = ["quality_difference", "perceptual_distance", "compute_saved", "seconds_per_image", "speed_up"];
  box.replaceChildren(make("b", { textContent: name }), ...lines.filter((line) => method.estimates[line]).map((line) => make("div", { textContent: `${unit(data.columns[line])}: ${show(method.estimates[line].value, data.columns[line])}` })));
  box.hidden = false;
  const frame = byId("plot").getBoundingClientRect(), mark = event.target.getBoundingClientRect();
  box.style.left = `${Math.max(0, Math.min(mark.left - frame.left + 12, frame.width - box.offsetWidth - 4))}px`;
  box.style.top = `${Math.max(0, mark.top - frame.top - box.offsetHeight - 8)}px`;
}
function legend() {
  for (const family of families) {
    const button = make("button", { type: "button" }, make("i", { style: `background:${data.styles[family]}` }), family);
    button.setAttribute("aria-pressed", "true");
    button.onclick = () => { hidden.has(family) ? hidden.delete(family) : hidden.add(family); button.setAttribute("aria-pressed", String(!hidden.has(family))); plot(); };
    byId("legend").append(button);
  }
}

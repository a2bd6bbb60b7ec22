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
const escaped = (text) => text.replace(/[&<>"]/g, (letter) => `&#${letter.charCodeAt(0)};`);
const options = (select, entries, chosen) => {
  for (const [value, text] of entries) select.append(make("option", { value, textContent: text, selected: value === chosen }));
};

/* --- statistics: paired differences with a studentised bootstrap, as in the package --- */
const random = (seed) => () => ((seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0), seed / 4294967296);
function moments(values) {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  const squares = values.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  return [mean, Math.sqrt(squares / Math.max(1, values.length - 1) / values.length)];
}
function difference(method, baseline, metric) {
  const other = baseline.per_prompt[metric], values = method.per_prompt[metric].map((value, place) => value - other[place]);
  const [mean, error] = moments(values), draw = random(1), count = values.length, ratios = [];
  if (error <= 1e-12 * Math.max(1, Math.abs(mean))) return { value: mean, low: mean, high: mean };
  for (let sample = 0; sample < 1000; sample++) {
    const [drawn, spread] = moments(values.map(() => values[Math.floor(draw() * count)]));
    if (spread > 0.05 * error) ratios.push((drawn - mean) / spread);
  }
  ratios.sort((a, b) => a - b);
  const at = (share) => ratios[Math.min(ratios.length - 1, Math.floor(share * ratios.length))];
  return { value: mean, low: mean - at(0.975) * error, high: mean - at(0.025) * error };
}
const verdictOf = (estimate, column) => {
  if (estimate.low === null || (estimate.low <= 0 && estimate.high >= 0)) return ["no clear difference", ""];
  return (estimate.value > 0) === column.higher_is_better ? ["better", "better"] : ["worse", "worse"];
};

/* --- header --- */
function header() {
  byId("eyebrow").textContent = `BlockDance-Ada on ${data.settings.base_model || "this model"} · ${data.prompts.length} held-out prompts · ${measured.length} ways to run it`;
  byId("title").textContent = data.headline ? data.headline.title : "What speeds up this model, and what it costs";
  byId("lead").textContent = data.headline ? data.headline.sentence : `${measured.length} ways to run the same model on ${data.prompts.length} held-out prompts, with the same noise and on the same machine.`;
  byId("quick").hidden = !data.quick_look;
  byId("quick").textContent = data.warnings.join(" ");
}

/* --- the curve --- */
const families = [...new Set(measured.map((method) => method.family))];
const hidden = new Set();
const colourOf = (group) => data.groups[group][1];
const ticks = (low, high, count) => { const raw = (high - low) / count, step = 10 ** Math.floor(Math.log10(raw)); const nice = [1, 2, 5, 10].find((factor) => factor * step >= raw) * step; const all = []; for (let tick = Math.ceil(low / nice) * nice; tick <= high + 1e-9 * nice; tick += nice) all.push(tick); return all; };
const tickText = (value) => minus(Math.abs(value) < 1e-12 ? "0" : Number(value.toPrecision(2)).toString());
const MARKS = {
  s: (x, y, r) => `M${x - r} ${y - r}h${2 * r}v${2 * r}h${-2 * r}z`,
  "^": (x, y, r) => `M${x} ${y - 1.2 * r}l${1.15 * r} ${2 * r}h${-2.3 * r}z`,
  D: (x, y, r) => `M${x} ${y - 1.3 * r}l${1.3 * r} ${1.3 * r}l${-1.3 * r} ${1.3 * r}l${-1.3 * r} ${-1.3 * r}z`,
  o: (x, y, r) => `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0z`,
  X: (x, y, r) => `M${x - r} ${y - r}l${2 * r} ${2 * r}m0 ${-2 * r}l${-2 * r} ${2 * r}`,
};
const mark = (group, x, y, r) => MARKS[data.groups[group][2]](x, y, r);
const ends = (estimate) => [estimate.low ?? estimate.value, estimate.high ?? estimate.value];

function plot() {
  const across = byId("across").value, upwards = byId("upwards").value;
  const columns = [data.columns[across], data.columns[upwards]];
  const narrow = window.innerWidth < 640;
  const width = narrow ? 400 : 1080, height = narrow ? 400 : 540, font = narrow ? 12 : 13;
  const left = narrow ? 44 : 62, right = 14, top = 10, bottom = narrow ? 42 : 48;
  const shown = measured.filter((method) => !hidden.has(method.group) && method.estimates[across] && method.estimates[upwards]);
  const points = shown.map((method) => ({ method, x: method.estimates[across].value * columns[0].scale, y: method.estimates[upwards].value * columns[1].scale }));
  const mixture = across === "compute_saved" && data.headlines.includes(upwards) && !hidden.has("static") ? data.mixture.points : [];
  const steps = points.filter((point) => point.method.family === "Fewer steps").map((point) => point.y);
  const most = !byId("all").checked && steps.length && !columns[1].higher_is_better ? 1.5 * Math.max(...steps) : Infinity;
  const values = points.map((point) => point.y).filter((value) => value <= most);
  const range = (all) => { const low = Math.min(...all), high = Math.max(...all), pad = (high - low || 1) * 0.06; return [low - pad, high + pad]; };
  const spanY = range(values), spanX = range(points.filter((point) => point.y <= most).map((point) => point.x));
  const px = (value) => left + ((width - left - right) * (value - spanX[0])) / (spanX[1] - spanX[0]);
  const py = (value) => height - bottom - ((height - top - bottom) * (value - spanY[0])) / (spanY[1] - spanY[0]);
  const parts = [`<clipPath id="inside"><rect x="${left}" y="${top}" width="${width - left - right}" height="${height - top - bottom}"/></clipPath>`];
  for (const tick of ticks(spanX[0], spanX[1], narrow ? 4 : 8)) parts.push(`<line class="grid" x1="${px(tick)}" x2="${px(tick)}" y1="${top}" y2="${height - bottom}"/><text x="${px(tick)}" y="${height - bottom + 16}" text-anchor="middle" font-size="${font}">${tickText(tick)}</text>`);
  for (const tick of ticks(spanY[0], spanY[1], 6)) parts.push(`<line class="grid" x1="${left}" x2="${width - right}" y1="${py(tick)}" y2="${py(tick)}"/><text x="${left - 6}" y="${py(tick) + 4}" text-anchor="end" font-size="${font}">${tickText(tick)}</text>`);
  parts.push(`<text x="${(left + width) / 2}" y="${height - 6}" text-anchor="middle" font-size="${font + 1}">${unit(columns[0])}</text>`);
  const bands = [], lines = [], marks = [], band = (line, colour, opacity) => {
    const upper = line.map((each) => `${px(each.x)},${py(each.high)}`), lower = line.map((each) => `${px(each.x)},${py(each.low)}`).reverse();
    bands.push(`<polygon points="${[...upper, ...lower].join(" ")}" fill="${colour}" fill-opacity="${opacity}"/>`);
  };
  if (mixture.length) {
    const line = mixture.map((point) => { const estimate = point.estimates[upwards], [low, high] = ends(estimate); return { x: point.saved * columns[0].scale, y: estimate.value * columns[1].scale, low: low * columns[1].scale, high: high * columns[1].scale }; });
    band(line, colourOf("static"), 0.15);
    lines.push(`<polyline fill="none" stroke="${colourOf("static")}" stroke-width="3" stroke-dasharray="9 4" points="${line.map((each) => `${px(each.x)},${py(each.y)}`).join(" ")}"/>`);
  }
  const order = [...families].sort((a, b) => (measured.find((method) => method.family === a).group === "ada") - (measured.find((method) => method.family === b).group === "ada"));
  for (const family of order) {
    const line = points.filter((point) => point.method.family === family).sort((a, b) => a.x - b.x);
    if (!line.length) continue;
    const group = line[0].method.group, colour = colourOf(group), ours = group === "ada", thick = data.banded.includes(family);
    if (thick) band(line.map((point) => { const [low, high] = ends(point.method.estimates[upwards]); return { x: point.x, low: low * columns[1].scale, high: high * columns[1].scale }; }), colour, 0.17);
    lines.push(`<polyline fill="none" stroke="${colour}" stroke-opacity="${thick ? 1 : 0.45}" stroke-width="${ours ? 3.4 : thick ? 2.4 : 1.1}" points="${line.map((point) => `${px(point.x)},${py(point.y)}`).join(" ")}"/>`);
    for (const point of line) {
      if (point.y > most) continue;
      const radius = (ours ? 6 : 4) * (narrow ? 0.85 : 1);
      marks.push(`<path class="point" data-name="${escaped(point.method.name)}" d="${mark(group, px(point.x), py(point.y), radius)}" fill="${group === "peers" ? "none" : colour}" stroke="${group === "peers" ? colour : "var(--paper)"}" stroke-width="${group === "peers" ? 2.2 : 1.1}"/><circle class="point" data-name="${escaped(point.method.name)}" cx="${px(point.x)}" cy="${py(point.y)}" r="11" fill="transparent" tabindex="0"><title>${escaped(point.method.name)}</title></circle>`);
    }
  }
  const labels = placed(points.filter((point) => point.y <= most), mixture, { px, py, columns, upwards, left, width: width - right, top, height: height - bottom, font, narrow });
  const svg = byId("plot");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.innerHTML = `${parts.join("")}<g clip-path="url(#inside)">${bands.join("")}${lines.join("")}${marks.join("")}</g>${labels}`;
  byId("curve-title").textContent = `${columns[1].heading} against ${columns[0].heading.toLowerCase()}`;
  byId("better").textContent = `${columns[1].higher_is_better ? "Up" : "Down"} and to the ${columns[0].higher_is_better ? "right" : "left"} is better.`;
}
/* names of families, ours first; one that would hide a point or another name is left out: tapping tells */
function placed(points, mixture, at) {
  const rank = { ada: 0, plain: 1, static: 3, peers: 4, blockdance: 5 }, wanted = [];
  const saved = (point) => Math.abs(point.method.estimates.compute_saved.value - data.label_saving);
  for (const family of new Set(points.map((point) => point.method.family))) {
    const best = points.filter((point) => point.method.family === family).sort((a, b) => saved(a) - saved(b))[0];
    wanted.push({ text: family, x: at.px(best.x), y: at.py(best.y), group: best.method.group, rank: rank[best.method.group] });
  }
  if (mixture.length) {
    const middle = mixture[Math.floor(mixture.length * 0.7)];
    wanted.push({ text: data.mixture.name, x: at.px(middle.saved * at.columns[0].scale), y: at.py(middle.estimates[at.upwards].value * at.columns[1].scale), group: "static", rank: 2 });
  }
  const taken = points.map((point) => { const x = at.px(point.x), y = at.py(point.y); return [x - 4, y - 4, x + 4, y + 4]; });
  const overlaps = (a) => taken.some((b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3]);
  const limit = at.narrow ? 6 : 18, out = [];
  for (const label of wanted.sort((a, b) => a.rank - b.rank).slice(0, limit)) {
    const wide = label.text.length * at.font * 0.56 + 4, tall = at.font + 3;
    search: for (const gap of at.narrow ? [8, 14, 22, 34, 48] : [8, 14, 22]) for (const [dx, dy] of [[-1, -1], [1, 1], [-1, 0], [1, 0], [0, -1], [0, 1], [1, -1], [-1, 1]]) {
      const cx = label.x + dx * (wide / 2 + gap), cy = label.y + dy * (tall / 2 + gap), box = [cx - wide / 2, cy - tall / 2, cx + wide / 2, cy + tall / 2];
      if (box[0] < at.left || box[2] > at.width || box[1] < at.top || box[3] > at.height || overlaps(box)) continue;
      taken.push(box);
      out.push(`<text class="name" x="${cx}" y="${cy + at.font * 0.35}" text-anchor="middle" font-size="${at.font}" font-weight="${label.rank < 3 ? 650 : 400}" style="fill:${colourOf(label.group)}">${escaped(label.text)}</text>`);
      break search;
    }
  }
  return out.join("");
}
function tip(event) {
  const name = event.target.dataset && event.target.dataset.name, box = byId("tip");
  if (!name) { box.hidden = true; return; }
  const method = named[name], lines = [...data.headlines, "quality_difference", "compute_saved", "seconds_per_image", "speed_up"];
  box.replaceChildren(make("b", { textContent: name }), ...lines.filter((line) => method.estimates[line] && data.columns[line]).map((line) => make("div", { textContent: `${unit(data.columns[line])}: ${show(method.estimates[line].value, data.columns[line])}` })));
  box.hidden = false;
  const frame = byId("plot").getBoundingClientRect(), mark = event.target.getBoundingClientRect();
  box.style.left = `${Math.max(0, Math.min(mark.left - frame.left + 12, frame.width - box.offsetWidth - 4))}px`;
  box.style.top = `${Math.max(0, mark.top - frame.top - box.offsetHeight - 8)}px`;
}
function legend() {
  for (const [group, [title, colour]] of Object.entries(data.groups)) {
    if (!measured.some((method) => method.group === group)) continue;
    const picture = `<svg class="key" viewBox="0 0 16 16"><path d="${mark(group, 8, 8, 5)}" fill="${group === "peers" ? "none" : colour}" stroke="${colour}" stroke-width="2"/></svg>`;
    const button = make("button", { type: "button", innerHTML: picture }, title);
    button.setAttribute("aria-pressed", "true");
    button.onclick = () => { hidden.has(group) ? hidden.delete(group) : hidden.add(group); button.setAttribute("aria-pressed", String(!hidden.has(group))); plot(); };
    byId("legend").append(button);
  }
}

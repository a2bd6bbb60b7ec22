"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const make = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    name in node ? (node[name] = value) : node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
};
const measured = data.methods.filter((method) => !method.reason);
const named = Object.fromEntries(measured.map((method) => [method.name, method]));
const reference = measured[0];
const minus = (text) => text.replace("-", Number(text) === 0 ? "" : "−");
const show = (value, column) => minus((value * column.scale).toFixed(column.decimals));
const unit = (column) => (column.unit ? `${column.heading}, ${column.unit}` : column.heading);
const escaped = (text) => text.replace(/[&<>"]/g, (letter) => `&#${letter.charCodeAt(0)};`);
const options = (select, entries, chosen) => {
  for (const [value, text] of entries) select.append(make("option", { value, textContent: text, selected: value === chosen }));
};

/* --- statistics of means, as in the package: a studentised bootstrap, of few values and few that differ Student's t --- */
const { student, few, sparse, spread: least } = data.statistics;
const random = (seed) => () => ((seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0), seed / 4294967296);
const average = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const squares = (values, centre) => values.reduce((sum, value) => sum + (value - centre) ** 2, 0);
function moments(values) {
  const mean = average(values);
  return [mean, Math.sqrt(squares(values, mean) / Math.max(1, values.length - 1) / values.length)];
}
/* prompts for which something decides as a whole count as one */
function groupMeans(values, size) {
  return values.flatMap((_, place) => (place % size ? [] : [average(values.slice(place, place + size))]));
}
function meanOf(values) {
  const [mean, error] = moments(values), count = values.length;
  if (count === 1) return { value: mean, low: null, high: null };
  if (error <= 1e-12 * Math.max(1, Math.abs(mean))) return { value: mean, low: mean, high: mean };
  const median = [...values].sort((a, b) => a - b)[Math.floor((count - 1) / 2)];
  const differing = values.filter((value) => Math.abs(value - median) > 1e-12).length;
  if (count < few || (differing < sparse && 2 * differing < count)) {
    const arm = student[Math.min(count, few) - 2] * error;
    return { value: mean, low: mean - arm, high: mean + arm };
  }
  const draw = random(1), ratios = [];
  for (let sample = 0; sample < 1000; sample++) {
    const [drawn, spread] = moments(values.map(() => values[Math.floor(draw() * count)]));
    if (spread > least * error) ratios.push((drawn - mean) / spread);
  }
  ratios.sort((a, b) => a - b);
  const at = (share) => ratios[Math.min(ratios.length - 1, Math.floor(share * ratios.length))];
  return { value: mean, low: mean - at(0.975) * error, high: mean - at(0.025) * error };
}
function difference(method, baseline, metric) {
  if (method === baseline) return { value: 0, low: 0, high: 0 };
  const sides = [method, baseline].map((row) => row.per_prompt[metric]), size = Math.max(method.together, baseline.together);
  const [values, others] = sides.map((side) => groupMeans(side, size));
  const found = meanOf(values.map((value, place) => value - others[place]));
  const off = average(sides[0]) - average(sides[1]) - found.value;  // of a last group that is smaller
  const moved = (end) => (end === null ? null : end + off);
  return { value: found.value + off, low: moved(found.low), high: moved(found.high) };
}
const verdictOf = (estimate, column) => {
  if (estimate.low === null || (estimate.low <= 0 && estimate.high >= 0)) return ["no clear difference", ""];
  return (estimate.value > 0) === column.higher_is_better ? ["better", "better"] : ["worse", "worse"];
};

/* --- header --- */
function header() {
  const prompts = `${data.prompts.length} held-out prompts`;
  const model = data.settings.base_model || "this model";
  byId("eyebrow").textContent = `BlockDance-Ada on ${model} · ${prompts} · ${measured.length} ways to run it`;
  byId("title").textContent = data.headline ? data.headline.title : "What speeds up this model, and what it costs";
  byId("lead").textContent = data.headline
    ? data.headline.sentence
    : `${measured.length} ways to run the same model on ${prompts}, with the same noise and on the same machine.`;
  byId("quick").hidden = !data.quick_look;
  byId("quick").textContent = data.warnings.join(" ");
}

/* --- the curve --- */
const families = [...new Set(measured.map((method) => method.family))];
const hidden = new Set();
const colourOf = (group) => data.groups[group][1];
const MARKS = {
  s: (x, y, r) => `M${x - r} ${y - r}h${2 * r}v${2 * r}h${-2 * r}z`,
  "^": (x, y, r) => `M${x} ${y - 1.2 * r}l${1.15 * r} ${2 * r}h${-2.3 * r}z`,
  D: (x, y, r) => `M${x} ${y - 1.3 * r}l${1.3 * r} ${1.3 * r}l${-1.3 * r} ${1.3 * r}l${-1.3 * r} ${-1.3 * r}z`,
  o: (x, y, r) => `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0z`,
  X: (x, y, r) => `M${x - r} ${y - r}l${2 * r} ${2 * r}m0 ${-2 * r}l${-2 * r} ${2 * r}`,
};
const mark = (group, x, y, r) => MARKS[data.groups[group][2]](x, y, r);
const svg = (tag, attributes, content = "") => {
  const told = Object.entries(attributes).map(([name, value]) => `${name}="${value}"`);
  return `<${tag} ${told.join(" ")}>${content}</${tag}>`;
};
function ticks(low, high, count) {
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= raw) * power;
  const all = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + 1e-9 * step; tick += step) all.push(tick);
  return all;
}
const tickText = (value) => minus(Math.abs(value) < 1e-12 ? "0" : Number(value.toPrecision(2)).toString());
const padded = (values) => {
  const low = Math.min(...values), high = Math.max(...values), pad = (high - low || 1) * 0.06;
  return [low - pad, high + pad];
};

/* what is drawn: points, the mixture to beat, and how far upwards the panel reaches */
function scene(across, upwards) {
  const columns = [data.columns[across], data.columns[upwards]];
  const shown = measured.filter(({ group, estimates }) => !hidden.has(group) && estimates[across] && estimates[upwards]);
  const [x, y] = [across, upwards].map((name, axis) => (method) => method.estimates[name].value * columns[axis].scale);
  const points = shown.map((method) => ({ method, x: x(method), y: y(method) }));
  const hasMixture = across === "compute_saved" && data.headlines.includes(upwards) && !hidden.has("static");
  const mixture = (hasMixture ? data.mixture.points : []).map((point) => ({
    x: point.saved * columns[0].scale, estimate: point.estimates[upwards], y: point.estimates[upwards].value * columns[1].scale,
  }));
  const steps = points.filter((point) => point.method.family === data.fewer_steps).map((point) => point.y);
  const limited = !byId("all").checked && steps.length && !columns[1].higher_is_better;
  const most = limited ? data.panel_top * Math.max(...steps) : Infinity;
  return { columns, points, mixture, visible: points.filter((point) => point.y <= most) };
}
function plot() {
  const upwards = byId("upwards").value;
  const { columns, points, mixture, visible } = scene(byId("across").value, upwards);
  const narrow = window.innerWidth < 640;
  const [width, height, font, left] = narrow ? [400, 400, 12, 44] : [1080, 540, 13, 62];
  const right = width - 14, top = 10, bottom = height - (narrow ? 42 : 48);
  const spanX = padded(visible.map((point) => point.x)), spanY = padded(visible.map((point) => point.y));
  const px = (value) => left + ((right - left) * (value - spanX[0])) / (spanX[1] - spanX[0]);
  const py = (value) => bottom - ((bottom - top) * (value - spanY[0])) / (spanY[1] - spanY[0]);
  const path = (line) => line.map((each) => `${px(each.x)},${py(each.y)}`).join(" ");

  const inside = svg("rect", { x: left, y: top, width: right - left, height: bottom - top });
  const frame = [svg("clipPath", { id: "inside" }, inside)];
  for (const tick of ticks(...spanX, narrow ? 4 : 8)) {
    const x = px(tick);
    frame.push(svg("line", { class: "grid", x1: x, x2: x, y1: top, y2: bottom }));
    frame.push(svg("text", { x, y: bottom + 16, "text-anchor": "middle", "font-size": font }, tickText(tick)));
  }
  for (const tick of ticks(...spanY, 6)) {
    const y = py(tick);
    frame.push(svg("line", { class: "grid", x1: left, x2: right, y1: y, y2: y }));
    frame.push(svg("text", { x: left - 6, y: y + 4, "text-anchor": "end", "font-size": font }, tickText(tick)));
  }
  const axis = { x: (left + width) / 2, y: height - 6, "text-anchor": "middle", "font-size": font + 1 };
  frame.push(svg("text", axis, unit(columns[0])));

  const bands = [], lines = [], marks = [];
  const band = (line, colour, opacity) => {
    const side = (end) => line.map(({ x, estimate }) => ({ x, y: (estimate[end] ?? estimate.value) * columns[1].scale }));
    bands.push(svg("polygon", {
      points: `${path(side("high"))} ${path(side("low").reverse())}`, fill: colour, "fill-opacity": opacity,
    }));
  };
  const stroke = (line, colour, attributes) => {
    lines.push(svg("polyline", { fill: "none", stroke: colour, ...attributes, points: path(line) }));
  };
  if (mixture.length) {
    band(mixture, colourOf("static"), 0.15);
    stroke(mixture, colourOf("static"), { "stroke-width": 3, "stroke-dasharray": "9 4" });
  }
  const isOurs = (family) => measured.find((method) => method.family === family).group === "ada";
  for (const family of [...families].sort((a, b) => isOurs(a) - isOurs(b))) {
    const line = points.filter((point) => point.method.family === family).sort((a, b) => a.x - b.x);
    if (!line.length) continue;
    const group = line[0].method.group, colour = colourOf(group), ours = group === "ada", thick = data.banded.includes(family);
    if (thick) band(line.map(({ x, method }) => ({ x, estimate: method.estimates[upwards] })), colour, 0.17);
    stroke(line, colour, { "stroke-opacity": thick ? 1 : 0.45, "stroke-width": ours ? 3.4 : thick ? 2.4 : 1.1 });
    const ink = group === "peers"
      ? { fill: "none", stroke: colour, "stroke-width": 2.2 }
      : { fill: colour, stroke: "var(--paper)", "stroke-width": 1.1 };
    for (const point of line.filter((each) => visible.includes(each))) {
      const name = escaped(point.method.name), radius = (ours ? 6 : 4) * (narrow ? 0.85 : 1), x = px(point.x), y = py(point.y);
      const target = { class: "point", "data-name": name, cx: x, cy: y, r: 11, fill: "transparent", tabindex: 0 };
      marks.push(svg("path", { class: "point", "data-name": name, d: mark(group, x, y, radius), ...ink }));
      marks.push(svg("circle", target, svg("title", {}, name)));
    }
  }
  const labels = placed(visible, mixture, { px, py, left, right, top, bottom, font, narrow });
  byId("plot").setAttribute("viewBox", `0 0 ${width} ${height}`);
  const drawn = svg("g", { "clip-path": "url(#inside)" }, [...bands, ...lines, ...marks].join(""));
  byId("plot").innerHTML = frame.join("") + drawn + labels;
  byId("curve-title").textContent = `${columns[1].heading} against ${columns[0].heading.toLowerCase()}`;
  const ways = [["to the right", "to the left"], ["up", "down"]].map(([more, less], axis) => {
    return { true: more, false: less }[columns[axis].higher_is_better];
  });
  byId("better").textContent = `Better is ${ways.reverse().filter(Boolean).join(" and ")}.`;
}

/* names of families, ours first; one that would hide a point or another name is left out: tapping tells */
const NAMED_FIRST = { ada: 0, plain: 1, mixture: 2, static: 3, peers: 4, blockdance: 5 };
const CORNERS = [[-1, -1], [1, 1], [-1, 0], [1, 0], [0, -1], [0, 1], [1, -1], [-1, 1]];
function placed(points, mixture, at) {
  const centre = (text, group, rank, { x, y }) => ({ text, group, rank: NAMED_FIRST[rank], x: at.px(x), y: at.py(y) });
  const distance = ({ method }) => Math.abs(method.estimates.compute_saved.value - data.label_saving);
  const wanted = [...new Set(points.map((point) => point.method.family))].map((family) => {
    const best = points.filter(({ method }) => method.family === family).sort((a, b) => distance(a) - distance(b))[0];
    return centre(family, best.method.group, best.method.group, best);
  });
  if (mixture.length) {
    wanted.push(centre(data.mixture.name, "static", "mixture", mixture[Math.floor(mixture.length * 0.7)]));
  }
  const taken = points.map(({ x, y }) => [at.px(x) - 4, at.py(y) - 4, at.px(x) + 4, at.py(y) + 4]);
  const overlaps = (a) => taken.some((b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3]);
  const isFree = (box) => {
    const inside = box[0] >= at.left && box[2] <= at.right && box[1] >= at.top && box[3] <= at.bottom;
    return inside && !overlaps(box);
  };
  const gaps = at.narrow ? [8, 14, 22, 34, 48] : [8, 14, 22];
  const names = [];
  for (const label of wanted.sort((a, b) => a.rank - b.rank).slice(0, at.narrow ? 6 : 18)) {
    const wide = label.text.length * at.font * 0.56 + 4, tall = at.font + 3;
    const boxes = gaps.flatMap((gap) => CORNERS.map(([dx, dy]) => {
      const x = label.x + dx * (wide / 2 + gap), y = label.y + dy * (tall / 2 + gap);
      return [x - wide / 2, y - tall / 2, x + wide / 2, y + tall / 2];
    }));
    const box = boxes.find(isFree);
    if (!box) continue;
    taken.push(box);
    names.push(svg("text", {
      class: "name", x: (box[0] + box[2]) / 2, y: (box[1] + box[3]) / 2 + at.font * 0.35, "text-anchor": "middle",
      "font-size": at.font, "font-weight": label.rank < 3 ? 650 : 400, style: `fill:${colourOf(label.group)}`,
    }, escaped(label.text)));
  }
  return names.join("");
}
function tip(event) {
  const name = event.target.dataset && event.target.dataset.name, box = byId("tip");
  box.hidden = !name;
  if (!name) return;
  const { estimates } = named[name];
  const lines = [...data.headlines, "compute_saved", "seconds_per_image", "speed_up"];
  const known = lines.filter((line) => estimates[line] && data.columns[line]);
  box.replaceChildren(make("b", { textContent: name }), ...known.map((line) => {
    const column = data.columns[line];
    return make("div", { textContent: `${unit(column)}: ${show(estimates[line].value, column)}` });
  }));
  const frame = byId("plot").getBoundingClientRect(), spot = event.target.getBoundingClientRect();
  box.style.left = `${Math.max(0, Math.min(spot.left - frame.left + 12, frame.width - box.offsetWidth - 4))}px`;
  box.style.top = `${Math.max(0, spot.top - frame.top - box.offsetHeight - 8)}px`;
}
function legend() {
  for (const [group, [title, colour]] of Object.entries(data.groups)) {
    if (!measured.some((method) => method.group === group)) continue;
    const shape = { d: mark(group, 8, 8, 5), fill: group === "peers" ? "none" : colour, stroke: colour, "stroke-width": 2 };
    const picture = svg("svg", { class: "key", viewBox: "0 0 16 16" }, svg("path", shape));
    const button = make("button", { type: "button", innerHTML: picture }, title);
    button.setAttribute("aria-pressed", "true");
    button.onclick = () => {
      hidden.has(group) ? hidden.delete(group) : hidden.add(group);
      button.setAttribute("aria-pressed", String(!hidden.has(group)));
      plot();
    };
    byId("legend").append(button);
  }
}

/* --- the table --- */
const sorting = { key: null, descending: false };
const MATCHES = {
  static_mixture: "the best static mixture of equal compute",
  same_compute: "fewer steps of equal compute",
  same_latency: "fewer steps that take as long",
};
const isKnown = (name) => measured.some((method) => method.estimates[name]);
function halfWidth(estimate, column) {
  if (estimate.low === null) return "";
  return ` ±${(((estimate.high - estimate.low) / 2) * column.scale).toFixed(column.decimals)}`;
}
function cell(estimate, column) {
  if (!estimate) return make("td", { textContent: "–" });
  return make("td", {}, show(estimate.value, column), make("small", { textContent: halfWidth(estimate, column) }));
}
function verdictCell(match) {
  const node = make("td"), delta = match && match.differences.bounded_damage;
  if (delta) {
    const column = data.columns.bounded_damage, [text, tone] = verdictOf(delta, column);
    const figure = ` ${show(delta.value, column)}${halfWidth(delta, column)}`;
    node.append(make("span", { className: tone, textContent: text }), make("small", { textContent: figure }));
    node.title = match.rows.map(([name, part]) => `${(100 * part).toFixed(0)} % ${name}`).join(" + ");
  }
  return node;
}
function heading(name, column) {
  const arrow = sorting.key === name ? (sorting.descending ? " ▾" : " ▴") : "";
  const sort = () => {
    sorting.descending = sorting.key === name ? !sorting.descending : column.higher_is_better;
    sorting.key = name;
    table();
  };
  const small = make("small", { textContent: `${column.unit} ${data.arrows[column.higher_is_better]}` });
  return make("th", { onclick: sort }, column.heading + arrow, small);
}
function table() {
  const baseline = named[byId("baseline").value], group = byId("group").value, kind = byId("match").value;
  const columns = Object.entries(data.columns).filter(([name, column]) => column.in_table && isKnown(name));
  const stored = baseline.name === data.settings.compared_with;
  const rows = measured.filter((method) => !group || method.group === group).map((method) => {
    const estimates = { ...method.estimates };
    for (const [name] of stored ? [] : columns.filter(([each]) => each.endsWith("_difference"))) {
      estimates[name] = difference(method, baseline, name.replace(/_difference$/, ""));
    }
    return { method, estimates };
  });
  if (sorting.key) {
    const value = (row) => row.estimates[sorting.key]?.value ?? (sorting.descending ? -Infinity : Infinity);
    rows.sort((a, b) => (value(a) - value(b)) * (sorting.descending ? -1 : 1));
  }
  const unsort = () => { sorting.key = null; table(); };
  const heads = [
    make("th", { textContent: "Method", onclick: unsort }),
    make("th", {}, "Verdict", make("small", { textContent: kind ? `beside ${MATCHES[kind]}` : "" })),
    ...columns.map(([name, column]) => heading(name, column)),
  ];
  document.querySelector("#rows thead").replaceChildren(make("tr", {}, ...heads));
  document.querySelector("#rows tbody").replaceChildren(...rows.map(({ method, estimates }) => {
    const dot = make("i", { className: "dot", style: `background:${colourOf(method.group)}` });
    const first = make("td", { title: method.note }, dot, method.name);
    const cells = columns.map(([name, column]) => cell(estimates[name], column));
    const verdict = verdictCell(method.matches[kind]);
    return make("tr", { className: method.group === "ada" ? "ours" : "" }, first, verdict, ...cells);
  }));
  const cases = `${data.prompts.length} prompts, ${data.settings.seeds || 1} noise seed(s) each`;
  byId("caption").textContent =
    `${cases}; ± is half the width of the 95 % interval. Raw mean distances have none: a few images own them. ` +
    "“No clear difference” means that the interval holds zero.";
}
function leftOut() {
  const reasons = data.methods.filter((method) => method.reason);
  if (!reasons.length) return;
  const items = reasons.map(({ name, reason }) => make("li", {}, make("b", { textContent: `${name}: ` }), reason));
  const title = `${reasons.length} ${reasons.length === 1 ? "method does" : "methods do"} not apply here`;
  byId("left-out").append(make("details", {}, make("summary", { textContent: title }), make("ul", {}, ...items)));
}

/* --- images --- */
const load = (source) => new Promise((done) => {
  const image = new Image();
  image.onload = () => done(image);
  image.src = source;
});
async function changed(canvas, first, second) {
  const [one, other] = await Promise.all([load(first), load(second)]);
  canvas.width = one.naturalWidth;
  canvas.height = one.naturalHeight;
  const context = canvas.getContext("2d");
  const [ours, theirs] = [one, other].map((image) => {
    context.drawImage(image, 0, 0);
    return context.getImageData(0, 0, canvas.width, canvas.height);
  });
  for (let place = 0; place < ours.data.length; place++) {
    if (place % 4 < 3) ours.data[place] = 128 + 4 * (ours.data[place] - theirs.data[place]);
  }
  context.putImageData(ours, 0, 0);
}
function cards() {
  const method = named[byId("shown").value], own = data.images[method.name], plain = data.images[reference.name];
  const noises = data.settings.seeds > 1 ? ` (means of ${data.settings.seeds} noises)` : "";
  byId("cards").replaceChildren(...data.places.map((place, position) => {
    const picture = make("img", { src: own[position], alt: `${data.prompts[place]}, ${method.name}` }), canvas = make("canvas");
    const hold = () => { picture.src = plain[position]; }, release = () => { picture.src = own[position]; };
    picture.onpointerdown = picture.onmouseenter = hold;
    picture.onpointerup = picture.onmouseleave = picture.onpointercancel = release;
    picture.oncontextmenu = (event) => event.preventDefault();
    changed(canvas, own[position], plain[position]);
    const saved = method.per_prompt.compute_saved[place], distance = method.per_prompt.perceptual_distance[place];
    const figures = `${(100 * saved).toFixed(0)} % saved, distance ${distance.toPrecision(2)}${noises}`;
    const text = make("span", { textContent: method === reference ? "reference" : figures });
    return make("figure", { className: "card" }, picture, canvas, make("figcaption", {}, data.prompts[place], text));
  }));
}

/* --- schedules --- */
function schedule(name) {
  const method = named[name], canvas = make("canvas"), steps = method.actions[0].length;
  const rgb = (colour) => [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16));
  const palette = method.action_names.map((action) => rgb(data.action_colours[action]));
  const rows = method.actions.slice(0, data.prompts.length).map((actions, place) => {
    return { actions, saved: method.per_prompt.compute_saved[place] };
  });
  rows.sort((a, b) => a.saved - b.saved || a.actions.join().localeCompare(b.actions.join()));
  canvas.width = steps;
  canvas.height = rows.length;
  const context = canvas.getContext("2d"), image = context.createImageData(steps, rows.length);
  rows.forEach(({ actions }, y) => actions.forEach((action, x) => {
    if (action >= 0) image.data.set([...palette[action], 255], 4 * (y * steps + x));  // else it did not run
  }));
  context.putImageData(image, 0, 0);
  const saved = `${show(method.estimates.compute_saved.value, data.columns.compute_saved)} % saved`;
  return make("figure", {}, canvas, make("figcaption", {}, name, make("span", { textContent: saved })));
}
function maps() {
  byId("maps").append(...data.scheduled.map(schedule));
  if (!data.scheduled.length) byId("schedules").hidden = true;
  for (const [action, colour] of Object.entries(data.action_colours)) {
    byId("kinds").append(make("span", {}, make("i", { style: `background:${colour}` }), action));
  }
}

/* --- per image --- */
function spending() {
  const found = data.spending.find((each) => each.name === byId("spender").value), method = named[found.name];
  const text = (value) => minus(value.toFixed(2));
  const words = Object.entries(found.correlations).map(([measure, estimate]) => {
    const title = data.complexity_titles[measure];
    if (!estimate) return `no correlation with ${title} can be told: one of the two is constant`;
    const interval = estimate.low === null ? "too few prompts for an interval" : `95 % interval ${text(estimate.low)} to ${text(estimate.high)}`;
    return `rank correlation of compute with ${title} ${text(estimate.value)} (${interval})`;
  });
  byId("correlations").textContent = `${words.join("; ")}.`.replace(/^./, (letter) => letter.toUpperCase());
  for (const side of ["easiest", "hardest"]) {
    byId(side).replaceChildren(...found[side].map((place) => {
      const prompt = data.prompts[place], saved = `${(100 * method.per_prompt.compute_saved[place]).toFixed(0)} % saved`;
      const caption = make("figcaption", {}, prompt, make("span", { textContent: saved }));
      return make("figure", {}, make("img", { src: data.thumbnails[place], alt: prompt }), caption);
    }));
  }
}

/* --- start --- */
header();
const chosen = Object.entries(data.columns).filter(([name]) => isKnown(name));
const titled = (entries) => entries.map(([name, column]) => [name, unit(column)]);
const every = measured.map(({ name }) => [name, name]);
const kinds = data.kinds_of_match.filter((kind) => measured.some((method) => method.matches[kind]));
const ours = measured.find(({ name }) => data.headline && name === data.headline.method) || measured[1] || reference;
const spenders = data.spending.map(({ name }) => name);
options(byId("across"), titled(data.costs.filter(isKnown).map((name) => [name, data.columns[name]])), "compute_saved");
options(byId("upwards"), titled(chosen.filter(([name]) => !data.costs.includes(name))), "bounded_damage");
options(byId("match"), kinds.map((kind) => [kind, MATCHES[kind]]), "static_mixture");
options(byId("baseline"), every, data.settings.compared_with);
options(byId("group"), [["", "everything"], ...Object.entries(data.groups).map(([group, [title]]) => [group, title])], "");
options(byId("shown"), every, ours.name);
options(byId("spender"), spenders.map((name) => [name, name]), spenders.includes(ours.name) ? ours.name : spenders[0]);
legend();
plot();
table();
leftOut();
cards();
maps();
if (data.spending.length) spending();
else byId("prompts").hidden = true;
for (const id of ["across", "upwards", "all"]) byId(id).onchange = plot;
for (const id of ["match", "baseline", "group"]) byId(id).onchange = table;
byId("shown").onchange = cards;
byId("spender").onchange = spending;
for (const kind of ["pointerover", "click", "focusin"]) byId("plot").addEventListener(kind, tip);
window.addEventListener("resize", plot);
byId("notes").append(...data.notes.map((note) => make("li", { textContent: note })));
for (const [name, value] of Object.entries({ ...data.environment, ...data.settings })) {
  const text = typeof value === "object" ? JSON.stringify(value) : String(value);
  byId("settings").append(make("dt", { textContent: name.replaceAll("_", " ") }), make("dd", { textContent: text }));
}

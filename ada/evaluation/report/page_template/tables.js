/* --- the table --- */
const sorting = { key: null, descending: false };
const quality = Object.keys(data.columns)[0];
function tableColumns() {
  return Object.entries(data.columns).filter(([name, column]) => column.in_table && measured.some((method) => method.estimates[name]));
}
function cell(estimate, column) {
  if (!estimate) return make("td", { textContent: "–" });
  const node = make("td", {}, show(estimate.value, column));
  if (estimate.low !== null && estimate.low !== undefined) node.append(make("small", { textContent: ` ±${(((estimate.high - estimate.low) / 2) * column.scale).toFixed(column.decimals)}` }));
  return node;
}
const MATCHES = { static_mixture: "the best static mixture of equal compute", same_compute: "fewer steps of equal compute", same_latency: "fewer steps that are just as fast" };
function table() {
  const baseline = named[byId("baseline").value], group = byId("group").value, kind = byId("match").value, columns = tableColumns();
  const stored = baseline.name === data.settings.compared_with;
  const rows = measured.filter((method) => !group || method.group === group).map((method) => {
    const estimates = { ...method.estimates };
    if (!stored) for (const [name] of columns) if (name.endsWith("_difference")) estimates[name] = difference(method, baseline, name.replace(/_difference$/, ""));
    return { method, estimates };
  });
  if (sorting.key) rows.sort((a, b) => ((a.estimates[sorting.key]?.value ?? Infinity) - (b.estimates[sorting.key]?.value ?? Infinity)) * (sorting.descending ? -1 : 1));
  const heads = [make("th", { textContent: "Method", onclick: () => { sorting.key = null; table(); } }), make("th", {}, "Verdict", make("small", { textContent: `beside ${MATCHES[kind]}` }))];
  for (const [name, column] of columns) {
    const arrow = sorting.key === name ? (sorting.descending ? " ▾" : " ▴") : "";
    heads.push(make("th", { onclick: () => { sorting.descending = sorting.key === name ? !sorting.descending : column.higher_is_better; sorting.key = name; table(); } }, column.heading + arrow, make("small", { textContent: `${column.unit} ${column.higher_is_better ? "↑" : "↓"}` })));
  }
  document.querySelector("#rows thead").replaceChildren(make("tr", {}, ...heads));
  document.querySelector("#rows tbody").replaceChildren(...rows.map(({ method, estimates }) => {
    const first = make("td", { title: method.note }, make("i", { className: "dot", style: `background:${colourOf(method.group)}` }), method.name), match = method.matches[kind], cellOf = make("td");
    if (match && match.differences.bounded_damage) {
      const delta = match.differences.bounded_damage, [text, tone] = verdictOf(delta, data.columns.bounded_damage);
      cellOf.append(make("span", { className: tone, textContent: text }), make("small", { textContent: ` ${minus(delta.value.toFixed(3))} ±${((delta.high - delta.low) / 2).toFixed(3)}` }));
      cellOf.title = match.rows.map(([name, part]) => `${(100 * part).toFixed(0)} % ${name}`).join(" + ");
    }
    return make("tr", { className: method.group === "ada" ? "ours" : "" }, first, cellOf, ...columns.map(([name, column]) => cell(estimates[name], column)));
  }));
  byId("caption").textContent = `${data.prompts.length} prompts, ${data.settings.seeds || 1} noise seed(s) each; ± is half the width of the 95 % interval. Raw mean distances have none: a few images own them. “No clear difference” means that the interval holds zero.`;
}
function leftOut() {
  const reasons = data.methods.filter((method) => method.reason);
  if (!reasons.length) return;
  const list = make("ul", {}, ...reasons.map((method) => make("li", {}, make("b", { textContent: `${method.name}: ` }), method.reason)));
  byId("left-out").append(make("details", {}, make("summary", { textContent: `${reasons.length} ${reasons.length === 1 ? "method does" : "methods do"} not apply here` }), list));
}

/* --- images --- */
const load = (source) => new Promise((done) => { const image = new Image(); image.onload = () => done(image); image.src = source; });
async function changed(canvas, first, second) {
  const [one, other] = await Promise.all([load(first), load(second)]);
  canvas.width = one.naturalWidth; canvas.height = one.naturalHeight;
  const context = canvas.getContext("2d"), pixels = [];
  for (const image of [one, other]) { context.drawImage(image, 0, 0); pixels.push(context.getImageData(0, 0, canvas.width, canvas.height)); }
  for (let place = 0; place < pixels[0].data.length; place++) if (place % 4 < 3) pixels[0].data[place] = 128 + 4 * (pixels[0].data[place] - pixels[1].data[place]);
  context.putImageData(pixels[0], 0, 0);
}
function cards() {
  const method = named[byId("shown").value], own = data.images[method.name], plain = data.images[reference.name];
  byId("cards").replaceChildren(...data.places.map((place, position) => {
    const picture = make("img", { src: own[position], alt: `${data.prompts[place]}, ${method.name}` }), canvas = make("canvas");
    const hold = () => { picture.src = plain[position]; }, release = () => { picture.src = own[position]; };
    picture.onpointerdown = hold; picture.onmouseenter = hold; picture.onpointerup = release; picture.onmouseleave = release; picture.onpointercancel = release;
    picture.oncontextmenu = (event) => event.preventDefault();
    changed(canvas, own[position], plain[position]);
    const saved = method.per_prompt.compute_saved[place], distance = method.per_prompt.perceptual_distance[place];
    const text = make("span", { textContent: method === reference ? "reference" : `${(100 * saved).toFixed(0)} % saved, distance ${distance.toPrecision(2)}` });
    return make("figure", { className: "card" }, picture, canvas, make("figcaption", {}, data.prompts[place], text));
  }));
}

/* --- schedules --- */
function maps() {
  const rgb = (colour) => [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16));
  for (const name of data.scheduled) {
    const method = named[name], canvas = make("canvas"), steps = method.actions[0].length;
    const palette = method.action_names.map((action) => rgb(data.action_colours[action]));
    const rows = method.actions.slice(0, data.prompts.length).map((actions, place) => ({ actions, saved: method.per_prompt.compute_saved[place] }));
    rows.sort((a, b) => a.saved - b.saved || a.actions.join().localeCompare(b.actions.join()));
    canvas.width = steps; canvas.height = rows.length;
    const context = canvas.getContext("2d"), image = context.createImageData(steps, rows.length);
    rows.forEach((row, y) => row.actions.forEach((action, x) => image.data.set([...palette[action], 255], 4 * (y * steps + x))));
    context.putImageData(image, 0, 0);
    byId("maps").append(make("figure", {}, canvas, make("figcaption", {}, name, make("span", { textContent: `${show(method.estimates.compute_saved.value, data.columns.compute_saved)} % saved` }))));
  }
  if (!data.scheduled.length) byId("schedules").hidden = true;
  for (const [action, colour] of Object.entries(data.action_colours)) byId("kinds").append(make("span", {}, make("i", { style: `background:${colour}` }), action));
}

/* --- per image --- */
function spending() {
  const found = data.spending.find((each) => each.name === byId("spender").value);
  const words = Object.entries(found.correlations).map(([measure, estimate]) => estimate ? `rank correlation of compute with ${data.complexity_titles[measure]} ${minus(estimate.value.toFixed(2))} (95 % interval ${minus(estimate.low.toFixed(2))} to ${minus(estimate.high.toFixed(2))})` : `no correlation with ${data.complexity_titles[measure]} can be told: one of the two is constant`);
  byId("correlations").textContent = `${words.join("; ")}.`.replace(/^./, (letter) => letter.toUpperCase());
  const method = named[found.name];
  for (const side of ["easiest", "hardest"]) byId(side).replaceChildren(...found[side].map((place) => make("figure", {}, make("img", { src: data.thumbnails[place], alt: data.prompts[place] }), make("figcaption", {}, data.prompts[place], make("span", { textContent: `${(100 * method.per_prompt.compute_saved[place]).toFixed(0)} % saved` })))));
}

/* --- start --- */
header();
const chosenColumns = Object.entries(data.columns).filter(([name]) => measured.some((method) => method.estimates[name]));
const known = (name) => chosenColumns.some(([other]) => other === name), first = (names) => names.find(known);
options(byId("across"), data.costs.filter(known).map((name) => [name, unit(data.columns[name])]), "compute_saved");
options(byId("upwards"), chosenColumns.filter(([name]) => !data.costs.includes(name)).map(([name, column]) => [name, unit(column)]), first(["bounded_damage", "perceptual_distance", quality]));
options(byId("match"), data.kinds_of_match.filter((kind) => measured.some((method) => method.matches[kind])).map((kind) => [kind, MATCHES[kind]]), "static_mixture");
options(byId("baseline"), measured.map((method) => [method.name, method.name]), data.settings.compared_with);
options(byId("group"), [["", "everything"], ...Object.entries(data.groups).map(([group, [title]]) => [group, title])], "");
options(byId("shown"), measured.map((method) => [method.name, method.name]), (measured.find((method) => method.group === "ada") || measured[1] || reference).name);
options(byId("spender"), data.spending.map((each) => [each.name, each.name]), data.spending.length ? data.spending[0].name : "");
legend(); plot(); table(); leftOut(); cards(); maps();
if (data.spending.length) spending(); else byId("prompts").hidden = true;
for (const id of ["across", "upwards", "all"]) byId(id).onchange = plot;
for (const id of ["match", "baseline", "group"]) byId(id).onchange = table;
byId("shown").onchange = cards; byId("spender").onchange = spending;
byId("plot").addEventListener("pointerover", tip); byId("plot").addEventListener("click", tip); byId("plot").addEventListener("focusin", tip);
window.addEventListener("resize", plot);
byId("notes").append(...data.notes.map((note) => make("li", { textContent: note })));
for (const [name, value] of Object.entries({ ...data.environment, ...data.settings })) byId("settings").append(make("dt", { textContent: name.replaceAll("_", " ") }), make("dd", { textContent: typeof value === "object" ? JSON.stringify(value) : String(value) }));

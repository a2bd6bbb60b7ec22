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
function table() {
  const baseline = named[byId("baseline").value], family = byId("family").value, columns = tableColumns();
  const rows = measured.filter((method) => !family || method.family === family).map((method) => {
    const estimates = { ...method.estimates };
    for (const name of Object.keys(estimates)) if (name.endsWith("_difference")) estimates[name] = difference(method, baseline, name.replace(/_difference$/, ""));
    return { method, estimates };
  });
  if (sorting.key) rows.sort((a, b) => ((a.estimates[sorting.key]?.value ?? Infinity) - (b.estimates[sorting.key]?.value ?? Infinity)) * (sorting.descending ? -1 : 1));
  const heads = [make("th", { textContent: "Method", onclick: () => { sorting.key = null; table(); } }), make("th", {}, "Just as fast", make("small", { textContent: "plain pipeline; verdict" }))];
  for (const [name, column] of columns) {
    const arrow = sorting.key === name ? (sorting.descending ? " ▾" : " ▴") : "";
    heads.push(make("th", { onclick: () => { sorting.descending = sorting.key === name ? !sorting.descending : column.higher_is_better; sorting.key = name; table(); } }, column.heading + arrow, make("small", { textContent: `${column.unit} ${column.higher_is_better ? "↑" : "↓"}` })));
  }
  document.querySelector("#rows thead").replaceChildren(make("tr", {}, ...heads));
  document.querySelector("#rows tbody").replaceChildren(...rows.map(({ method, estimates }) => {
    const first = make("td", { textContent: method.name, title: method.note });
    const match = make("td");
    if (method.same_latency) {
      const [text, tone] = verdictOf(method.same_latency.differences.perceptual_distance, data.columns.perceptual_distance);
      match.append(`${method.same_latency.name.replace(/[^0-9]/g, "") || reference.num_inference_steps} steps: `, make("span", { className: tone, textContent: text }));
    }
    return make("tr", { className: method.family.startsWith("Ada") ? "ours" : "" }, first, match, ...columns.map(([name, column]) => cell(estimates[name], column)));
  }));
  byId("caption").textContent = `Means over ${data.prompts.length} prompts, latency and speed-up medians over ${reference.seconds_per_image.length} batches of ${data.settings.batch_size}; ± is half the width of the 95 % bootstrap interval. The verdict is about the perceptual distance; “no clear difference” means that its interval holds zero.`;
}
function leftOut() {
  const reasons = data.methods.filter((method) => method.reason);
  if (!reasons.length) return;
  const list = make("ul", {}, ...reasons.map((method) => make("li", {}, make("b", { textContent: `${method.name}: ` }), method.reason)));
  byId("left-out").append(make("details", { open: true }, make("summary", { textContent: `${reasons.length} methods do not apply here` }), list));
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
  const palette = data.action_colours.map((colour) => [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16)));
  for (const name of data.scheduled) {
    const method = named[name], canvas = make("canvas"), steps = method.actions[0].length;
    const rows = method.actions.slice(0, data.prompts.length).map((actions, place) => ({ actions, saved: method.per_prompt.compute_saved[place] }));
    rows.sort((a, b) => a.saved - b.saved || a.actions.join().localeCompare(b.actions.join()));
    canvas.width = steps; canvas.height = rows.length;
    const context = canvas.getContext("2d"), image = context.createImageData(steps, rows.length);
    rows.forEach((row, y) => row.actions.forEach((action, x) => { const [red, green, blue] = palette[action % palette.length]; image.data.set([red, green, blue, 255], 4 * (y * steps + x)); }));
    context.putImageData(image, 0, 0);
    byId("maps").append(make("figure", {}, canvas, make("figcaption", {}, name, make("span", { textContent: `${show(method.estimates.compute_saved.value, data.columns.compute_saved)} % saved; ${data.kinds[name] || ""}` }))));
  }
  if (!data.scheduled.length) byId("schedules").hidden = true;
  const most = Math.max(0, ...data.scheduled.map((name) => Math.max(...named[name].actions.flat())));
  for (let action = 0; action <= most; action++) byId("kinds").append(make("span", {}, make("i", { style: `background:${data.action_colours[action]}` }), action ? `reuse of kind ${action}` : "compute"));
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
const costs = ["seconds_per_image", "macs_per_image", "compute_saved", "speed_up", "cache_bytes", "peak_bytes"];
options(byId("across"), costs.filter((name) => data.columns[name]).map((name) => [name, unit(data.columns[name])]), "seconds_per_image");
options(byId("upwards"), chosenColumns.filter(([name]) => !costs.includes(name)).map(([name, column]) => [name, unit(column)]), "perceptual_distance");
options(byId("baseline"), measured.map((method) => [method.name, method.name]), data.settings.compared_with);
options(byId("family"), [["", "everything"], ...families.map((family) => [family, family])], "");
options(byId("shown"), measured.map((method) => [method.name, method.name]), (measured.find((method) => method.family === "Ada") || measured[1] || reference).name);
options(byId("spender"), data.spending.map((each) => [each.name, each.name]), data.spending.length ? data.spending[0].name : "");
legend(); plot(); table(); leftOut(); cards(); maps();
if (data.spending.length) spending(); else byId("prompts").hidden = true;
for (const id of ["across", "upwards", "bars"]) byId(id).onchange = plot;
for (const id of ["baseline", "family"]) byId(id).onchange = table;
byId("shown").onchange = cards; byId("spender").onchange = spending;
byId("plot").addEventListener("pointerover", tip); byId("plot").addEventListener("click", tip); byId("plot").addEventListener("focusin", tip);
window.addEventListener("resize", plot);
byId("notes").append(...data.notes.map((note) => make("li", { textContent: note })));
for (const [name, value] of Object.entries({ ...data.environment, ...data.settings })) byId("settings").append(make("dt", { textContent: name.replaceAll("_", " ") }), make("dd", { textContent: typeof value === "object" ? JSON.stringify(value) : String(value) }));

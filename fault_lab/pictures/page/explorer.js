// A walk through a graph of states. A path is a list of steps: the state, and the edge that led to it (null at first).
const nodes = new Map(data.nodes.map((node) => [node.id, node]));
const leads = new Map(data.nodes.map((node) => [node.id, []]));
for (const edge of data.edges) leads.get(edge.from).push(edge);
// The edge by which each state is reached in the fewest steps.
const nearest = new Map([[data.first, null]]);
for (const queue = [data.first]; queue.length; ) {
  for (const edge of leads.get(queue.shift())) if (!nearest.has(edge.to)) { nearest.set(edge.to, edge); queue.push(edge.to); }
}
const state = { path: [{ id: data.first, edge: null }], chosen: 0, violation: -1, results: [], result: -1 };
const here = () => state.path.at(-1);

function shortest(id) {
  const path = [];
  for (let at = id; at !== undefined && nearest.has(at); at = nearest.get(at)?.from) {
    path.unshift({ id: at, edge: nearest.get(at) });
    if (at === data.first) break;
  }
  return path.length ? path : [{ id, edge: null }];
}
const along = (ids) => ids.map((id, nr) => ({ id, edge: nr ? leads.get(ids[nr - 1]).find((edge) => edge.to === id) ?? null : null }));

// -- a state, and what changed -----------------------------------------------------------------------------------------
function shown(name, value) {
  if ((name === "xfd" || name === "xcr0") && Number.isInteger(value) && value >= 0) return mask(value);
  if (name === "size" && Number.isInteger(value)) return `${value.toLocaleString("en")} B`;
  return value === null ? "-" : typeof value === "string" ? value : JSON.stringify(value);
}
function mask(value) {
  const names = [];
  for (let bit = 0; bit < 53; bit++) if (Math.floor(value / 2 ** bit) % 2) names.push(data.features[bit] ?? `bit${bit}`);
  return names.length ? `0x${value.toString(16)} ${names.join("|")}` : "0";
}
const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
function cell(row, tag, name, value, before, known) {
  const changed = known && !same(value, before);
  const box = put(row, tag, changed ? { class: "changed" } : {}, shown(name, value));
  if (changed) put(box, "span", { class: "was" }, `was ${before === undefined ? "not there" : shown(name, before)}`);
}
const ofObjects = (value) => Array.isArray(value) && value.length > 0 && value.every((each) => each !== null && typeof each === "object" && !Array.isArray(each));
function summary(box, node, before) {
  box.replaceChildren();
  put(box, "h2", {}, `state ${node.id}, depth ${node.depth ?? "?"}, ${node.fingerprint ?? ""}`);
  for (const [name, value] of Object.entries(node)) {
    if (["id", "fingerprint", "depth"].includes(name)) continue;
    put(box, "h2", {}, name);
    const was = before?.[name];
    if (ofObjects(value)) table(box, value, was);
    else if (Array.isArray(value)) lines(box, value, was);
    else if (value !== null && typeof value === "object") pairs(box, value, was, before);
    else cell(put(put(box, "table"), "tr"), "td", name, value, was, before !== undefined);
  }
}
function table(box, rows, was) {
  const made = put(box, "table"), names = Object.keys(rows[0]);
  // Many fields are read down, one row each and a column for each object; few are read across.
  const head = put(made, "tr");
  put(head, "th", {}, "");
  for (const row of rows) put(head, "th", { scope: "col" }, String(row.name ?? ""));
  for (const name of names) {
    if (name === "name") continue;
    const line = put(made, "tr");
    put(line, "th", { scope: "row" }, name);
    rows.forEach((row, nr) => {
      const before = Array.isArray(was) ? was.find((each) => each.name === row.name) ?? (row.name === undefined ? was[nr] : undefined) : undefined;
      cell(line, "td", name, row[name], before?.[name], was !== undefined);
    });
  }
}
function lines(box, values, was) {
  const list = put(box, "ul"), left = Array.isArray(was) ? was.map((each) => JSON.stringify(each)) : null;
  if (!values.length && !left?.length) put(list, "li", { class: "soft" }, "none");
  for (const value of values) {
    const at = left === null ? 0 : left.indexOf(JSON.stringify(value));
    if (left !== null && at >= 0) left.splice(at, 1);
    put(list, "li", at < 0 ? { class: "come changed" } : {}, shown("", value));
  }
  for (const gone of left ?? []) put(list, "li", { class: "gone" }, shown("", JSON.parse(gone)));
}
function pairs(box, value, was, before) {
  const made = put(box, "table");
  for (const [name, each] of Object.entries(value)) {
    const line = put(made, "tr");
    put(line, "th", { scope: "row" }, name);
    cell(line, "td", name, each, was?.[name], before !== undefined);
  }
}

// -- the page ------------------------------------------------------------------------------------------------------------
const says = (edge) => (edge ? `${edge.fault ? `[${edge.fault}] ` : ""}${edge.action}` : "the initial state");
function choices() {
  const breaks = data.violations.filter((each) => (each.from ?? each.path.at(-1)) === here().id);
  return [...breaks.map((each) => ({ violation: each })), ...leads.get(here().id).map((edge) => ({ edge }))];
}
function draw(text = null, bad = false) {
  const node = nodes.get(here().id), before = state.path.length > 1 ? nodes.get(state.path.at(-2).id) : undefined;
  const open = choices();
  state.chosen = Math.min(state.chosen, Math.max(0, open.length - 1));
  $("said").textContent = text ?? `step ${state.path.length - 1}: ${says(here().edge)}; ${open.length} can happen next`;
  $("said").classList.toggle("bad", bad);
  summary($("state"), node, before);
  buttons($("path"), state.path.map((step, nr) => ({
    text: `${nr} ${says(step.edge)}`, here: nr === state.path.length - 1, go: () => { state.path.length = nr + 1; draw(); },
  })), "");
  $("path").lastElementChild?.scrollIntoView({ block: "nearest" });
  buttons($("actions"), open.map((each, nr) => ({ text: `${nr + 1} ${each.violation ? `violates ${each.violation.check}: ${each.violation.action ?? "this state"}` : `${says(each.edge)} \u2192 ${each.edge.to}`}`, go: () => take(nr) })), "nothing: it ends here");
  [...$("actions").querySelectorAll("button")].forEach((button, nr) => {
    button.classList.toggle("fault", Boolean(open[nr].edge?.fault));
    button.classList.toggle("violates", Boolean(open[nr].violation));
    button.classList.toggle("chosen", nr === state.chosen);
  });
  drawDepths();
}
function take(nr) {
  const found = choices()[nr];
  if (!found) return;
  state.chosen = 0;
  if (found.violation) { draw(`${found.violation.check}: ${found.violation.text}`, true); return; }
  state.path.push({ id: found.edge.to, edge: found.edge });
  draw();
}
function back() { if (state.path.length > 1) state.path.pop(); draw(); }
function first() { state.path.length = 1; state.path[0] = { id: data.first, edge: null }; draw(); }
function violation(nr) {
  const found = data.violations[nr];
  if (!found) return;
  state.violation = nr;
  state.path = along(found.path);
  state.chosen = 0;
  draw(`${found.check}: ${found.text}${found.action ? `, by ${says({ action: found.action, fault: found.fault })}` : ""}`, true);
}
const nextViolation = () => data.violations.length && violation((state.violation + 1) % data.violations.length);
function search() {
  const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  state.results = words.length ? data.nodes.filter((node) => { const text = JSON.stringify(node).toLowerCase(); return words.every((word) => text.includes(word)); }) : [];
  state.result = -1;
  $("found").textContent = words.length ? `${state.results.length} of ${data.nodes.length}` : "";
  $("results-head").hidden = !words.length;
  buttons($("results"), state.results.slice(0, 100).map((node, nr) => ({ text: `state ${node.id}, depth ${node.depth ?? "?"}`, go: () => result(nr) })), "");
}
function result(nr) {
  if (!state.results.length) return;
  state.result = nr % state.results.length;
  state.path = shortest(state.results[state.result].id);
  draw();
}
function drawDepths() {
  const svg = $("depths"), counts = [];
  for (const node of data.nodes) counts[node.depth ?? 0] = (counts[node.depth ?? 0] ?? 0) + 1;
  const most = Math.max(...counts.map((each) => each ?? 0)), wide = Math.max(2, Math.min(9, 260 / counts.length));
  svg.replaceChildren();
  svg.setAttribute("width", wide * counts.length + 70); svg.setAttribute("height", 30);
  put(svg, "text", { x: 0, y: 12 }, "states"); put(svg, "text", { x: 0, y: 24 }, "by depth");
  [...counts].forEach((count, depth) => {
    const high = ((count ?? 0) / most) * 26;
    const bar = put(svg, "rect", { x: 56 + depth * wide, y: 28 - high, width: wide - 1, height: high, class: depth === (nodes.get(here().id).depth ?? 0) ? "here" : "" });
    put(bar, "title", {}, `depth ${depth}: ${count ?? 0} states`);
  });
}
const KEYS = {
  ArrowDown: () => choose(1), ArrowUp: () => choose(-1), ArrowLeft: back, Backspace: back, Home: first, v: nextViolation,
  Enter: () => take(state.chosen), "/": () => $("search").focus(), n: () => result(state.result + 1), "?": () => $("help").showModal(),
};
for (let nr = 1; nr <= 9; nr++) KEYS[nr] = () => take(nr - 1);
function choose(by) {
  const all = [...$("actions").querySelectorAll("button")];
  state.chosen = Math.max(0, Math.min(all.length - 1, state.chosen + by));
  all.forEach((button, nr) => button.classList.toggle("chosen", nr === state.chosen));
  all[state.chosen]?.scrollIntoView({ block: "nearest" });
}
document.addEventListener("keydown", (event) => {
  if ($("help").open || event.ctrlKey || event.metaKey || event.altKey) return;
  if (typing(event)) {
    if (event.key === "Enter") { $("search").blur(); result(0); event.preventDefault(); }
    if (event.key === "Escape") $("search").blur();
    return;
  }
  if (event.target instanceof HTMLButtonElement && event.key === "Enter") return;
  if (Object.hasOwn(KEYS, event.key)) { KEYS[event.key](); event.preventDefault(); }
});
$("search").addEventListener("input", search);
for (const [id, run] of [["to-first", first], ["to-back", back], ["to-violation", nextViolation], ["to-help", KEYS["?"]]]) $(id).addEventListener("click", run);
function fact(value) {
  if (typeof value === "string") return value.slice(0, 16);
  if (value === null || typeof value !== "object") return String(value);
  return Object.entries(value).map(([name, each]) => `${name} ${each ?? "any"}`).join(", ");
}
$("name").textContent = data.name;
for (const [name, value] of Object.entries(data.facts)) put($("facts"), "span", {}, `${name} ${fact(value)}`);
$("to-violation").disabled = !data.violations.length;
buttons($("violations"), data.violations.map((each, nr) => ({ text: `${each.check}, ${each.path.length - 1} steps: ${each.text}`, go: () => violation(nr) })), "none was found");
draw();

// Walking: the record that is looked at, its cone of causes and effects, the filter, keys and buttons.
function ancestors(n) {
  const found = [];
  for (let cause = at(n).c; cause >= first; cause = at(cause).c) found.push(cause);
  return found;
}
function descendants(n) {
  const found = [], next = [...(children.get(n) ?? [])];
  while (next.length) { const each = next.pop(); found.push(each); next.push(...(children.get(each) ?? [])); }
  return found.sort((a, b) => a - b);
}
const matches = (record) => state.words.every((word) => `${record.s} ${record.k} ${record.n} ${JSON.stringify(record.f)}`.toLowerCase().includes(word));
let marked = [];
function decorate() {
  for (const [n, name] of marked) for (const element of state.parts[n - first] ?? []) element.classList.remove(name);
  marked = [];
  const n = state.pin ?? state.here;
  svg.classList.toggle("pinned", state.pin !== null);
  svg.classList.toggle("filtered", state.words.length > 0);
  if (state.words.length) data.records.forEach((record) => { if (!matches(record)) marked.push([record.n, "out"]); });
  if (n !== null) {
    for (const each of ancestors(n)) marked.push([each, "anc"]);
    for (const each of descendants(n)) marked.push([each, "desc"]);
    marked.push([n, "here"]);
  }
  for (const [each, name] of marked) for (const element of state.parts[each - first] ?? []) element.classList.add(name);
  const ring = state.here === null ? null : at(state.here);
  state.ring.setAttribute("width", ring ? 22 : 0); state.ring.setAttribute("height", ring ? 22 : 0);
  state.ring.classList.toggle("pin", state.pin !== null);
  if (ring) { state.ring.setAttribute("x", xOf(ring) - 11); state.ring.setAttribute("y", yOf(ring) - 11); }
}
function look(n, { scroll = true } = {}) {
  if (n === null || n < first || n > last) return;
  state.here = n;
  const record = at(n);
  $("said").textContent = `${n}: ${ms(record.t)} ms, ${record.s}`;
  facts($("fields"), [["number", String(n)], ["time", `${ms(record.t)} ms`], ["type", record.k], ["cause", record.c < 0 ? "none" : String(record.c)], ...Object.entries(record.f)]);
  const row = (each) => ({ text: `${each} ${at(each).s}`, go: () => { look(each); if (state.pin !== null) pin(each); } });
  const up = ancestors(n), earliest = up.length ? at(up.at(-1)).c : record.c;
  buttons($("causes"), up.slice(0, 200).map(row), earliest >= 0 ? `${earliest}, before what is shown` : "nothing: it begins here");
  buttons($("effects"), (children.get(n) ?? []).slice(0, 200).map(row), "nothing that is shown");
  if (scroll) reveal(record);
  decorate();
}
function pin(n) { state.pin = n; decorate(); }
function reveal(record) {
  const chart = $("chart"), left = $("labels").offsetWidth, x = xOf(record) + left, y = yOf(record) + AXIS;
  const room = chart.clientWidth - left;
  if (x < chart.scrollLeft + left + 60 || x > chart.scrollLeft + chart.clientWidth - 60) chart.scrollLeft = x - left - room / 2;
  if (y < chart.scrollTop + AXIS + 30 || y > chart.scrollTop + chart.clientHeight - 30) chart.scrollTop = y - chart.clientHeight / 2;
}
function step(by) {
  let n = state.here === null ? (by > 0 ? first - 1 : last + 1) : state.here;
  for (n += by; n >= first && n <= last; n += by) if (matches(at(n))) { look(n); return; }
}
function edge(n, by) { if (matches(at(n))) look(n); else { state.here = n; step(by); } }
function cross(by) {
  if (state.here === null) { step(1); return; }
  const here = at(state.here);
  for (let l = here.l + by; l >= 0 && l < data.lanes.length; l += by) {
    const there = data.records.filter((record) => record.l === l && matches(record));
    if (!there.length) continue;
    look(there.reduce((a, b) => (Math.abs(xOf(a) - xOf(here)) <= Math.abs(xOf(b) - xOf(here)) ? a : b)).n);
    return;
  }
}
function zoom(to) {
  const chart = $("chart"), middle_ = chart.scrollLeft + (chart.clientWidth - $("labels").offsetWidth) / 2, was = width();
  state.zoom = Math.min(20, Math.max(0.001, to));
  draw();
  chart.scrollLeft += middle_ * (width() / was - 1);
  if (state.here !== null) reveal(at(state.here));
}
const fitted = () => (state.byTime ? 1 : Math.min(1, ($("chart").clientWidth - $("labels").offsetWidth - 20) / data.width));
function flip() {
  state.byTime = !state.byTime;
  $("scale").setAttribute("aria-pressed", state.byTime);
  state.zoom = 1;
  draw();
  if (state.here !== null) reveal(at(state.here));
}
function filter() {
  state.words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  $("found").textContent = state.words.length ? `${data.records.filter(matches).length} of ${data.records.length}` : "";
  decorate();
}
function legend() {
  const hidden = ($("legend").hidden = !$("legend").hidden);
  $("to-legend").setAttribute("aria-expanded", !hidden);
}
const toCause = () => state.here !== null && look(at(state.here).c);
const toEffect = () => state.here !== null && look((children.get(state.here) ?? [null])[0]);
const toViolation = () => look(data.violation);
const KEYS = {
  ArrowRight: () => step(1), ArrowLeft: () => step(-1), ArrowDown: () => cross(1), ArrowUp: () => cross(-1),
  Home: () => edge(first, 1), End: () => edge(last, -1), c: toCause, e: toEffect, v: toViolation, t: flip, l: legend,
  Enter: () => state.here !== null && pin(state.pin === state.here ? null : state.here), Escape: () => pin(null),
  "/": () => $("filter").focus(), "+": () => zoom(state.zoom * 1.4), "=": () => zoom(state.zoom * 1.4), "-": () => zoom(state.zoom / 1.4),
  0: () => zoom(fitted()), "?": () => $("help").showModal(),
};
document.addEventListener("keydown", (event) => {
  if ($("help").open || event.ctrlKey || event.metaKey || event.altKey) return;
  if (typing(event)) {
    if (event.key === "Enter" || event.key === "Escape") { if (event.key === "Escape") { $("filter").value = ""; filter(); } $("chart").focus(); event.preventDefault(); }
    return;
  }
  if (event.target instanceof HTMLButtonElement && event.key === "Enter") return;
  if (Object.hasOwn(KEYS, event.key)) { KEYS[event.key](); event.preventDefault(); }
});
const numberUnder = (event) => { const n = event.target.closest?.("[data-n]")?.dataset.n; return n === undefined ? null : Number(n); };
svg.addEventListener("pointerover", (event) => { const n = numberUnder(event); if (n !== null && state.pin === null) look(n, { scroll: false }); });
svg.addEventListener("click", (event) => { const n = numberUnder(event); if (n === null) { pin(null); return; } look(n, { scroll: false }); pin(state.pin === n ? null : n); });
$("filter").addEventListener("input", filter);
for (const [id, run] of [["zoom-in", KEYS["+"]], ["zoom-out", KEYS["-"]], ["zoom-fit", KEYS[0]], ["scale", flip], ["to-cause", toCause], ["to-violation", toViolation], ["to-legend", legend], ["to-help", KEYS["?"]]]) $(id).addEventListener("click", run);

// -- the beginning ------------------------------------------------------------------------------------------------------
function head() {
  const title = data.title;
  $("name").textContent = title.name; $("description").textContent = title.description;
  const rows = [["", title.kind], ["seed", title.seed], ["ends at", title.ends], ["verdict", title.verdict], ["", data.window], ["sha256", title.digest.slice(0, 16)]];
  for (const [name, value] of rows) if (value) put($("facts"), "span", name === "verdict" && data.violation !== null ? { class: "bad" } : {}, name ? `${name} ${value}` : value);
  if (!data.shownAll) put($("facts"), "span", {}, "others: --from, --to");
  $("to-violation").disabled = data.violation === null || data.violation < first || data.violation > last;
  put(put($("labels"), "div", { style: `height:${WORLD}px` }), "small", {}, "the run");
  for (const [nr, lane] of data.lanes.entries()) {
    const strip = strips.get(nr), tall = (nr + 1 < tops.length ? tops[nr + 1] : height) - tops[nr];
    const box = put($("labels"), "div", { style: `height:${tall}px` });
    put(box, "span", { class: "letter" }, lane.letter); put(box, "span", { class: "name" }, lane.label);
    put(box, "small", {}, lane.kind === "vcpu" ? "vCPU" : lane.kind);
    if (!strip) continue;
    put(box, "div", { class: "strip-label", style: `top:${LANE}px` }, "XFD");
    put(box, "div", { class: "strip-label", style: `top:${LANE + 16}px` }, `fpstate, 0 to ${data.mostBytes.toLocaleString("en")} B`);
  }
}
// Paper shows what the screen shows.
addEventListener("beforeprint", () => {
  const from = $("chart").scrollLeft, wide = $("chart").clientWidth - $("labels").offsetWidth;
  for (const [each, tall] of [[svg, height], [axis, AXIS]]) { each.setAttribute("viewBox", `${from} 0 ${wide} ${tall}`); each.setAttribute("width", wide); }
  $("chart").scrollLeft = 0;
});
addEventListener("afterprint", () => { for (const each of [svg, axis]) { each.removeAttribute("viewBox"); each.setAttribute("width", width()); } });
head(); putLegend($("legend")); draw();
if (data.violation !== null && data.violation >= first && data.violation <= last) look(data.violation);

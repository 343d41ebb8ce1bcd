// The picture of a run. data.records are in the order of their numbers; data.records[0].n is the first that is shown.
const first = data.records[0].n, last = data.records.at(-1).n;
const at = (n) => data.records[n - first];
const WORLD = 24, NODE = 46, LANE = 44, STRIP = 34, AXIS = 56;
const strips = new Map(data.strips.map((strip) => [strip.l, strip]));
const tops = [];
let height = WORLD;
for (const [nr, lane] of data.lanes.entries()) {
  tops.push(height);
  height += lane.kind === "vcpu" ? LANE + (strips.has(nr) ? STRIP : 0) : NODE;
}
const middle = (l) => (l < 0 ? WORLD / 2 : tops[l] + (data.lanes[l].kind === "vcpu" ? LANE : NODE) / 2);
const children = new Map();
for (const record of data.records) {
  if (!children.has(record.c)) children.set(record.c, []);
  children.get(record.c).push(record.n);
}
const state = { zoom: 1, byTime: false, here: null, pin: null, words: [], parts: [], room: 800 };

// -- positions --------------------------------------------------------------------------------------------------------
const t0 = data.records[0].t, span = Math.max(1, data.records.at(-1).t - t0);
const px = (x, t) => (state.byTime ? 24 + ((Math.max(t, t0) - t0) / span) * timeWidth() : x * state.zoom);
const timeWidth = () => state.room * state.zoom;
const width = () => Math.ceil(state.byTime ? timeWidth() + 60 : data.width * state.zoom);
const theEnd = () => xOf(data.records.at(-1));
const xOf = (record) => px(record.x, record.t);
const ms = (t) => (Math.floor(t / 1e3) / 1e3).toFixed(3).replace(/\B(?=(\d{3})+(?=\.))/g, ",");

// -- drawing ----------------------------------------------------------------------------------------------------------
const svg = $("lanes"), axis = $("axis");
function part(n, element) {
  element.classList.add("part");
  element.dataset.n = n;
  (state.parts[n - first] ??= []).push(element);
  return element;
}
function draw() {
  state.parts = [];
  state.room = Math.max(200, $("chart").clientWidth - $("labels").offsetWidth - 60);  // asked once: a layout each time
  svg.replaceChildren(); axis.replaceChildren();
  for (const each of [svg, axis]) each.setAttribute("width", width());
  svg.setAttribute("height", height); axis.setAttribute("height", AXIS);
  putPatterns(svg);
  const g = (name) => put(svg, "g", { class: name });
  const bands = g("bands"), arrows = g("arrows"), marks = g("marks"), texts = g("texts");
  drawAxis();
  data.windows.forEach((each) => drawWindow(bands, each));
  put(bands, "path", { d: `M0,${WORLD - 0.5} H${width()}`, class: "lane-rule" });
  data.lanes.forEach((_, l) => drawLane(bands, l));
  data.bands.forEach((band) => drawBand(bands, band));
  data.calls.forEach((call) => drawCall(bands, call));
  data.strips.forEach((strip) => drawStrip(bands, strip));
  data.arrows.forEach((arrow) => drawArrow(arrows, arrow));
  drawViolation(marks);
  data.records.forEach((record) => drawMark(marks, record));
  drawTexts(texts);
  state.ring = put(svg, "rect", { class: "ring", width: 0, height: 0, rx: 4 });
  svg.classList.toggle("far", width() / data.records.length < 7);  // an overview: messages and calls step back
  decorate();
}
function drawAxis() {
  for (const phase of data.phases) {
    const [x0, x1] = [px(phase.x0, phase.t0), px(phase.x1, phase.t1)];
    const group = put(axis, "g", { class: "phase" });
    put(group, "rect", { x: x0, y: 2, width: Math.max(1, x1 - x0), height: 17 });
    if (x1 - x0 > 7 * phase.text.length + 12) put(group, "text", { x: x0 + 6, y: 15, class: "soft" }, phase.text);
  }
  let end = -100, before = null;
  const tick = (x, t) => {
    put(axis, "path", { d: `M${x},22 V${AXIS}`, class: "tick" });
    put(svg, "path", { d: `M${x},0 V${height}`, class: "tick" });
    const text = put(axis, "text", { x: x + 3, y: 34, class: "mono" }, ms(t));
    end = x + 8 * text.textContent.length + 16;
  };
  if (state.byTime) {
    const step = niceStep(span / (timeWidth() / 110));
    for (let t = Math.ceil(t0 / step) * step; t <= t0 + span; t += step) tick(px(0, t), t);
    return;
  }
  for (const record of data.records) {
    const x = xOf(record);
    if (x >= end && record.t !== before?.t) tick(x, record.t);
    const apart = before === null ? 0 : record.t - before.t;
    if (apart > 5e7 && x - xOf(before) > 66) {
      put(axis, "text", { x: (x + xOf(before)) / 2, y: 50, class: "gap", "text-anchor": "middle" }, `\u21e0 ${(apart / 1e9).toFixed(2)} s \u21e2`);
    }
    before = record;
  }
}
function niceStep(least) {
  const power = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 5, 10].map((each) => each * power).find((each) => each >= least);
}
function drawLane(group, l) {
  const lane = data.lanes[l], y = middle(l), bottom = l + 1 < tops.length ? tops[l + 1] : height;
  put(group, "path", { d: `M0,${y} H${width()}`, class: "lane-line" });
  put(group, "path", { d: `M0,${bottom - 0.5} H${width()}`, class: "lane-rule" });
}
// When a fault could fire: shade over all lanes, its name again and again in the run's own.
function drawWindow(group, each) {
  const [x0, x1] = [px(each.x0, each.t0), px(each.x1, each.t1)];
  const shade = put(group, "rect", { x: x0, y: 0, width: Math.max(1, x1 - x0), height, class: "window" });
  put(shade, "title", {}, `${each.text} can fire, ${ms(each.t0)} to ${ms(each.t1)} ms`);
  repeat(group, x0, x1, WORLD / 2 + 4, `${each.text} can fire`, "window-name");
}
function drawBand(group, band) {
  if (band.l < 0) return;
  const lane = data.lanes[band.l], [x0, x1] = [px(band.x0, band.t0), px(band.x1, band.t1)];
  const tall = band.kind === "held" ? 10 : (lane.kind === "vcpu" ? LANE : NODE) - 4;
  const y = band.kind === "held" ? tops[band.l] + NODE - 12 : tops[band.l] + 2;
  const rect = put(group, "rect", { x: x0, y, width: Math.max(1, x1 - x0), height: tall, class: `band ${band.kind}` });
  if (band.n >= first) part(band.n, rect);
  put(rect, "title", {}, `${lane.label}: ${band.text}, ${ms(band.t0)} to ${ms(band.t1)} ms`);
}
function drawCall(group, call) {
  if (call.l < 0 || data.lanes[call.l].kind !== "vcpu") return;
  const y = middle(call.l), [x0, x1] = [px(call.x0, call.t0), px(call.x1, call.t1)];
  const bar = put(group, "path", { d: `M${x0},${y} H${x1}`, class: `call ${call.kind}` });
  if (call.n >= first) part(call.n, bar);
}
function drawStrip(group, strip) {
  const top = tops[strip.l] + LANE, bottom = top + STRIP - 3, tall = STRIP - 18, most = data.mostBytes || 1;
  strip.steps.forEach((step, nr) => {
    const after = strip.steps[nr + 1], x0 = px(step.x, step.t);
    const x1 = after ? px(after.x, after.t) : theEnd();
    const high = (step.bytes / most) * tall;
    const size = put(group, "rect", { x: x0, y: bottom - high, width: Math.max(0.5, x1 - x0), height: high, class: "size" });
    put(size, "title", {}, `fpstate ${step.bytes} bytes from ${ms(step.t)} ms`);
    if (step.armed) put(group, "rect", { x: x0, y: top + 1, width: Math.max(0.5, x1 - x0), height: 11, class: "xfd" });
    if (step.n >= first) part(step.n, size);
  });
  const outline = constant(strip.steps, (step) => step.bytes).map(([step, x1]) => `M${px(step.x, step.t)},${bottom} V${bottom - (step.bytes / most) * tall} H${x1} V${bottom}`);
  put(group, "path", { d: outline.join(" "), class: "size-line" });
  constant(strip.steps, (step) => step.xfd).forEach(([step, x1]) => repeat(group, px(step.x, step.t), x1, top + 11, step.xfd, "mono"));
  constant(strip.steps, (step) => step.bytes).forEach(([step, x1]) => repeat(group, px(step.x, step.t), x1, bottom - 3, `${step.bytes.toLocaleString("en")} B`, "mono"));
}
// The steps at which a value changes, each with where it changes again.
function constant(steps, value) {
  const runs = [];
  for (const step of steps) if (!runs.length || value(runs.at(-1)) !== value(step)) runs.push(step);
  return runs.map((step, nr) => [step, nr + 1 < runs.length ? px(runs[nr + 1].x, runs[nr + 1].t) : theEnd()]);
}
// What holds for long says so again and again, so that it can be read wherever one looks.
function repeat(group, x0, x1, y, text, kind) {
  const wide = 6 * text.length + 8;
  for (let x = x0 + 3; x + wide <= x1; x += 640) put(group, "text", { x, y, class: `mark-text small ${kind}` }, text);
}
function drawArrow(group, arrow) {
  if (arrow.from < 0 || arrow.to < 0) return;
  const record = at(arrow.n);
  const [xa, ya, xb] = [px(arrow.x0, arrow.t0), middle(arrow.from), xOf(record)];
  let yb = middle(arrow.to);
  let x = xb;
  if (arrow.lost && arrow.lost !== "down") { yb = ya + (yb - ya) * 0.5; x = xa + 10; }
  const down = yb > ya ? 1 : -1;
  const d = `M${xa},${ya + 3 * down} L${x},${yb - 3 * down}`;
  const kind = arrow.lost ? "lost" : arrow.kind;
  part(arrow.n, put(group, "path", { d, class: `arrow ${arrow.kind} ${kind}`, ...(arrow.lost ? {} : { "marker-end": `url(#to-${arrow.kind})` }) }));
  if (arrow.lost) part(arrow.n, put(group, "path", { d: SHAPES.lost, transform: `translate(${x},${yb - 3 * down})`, class: "mark k-lost" }));
  part(arrow.n, put(group, "path", { d, class: "hit" }));
}
function drawViolation(group) {
  const record = data.violation === null || data.violation < first || data.violation > last ? null : at(data.violation);
  if (!record) return;
  const x = xOf(record);
  put(group, "path", { d: `M${x},0 V${height}`, class: "violation-line" });
  put(axis, "path", { d: `M${x},20 V${AXIS}`, class: "violation-line" });
}
const yOf = (record) => (record.l < 0 ? WORLD / 2 : record.k === "vcpu" ? tops[record.l] + LANE - 4 : middle(record.l));
function drawMark(group, record) {
  if (record.k === "message" && record.m === "lost" && record.f.lost !== "down") return;
  const shape = shapeOf(record.m);
  const mark = put(group, "path", { d: SHAPES[shape], transform: `translate(${xOf(record)},${yOf(record)})`, class: `mark k-${shape}` });
  part(record.n, mark);
}
// Texts have room or are left out: what matters first, a call's name where its bar is long enough.
function drawTexts(group) {
  const taken = new Map();
  const take = (key, x0, x1) => {
    if (!taken.has(key)) taken.set(key, []);
    const there = taken.get(key);
    if (there.some(([a, b]) => x0 < b && a < x1)) return false;
    there.push([x0, x1]);
    return true;
  };
  const place = (record, text, rows, kind) => {
    const x = xOf(record) + 8, x1 = x + (kind === "soft" ? 6.3 : 7) * text.length + 6;
    for (const [row, y] of rows) {
      if (!take(`${record.l}/${row}`, x, x1)) continue;
      part(record.n, put(group, "text", { x, y, class: `mark-text ${kind}` }, text));
      return true;
    }
    return false;
  };
  const rank = { violation: 0, exit: 1, decision: 1, fault: 2, guest: 3, node: 4 };
  const labelled = data.records.filter((record) => record.lb).sort((a, b) => (rank[a.k] ?? 9) - (rank[b.k] ?? 9) || a.n - b.n);
  for (const record of labelled) {
    const y = middle(record.l);
    if (record.l < 0 && record.k === "violation") {
      const flip = xOf(record) > width() - 240;
      put(group, "text", { x: xOf(record) + (flip ? -8 : 14), y: WORLD / 2 + 4, class: "violation-text mark-text", "text-anchor": flip ? "end" : "start" }, record.lb);
    } else place(record, record.lb, [["up", y - 9], ["down", y + 17]], `text-${record.k}`);
  }
  for (const call of data.calls) {
    if (call.l < 0 || call.n < first) continue;
    const room = px(call.x1, call.t1) - px(call.x0, call.t0);
    const y = middle(call.l);
    if (data.lanes[call.l].kind !== "vcpu" || room > 6.3 * call.text.length + 8) {
      place(at(call.n), call.text, data.lanes[call.l].kind === "vcpu" ? [["up", y - 7]] : [["up", y - 9], ["down", y + 17]], "soft");
    }
  }
  for (const band of data.bands) {
    if (band.l < 0 || band.kind === "entered") continue;
    const [x0, x1] = [px(band.x0, band.t0), px(band.x1, band.t1)], y = middle(band.l) + 17, wide = 5.8 * band.text.length + 8;
    for (let x = x0 + 3; x + wide <= x1; x += 40) {
      if (!take(`${band.l}/down`, x, x + wide)) continue;
      put(group, "text", { x, y, class: "mark-text small soft" }, band.text);
      x += 600;
    }
  }
}

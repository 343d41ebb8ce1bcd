// Marks: a shape and a colour for each kind of record, the same in the picture and in its legend.
const SHAPES = {
  invoke: "M-4,-5 L5,0 L-4,5 Z", ok: "M-4,0 a4,4 0 1,0 8,0 a4,4 0 1,0 -8,0 Z",
  fail: "M-4,-4 L4,4 M-4,4 L4,-4", info: "M-4,0 a4,4 0 1,0 8,0 a4,4 0 1,0 -8,0 M0,-2 L0,2",
  arrived: "M-2,-2 h4 v4 h-4 Z", lost: "M-5,-5 L5,5 M-5,5 L5,-5 M-5,0 L5,0",
  fault: "M1,-8 L-5,1 L-1,1 L-2,8 L5,-2 L1,-2 Z", exit: "M-6,-6 h12 v12 h-12 Z", settled: "M-5,-5 h10 v10 h-10 Z",
  decision: "M0,-7 L7,0 L0,7 L-7,0 Z", up: "M0,-6 L6,5 L-6,5 Z", down: "M0,6 L6,-5 L-6,-5 Z",
  node: "M-4,-4 h8 v8 h-8 Z", guest: "M-5,-3 h10 v6 h-10 Z", link: "M-5,-2 h10 v4 h-10 Z",
  vcpu: "M-3,0 L0,-3 L3,0 L0,3 Z", phase: "M-1,-6 h2 v12 h-2 Z", violation: "M-1,-9 L11,-4 L-1,1 Z M-1,-9 v18",
  other: "M-3,0 a3,3 0 1,0 6,0 a3,3 0 1,0 -6,0 Z",
};
const shapeOf = (mark) => (Object.hasOwn(SHAPES, mark) ? mark : "other");
// What lasts: a pattern for each, so that no colour is needed to tell them apart.
const PATTERNS = [
  ["p-down", "--grey", "M0,0 L8,8 M8,0 L0,8", "down, killed"], ["p-paused", "--purple", "M2,0 V8 M6,0 V8", "stands still, paused"],
  ["p-held", "--red", "M0,2 H8 M0,6 H8", "link held"], ["p-parked", "--orange", "M0,8 L8,0", "parked"],
];
function putPatterns(svg) {
  const defs = put(svg, "defs");
  for (const [id, colour, d] of PATTERNS) {
    const pattern = put(defs, "pattern", { id, width: 8, height: 8, patternUnits: "userSpaceOnUse" });
    put(pattern, "path", { d, style: `stroke:var(${colour});stroke-width:1.1;opacity:.6;fill:none` });
  }
  for (const [id, colour] of [["request", "--blue"], ["reply", "--sky"], ["stream", "--purple"], ["broken", "--red"]]) {
    const head = put(defs, "marker", { id: `to-${id}`, viewBox: "0 0 8 8", refX: 8, refY: 4, markerWidth: 7, markerHeight: 7, markerUnits: "userSpaceOnUse", orient: "auto" });
    put(head, "path", { d: "M0,0 L8,4 L0,8 Z", style: `fill:var(${colour})` });
  }
}
const LEGEND = [
  ["invoke", "call"], ["ok", "done"], ["fail", "refused"], ["info", "nobody knows"], ["arrived", "message arrives"], ["lost", "message lost"],
  ["fault", "fault"], ["exit", "exit, vCPU parked"], ["settled", "exit settled"], ["decision", "decision"], ["vcpu", "vCPU changed"],
  ["up", "starts"], ["down", "ends"], ["guest", "guest ends"], ["violation", "violation"],
];
function putLegend(box) {
  for (const [mark, text] of LEGEND) {
    const svg = put(put(box, "span"), "svg", { width: 18, height: 18, viewBox: "-9 -9 18 18", "aria-hidden": "true" });
    put(svg, "path", { d: SHAPES[mark], class: `mark k-${mark}` });
    put(svg.parentNode, "i", { style: "font-style:normal" }, text);
  }
  for (const [kind, text] of [["request", "request"], ["reply", "reply, when committed"], ["stream", "of a stream"]]) {
    const svg = put(put(box, "span"), "svg", { width: 28, height: 12, "aria-hidden": "true" });
    put(svg, "path", { d: "M1,6 H27", class: `arrow ${kind}`, "marker-end": `url(#to-${kind})` });
    put(svg.parentNode, "i", { style: "font-style:normal" }, text);
  }
  for (const [id, , , text] of PATTERNS) {
    const svg = put(put(box, "span"), "svg", { width: 24, height: 12, "aria-hidden": "true" });
    put(svg, "rect", { width: 24, height: 12, style: `fill:url(#${id});stroke:var(--rule)` });
    put(svg.parentNode, "i", { style: "font-style:normal" }, text);
  }
  const entered = put(put(box, "span"), "svg", { width: 24, height: 12, "aria-hidden": "true" });
  put(entered, "rect", { width: 24, height: 12, class: "band entered" });
  put(entered.parentNode, "i", { style: "font-style:normal" }, "entered (in KVM_RUN)");
  const size = put(put(box, "span"), "svg", { width: 24, height: 12, "aria-hidden": "true" });
  put(size, "rect", { y: 3, width: 24, height: 9, class: "size" });
  put(size.parentNode, "i", { style: "font-style:normal" }, "bytes of the container's image");
  const open = put(put(put(box, "span"), "svg", { width: 24, height: 12, "aria-hidden": "true" }), "rect", { width: 24, height: 12, class: "window" });
  put(open.parentNode.parentNode, "i", { style: "font-style:normal" }, "a fault's window");
  const xfd = put(put(put(box, "span"), "svg", { width: 24, height: 12, "aria-hidden": "true" }), "rect", { width: 24, height: 11, class: "xfd" });
  put(xfd.parentNode.parentNode, "i", { style: "font-style:normal" }, "features that XFD disables");
}

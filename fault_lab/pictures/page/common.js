"use strict";
// What every page shares: its data, elements, and the text of them. Nothing here or elsewhere writes markup.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
function put(parent, tag, attributes = {}, text = null) {
  const element = parent.namespaceURI === SVG || tag === "svg" ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== null) element.textContent = text;
  parent.append(element);
  return element;
}
function buttons(list, rows, empty) {
  list.replaceChildren();
  for (const { text, go, here } of rows) {
    const button = put(put(list, "li"), "button", { type: "button", class: here ? "here" : "" }, text);
    button.addEventListener("click", go);
  }
  if (!rows.length) put(list, "li", {}, empty);
}
function facts(list, fields) {
  list.replaceChildren();
  for (const [name, value] of fields) {
    put(list, "dt", {}, name);
    put(list, "dd", {}, typeof value === "string" ? value : JSON.stringify(value));
  }
}
const typing = (event) => event.target instanceof HTMLInputElement;

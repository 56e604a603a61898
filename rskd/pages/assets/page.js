"use strict";
// The data, the state of the page (which is its address), and elements made from text alone.

const DATA = JSON.parse(document.getElementById("data").textContent);

const state = {
  read() { return new URLSearchParams(location.hash.slice(1)); },
  get(key, otherwise = "") { return this.read().get(key) ?? otherwise; },
  list(key) { return this.get(key).split("|").filter(Boolean).map(decodeURIComponent); },
  set(changes) {
    const next = this.read();
    for (const [key, value] of Object.entries(changes)) {
      const text = Array.isArray(value) ? value.map(encodeURIComponent).join("|") : String(value ?? "");
      if (text) next.set(key, text); else next.delete(key);
    }
    location.hash = next.toString();
  },
};

// An element; children that are no elements become text.
function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key in element && typeof value === "boolean") element[key] = value;
    else if (value != null) element.setAttribute(key, value);
  }
  element.append(...children.flat().filter((child) => child != null));
  return element;
}

const box = (title, ...children) => h("section", {}, h("h2", {}, title), ...children);
const empty = (text, command) => h("p", { class: "empty" }, text + " ", command ? h("code", {}, command) : null);
const soft = (text) => h("p", { class: "soft" }, text);

function choice(label, key, options, chosen) {
  const select = h("select", { id: `choice-${key}`, "aria-label": label, onchange: (event) => state.set({ [key]: event.target.value }) });
  for (const [value, text] of options) select.append(h("option", { value, selected: value === chosen }, text));
  return h("label", {}, label, select);
}

const number = (value, digits = 4) =>
  value == null ? "" : Math.abs(value) >= 1e4 ? Math.round(value).toLocaleString("en") : String(+value.toPrecision(digits));
const percent = (value) => (value == null ? "" : (100 * value).toFixed(1) + " %");
const bytes = (value) => {
  if (value == null) return "";
  const unit = Math.min(4, Math.max(0, Math.floor(Math.log2(value || 1) / 10)));
  return `${number(value / 2 ** (10 * unit), 3)} ${["B", "KiB", "MiB", "GiB", "TiB"][unit]}`;
};
const duration = (seconds) =>
  seconds == null ? "" : seconds < 90 ? `${number(seconds, 3)} s` : seconds < 5400 ? `${Math.round(seconds / 60)} min`
    : `${(seconds / 3600).toFixed(1)} h`;
const date = (seconds) => (seconds ? new Date(1000 * seconds).toISOString().slice(0, 16).replace("T", " ") : "");
const key = (row) => `${row.distillation}/${row.name}`;

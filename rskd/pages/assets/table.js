// A table that is filtered, sorted and paged; which rows are selected, and all the rest, is in the address.

const PAGE = 25;

// columns: {label, value(row), text(value, row), kind: "number", "long" (wraps) or "clipped" (whole on hover)}; options: {name, selectable, most}
function table(rows, columns, { name, selectable = false, most = 8 }) {
  const query = state.get("q").toLowerCase().split(/\s+/).filter(Boolean);
  const haystack = (row) => columns.map((column) => String(column.value(row) ?? "")).join(" ").toLowerCase();
  const found = query.length ? rows.filter((row) => { const all = haystack(row); return query.every((q) => all.includes(q)); }) : rows;
  const by = Number(state.get(`${name}.sort`, "-1")), down = state.get(`${name}.down`) === "1";
  const sorted = by < 0 || !columns[by] ? found : [...found].sort((a, b) => compare(columns[by].value(a), columns[by].value(b), down));
  const last = Math.max(0, Math.ceil(sorted.length / PAGE) - 1);
  const page = Math.min(last, Number(state.get(`${name}.page`, "0")));
  const selected = new Set(state.list("sel"));
  const head = columns.map((column, index) => {
    const order = index === by ? (down ? "descending" : "ascending") : "none";
    const mark = { ascending: " ▲", descending: " ▼", none: "" }[order];
    const click = () => state.set({ [`${name}.sort`]: index, [`${name}.down`]: index === by && !down ? "1" : "" });
    return h("th", { class: column.kind === "number" ? "number" : null, "aria-sort": order, scope: "col" }, h("button", { id: `${name}-sort-${index}`, onclick: click }, column.label + mark));
  });
  const body = sorted.slice(page * PAGE, (page + 1) * PAGE).map((row) => {
    const cells = columns.map((column) => {
      const value = column.value(row);
      const shown = column.text ? column.text(value, row) : value ?? "";
      return h("td", { class: column.kind, title: column.kind === "clipped" ? value : null }, shown);
    });
    if (selectable) cells.unshift(h("td", {}, checkbox(row, selected, most)));
    return h("tr", {}, cells);
  });
  if (selectable) head.unshift(h("th", { scope: "col" }, ""));
  const turn = (to, text) => h("button", { onclick: () => state.set({ [`${name}.page`]: to || "" }), disabled: to < 0 || to > last }, text);
  const pages = last ? [turn(page - 1, "‹"), `${page + 1} of ${last + 1}`, turn(page + 1, "›")] : [];
  const clear = selected.size ? h("button", { onclick: () => state.set({ sel: "" }) }, `clear ${selected.size} selected`) : null;
  const count = found.length === rows.length ? `${rows.length}` : `${found.length} of ${rows.length}`;
  return {
    rows: sorted,
    element: h("div", {},
      h("div", { class: "controls" }, filterBox(), h("small", {}, count), ...pages, clear),
      h("div", { class: "wide" }, h("table", {}, h("thead", {}, h("tr", {}, head)), h("tbody", {}, body)))),
  };
}

function checkbox(row, selected, most) {
  const id = key(row);
  const change = (event) => {
    const next = state.list("sel").filter((one) => one !== id);
    if (event.target.checked) next.push(id);
    state.set({ sel: next.slice(-most) });
  };
  return h("input", { type: "checkbox", id: `select-${id}`, "aria-label": `select ${id}`, checked: selected.has(id), onchange: change });
}

function filterBox() {
  const input = h("input", { type: "search", id: "filter", placeholder: "filter ( / )", "aria-label": "Filter", value: state.get("q") });
  let timer;
  input.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(() => state.set({ q: input.value }), 250); });
  return input;
}

function compare(a, b, down) {
  if (a == null || b == null) return (a == null) - (b == null); // what is unknown comes last
  const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  return down ? -order : order;
}

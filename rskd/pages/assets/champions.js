// The registry: every version with the verdict of its gate and the ledger behind it.

function championsView() {
  if (!DATA.champions.length) return [empty("No student was registered yet:", "python -m flows.retrain CONFIG.yaml"), ...DATA.notes.map(soft)];
  const columns = [
    { label: "model", value: (row) => row.model },
    { label: "version", kind: "number", value: (row) => row.version },
    { label: "now", value: (row) => row.aliases.join(", ") },
    { label: "verdict", value: (row) => row.verdict },
    { label: "reason", value: (row) => row.reason, text: reasonCell, kind: "long" },
    { label: "judged against", value: (row) => row.against },
    { label: "registered", value: (row) => row.created, text: date },
  ];
  return [box("Champions", table(DATA.champions, columns, { name: "r" }).element, soft("Each version of the registry with the verdict of its gate; the newest first."))];
}

// Why, and on demand the row of each metric.
function reasonCell(reason, { ledger }) {
  if (!ledger.length) return reason ?? "";
  const cells = (row) => [
    METRICS[row.metric]?.short ?? row.metric, number(row.champion), number(row.challenger), number(row.difference, 3),
    row.low == null ? "" : `${number(row.low, 3)} to ${number(row.high, 3)}`, number(row.margin, 3), row.verdict,
  ];
  const head = ["metric", "champion", "challenger", "difference", "95% interval", "margin", "verdict"];
  const line = (tag, texts) => h("tr", {}, texts.map((one) => h(tag, {}, one)));
  return h("details", {}, h("summary", {}, reason), h("table", {}, h("thead", {}, line("th", head)), h("tbody", {}, ledger.map((row) => line("td", cells(row))))));
}

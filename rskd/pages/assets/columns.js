// Cells and columns that several views share; figures of a student are those of its evaluation.

const stateCell = (value, row) => h("span", { class: `state ${value}` }, value + (row.reason ? `: ${row.reason}` : ""));
const link = (view, changes, text) => {
  const to = new URLSearchParams({ view, ...changes });
  return h("a", { href: `#${to}` }, text);
};
const metricColumn = (metric, text) => ({
  label: `${METRICS[metric].short} ${METRICS[metric].better > 0 ? "↑" : "↓"}`,
  kind: "number",
  value: (row) => row.measured?.[metric],
  text: (value, row) => (value == null ? "" : h("span", {}, text(value), errorOf(row.measured, metric, text))),
});
const errorOf = (measured, metric, text) => (measured.standard_error?.[metric] ? h("small", {}, ` ± ${text(measured.standard_error[metric])}`) : "");
// What a stage held: GPUs where it had any, else cores.
const held = (cost) => (cost == null ? null : cost.gpu_seconds || cost.core_seconds);
const heldText = (value, cost) => (cost == null ? "" : `${number(value / 3600, 3)} ${cost.gpu_seconds ? "GPU" : "core"}-hours`);
const costColumn = (label, of) => ({ label, kind: "number", value: (row) => held(of(row)), text: (value, row) => heldText(value, of(row)) });
const METRIC_COLUMNS = [
  metricColumn("lm_loss", (value) => value.toFixed(4)),
  metricColumn("kl_to_teacher", (value) => value.toFixed(4)),
  metricColumn("ece", percent),
  metricColumn("acceptance", percent),
  metricColumn("top1_agreement", percent),
];

// The selected rows of these, or the first few of those that are listed.
function chosenRows(rows, listed, few) {
  const selected = new Set(state.list("sel"));
  const chosen = rows.filter((row) => selected.has(key(row)));
  return chosen.length ? chosen : listed.slice(0, few);
}

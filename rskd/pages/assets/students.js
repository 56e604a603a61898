// Students: a table, and any selection of them overlaid.

function students() {
  if (!DATA.students.length) return [empty("There is no student yet:", "rskd train CONFIG.yaml")];
  const columns = [
    { label: "student", value: key },
    { label: "state", value: (row) => row.state, text: stateCell },
    { label: "objective", value: (row) => row.objective },
    { label: "targets", value: (row) => row.targets },
    { label: "seed", kind: "number", value: (row) => row.seed },
    { label: "tokens", kind: "number", value: (row) => row.tokens, text: (value) => value?.toLocaleString("en") ?? "" },
    ...METRIC_COLUMNS,
    ...(DATA.students.some((row) => row.measured?.downstream != null)
      ? [{ label: "downstream ↑", kind: "number", value: (row) => row.measured?.downstream, text: (value) => number(value, 4) }] : []),
    { label: "tokens/s", kind: "number", value: (row) => row.tokens_per_s, text: (value) => number(value, 4) },
    costColumn("cost", (row) => row.cost),
    { label: "time", kind: "number", value: (row) => row.seconds, text: duration },
  ];
  const listed = table(DATA.students, columns, { name: "s", selectable: true });
  const shown = chosenRows(DATA.students, listed.rows, 6);
  const measured = shown.filter((one) => one.measured);
  const against = state.get("x", "tokens"), metric = state.get("m", "kl_to_teacher");
  const withWindows = measured.filter((one) => one.measured.windows);
  const baseline = withWindows.find((one) => key(one) === state.get("base")) ?? withWindows[0];
  const first = measured.length ? box("Figures", figures(measured, shown), soft("On the held-out windows, with 95% intervals over them where they are known. Arrows point to better.")) : null;
  const parts = [
    box("Learning curves", choice("against", "x", [["tokens", "tokens"], ["seconds", "time"]], against), learningCurves(shown, against),
      soft("Losses of different objectives are not comparable: that of KD contains the entropy of its targets.")),
  ];
  const binned = measured.filter((one) => one.measured.reliability);
  if (binned.length) {
    parts.push(box("Calibration", reliability(binned, shown), soft("On the dotted line a model is calibrated, below it over-confident. Larger points hold more tokens.")));
    parts.push(box("Calibration by confidence", calibrationGaps(binned, shown), soft("Accuracy less confidence, ± one standard error; where it is below 0, the student claims more than it holds.")));
  }
  const scored = measured.filter((one) => one.measured.tasks);
  if (scored.length) parts.push(box("Downstream tasks", scores(scored)));
  if (withWindows.length > 1) {
    parts.push(box("Difference to a baseline",
      h("div", { class: "controls" },
        choice("baseline", "base", withWindows.map((one) => [key(one), key(one)]), key(baseline)),
        choice("metric", "m", ["lm_loss", "kl_to_teacher", "acceptance"].map((one) => [one, METRICS[one].short]), metric)),
      differences(shown, baseline, metric),
      soft("Mean of the differences window by window, and its 95% interval. Only students on the same held-out windows, beside the same teacher, are compared.")));
  } else if (measured.length) parts.push(box("Difference to a baseline", empty("Select two students of one evaluation.")));
  return [box("Students", listed.element, soft("Select up to eight to overlay; else the first six of the list are shown.")), first, h("div", { class: "grid" }, parts)].filter(Boolean);
}

function scores(scored) {
  const tasks = [...new Set(scored.flatMap((one) => Object.keys(one.measured.tasks)))];
  const cell = (metrics) => h("td", { class: "number" }, metrics
    ? Object.entries(metrics).map(([name, { value, standard_error: error }]) => `${name} ${number(value)}${error ? ` ± ${number(error, 2)}` : ""}`).join(", ") : "");
  const head = h("tr", {}, ["student", ...tasks].map((name) => h("th", { scope: "col" }, name)));
  const rows = scored.map((one) => h("tr", {}, h("td", {}, key(one)), tasks.map((task) => cell(one.measured.tasks[task]))));
  return h("div", { class: "wide" }, h("table", {}, h("thead", {}, head), h("tbody", {}, rows)));
}

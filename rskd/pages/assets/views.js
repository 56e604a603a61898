// A view is a function from the address to elements; figures of a student are those of its evaluation.

const LABELS = DATA.labels;

const COMPARABLE = new Map(DATA.evaluations.map((one) => [one.distillation, one]));
for (const student of DATA.students) student.comparable = COMPARABLE.get(student.distillation)?.comparable;
const stateCell = (value, row) => h("span", { class: `state ${value}` }, value + (row.reason ? `: ${row.reason}` : ""));
const link = (view, changes, text) => {
  const to = new URLSearchParams({ view, ...changes });
  return h("a", { href: `#${to}` }, text);
};
const metricColumn = (metric, text) => ({
  label: `${METRICS[metric].short} ${METRICS[metric].better > 0 ? "↑" : "↓"}`,
  number: true,
  value: (row) => row.measured?.[metric],
  text: (value, row) => (value == null ? "" : text(value) + errorOf(row.measured, metric, text)),
});
const errorOf = (measured, metric, text) => (measured.standard_error?.[metric] ? ` ± ${text(measured.standard_error[metric])}` : "");
const METRIC_COLUMNS = [
  metricColumn("lm_loss", (value) => value.toFixed(4)),
  metricColumn("kl_to_teacher", (value) => value.toFixed(4)),
  metricColumn("ece", percent),
  metricColumn("acceptance", percent),
  metricColumn("top1_agreement", percent),
];

function overview() {
  if (!DATA.distillations.length) return [empty(`Nothing was distilled under ${DATA.root} yet:`, "rskd pack CONFIG.yaml, or make demo")];
  const best = new Map();
  for (const one of DATA.students) {
    const known = best.get(one.distillation);
    if (one.measured && (!known || one.measured.lm_loss < known.measured.lm_loss)) best.set(one.distillation, one);
  }
  const stage = (row, name) => row.stages.find((one) => one.stage === name) ?? { state: "missing", reason: "" };
  const stageColumn = (name) => ({
    label: name,
    value: (row) => stage(row, name).state,
    text: (value, row) => {
      const { reason, done, of } = stage(row, name);
      const several = of > 1 ? ` ${done} of ${of}` : "";
      return h("span", { class: `state ${value}` }, value + several + (reason ? `: ${reason}` : ""));
    },
  });
  const figure = (metric, text) => ({
    label: METRICS[metric].short, number: true,
    value: (row) => best.get(row.name)?.measured[metric], text: (value) => (value == null ? "" : text(value)),
  });
  const columns = [
    { label: "distillation", value: (row) => row.name, text: (value) => link("students", { q: value }, value) },
    { label: "teacher", value: (row) => row.teacher && [row.teacher.split("/").pop(), row.dtype].filter(Boolean).join(", ") },
    { label: "corpus", value: (row) => row.source },
    ...["pack", "cache", "train", "evaluate"].map(stageColumn),
    { label: "best student", value: (row) => best.get(row.name)?.name },
    figure("lm_loss", (value) => value.toFixed(4)), figure("kl_to_teacher", (value) => value.toFixed(4)), figure("ece", percent), figure("acceptance", percent),
    ...(DATA.distillations.some((row) => row.error || row.failed) ? [{ label: "last failure", value: (row) => row.error ?? (row.failed ? `${row.failed.stage} ${row.failed.status}, ${date(row.failed.ended)}` : ""), long: true }] : []),
    { label: "written", value: (row) => row.modified, text: date },
  ];
  const rows = [...DATA.distillations].sort((a, b) => (b.modified ?? 0) - (a.modified ?? 0));
  return [
    box("Distillations", table(rows, columns, { name: "d" }).element,
      soft("Figures are those of the student with the least LM loss on the held-out windows. Stale: made from something that has changed since.")),
  ];
}

function caches() {
  if (!DATA.caches.length) return [empty("There is no cache yet:", "rskd cache CONFIG.yaml")];
  const columns = [
    { label: "cache", value: key },
    { label: "state", value: (row) => row.state, text: stateCell },
    { label: "targets", value: (row) => row.targets },
    { label: "tokens", number: true, value: (row) => row.tokens, text: (value) => value?.toLocaleString("en") ?? "" },
    { label: "size", number: true, value: (row) => row.bytes, text: bytes },
    { label: "bytes\na token", number: true, value: (row) => row.bytes_per_token, text: (value) => number(value, 4) },
    { label: "unique tokens\na position", number: true, value: (row) => row.unique_per_token, text: (value) => number(value, 4) },
    { label: "teacher's loss,\nnats/token", number: true, value: (row) => row.teacher_lm_loss, text: (value) => number(value, 4) },
    { label: "generation", number: true, value: (row) => row.generation },
    { label: "teacher", value: (row) => row.teacher.model && `${row.teacher.model.split("/").pop()}, ${row.teacher.dtype}` },
    { label: "students", value: (row) => row.students?.join(", "), long: true },
  ];
  const listed = table(DATA.caches, columns, { name: "c", selectable: true });
  const shown = chosenRows(DATA.caches, listed.rows, 4);
  const names = Object.keys(LABELS).filter((name) => shown.some((cache) => cache.histograms?.[name]));
  return [
    box("Caches", listed.element),
    h("div", { class: "grid" }, names.map((name) => box(`Positions by ${LABELS[name]}`, histograms(shown, name, LABELS[name])))),
  ];
}

function students() {
  if (!DATA.students.length) return [empty("There is no student yet:", "rskd train CONFIG.yaml")];
  const columns = [
    { label: "student", value: key },
    { label: "state", value: (row) => row.state, text: stateCell },
    { label: "objective", value: (row) => row.objective },
    { label: "targets", value: (row) => row.targets },
    { label: "seed", number: true, value: (row) => row.seed },
    { label: "tokens", number: true, value: (row) => row.tokens, text: (value) => value?.toLocaleString("en") ?? "" },
    ...METRIC_COLUMNS,
    ...(DATA.students.some((row) => row.measured?.downstream != null)
      ? [{ label: "downstream ↑", number: true, value: (row) => row.measured?.downstream, text: (value) => number(value, 4) }] : []),
    { label: "tokens/s", number: true, value: (row) => row.tokens_per_s, text: (value) => number(value, 4) },
    { label: "time", number: true, value: (row) => row.seconds, text: duration },
  ];
  const listed = table(DATA.students, columns, { name: "s", selectable: true });
  const shown = chosenRows(DATA.students, listed.rows, 6);
  const measured = shown.filter((one) => one.measured);
  const against = state.get("x", "tokens"), metric = state.get("m", "kl_to_teacher");
  const withWindows = measured.filter((one) => one.measured.windows);
  const baseline = withWindows.find((one) => key(one) === state.get("base")) ?? withWindows[0];
  const parts = [
    box("Learning curves", choice("against", "x", [["tokens", "tokens"], ["seconds", "time"]], against), learningCurves(shown, against),
      soft("Losses of different objectives are not comparable: that of KD contains the entropy of its targets.")),
  ];
  if (measured.length) parts.push(box("Calibration", reliability(shown), soft("On the dotted line a model is calibrated, below it over-confident. Larger points hold more tokens.")));
  if (withWindows.length > 1) {
    parts.push(box("Difference to a baseline",
      h("div", { class: "controls" },
        choice("baseline", "base", withWindows.map((one) => [key(one), key(one)]), key(baseline)),
        choice("metric", "m", ["lm_loss", "kl_to_teacher", "acceptance"].map((one) => [one, METRICS[one].short]), metric)),
      differences(shown, baseline, metric),
      soft("Mean of the differences window by window, and its 95% interval. Only students on the same held-out windows, beside the same teacher, are compared.")));
  } else if (measured.length) parts.push(box("Difference to a baseline", empty("Select two students of one evaluation.")));
  return [box("Students", listed.element, soft("Select up to eight to overlay; else the first six of the list are shown.")), h("div", { class: "grid" }, parts)];
}

const AXES = {
  bytes_per_token: { label: "bytes a token in the cache", of: (cache) => cache.bytes_per_token },
  unique_per_token: { label: "unique tokens a position in the cache", of: (cache) => cache.unique_per_token },
};

function frontierView() {
  const groups = new Map();
  for (const student of DATA.students) {
    if (!student.measured || student.state !== "done") continue;
    if (!groups.has(student.comparable)) groups.set(student.comparable, []);
    groups.get(student.comparable).push(student);
  }
  if (!groups.size) return [empty("No student was evaluated yet:", "rskd evaluate CONFIG.yaml")];
  const largest = [...groups.keys()].sort((a, b) => groups.get(b).length - groups.get(a).length);
  const group = groups.has(state.get("g")) ? state.get("g") : largest[0];
  const x = AXES[state.get("fx")] ? state.get("fx") : "bytes_per_token";
  const metric = METRICS[state.get("fy")] ? state.get("fy") : "kl_to_teacher";
  const byName = new Map(DATA.caches.map((cache) => [key(cache), cache]));
  const points = groups.get(group).flatMap((student) => {
    const cache = byName.get(`${student.distillation}/${student.cache}`);
    if (student.method && !cache) return [];
    return [{
      x: student.method ? AXES[x].of(cache) : 0, y: student.measured[metric], error: student.measured.standard_error?.[metric],
      method: student.method ?? "labels", label: `${key(student)}: ${student.targets}`,
    }];
  }).filter((point) => point.x != null);
  const title = (id) => {
    const names = [...new Set(groups.get(id).map((one) => one.distillation))];
    const windows = DATA.evaluations.find((one) => one.comparable === id).windows;
    return `${names.slice(0, 2).join(", ")}${names.length > 2 ? ` and ${names.length - 2} more` : ""}: ${groups.get(id).length} students, ${windows} windows`;
  };
  return [
    box("What a byte buys",
      h("div", { class: "controls" },
        choice("evaluated alike", "g", largest.map((id) => [id, title(id)]), group),
        choice("x", "fx", Object.entries(AXES).map(([id, axis]) => [id, axis.label]), x),
        choice("y", "fy", Object.entries(METRICS).map(([id, one]) => [id, one.label]), metric)),
      frontier(points, AXES[x].label, metric),
      soft("Students that were evaluated on the same windows beside the same teacher; ± one standard error. Those of cross-entropy read no cache: they stand at 0. On the dotted line no other student is both cheaper and better.")),
  ];
}

function championsView() {
  if (!DATA.champions.length) return [empty("No student was registered yet:", "python -m flows.retrain CONFIG.yaml"), ...DATA.notes.map(soft)];
  const columns = [
    { label: "model", value: (row) => row.model },
    { label: "version", number: true, value: (row) => row.version },
    { label: "now", value: (row) => row.aliases.join(", ") },
    { label: "verdict", value: (row) => row.verdict },
    { label: "reason", value: (row) => row.reason, long: true },
    { label: "judged against", value: (row) => row.against },
    { label: "registered", value: (row) => row.created, text: date },
  ];
  return [box("Champions", table(DATA.champions, columns, { name: "r" }).element, soft("Each version of the registry with the verdict of its gate; the newest first."))];
}

// The selected rows of these, or the first few of those that are listed.
function chosenRows(rows, listed, few) {
  const selected = new Set(state.list("sel"));
  const chosen = rows.filter((row) => selected.has(key(row)));
  return chosen.length ? chosen : listed.slice(0, few);
}

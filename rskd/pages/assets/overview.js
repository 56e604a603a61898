// Every distillation: how far it is, what is stale, what failed last, its best student.

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
    label: METRICS[metric].short, kind: "number",
    value: (row) => best.get(row.name)?.measured[metric], text: (value) => (value == null ? "" : text(value)),
  });
  const columns = [
    { label: "distillation", value: (row) => row.name, text: (value) => link("students", { q: value }, value) },
    { label: "teacher", kind: "clipped", value: (row) => row.teacher && [row.teacher.split("/").pop(), row.dtype].filter(Boolean).join(", ") },
    { label: "corpus", kind: "clipped", value: (row) => row.source },
    ...["pack", "cache", "train", "evaluate"].map(stageColumn),
    { label: "best student", value: (row) => best.get(row.name)?.name },
    figure("lm_loss", (value) => value.toFixed(4)), figure("kl_to_teacher", (value) => value.toFixed(4)), figure("ece", percent), figure("acceptance", percent),
    ...(DATA.distillations.some((row) => row.error || row.failed) ? [{ label: "last failure", value: (row) => row.error ?? (row.failed ? `${row.failed.stage} ${row.failed.status}, ${date(row.failed.ended)}` : ""), kind: "long" }] : []),
    costColumn("cost", (row) => sumOf(Object.values(row.costs ?? {}))),
    { label: "written", value: (row) => row.modified, text: date },
  ];
  const rows = [...DATA.distillations].sort((a, b) => (b.modified ?? 0) - (a.modified ?? 0));
  return [
    box("Distillations", table(rows, columns, { name: "d" }).element,
      soft("Figures are those of the student with the least LM loss on the held-out windows. Stale: made from something that has changed since. Cost: what all stages held, whether busy or not.")),
  ];
}

function sumOf(costs) {
  if (!costs.length) return null;
  const sum = (key) => costs.reduce((total, cost) => total + cost[key], 0);
  return { core_seconds: sum("core_seconds"), gpu_seconds: sum("gpu_seconds") };
}

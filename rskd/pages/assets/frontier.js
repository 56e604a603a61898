// What a byte buys: students that were evaluated alike, by what their targets cost.

const AXES = {
  bytes_per_token: { label: "bytes a token in the cache", of: (cache) => cache.bytes_per_token },
  unique_per_token: { label: "unique tokens a position in the cache", of: (cache) => cache.unique_per_token },
  core_seconds: { label: "core-seconds of the teacher a million tokens", of: (cache) => perMillion(cache.cost, "core_seconds") },
  gpu_seconds: { label: "GPU-seconds of the teacher a million tokens", of: (cache) => perMillion(cache.cost, "gpu_seconds") },
};
const perMillion = (cost, key) => (cost?.tokens && cost[key] ? (1e6 * cost[key]) / cost.tokens : null);

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
  const ends = groups.get(group).filter((student) => student.kind === "full_kd");
  const byName = new Map(DATA.caches.map((cache) => [key(cache), cache]));
  const points = groups.get(group).flatMap((student) => {
    const cache = byName.get(`${student.distillation}/${student.cache}`);
    if (student.kind === "full_kd" || (student.method && !cache)) return [];
    return [{
      x: student.method ? AXES[x].of(cache) : 0, y: student.measured[metric], error: student.measured.standard_error?.[metric],
      method: student.method ?? "labels", label: `${key(student)}: ${student.targets}`,
    }];
  }).filter((point) => point.x != null);
  const title = (id) => {
    const names = [...new Set(groups.get(id).map((one) => one.distillation))];
    const { windows } = groups.get(id)[0];
    return `${names.slice(0, 2).join(", ")}${names.length > 2 ? ` and ${names.length - 2} more` : ""}: ${groups.get(id).length} students, ${windows} windows`;
  };
  return [
    box("What a byte buys",
      h("div", { class: "controls" },
        choice("evaluated alike", "g", largest.map((id) => [id, title(id)]), group),
        choice("x", "fx", Object.entries(AXES).map(([id, axis]) => [id, axis.label]), x),
        choice("y", "fy", Object.entries(METRICS).map(([id, one]) => [id, one.label]), metric)),
      frontier(points, ends, AXES[x].label, metric),
      soft("Students that were evaluated on the same windows beside the same teacher; ± one standard error. Those of cross-entropy read no cache: they stand at 0. Full KD needs all of the teacher's logits at each step: a line. On the dotted line no other student is both cheaper and better.")),
  ];
}


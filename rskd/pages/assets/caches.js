// Caches: what they hold, how they grew, whether they were checked, and who reads them.

// Of caches of conversations, where some tokens have no loss and so no targets.
const WITH_LOSS = [
  { label: "tokens with\na loss", kind: "number", value: (row) => row.loss_tokens ?? row.tokens, text: (value) => value?.toLocaleString("en") ?? "" },
  { label: "bytes a token\nwith a loss", kind: "number", value: (row) => row.bytes_per_loss_token ?? row.bytes_per_token, text: (value) => number(value, 4) },
];

function caches() {
  if (!DATA.caches.length) return [empty("There is no cache yet:", "rskd cache CONFIG.yaml")];
  const columns = [
    { label: "cache", value: key },
    { label: "state", value: (row) => row.state, text: stateCell },
    { label: "targets", value: (row) => row.targets },
    { label: "tokens", kind: "number", value: (row) => row.tokens, text: (value) => value?.toLocaleString("en") ?? "" },
    ...(DATA.caches.some((cache) => cache.masked) ? WITH_LOSS : []),
    { label: "size", kind: "number", value: (row) => row.bytes, text: bytes },
    { label: "bytes\na token", kind: "number", value: (row) => row.bytes_per_token, text: (value) => number(value, 4) },
    { label: "unique tokens\na position", kind: "number", value: (row) => row.unique_per_token, text: (value) => number(value, 4) },
    { label: "teacher's loss,\nnats/token", kind: "number", value: (row) => row.teacher_lm_loss, text: (value) => number(value, 4) },
    { label: "verified", value: (row) => row.checks?.verify?.checked, text: (value, row) => checkCell(row.checks?.verify) },
    { label: "audited", value: (row) => row.checks?.audit?.checked, text: (value, row) => checkCell(row.checks?.audit) },
    { label: "students", value: (row) => row.students?.join(", "), kind: "long" },
    { label: "teacher", kind: "clipped", value: (row) => row.teacher.model && `${row.teacher.model.split("/").pop()}, ${row.teacher.dtype}` },
    costColumn("cost of the\nteacher's pass", (row) => row.cost),
    { label: "generation", kind: "number", value: (row) => row.generation },
  ];
  const listed = table(DATA.caches, columns, { name: "c", selectable: true });
  const shown = chosenRows(DATA.caches, listed.rows, 4);
  const grown = shown.filter((cache) => cache.growth?.length > 1);
  const names = Object.keys(DATA.labels).filter((name) => shown.some((cache) => cache.histograms?.[name]));
  return [
    box("Caches", listed.element, soft("Select up to eight to overlay; else the first four of the list are shown. A check of an older generation says nothing of what came since.")),
    h("div", { class: "grid" }, grown.length ? box("Growth", growth(grown)) : null, names.map((name) => box(`Positions by ${DATA.labels[name]}`, histograms(shown, name, DATA.labels[name])))),
  ];
}

// The outcome of the last verify or audit, and when it was.
function checkCell(check) {
  if (!check) return soft("never");
  const outcome = check.ok ? "passed" : `failed: ${check.problems.join("; ")}`;
  const level = !check.ok ? "stale" : check.current ? "done" : "unfinished";
  return h("span", { class: `state ${level}` }, `${outcome}, ${date(check.checked)}${check.current ? "" : ", of an older generation"}`);
}

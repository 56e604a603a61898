// A held-out passage token by token: where does a student differ from its teacher, and what would each have said?

const SHADES = {
  kl: { label: "KL to the teacher", unit: "nats", color: "var(--warn)", of: (model, at) => model.kl[at], top: (values) => Math.max(0.5, quantile(values, 0.95)) },
  confidence: { label: "the student's confidence", unit: "", color: "var(--accent)", of: (model, at) => model.probabilities[at * model.width], top: () => 1 },
  loss: { label: "nats lost on the token against the teacher", unit: "nats", color: "var(--warn)", of: (model, at, teacher) => Math.log(Math.max(teacher.probability[at], 1e-3) / Math.max(model.probability[at], 1e-3)), top: (values) => Math.max(0.5, quantile(values, 0.95)) },
};
const FEW = 8;

function quantile(values, share) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? 0;
}

function tokens() {
  const distillations = Object.keys(DATA.passages);
  if (!distillations.length) return [empty("No passage was read yet:", "rskd evaluate CONFIG.yaml"), ...DATA.notes.map(soft)];
  const distillation = DATA.passages[state.get("of")] ? state.get("of") : distillations[0];
  const passage = DATA.passages[distillation];
  const names = Object.keys(passage.models).filter((name) => name !== "teacher");
  const student = names.includes(state.get("student")) ? state.get("student") : names[0];
  const windows = [...new Set(passage.windows)];
  const window = windows.includes(Number(state.get("window"))) ? Number(state.get("window")) : windows[0];
  const shade = SHADES[state.get("by")] ? state.get("by") : "kl";
  const teacher = modelOf(passage, "teacher"), model = modelOf(passage, student);
  const places = passage.windows.map((one, at) => at).filter((at) => passage.windows[at] === window);
  const values = places.map((at) => SHADES[shade].of(model, at, teacher));
  const worst = places.map((at, index) => ({ at, index })).sort((a, b) => model.kl[b.at] - model.kl[a.at]).slice(0, FEW);
  const chosen = Math.min(places.length - 1, Number(state.get("t", String(worst[0].index))));
  const detail = h("div", { class: "detail", "aria-live": "polite" });
  const show = (index) => detail.replaceChildren(...tokenDetail(passage, teacher, model, student, places[index]));
  show(chosen);
  const left = distillations.length < DATA.evaluations.length
    ? soft(`Passages of the ${distillations.length} newest of ${DATA.evaluations.length} evaluations; those of the others are in their folders, evaluation/passages-*.parquet.`) : null;
  return [
    box("Where the student differs",
      h("div", { class: "controls" },
        choice("distillation", "of", distillations.map((one) => [one, one]), distillation),
        choice("student", "student", names.map((one) => [one, one]), student),
        choice("window", "window", windows.map((one) => [String(one), String(one)]), String(window)),
        choice("shade", "by", Object.entries(SHADES).map(([id, one]) => [id, one.label]), shade),
        scale(SHADES[shade], values)),
      h("div", { class: "reading" }, text(passage, places, values, SHADES[shade], chosen, show), detail),
      soft("Each token is shaded by the prediction of it from the text before it. Point at one, or click into the text and use the arrow keys."), left),
    box("Largest differences here", differencesOf(passage, teacher, model, student, worst)),
  ];
}

const modelOf = (passage, name) => ({ ...passage.models[name], width: passage.models[name].likeliest.length / passage.windows.length });
const shadeOf = (value, shade, top) => `background: color-mix(in oklab, ${shade.color} ${Math.round(75 * Math.min(1, Math.max(0, value / top)))}%, transparent)`;

function scale(shade, values) {
  const top = shade.top(values);
  const bar = h("span", { class: "scale", style: `background: linear-gradient(to right, transparent, color-mix(in oklab, ${shade.color} 75%, transparent))` });
  return h("small", { class: "controls" }, "0", bar, `${number(top, 2)} ${shade.unit}`);
}

function text(passage, places, values, shade, chosen, show) {
  const top = shade.top(values);
  const spans = places.map((at, index) => h("span", {
    style: shadeOf(values[index], shade, top), "data-at": index, "aria-current": index === chosen ? "true" : null,
  }, passage.strings[passage.tokens[at]].replaceAll("\n", "⏎\n")));
  const at = (event) => event.target.closest("[data-at]")?.dataset.at;
  const move = (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    state.set({ t: Math.min(places.length - 1, Math.max(0, chosen + by)) });
  };
  return h("div", {
    class: "passage", id: "passage", tabindex: "0", role: "group", "aria-label": "Passage",
    onkeydown: move,
    onmouseover: (event) => at(event) != null && show(Number(at(event))),
    onmouseleave: () => show(chosen),
    onclick: (event) => at(event) != null && state.set({ t: at(event) }),
  }, spans);
}

const visible = (string) => string.replaceAll("\n", "⏎").replace(/^ /, "␣");

function tokenDetail(passage, teacher, model, student, at) {
  const token = passage.tokens[at];
  return [
    h("h3", {}, `${visible(passage.strings[token])}`),
    h("p", {}, `KL to the teacher ${number(model.kl[at], 3)} nats. The token itself: teacher ${percent(teacher.probability[at])}, ${student} ${percent(model.probability[at])}.`),
    h("div", { class: "pair" }, [["teacher", teacher], [student, model]].map(([name, one]) => likeliest(passage, name, one, at, token))),
  ];
}

function likeliest(passage, name, model, at, token) {
  const rows = Array.from({ length: model.width }, (_, rank) => at * model.width + rank).map((place) => {
    const share = model.probabilities[place], id = model.likeliest[place];
    const bar = h("span", { class: "bar", style: `width: ${(100 * share).toFixed(1)}%` });
    return h("tr", { class: id === token ? "hit" : null }, h("td", {}, visible(passage.strings[id])), h("td", { class: "share" }, bar), h("td", { class: "number" }, percent(share)));
  });
  return h("table", {}, h("caption", {}, name), h("tbody", {}, rows));
}

function differencesOf(passage, teacher, model, student, worst) {
  const first = (one, at) => `${visible(passage.strings[one.likeliest[at * one.width]])} ${percent(one.probabilities[at * one.width])}`;
  const before = (at) => {
    const start = Math.max(passage.windows.indexOf(passage.windows[at]), at - 8);
    return passage.tokens.slice(start, at).map((id) => passage.strings[id]).join("").replace(/\s+/g, " ");
  };
  const head = ["after", "token", "KL, nats", "teacher's likeliest", `likeliest of ${student}`];
  const rows = worst.map(({ at, index }) => h("tr", {},
    h("td", { class: "long" }, `…${before(at)}`),
    h("td", {}, h("button", { onclick: () => state.set({ t: index }) }, visible(passage.strings[passage.tokens[at]]))),
    h("td", { class: "number" }, number(model.kl[at], 3)), h("td", {}, first(teacher, at)), h("td", {}, first(model, at))));
  return h("div", { class: "wide" }, h("table", {}, h("thead", {}, h("tr", {}, head.map((one) => h("th", { scope: "col" }, one)))), h("tbody", {}, rows)));
}

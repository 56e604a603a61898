// Figures by Plotly, in the page's colours.

const PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]; // Okabe and Ito: safe for the colour-blind
const DASHES = ["solid", "dash", "dot"];
const SYMBOLS = { systematic: "circle", random: "diamond", top_k: "square", top_p: "cross", labels: "x" };

const METRICS = {
  lm_loss: { label: "LM loss, nats/token", short: "LM loss", better: -1 },
  kl_to_teacher: { label: "KL to the teacher, nats/token", short: "KL to teacher", better: -1 },
  ece: { label: "ECE", short: "ECE", better: -1 },
  acceptance: { label: "acceptance", short: "acceptance", better: 1 },
  top1_agreement: { label: "top-1 agreement", short: "top-1", better: 1 },
};

// Of the student or cache at a place among those that are shown: the same in every figure.
const style = (index) => ({ color: PALETTE[index % PALETTE.length], dash: DASHES[Math.floor(index / PALETTE.length) % DASHES.length] });
// Plotly reads a small part of HTML in names, and it must be none of theirs.
const plain = (text) => String(text).replace(/[&<>]/g, (sign) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[sign]);

function resolved(variable) {
  const probe = h("span", { style: `color: var(${variable})` });
  document.body.append(probe);
  const color = getComputedStyle(probe).color;
  probe.remove();
  return color;
}

const titled = ({ title = "", ...axis } = {}) => ({ ...axis, title: { text: title } });

// An element that is drawn once it is on the page.
function chart(label, traces, layout = {}) {
  const element = h("div", { class: "chart", role: "img", "aria-label": label });
  const ink = resolved("--ink"), line = resolved("--line");
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
  const whole = {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 13, color: ink },
    margin: { l: 60, r: 15, t: 15, b: 50 },
    height: 380,
    showlegend: true,
    legend: { orientation: "h", y: -0.28, yanchor: "top" },
    ...layout,
    xaxis: { ...axis, ...titled(layout.xaxis) },
    yaxis: { ...axis, ...titled(layout.yaxis) },
  };
  requestAnimationFrame(() => element.isConnected && Plotly.newPlot(element, traces, whole, { responsive: true, displayModeBar: false }));
  return element;
}

// A panel for each metric, a row for each student, ± 1.96 standard errors where they are known.
function figures(measured, shown) {
  const panels = ["lm_loss", "kl_to_teacher", "ece", "acceptance"];
  const traces = panels.flatMap((metric, panel) => measured.map((one) => {
    const { color } = style(shown.indexOf(one));
    const error = one.measured.standard_error?.[metric];
    return {
      x: [one.measured[metric]], y: [plain(key(one))], xaxis: `x${panel + 1}`, mode: "markers", showlegend: false, marker: { color, size: 10 },
      error_x: { type: "data", array: [1.96 * (error ?? 0)], color }, hovertemplate: "%{y}: %{x:.4g}<extra></extra>",
    };
  }));
  const axes = Object.fromEntries(panels.map((metric, panel) => {
    const title = `${METRICS[metric].short} ${METRICS[metric].better > 0 ? "↑" : "↓"}`;
    const shares = metric === "ece" || metric === "acceptance" ? { tickformat: ".1%" } : {};
    const axis = { domain: [panel * 0.255, panel * 0.255 + 0.235], gridcolor: resolved("--line"), zeroline: false, nticks: 5, tickangle: 0, ...shares };
    return panel ? [`xaxis${panel + 1}`, { ...axis, ...titled({ title }) }] : ["xaxis", { ...axis, title }];
  }));
  return chart("Figures", traces, { ...axes, yaxis: { autorange: "reversed" }, height: 110 + 34 * measured.length });
}

function learningCurves(shown, against) {
  const traces = shown.filter((one) => one.curve).map((one) => ({
    x: one.curve[against], y: one.curve.loss, name: plain(key(one)), mode: "lines", line: { ...style(shown.indexOf(one)), width: 2 },
  }));
  const title = against === "tokens" ? "training tokens" : "seconds of training";
  return chart("Learning curves", traces, { xaxis: { title, rangemode: "tozero" }, yaxis: { title: "training loss, nats/token" } });
}

// Bins of the reliability diagram that hold tokens.
const filled = (bins) => bins.count.map((count, bin) => bin).filter((bin) => bins.count[bin]);
// Larger for bins with more of the tokens.
function sizes(bins) {
  const total = bins.count.reduce((sum, count) => sum + count, 0);
  return filled(bins).map((bin) => 4 + 14 * Math.sqrt(bins.count[bin] / total));
}

function reliability(binned, shown) {
  const traces = binned.map((one) => {
    const bins = one.measured.reliability;
    const kept = filled(bins);
    return {
      x: kept.map((bin) => bins.confidence[bin]), y: kept.map((bin) => bins.accuracy[bin]),
      name: `${plain(key(one))}: ECE ${percent(one.measured.ece)}`, mode: "lines+markers",
      line: { ...style(shown.indexOf(one)), width: 2 }, marker: { size: sizes(bins) },
      text: kept.map((bin) => `${bins.count[bin].toLocaleString("en")} tokens`),
    };
  });
  const diagonal = { x: [0, 1], y: [0, 1], mode: "lines", line: { color: resolved("--soft"), dash: "dot" }, hoverinfo: "skip", showlegend: false };
  return chart("Reliability", [diagonal, ...traces], { xaxis: { title: "confidence", range: [0, 1] }, yaxis: { title: "accuracy", range: [0, 1] } });
}

function calibrationGaps(binned, shown) {
  const traces = binned.map((one) => {
    const { count, confidence, accuracy } = one.measured.reliability;
    const kept = filled(one.measured.reliability);
    const look = style(shown.indexOf(one));
    return {
      x: kept.map((bin) => confidence[bin]), y: kept.map((bin) => accuracy[bin] - confidence[bin]), name: plain(key(one)), mode: "lines+markers",
      line: { ...look, width: 2 }, marker: { size: sizes(one.measured.reliability) },
      error_y: { type: "data", array: kept.map((bin) => shareError(accuracy[bin], count[bin])), color: look.color, thickness: 1 },
    };
  });
  return chart("Calibration by confidence", traces, { xaxis: { title: "confidence", range: [0, 1] }, yaxis: { title: "accuracy − confidence", tickformat: "+.0%", zeroline: true } });
}

// Standard error of a share of so many tokens, wide for few of them (Agresti and Coull 1998).
function shareError(share, count) {
  const centre = (share * count + 2) / (count + 4);
  return Math.sqrt((centre * (1 - centre)) / (count + 4));
}

function growth(grown) {
  const traces = grown.map((cache, index) => ({
    x: cache.growth.map((one) => new Date(1000 * one.written)), y: cache.growth.map((one) => one.tokens), name: plain(key(cache)), mode: "lines+markers",
    line: { ...style(index), shape: "hv", width: 2 }, text: cache.growth.map((one) => `generation ${one.generation}: ${one.parts.toLocaleString("en")} parts, ${bytes(one.bytes)}`),
  }));
  return chart("Growth", traces, { xaxis: { title: "written" }, yaxis: { title: "tokens", rangemode: "tozero" } });
}

// Mean of the paired differences over tokens, and 1.96 standard errors of it, clustered by window: those of a ratio of sums.
function pairedDifference(values, baseline, tokens) {
  const windows = values.map((value, index) => ({ difference: value - baseline[index], tokens: tokens[index] }))
    .filter((one) => Number.isFinite(one.difference) && one.tokens > 0);
  const total = windows.reduce((sum, one) => sum + one.tokens, 0);
  const mean = windows.reduce((sum, one) => sum + one.tokens * one.difference, 0) / total;
  const squares = windows.reduce((sum, one) => sum + (one.tokens * (one.difference - mean)) ** 2, 0);
  const error = Math.sqrt((windows.length / (windows.length - 1)) * squares) / total;
  return { mean, interval: 1.96 * error, windows: windows.length };
}

function differences(shown, baseline, metric) {
  const compared = shown.filter((one) => one !== baseline && one.measured?.windows && one.comparable === baseline.comparable);
  const traces = compared.map((one) => {
    const own = one.measured.windows;
    const { mean, interval, windows } = pairedDifference(own[metric], baseline.measured.windows[metric], own.tokens);
    const { color } = style(shown.indexOf(one));
    return {
      x: [mean], y: [plain(key(one))], mode: "markers", showlegend: false, marker: { color, size: 11 },
      error_x: { type: "data", array: [interval], color },
      hovertemplate: `%{x:+.4g} ± ${number(interval, 3)}, ${windows} windows<extra></extra>`,
    };
  });
  const shapes = [{ type: "line", x0: 0, x1: 0, yref: "paper", y0: 0, y1: 1, line: { color: resolved("--soft"), dash: "dot" } }];
  const title = `${METRICS[metric].label}: difference to ${plain(key(baseline))}`;
  return chart("Paired differences", traces, { shapes, xaxis: { title }, yaxis: { autorange: "reversed" }, height: 120 + 40 * compared.length });
}

// Points that no other one beats in both: less x, and better y.
function pareto(points, better) {
  const sorted = [...points].sort((a, b) => a.x - b.x || better * (b.y - a.y));
  const line = [];
  for (const point of sorted) if (!line.length || better * (point.y - line.at(-1).y) > 0) line.push(point);
  return line;
}

function frontier(points, ends, x, metric) {
  const methods = [...new Set(points.map((point) => point.method))];
  const traces = methods.map((method) => {
    const own = points.filter((point) => point.method === method);
    const color = PALETTE[Object.keys(SYMBOLS).indexOf(method) % PALETTE.length];
    return {
      x: own.map((point) => point.x), y: own.map((point) => point.y), text: own.map((point) => plain(point.label)), name: method, mode: "markers",
      error_y: { type: "data", array: own.map((point) => point.error ?? 0), color, thickness: 1 }, marker: { color, symbol: SYMBOLS[method], size: 11 },
      hovertemplate: "%{text}<br>%{x:.4g}, %{y:.4g}<extra></extra>",
    };
  });
  const most = Math.max(1e-9, ...points.map((point) => point.x));
  const best = pareto(points, METRICS[metric].better);
  const line = { x: best.map((p) => p.x), y: best.map((p) => p.y), mode: "lines", name: "Pareto line", line: { color: resolved("--soft"), dash: "dot", shape: "hv" }, hoverinfo: "skip" };
  const shapes = ends.map((one) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: one.measured[metric], y1: one.measured[metric], line: { color: resolved("--soft"), width: 1 } }));
  const annotations = ends.map((one) => ({ xref: "paper", x: 1, xanchor: "right", y: one.measured[metric], yanchor: "bottom", showarrow: false, text: plain(key(one)) + ": full KD" }));
  return chart("Frontier", [line, ...traces], { shapes, annotations, xaxis: { title: x, range: [-0.03 * most, 1.06 * most] }, yaxis: { title: METRICS[metric].label }, height: 480 });
}

function histograms(caches, name, label) {
  const traces = caches.filter((cache) => cache.histograms?.[name]).map((cache, index) => {
    const { low, width, counts: kept } = cache.histograms[name], counts = [...kept, 0]; // the last bin ends, too
    const total = counts.reduce((sum, count) => sum + count, 0);
    return {
      x: counts.map((_, bin) => low + width * (name === "num_unique" ? bin : bin + 0.5)), y: counts.map((count) => count / total),
      name: plain(key(cache)), mode: "lines", line: { ...style(index), shape: "hvh", width: 2 },
    };
  });
  return chart(label, traces, { xaxis: { title: label }, yaxis: { title: "share of positions", tickformat: ".0%" } });
}

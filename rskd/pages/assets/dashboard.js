// The address says what is shown; every change of it draws the page anew.

const VIEWS = { overview: ["Overview", overview], caches: ["Caches", caches], students: ["Students", students], frontier: ["Frontier", frontierView], tokens: ["Tokens", tokens], champions: ["Champions", championsView] };

function draw() {
  const chosen = VIEWS[state.get("view")] ? state.get("view") : "overview";
  const focused = document.activeElement?.id, caret = focused === "filter" ? document.activeElement.selectionStart : null;
  document.getElementById("views").replaceChildren(...Object.entries(VIEWS).map(([view, [title]]) => {
    const to = new URLSearchParams({ view });
    return h("a", { href: `#${to}`, "aria-current": view === chosen ? "page" : null }, title);
  }));
  document.getElementById("view").replaceChildren(...VIEWS[chosen][1]());
  const again = focused && document.getElementById(focused);
  if (!again) return;
  again.focus({ preventScroll: true });
  if (caret !== null) again.setSelectionRange(caret, caret);
}

document.getElementById("made").textContent = `${DATA.root}, ${DATA.made}`;
addEventListener("hashchange", draw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
addEventListener("keydown", (event) => {
  if (event.key !== "/" || /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement?.tagName)) return;
  const filter = document.getElementById("filter");
  if (filter) { filter.focus(); event.preventDefault(); }
});
draw();

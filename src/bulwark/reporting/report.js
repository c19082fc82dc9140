"use strict";
(() => {
  const root = document.documentElement;

  // Light or dark: as the system says, until the switch is used.
  const theme = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const label = () => { theme.textContent = dark() ? "☀ light" : "☾ dark"; };
  theme.hidden = false;
  theme.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    label();
    remember();
  });
  system.addEventListener("change", label);

  // What each part of the page is about stands in its attributes; a part without one is about everything.
  const bar = document.getElementById("filter");
  const fields = [...bar.querySelectorAll("[name]")];
  const found = bar.querySelector("output");
  for (const row of document.querySelectorAll(".measured tbody tr")) {
    const texts = [...row.cells].map((cell) => cell.textContent);
    Object.assign(row.dataset, { model: texts[0], recipe: texts[1], benchmark: texts[3] });
  }
  const parts = [...document.querySelectorAll("[data-model], [data-recipe], [data-benchmark]")];
  const columns = [...document.querySelectorAll("[data-column]")];
  const groups = [...document.querySelectorAll("[data-group]")].reverse(); // the inner ones first

  function matches(key, wanted, about) {
    if (!wanted || about === undefined) return true;
    const names = about.split(" ");
    if (key !== "recipe") return names.includes(wanted);
    const words = wanted.split(",").map((word) => word.trim()).filter(Boolean);
    return !words.length || words.some((word) => names.some((name) => name.includes(word)));
  }

  function apply() {
    const wanted = Object.fromEntries(fields.map((field) => [field.name, field.value.trim()]));
    const any = Object.values(wanted).some(Boolean);
    for (const part of parts) {
      part.hidden = !fields.every(({ name }) => matches(name, wanted[name], part.dataset[name]));
    }
    for (const head of columns) {
      const hidden = !matches("benchmark", wanted.benchmark, head.dataset.column);
      const place = head.cellIndex;
      head.hidden = hidden;
      for (const row of head.closest("table").querySelectorAll("tbody tr:not(.model)")) row.cells[place].hidden = hidden;
    }
    for (const group of groups) if (!parts.includes(group)) group.hidden = false;
    for (const group of any ? groups : []) {
      if (group.hidden) continue;
      const inside = [...group.querySelectorAll("[data-model]:not(.model), [data-recipe], [data-benchmark]")];
      const heads = [...group.querySelectorAll(":scope > .wide [data-column]")];
      const shown = inside.some((part) => !part.closest("[hidden]"));
      group.hidden = inside.length > 0 && (!shown || (heads.length > 0 && heads.every((head) => head.hidden)));
    }
    const measured = [...document.querySelectorAll(".measured tbody tr")];
    const left = measured.filter((row) => !row.hidden).length;
    found.textContent = any ? `${left} of ${measured.length} measurements` : "";
  }

  // The address keeps what was chosen, so that a link shows the same: #show?model=…&recipe=…&benchmark=…&theme=dark
  function remember() {
    const kept = new URLSearchParams(fields.filter(({ value }) => value.trim()).map(({ name, value }) => [name, value]));
    if (root.dataset.theme) kept.set("theme", root.dataset.theme);
    history.replaceState(null, "", kept.size ? `#show?${kept}` : "#");
  }
  function recall() {
    if (!location.hash.startsWith("#show?")) return;
    const kept = new URLSearchParams(location.hash.slice("#show?".length));
    for (const field of fields) field.value = kept.get(field.name) ?? "";
    if (["light", "dark"].includes(kept.get("theme"))) root.dataset.theme = kept.get("theme");
  }
  function changed() {
    apply();
    remember();
  }

  bar.hidden = false;
  for (const field of fields) field.addEventListener("input", changed);
  document.getElementById("everything").addEventListener("click", () => {
    for (const field of fields) field.value = "";
    changed();
  });
  addEventListener("hashchange", () => { recall(); label(); apply(); });
  recall();
  label();
  apply();
})();

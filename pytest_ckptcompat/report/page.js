"use strict";
// The page is whole without this script. It adds search, filters, and buttons.

const leaves = [...document.querySelectorAll("[data-key]")];
const modules = [...document.querySelectorAll(".tree details")];
const sections = [...document.querySelectorAll("section")];
const tools = document.getElementById("tools");
const box = document.getElementById("search");
const found = document.getElementById("found");
const openAtFirst = new Map(modules.map((module) => [module, module.open]));

// A pattern stands for many keys: "layers.{0-16,18-31}.w" is found by "layers.17" no more than it should be.
function pieces(pattern) {
  return (pattern.match(/\{\{|\}\}|\{[0-9,-]+\}|[^]/gu) || []).map((piece) => {
    if (!/^\{[0-9]/.test(piece)) return { text: piece[0] === "{" || piece[0] === "}" ? piece[0] : piece };
    return { runs: piece.slice(1, -1).split(",").map((run) => run.split("-").map(Number)) };
  });
}

function inRuns(runs, digits, whole) {
  const number = Number(digits);
  if (whole) return runs.some(([first, last = first]) => first <= number && number <= last);
  // The query ends inside a number: any number that begins with these digits will do.
  for (let low = number, high = number; ; low *= 10, high = high * 10 + 9) {
    if (runs.some(([first, last = first]) => first <= high && low <= last)) return true;
    if (low === 0 || low > 1e9) return false;
  }
}

function startsAt(parts, place, query) {
  for (let at = 0; at < query.length; place++) {
    const part = parts[place];
    if (part === undefined) return false;
    if (part.runs) {
      const digits = query.slice(at).match(/^[0-9]+/);
      if (!digits) return false;
      at += digits[0].length;
      if (!inRuns(part.runs, digits[0], at < query.length)) return false;
    } else {
      if (!query.startsWith(part.text, at)) return false;
      at += part.text.length;
    }
  }
  return true;
}

for (const leaf of leaves) {
  leaf.plain = leaf.dataset.key.toLowerCase();
  leaf.count = Number(leaf.dataset.count);
  leaf.parts = leaf.plain.includes("{") ? pieces(leaf.plain) : null;
}

const total = leaves.reduce((sum, leaf) => sum + leaf.count, 0);

function matches(leaf, query) {
  if (leaf.plain.includes(query)) return true;
  return leaf.parts !== null && leaf.parts.some((_, place) => startsAt(leaf.parts, place, query));
}

function off() {
  return new Set([...tools.querySelectorAll("[data-filter][aria-pressed=false]")].map((b) => b.dataset.filter));
}

function show() {
  const query = box.value.trim().toLowerCase();
  const hidden = off();
  let count = 0;
  for (const leaf of leaves) {
    leaf.hidden = hidden.has(leaf.dataset.rule) || (query !== "" && !matches(leaf, query));
    count += leaf.hidden ? 0 : leaf.count;
  }
  for (const module of modules) {
    const any = module.querySelector("[data-key]:not([hidden])") !== null;
    module.parentElement.hidden = !any;
    module.open = query === "" ? openAtFirst.get(module) : any;
  }
  found.textContent = `${count.toLocaleString("en")} of ${total.toLocaleString("en")} keys`;
  const state = new URLSearchParams();
  if (query) state.set("q", box.value.trim());
  if (hidden.size) state.set("hide", [...hidden].join(","));
  if (`${state}` || location.hash.includes("=")) {
    try { history.replaceState(null, "", `#${state}`); } catch { /* a sandboxed page has no history */ }
  }
}

function restore() {
  if (!location.hash.includes("=")) return;
  const state = new URLSearchParams(location.hash.slice(1));
  box.value = state.get("q") || "";
  const hidden = new Set((state.get("hide") || "").split(","));
  for (const button of tools.querySelectorAll("[data-filter]")) {
    button.setAttribute("aria-pressed", String(!hidden.has(button.dataset.filter)));
  }
}

let waiting = 0;
box.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(show, 80); });
for (const button of tools.querySelectorAll("[data-filter]")) {
  button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") === "false"));
    show();
  });
}
for (const button of tools.querySelectorAll("[data-open]")) {
  button.addEventListener("click", () => {
    for (const module of modules) module.open = button.dataset.open === "all";
  });
}
for (const button of document.querySelectorAll("[data-copy]")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(source.textContent);
      button.textContent = "copied";
    } catch {
      getSelection().selectAllChildren(source);
      button.textContent = "selected";
    }
  });
}
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && event.target !== box) { event.preventDefault(); box.focus(); }
  if (event.key === "Escape" && event.target === box) { box.value = ""; show(); }
});

tools.hidden = leaves.length === 0;
restore();
show();

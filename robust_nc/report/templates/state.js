// What the reader chose lies in the address after "#?", so that a link shows the same to others.
"use strict";
const form = document.getElementById("controls");
const boxes = [...form.querySelectorAll('input[name="column"]')];
const filters = [...form.querySelectorAll("select")];
const MOST_COMPARED = 12;

function emptyState() {
  return { q: "", filters: {}, sort: "", columns: null, compare: [] };
}

function readState() {
  const state = emptyState();
  if (!location.hash.startsWith("#?")) return state;
  const told = new URLSearchParams(location.hash.slice(2));
  state.q = (told.get("q") || "").slice(0, 200);
  for (const one of filters) {
    const value = told.get(one.name);
    if (value && [...one.options].some((option) => option.value === value)) {
      state.filters[one.name] = value;
    }
  }
  const sort = told.get("sort") || "";
  if (/^-?[a-z0-9_]+$/.test(sort)) state.sort = sort;
  if (told.has("columns")) {
    const known = new Set(boxes.map((one) => one.value));
    state.columns = told.get("columns").split(",").filter((key) => known.has(key));
  }
  const keys = (told.get("compare") || "").split(",").filter((key) => /^[0-9a-f]{8}$/.test(key));
  state.compare = [...new Set(keys)].slice(0, MOST_COMPARED);
  return state;
}

function writeState(state) {
  const told = new URLSearchParams();
  if (state.q) told.set("q", state.q);
  for (const [key, value] of Object.entries(state.filters)) told.set(key, value);
  if (state.sort) told.set("sort", state.sort);
  if (state.columns) told.set("columns", state.columns.join(","));
  if (state.compare.length) told.set("compare", state.compare.join(","));
  const text = told.toString().replaceAll("%2C", ",");
  const address = location.href.split("#")[0] + (text ? `#?${text}` : "");
  if (address !== location.href) history.replaceState(null, "", address);
}

function usualColumns() {
  return boxes.filter((one) => one.hasAttribute("data-usual")).map((one) => one.value);
}

function showInForm(state) {
  form.elements.q.value = state.q;
  for (const one of filters) one.value = state.filters[one.name] || "";
  const shown = new Set(state.columns || usualColumns());
  for (const one of boxes) one.checked = shown.has(one.value);
}

function takeFromForm(state) {
  state.q = form.elements.q.value.trim();
  state.filters = {};
  for (const one of filters) if (one.value) state.filters[one.name] = one.value;
  const shown = boxes.filter((one) => one.checked).map((one) => one.value);
  state.columns = shown.join() === usualColumns().join() ? null : shown;
}

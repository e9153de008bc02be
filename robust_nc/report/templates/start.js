// The page as the address asks for it, and the address as the reader changes the page.
"use strict";
let state = readState();
let last = null;

function show() {
  const shown = new Set(state.columns || usualColumns());
  hideColumns(new Set(boxes.map((one) => one.value).filter((key) => !shown.has(key))));
  if (last !== state.sort) for (const one of tables) sortTable(one, state.sort);
  last = state.sort;
  const counts = tables.map((one) => filterTable(one, state));
  const total = tables.reduce((sum, one) => sum + one.rows.length, 0);
  const found = counts.reduce((sum, one) => sum + one, 0);
  const words = found === 0 ? "No row matches" : `${found.toLocaleString("en")} of`;
  document.getElementById("count").textContent = found === 0
    ? `${words}; ${total.toLocaleString("en")} rows in all`
    : `${words} ${total.toLocaleString("en")} rows`;
  for (const heading of [document.getElementById("leaderboard"), document.getElementById("published")]) {
    if (heading) heading.classList.toggle("nothing", found === 0);
  }
  drawComparison(state, (key) => compare(key, false));
}

function checkRows() {
  for (const box of document.querySelectorAll("table.ours th input:checked")) box.checked = false;
  for (const row of chosenRows(state)) row.querySelector("th input").checked = true;
}

function change() {
  writeState(state);
  show();
}

function compare(key, wanted) {
  const others = state.compare.filter((one) => one !== key);
  state.compare = wanted ? [...others, key].slice(-MOST_COMPARED) : others;
  checkRows();
  change();
}

function takeAddress() {
  state = readState();
  showInForm(state);
  checkRows();
  show();
}

for (const one of tables) {
  makeSortable(one, (sort) => {
    state.sort = sort;
    change();
  });
}
let waiting = 0;
form.addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => {
    takeFromForm(state);
    change();
  }, 80);
});
form.addEventListener("submit", (event) => event.preventDefault());
document.getElementById("main").addEventListener("change", (event) => {
  const row = event.target.closest("table.ours tr");
  if (row) compare(row.id.slice(1), event.target.checked);
});
document.getElementById("reset").addEventListener("click", () => {
  state = { ...emptyState(), compare: state.compare };
  showInForm(state);
  change();
});
document.getElementById("clear").addEventListener("click", () => {
  state.compare = [];
  checkRows();
  change();
});
document.getElementById("show").addEventListener("click", () => {
  panel.scrollIntoView();
  document.getElementById("compare-title").focus();
});
window.addEventListener("hashchange", takeAddress);
takeAddress();

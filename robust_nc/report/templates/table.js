// Sorting and filtering: all tables that have the column, so that one address says it for the page.
"use strict";
const tables = [...document.querySelectorAll("table.sortable")].map((table) => {
  const headers = [...table.tHead.rows[0].cells];
  const keys = headers.map((one) => one.dataset.key);
  const rows = [...table.tBodies[0].rows];
  const usual = headers.findIndex((one) => one.hasAttribute("aria-sort"));
  return { table, headers, keys, rows, usual, section: table.closest("section"), texts: null };
});

function textsOf(one) {
  // Read once, when first asked for: opening the page must not wait for it.
  one.texts ||= new Map(one.rows.map((row) => [row, row.textContent.toLowerCase()]));
  return one.texts;
}

function valueOf(row, column, words) {
  const cell = row.cells[column];
  const text = cell.textContent.trim();
  if (words) return text === "-" ? null : text.toLowerCase();
  const value = Number(cell.dataset.v ?? text);
  return text === "" || Number.isNaN(value) ? null : value;
}

function sortTable(one, sort) {
  let column = one.keys.indexOf(sort.replace("-", ""));
  let order = sort.startsWith("-") ? "descending" : "ascending";
  let rows = one.rows;
  if (sort === "" || column < 0) {
    column = one.usual;
    order = one.headers[column].dataset.first;
  } else {
    const words = one.headers[column].classList.contains("w") || one.keys[column] === "model";
    const sign = order === "ascending" ? 1 : -1;
    const keyed = one.rows.map((row, place) => ({ row, place, key: valueOf(row, column, words) }));
    keyed.sort((a, b) => {
      if (a.key === null || b.key === null) {
        return (a.key === null) - (b.key === null) || a.place - b.place;
      }
      return (a.key < b.key ? -sign : a.key > b.key ? sign : 0) || a.place - b.place;
    });
    rows = keyed.map((found) => found.row);
  }
  one.headers.forEach((header, k) => {
    if (k === column) header.setAttribute("aria-sort", order);
    else header.removeAttribute("aria-sort");
  });
  const body = one.table.tBodies[0];
  if (rows.some((row, k) => body.rows[k] !== row)) body.append(...rows);
}

function filterTable(one, state) {
  const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
  const asked = Object.entries(state.filters);
  const cells = [];
  let open = true;
  for (const [key, value] of asked) {
    const column = one.keys.indexOf(key);
    if (key in one.section.dataset) open &&= one.section.dataset[key] === value;
    else if (column < 0) open = false;
    else cells.push([column, value]);
  }
  const texts = words.length ? textsOf(one) : null;
  let count = 0;
  for (const row of one.rows) {
    const shown = open
      && cells.every(([column, value]) => row.cells[column].textContent === value)
      && words.every((word) => texts.get(row).includes(word) || one.title.includes(word));
    if (row.hidden === shown) row.hidden = !shown;
    count += shown;
  }
  one.section.hidden = count === 0;
  return count;
}

function makeSortable(one, choose) {
  one.title = one.table.caption.querySelector("strong").textContent.toLowerCase();
  one.headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = header.textContent;
    button.setAttribute("aria-description", header.dataset.tip);
    header.removeAttribute("aria-description");
    header.removeAttribute("tabindex");
    header.replaceChildren(button);
    button.addEventListener("click", () => {
      const now = header.getAttribute("aria-sort");
      const other = now === "ascending" ? "descending" : "ascending";
      const order = now ? other : header.dataset.first;
      choose((order === "descending" ? "-" : "") + one.keys[column]);
    });
  });
}

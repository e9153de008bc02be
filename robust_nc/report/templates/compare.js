// Chosen models side by side, from what their rows say; text only, never markup.
"use strict";
const panel = document.getElementById("compare");
const bar = document.getElementById("chosen");
const SVG = "http://www.w3.org/2000/svg";

function element(name, text, scope) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (scope) made.scope = scope;
  return made;
}

function chosenRows(state) {
  return state.compare.map((key) => document.getElementById(`r${key}`)).filter(Boolean);
}

function drawn(name, values) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(values)) made.setAttribute(key, value);
  return made;
}

function whisker(text) {
  // "62.5 [62.0, 63.0]" as a line from 0 to 100 with its interval.
  const found = text.match(/^([\d.]+)(?: \[([\d.]+), ([\d.]+)\])?$/);
  if (!found) return null;
  const [value, low, high] = found.slice(1).map((one) => (one === undefined ? NaN : Number(one)));
  const svg = drawn("svg", { viewBox: "0 0 104 10", class: "whisker", "aria-hidden": "true" });
  svg.setAttribute("preserveAspectRatio", "xMinYMid");
  svg.append(drawn("line", { x1: 2, x2: 102, y1: 5, y2: 5, class: "axis" }));
  if (low <= high) svg.append(drawn("line", { x1: 2 + low, x2: 2 + high, y1: 5, y2: 5, class: "range" }));
  svg.append(drawn("circle", { cx: 2 + value, cy: 5, r: 1.5 }));
  return svg;
}

function comparedRow(one, column, rows) {
  const line = element("tr");
  line.append(element("th", one.headers[column].textContent, "row"));
  for (const row of rows) {
    const place = tables.find((other) => other.rows.includes(row));
    const found = place.keys.indexOf(one.keys[column]);
    const text = found < 0 ? "-" : row.cells[found].textContent;
    const cell = element("td", text);
    const picture = ["clean", "robust"].includes(one.keys[column]) ? whisker(text) : null;
    if (picture) cell.append(picture);
    line.append(cell);
  }
  return line;
}

function drawComparison(state, uncheck) {
  const rows = chosenRows(state);
  bar.hidden = rows.length === 0;
  document.getElementById("show").hidden = rows.length < 2;
  document.getElementById("chosen-count").textContent =
    rows.length === 1 ? "1 model chosen: choose another to compare" : `${rows.length} models chosen`;
  panel.hidden = rows.length < 2;
  const table = panel.querySelector("table");
  if (panel.hidden) return table.replaceChildren();
  const one = tables.find((other) => other.rows.includes(rows[0]));
  const sections = new Set(rows.map((row) => row.closest("section")));
  document.getElementById("compare-note").textContent = sections.size > 1
    ? "These models are not from one table: they were judged on other images, in another ball or by "
      + "other attacks, and their accuracies do not compare."
    : "Intervals that overlap do not decide; the rank does, and robust-nc compare A B, which pair "
      + "the models example by example.";
  const head = element("tr");
  head.append(element("th", "model", "col"));
  for (const row of rows) {
    const cell = element("th", undefined, "col");
    const remove = element("button", "remove");
    remove.type = "button";
    remove.setAttribute("aria-label", `remove ${row.querySelector("th").textContent}`);
    remove.addEventListener("click", () => uncheck(row.id.slice(1)));
    cell.append(row.querySelector("th a").cloneNode(true), remove);
    head.append(cell);
  }
  const facts = element("tr");
  facts.append(element("th", "table", "row"));
  for (const row of rows) {
    facts.append(element("td", row.closest("table").caption.querySelector("strong").textContent));
  }
  const top = element("thead"), body = element("tbody");
  top.append(head);
  const columns = one.keys.map((_, k) => k).filter((k) => one.keys[k] !== "model");
  body.append(facts, ...columns.map((column) => comparedRow(one, column, rows)));
  const caption = element("caption");
  caption.append(element("div", "Models side by side; lines run from 0 to 100 %"));
  return table.replaceChildren(caption, top, body);
}

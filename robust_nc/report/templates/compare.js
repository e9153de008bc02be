// Chosen models side by side, from what their rows say; text only, never markup.
"use strict";
const panel = document.getElementById("compare");
const bar = document.getElementById("chosen");
const MOST_NAMED = 12;
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

function withstood(row) {
  // Bits of the examples that a single model withstands, as they stand in hexadecimal digits.
  const digits = row.dataset.flags;
  return digits && [...digits].flatMap((one) => [8, 4, 2, 1].map((bit) => (parseInt(one, 16) & bit) > 0));
}

function alone(first, second) {
  const [one, other] = [withstood(first), withstood(second)];
  if (!one || !other) return "-";
  const places = one.flatMap((right, k) => (right && !other[k] ? [k] : []));
  const named = places.slice(0, MOST_NAMED).join(", ");
  const more = places.length > MOST_NAMED ? ", ..." : "";
  return places.length ? `${places.length}: number ${named}${more}` : "0";
}

function pairedP(first, second) {
  const { rows } = tables.find((one) => one.rows.includes(first));
  const [above, below] = [rows.indexOf(first), rows.indexOf(second)].sort((a, b) => a - b);
  return above < 0 ? "-" : (rows[below].dataset.p || "").split(" ")[above] || "-";
}

function difference(first, second) {
  const at = tables.find((one) => one.rows.includes(first)).keys.indexOf("robust");
  const points = valueOf(second, at) - valueOf(first, at);
  return `${points < 0 ? "" : "+"}${(100 * points).toFixed(1)} points`;
}

function pairedRows([first, ...others]) {
  // What only rows of one table have: each against the first.
  const told = [
    ["robust, minus the first", difference],
    ["p, paired", pairedP],
    ["it alone withstands", (one, other) => alone(other, one)],
    ["the first alone withstands", alone],
  ];
  return told.map(([name, tell]) => {
    const line = element("tr");
    line.append(element("th", name, "row"), element("td", "-"));
    line.append(...others.map((row) => element("td", tell(first, row))));
    return line;
  });
}

function pictures(rows) {
  // The figures of their pages: of one data set and ball these have the same axes.
  const drawn = rows.map((row) => (row.dataset.drawn || "").split(" ").filter(Boolean));
  return [...new Set(drawn.flat())].map((name) => {
    const line = element("tr");
    line.append(element("th", name.replaceAll("_", " "), "row"));
    line.append(...rows.map((row, k) => {
      const cell = element("td", drawn[k].includes(name) ? undefined : "-");
      if (drawn[k].includes(name)) {
        const image = element("img");
        image.src = `figures/${row.id.slice(1)}/${name}.png`;
        image.alt = `${name.replaceAll("_", " ")} of ${row.querySelector("th").textContent}`;
        cell.append(image);
      }
      return cell;
    }));
    return line;
  });
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
    : "p is of the paired test of these two alone, seed by seed or example by example; examples are "
      + "numbered from 0 in their official order. robust-nc compare A B --out FOLDER shows them.";
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
  body.append(...(sections.size > 1 ? [facts] : pairedRows(rows)), ...pictures(rows));
  body.append(...columns.map((column) => comparedRow(one, column, rows)));
  const caption = element("caption");
  caption.append(element("div", "Models side by side; lines run from 0 to 100 %"));
  return table.replaceChildren(caption, top, body);
}

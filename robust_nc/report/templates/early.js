// Before the tables are laid out: say that scripts run, and hide the columns that few ask for.
"use strict";
document.documentElement.classList.add("script");
const sheet = new CSSStyleSheet();
document.adoptedStyleSheets = [sheet];
const order = document.currentScript.dataset.columns.split(" ");
let hiddenColumns = "";
function hideColumns(keys) {
  const rules = order.flatMap((key, k) =>
    keys.has(key) ? [`table.ours tr > :nth-child(${k + 1}) { display: none }`] : []);
  const text = rules.join("\n");
  if (text !== hiddenColumns) sheet.replaceSync(hiddenColumns = text);
}
hideColumns(new Set(document.currentScript.dataset.extra.split(" ")));

// Pictures, the filters and the sorting of tables. The plots are Bokeh's.
"use strict";

for (const image of document.querySelectorAll("img[data-picture]")) {
  const uri = PICTURES[image.dataset.picture];
  if (uri) image.src = uri;
}

const classFilter = document.getElementById("filter-class");
const outcomeFilter = document.getElementById("filter-outcome");

function isChosen(name, outcome) {
  const text = classFilter.value.trim().toLowerCase();
  const wanted = outcomeFilter.value;
  return name.toLowerCase().includes(text) && (!wanted || !outcome || outcome === wanted);
}

function filterMap() {
  for (const plots of Bokeh.documents) {
    const source = plots.get_model_by_name("map");
    if (!source) continue;
    const { name, outcome } = source.data;
    const alpha = Float32Array.from(name, (text, place) => (isChosen(text, outcome[place]) ? 0.75 : 0.05));
    source.data = { ...source.data, alpha };
  }
}

function filterPage() {
  for (const item of document.querySelectorAll("[data-class]")) {
    item.hidden = !isChosen(item.dataset.class, item.dataset.outcome);
  }
  const rows = [...document.querySelectorAll(".row[data-outcome]")];
  const shown = rows.filter((row) => !row.hidden).length;
  document.getElementById("filter-status").textContent = `${shown} of the ${rows.length} queries on this page`;
  filterMap();
}

function filterAndStay() {
  filterPage();
  document.querySelector(".filters").scrollIntoView({ block: "nearest" }); // a shorter page may have moved away from it
}

classFilter.addEventListener("input", filterAndStay);
outcomeFilter.addEventListener("change", filterAndStay);
window.addEventListener("load", filterPage);

function sortBy(heading, kind) {
  const descending = heading.ariaSort === null ? kind === "number" : heading.ariaSort === "ascending";
  const body = heading.closest("table").tBodies[0];
  const column = heading.cellIndex;
  const texts = new Map(Array.from(body.rows, (row) => [row, row.cells[column].textContent]));
  const collator = new Intl.Collator(undefined, { numeric: true });
  const compare = kind === "number" ? (a, b) => a - b : collator.compare;
  const rows = [...texts].sort(([, a], [, b]) => (descending ? compare(b, a) : compare(a, b)));
  body.append(...rows.map(([row]) => row));
  for (const other of heading.parentElement.cells) other.ariaSort = null;
  heading.ariaSort = descending ? "descending" : "ascending";
}

for (const button of document.querySelectorAll("[data-sort]")) {
  button.addEventListener("click", () => sortBy(button.closest("th"), button.dataset.sort));
}

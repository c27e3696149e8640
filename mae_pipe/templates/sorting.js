"use strict";
// Tables of class "sortable": a click on a heading sorts by its column. The address says how, so a sorted table can be
// linked to: "#sort=runs.loss", or "#sort=-runs.loss" for the largest first. Empty cells stay last.
(() => {
  const valueOf = (row, column) => {
    const cell = row.cells[column];
    const text = cell.dataset.value ?? cell.textContent.trim();
    return text !== "" && isFinite(text) ? Number(text) : text;
  };
  const compare = (a, b) =>
    typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  const sort = (heading, descending) => {
    const table = heading.closest("table");
    const column = heading.cellIndex;
    for (const body of table.tBodies) {
      const rows = [...body.rows].map((row) => [valueOf(row, column), row]);
      rows.sort(([a], [b]) => (a === "") - (b === "") || (descending ? compare(b, a) : compare(a, b)));
      body.append(...rows.map(([, row]) => row));
    }
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
  };
  const follow = () => {
    const said = /^#sort=(-?)(.+)$/.exec(location.hash);
    const heading = said && document.querySelector(`th[data-key="${CSS.escape(said[2])}"]`);
    if (heading) sort(heading, said[1] === "-");
  };
  for (const heading of document.querySelectorAll("table.sortable th[data-key]")) {
    const button = document.createElement("button");
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const now = heading.getAttribute("aria-sort");
      // Numbers begin with the largest, words with A.
      const descending = now ? now === "ascending" : heading.classList.contains("number");
      location.replace(`#sort=${descending ? "-" : ""}${heading.dataset.key}`);
    });
  }
  addEventListener("hashchange", follow);
  follow();
})();

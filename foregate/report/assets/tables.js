"use strict";
// Sorts every table.board by the column whose heading is pressed: the best first, then the other way round. Buttons make
// it work from the keyboard, aria-sort tells screen readers. Knows nothing of what a table says.
(() => {
  const OTHER = { ascending: "descending", descending: "ascending" };

  /** Numbers by size, words by alphabet. */
  function compare(x, y) {
    const gap = Number(x) - Number(y);
    return Number.isNaN(gap) ? x.localeCompare(y) : gap;
  }

  /** Cells without a value stay last, whichever way it is sorted; rows that are alike stay as they were. */
  function sort(header) {
    const table = header.closest("table");
    const column = header.cellIndex;
    const direction = OTHER[header.getAttribute("aria-sort")] ?? header.dataset.first;
    const sign = direction === "ascending" ? 1 : -1;
    const value = (row) => row.cells[column].dataset.value;
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      return sign * compare(x, y);
    });
    for (const cell of table.tHead.rows[0].cells) cell.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", direction);
    table.tBodies[0].append(...rows);
  }

  for (const button of document.querySelectorAll("table.board thead button")) {
    button.addEventListener("click", () => sort(button.closest("th")));
  }
})();

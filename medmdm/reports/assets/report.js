"use strict";
// Sorting, filtering and opening of cases. The page is complete without it: nothing is computed or fetched here.
(() => {
  const table = document.getElementById("cases");
  if (!table) return;
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);

  // --- sorting: numbers by value, text by name, what is missing always last
  function value(row, column) {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent.trim() : cell.dataset.value;
  }
  function compare(a, b, numeric, sign) {
    if (a === "" || b === "") return (a === "") - (b === "");
    if (numeric) return sign * (Number(a) - Number(b) || 0);
    return sign * a.localeCompare(b, undefined, { numeric: true });
  }
  const headers = Array.from(table.tHead.rows[0].cells);
  headers.forEach((header, column) => {
    const button = header.querySelector("button");
    if (!button) return;
    const numeric = header.dataset.kind === "number";
    button.addEventListener("click", () => {
      const ascending = header.getAttribute("aria-sort") !== "ascending";
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const sign = ascending ? 1 : -1;
      rows.sort((a, b) => compare(value(a, column), value(b, column), numeric, sign));
      body.append(...rows);
    });
  });

  // --- filter by any text of a row
  const filter = document.getElementById("filter");
  const shown = document.getElementById("shown");
  filter.addEventListener("input", () => {
    const wanted = filter.value.trim().toLowerCase();
    let count = 0;
    rows.forEach((row) => {
      row.hidden = wanted !== "" && !row.textContent.toLowerCase().includes(wanted);
      count += row.hidden ? 0 : 1;
    });
    shown.textContent = `${count} of ${rows.length} shown`;
  });

  const dialog = document.getElementById("case-dialog");
  if (!dialog) return; // a comparison has none

  // --- a case in a dialog; the arrow keys go through the table in the order it is in
  const content = document.getElementById("case-content");
  const title = document.getElementById("case-title");
  let current = null;
  let opener = null;
  function show(number) {
    const template = document.getElementById(`case-${number}`);
    if (!template) return;
    current = String(number);
    content.replaceChildren(template.content.cloneNode(true));
    title.textContent = template.dataset.title;
    if (!dialog.open) {
      opener = document.activeElement;
      dialog.showModal();
    }
    dialog.scrollTop = 0;
  }
  function step(by) {
    const visible = rows.filter((row) => !row.hidden && row.dataset.case).map((row) => row.dataset.case);
    if (!visible.length) return;
    const place = visible.indexOf(current);
    show(visible[(place + by + visible.length) % visible.length]);
  }
  document.addEventListener("click", (event) => {
    const target = event.target.closest("[data-case]");
    if (target && !dialog.contains(target)) show(target.dataset.case);
  });
  document.getElementById("previous").addEventListener("click", () => step(-1));
  document.getElementById("next").addEventListener("click", () => step(1));
  document.getElementById("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
  dialog.addEventListener("keydown", (event) => {
    if (event.target instanceof HTMLInputElement) return;
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  dialog.addEventListener("close", () => {
    content.replaceChildren();
    if (opener && opener.focus) opener.focus();
  });
  document.querySelectorAll("[data-layer]").forEach((box) => {
    box.addEventListener("change", () => content.classList.toggle(`hide-${box.dataset.layer}`, !box.checked));
  });
})();

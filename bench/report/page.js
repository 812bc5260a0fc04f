// Sorts the rows of a table by a column: large first, small first, then as it was, groups and all.
const number = (text) => parseFloat((text.match(/[-−]?\d+(\.\d+)?/) || [""])[0].replace("−", "-"));
const value = (row, column) => {
  const cell = row.cells[column].cloneNode(true);
  cell.querySelectorAll("sup").forEach((mark) => mark.remove());
  return column ? number(cell.textContent) : cell.textContent;
};
for (const table of document.querySelectorAll(".report > table")) {
  const bodies = [...table.tBodies], rows = bodies.flatMap((body) => [...body.rows]);
  const heads = [...table.tHead.rows].at(-1).cells;
  const first = rows.find((row) => !row.matches(".group"))?.cells.length - heads.length;
  const sort = (head, column) => {
    const word = column ? ["descending", "ascending"] : ["ascending", "descending"];
    const next = word[word.indexOf(head.getAttribute("aria-sort")) + 1];
    for (const other of heads) other.removeAttribute("aria-sort");
    for (const row of rows) (row.original ??= row.parentNode).append(row);
    if (!next) return;
    head.setAttribute("aria-sort", next);
    const sign = next === "ascending" ? 1 : -1;
    const entries = rows.filter((row) => !row.matches(".group")).map((row) => ({ row, key: value(row, column) }));
    const missing = (entry) => Number.isNaN(entry.key);
    entries.sort((a, b) => missing(a) - missing(b) || sign * ((a.key > b.key) - (a.key < b.key)));
    bodies[0].append(...entries.map((entry) => entry.row));
  };
  [...heads].forEach((head, i) => {
    const button = document.createElement("button");
    button.title = "Sort by this column; a third time: as it was";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(head, first + i));
    head.append(button);
  });
}
// What a link leads to may be folded away, which not every browser unfolds by itself.
const reveal = () => {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let at = target; at; at = at.parentElement) if (at.matches("details")) at.open = true;
  target?.scrollIntoView();
};
addEventListener("hashchange", reveal);
if (location.hash) reveal();

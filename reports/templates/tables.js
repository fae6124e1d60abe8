// Tables: sorting, filtering, the rows that are left as CSV or JSON, and hints at hidden columns.
const rows = JSON.parse(document.getElementById("rows").textContent);
const sortable = [...document.querySelectorAll("table.sortable")];
const bodies = sortable.map((table) => table.tBodies[0]);
// The rows of the first table are those of the data, in the same order.
const dataOf = new Map([...(bodies[0]?.rows ?? [])].map((row, number) => [row, rows[number]]));

function sortKey(cell) {
  return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent.trim();
}

function compare(first, second) {
  const numbers = [typeof first === "number", typeof second === "number"];
  // What is not known stands last among numbers.
  if (numbers[0] !== numbers[1]) return numbers[0] ? -1 : 1;
  return numbers[0] ? first - second : first.localeCompare(second, "en", { numeric: true });
}

function sortBy(table, column) {
  const head = table.tHead.rows[0].cells[column];
  const rising = head.getAttribute("aria-sort") !== "ascending";
  for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", rising ? "ascending" : "descending");
  const known = (row) => "value" in row.cells[column].dataset;
  const sorted = [...table.tBodies[0].rows].sort((one, other) => {
    const order = compare(sortKey(one.cells[column]), sortKey(other.cells[column]));
    return rising || known(one) !== known(other) ? order : -order;
  });
  table.tBodies[0].append(...sorted);
}

function makeSortable(table) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sortBy(table, column));
    head.append(button);
    head.setAttribute("aria-sort", "none");
  });
}

function filterBy(text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  for (const body of bodies) {
    for (const row of body.rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
  }
  tell(words.length ? `${shownRows().length} of ${rows.length} rows` : "");
}

function shownRows() {
  return [...(bodies[0]?.rows ?? [])].filter((row) => !row.hidden).map((row) => dataOf.get(row));
}

// Characters that are not printed, as in records.csv.
function plain(text) {
  const escaped = (code) => (code < 256 ? `\\x${code.toString(16).padStart(2, "0")}` : `\\u${code.toString(16).padStart(4, "0")}`);
  return text.replace(/(?![\n\t\u200c\u200d])[\p{C}\p{Zl}\p{Zp}]/gu, (each) => escaped(each.codePointAt(0)));
}

// Text that a spreadsheet would run, as a cell or as what begins one when it is pasted, has an apostrophe before it.
function cellOf(value) {
  if (typeof value !== "string") return String(value ?? "");
  const text = plain(value).replace(/([;\t\n])(?=\s*[=+\-@\uff1d\uff0b\uff0d\uff20])/g, "$1'");
  const safe = /^(?:[\t\n]|\s*[=+\-@\uff1d\uff0b\uff0d\uff20])/.test(text) ? `'${text}` : text;
  return /[",;\t\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

function csvLines(lines) {
  return lines.map((cells) => `${cells.map(cellOf).join(",")}\n`).join("");
}

function csvOf(found) {
  const names = Object.keys(rows[0] ?? {});
  return csvLines([names, ...found.map((row) => names.map((name) => row[name]))]);
}

// A table as it is shown, with exact bytes for rounded sizes; a column of sizes says so.
function csvOfTable(table) {
  const body = [...table.tBodies[0].rows].map((row) => [...row.cells]);
  const heads = [...table.tHead.rows[0].cells].map((head, column) => {
    const isBytes = body.some((row) => "value" in row[column].dataset);
    return isBytes ? `${head.textContent.trim()}, bytes` : head.textContent.trim();
  });
  return csvLines([heads, ...body.map((row) => row.map((cell) => cell.dataset.value ?? cell.textContent.trim().replace(/\s+/g, " ")))]);
}

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Not every browser lets a page from the disk use the clipboard so.
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

function save(content, name, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function tell(text) {
  document.getElementById("message").textContent = text;
}

// A table that is wider than its box fades at the edge behind which there is more.
function hint(box) {
  box.classList.toggle("more", box.scrollLeft + box.clientWidth < box.scrollWidth - 1);
}

const boxes = [...document.querySelectorAll(".scroll")];
const widths = new ResizeObserver((entries) => entries.forEach(({ target }) => hint(target)));
for (const box of boxes) {
  widths.observe(box);
  box.addEventListener("scroll", () => hint(box), { passive: true });
}
document.addEventListener("redraw", () => boxes.forEach(hint));

sortable.forEach(makeSortable);
document.getElementById("filter")?.addEventListener("input", ({ target }) => filterBy(target.value));
document.getElementById("copy")?.addEventListener("click", async () => {
  const found = shownRows();
  await copyText(csvOf(found));
  tell(`${found.length} ${found.length === 1 ? "row" : "rows"} copied`);
});

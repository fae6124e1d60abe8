// Saving: figures as SVG and PNG, tables as CSV and the records' rows, all made in the page itself.
const figures = JSON.parse(document.getElementById("figures").textContent);
// Pixels of a PNG for each pixel of the screen: 300 an inch.
const DENSITY = 300 / 96;

async function unpacked(text) {
  const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

async function pngOf(svg) {
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svg)}`;
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(DENSITY * image.naturalWidth);
  canvas.height = Math.round(DENSITY * image.naturalHeight);
  const context = canvas.getContext("2d");
  context.fillStyle = "#ffffff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

async function saveFigure(name, form) {
  const svg = await unpacked(figures[name]);
  if (form === "svg") save(svg, `${name}.svg`, "image/svg+xml");
  else save(await pngOf(svg), `${name}.png`, "image/png");
}

function saveTable(button) {
  let section = button.closest("section");
  const name = section.querySelector("h2, h3[id]")?.id || "table";
  const box = button.closest(".tools").previousElementSibling;
  // Two graphs of the same numbers have one table, below the first.
  while (!section.querySelector("table")) section = section.previousElementSibling;
  const table = box?.matches(".scroll") ? box.querySelector("table") : section.querySelector("table");
  save(csvOfTable(table), `${name}.csv`, "text/csv");
}

document.addEventListener("click", ({ target }) => {
  const button = target.closest("button[data-save], button[data-rows]");
  if (!button) return;
  if (button.dataset.rows === "csv") save(csvOf(shownRows()), "records.csv", "text/csv");
  else if (button.dataset.rows === "json") save(`${JSON.stringify(shownRows(), null, 1)}\n`, "records.json", "application/json");
  else if (button.dataset.save === "csv") saveTable(button);
  else saveFigure(button.dataset.figure, button.dataset.save);
});

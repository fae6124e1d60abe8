// Graphs: drawn by plotly from the page's JSON, in the reader's theme, units and axes.
const graphs = JSON.parse(document.getElementById("graphs").textContent);
const UNITS = { binary: 2 ** 30, decimal: 1e9 };
const SIZES = { binary: [1024, ["KiB", "MiB", "GiB"]], decimal: [1000, ["kB", "MB", "GB"]] };

// What the JSON leaves open: colours by name, exact bytes, texts by number, and what is written in either unit.
function filledIn(node, units, colours) {
  if (typeof node === "string") return node.startsWith("@") ? colours.getPropertyValue(`--${node.slice(1)}`).trim() || node : node;
  if (Array.isArray(node)) return node.map((each) => filledIn(each, units, colours));
  if (node === null || typeof node !== "object") return node;
  if ("bytes" in node) return node.bytes.map((count) => count / UNITS[units]);
  // A copy: plotly writes into the ranges that it is given.
  if ("binary" in node) return filledIn(node[units], units, colours);
  if ("picked" in node) return node.picked.map((number) => node.texts[number]);
  return Object.fromEntries(Object.entries(node).map(([name, value]) => [name, filledIn(value, units, colours)]));
}

// A size under the pointer, as `bytes_text` of reports/units.py writes it: three digits, or four in GiB.
function sizeText(count, units) {
  const [base, names] = SIZES[units];
  const power = [3, 2, 1].find((each) => count >= base ** each);
  if (!power) return `${count} B`;
  const value = count / base ** power;
  const digits = Math.max((power === 3 ? 4 : 3) - String(Math.floor(value)).length, 0);
  return `${value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits })} ${names[power - 1]}`;
}

function drawn(element) {
  const graph = graphs[element.id];
  const section = element.closest("section");
  const axes = section.querySelector(".controls input:checked")?.value ?? "log";
  const hidden = new Set([...section.querySelectorAll('[aria-pressed="false"]')].map((button) => button.dataset.label));
  const colours = getComputedStyle(root);
  const units = chosen("units");
  const { traces, layout } = filledIn({ traces: graph.traces, layout: graph.layout }, units, colours);
  traces.forEach((trace, number) => {
    const { label, y } = graph.traces[number];
    trace.visible = !hidden.has(label);
    trace.text ??= y?.bytes?.map((count) => sizeText(count, units));
  });
  // An icicle has no axes.
  for (const axis of [layout.xaxis, layout.yaxis].filter(Boolean)) {
    if (axes === "linear") Object.assign(axis, axis.linear);
    delete axis.linear;
  }
  // What the reader zoomed into stays, until units or axes change or the zoom is reset.
  layout.uirevision = `${units} ${axes} ${element.dataset.resets}`;
  return { traces, layout: framed(graph, layout, element.clientWidth, (name) => colours.getPropertyValue(`--${name}`).trim()) };
}

function framed(graph, layout, width, colour) {
  const axis = { gridcolor: colour("line"), linecolor: colour("line"), zeroline: false, ticks: "outside", ticklen: 5, tickcolor: colour("muted"), automargin: true };
  const names = columnNames(graph, layout, width, colour);
  const axes = graph.traces[0].type === "icicle" ? {} : {
    xaxis: { ...axis, ...layout.xaxis, ...phaseTicks(graph, width) },
    // With a standoff the title makes room for the longest tick.
    yaxis: { ...axis, ...layout.yaxis, title: { standoff: 12, ...layout.yaxis.title } },
    annotations: [...names, ...stepNames(graph, colour)],
    shapes: [...columnLines(graph, colour), ...phaseShades(graph, colour)],
    margin: { l: 56, r: names.length ? 44 : 16, t: names.length ? 24 + 5.4 * Math.max(...names.map(({ text }) => text.length)) : 12, b: graph.bands.length ? 44 : 52 },
  };
  return {
    ...layout,
    ...axes,
    width,
    height: graph.height,
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: colour("muted") },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    hoverlabel: { bgcolor: colour("paper"), bordercolor: colour("line"), font: { color: colour("ink"), size: 13 }, align: "left" },
    hovermode: layout.hovermode ?? "closest",
    showlegend: false,
    // A finger that drags scrolls the page.
    dragmode: matchMedia("(pointer: fine)").matches ? "zoom" : false,
  };
}

function columnNames(graph, layout, width, colour) {
  const places = graph.columns.map(([place, text]) => [layout.xaxis.type === "log" ? Math.log10(place) : place, text]);
  const span = Math.max(...places.map(([place]) => place)) - Math.min(...places.map(([place]) => place));
  let last = -Infinity;
  return places
    .sort((one, other) => one[0] - other[0])
    .filter(([place]) => {
      const room = !span || ((place - last) / span) * (width - 90) > 20;
      if (room) last = place;
      return room;
    })
    .map(([x, text]) => ({
      x, text, y: 1, yref: "paper", textangle: -50, xanchor: "left", yanchor: "bottom", showarrow: false,
      font: { size: 12, color: colour("muted") },
    }));
}

function columnLines(graph, colour) {
  const line = { color: colour("line"), width: 1 };
  return graph.columns.map(([x]) => ({ type: "line", x0: x, x1: x, y0: 0, y1: 1, yref: "paper", layer: "below", line }));
}

// Phases that have room for their name or a short one are named below the axis.
function phaseTicks(graph, width) {
  if (!graph.bands.length) return {};
  const named = graph.bands.map(({ left, right, name, short }) => {
    const room = (right - left) * (width - 72);
    return [(left + right) / 2, [name, short].find((text) => text.length * 7.2 < room) ?? ""];
  });
  return { tickvals: named.map(([place]) => place), ticktext: named.map(([, text]) => text), ticks: "" };
}

function phaseShades(graph, colour) {
  const shades = graph.bands.filter((_, number) => number % 2).map(({ left, right }) => ({
    type: "rect", x0: left, x1: right, y0: 0, y1: 1, yref: "paper", layer: "below", line: { width: 0 }, fillcolor: colour("track"),
  }));
  const starts = graph.bands.filter(({ step }, number) => number && step !== graph.bands[number - 1].step).map(({ left }) => ({
    type: "line", x0: left, x1: left, y0: 0, y1: 1, yref: "paper", line: { color: colour("muted"), width: 1 },
  }));
  return [...shades, ...starts];
}

function stepNames(graph, colour) {
  const steps = new Map();
  for (const { step, left, right } of graph.bands) steps.set(step, [steps.get(step)?.[0] ?? left, right]);
  return [...steps].map(([step, [left, right]]) => ({
    x: (left + right) / 2, y: 0, yref: "paper", yshift: -24, yanchor: "top", showarrow: false, text: `training step ${step}`,
    font: { size: 12, color: colour("muted") },
  }));
}

function draw(element) {
  const { traces, layout } = drawn(element);
  const isNew = !element.layout;
  Plotly.react(element, traces, layout, { displayModeBar: false, doubleClick: "reset", showTips: false });
  showReset(element);
  if (isNew) element.on("plotly_relayout", () => showReset(element));
}

// A graph that was zoomed into has plotly's ticks, because ours may all lie outside, and a button
// that shows the whole again.
function showReset(element) {
  const { layout } = drawn(element);
  const changes = {};
  let isZoomed = false;
  for (const name of ["xaxis", "yaxis"].filter((each) => layout[each]?.range)) {
    const axis = element._fullLayout[name];
    const [low, high] = layout[name].range;
    const isWhole = [low, high].every((end, number) => Math.abs(end - axis.range[number]) < 1e-6 * (high - low));
    const mode = isWhole ? "array" : "auto";
    if (layout[name].tickvals && !graphs[element.id].bands.length && axis.tickmode !== mode) changes[`${name}.tickmode`] = mode;
    isZoomed ||= !isWhole;
  }
  element.nextElementSibling.hidden = !isZoomed;
  if (Object.keys(changes).length) Plotly.relayout(element, changes);
}

function resetZoom(element) {
  element.dataset.resets = Number(element.dataset.resets ?? 0) + 1;
  draw(element);
}

const elements = [...document.querySelectorAll(".graph")];
let waiting = [];

// One graph at a time, so that the page answers in between.
function drawNext() {
  const element = waiting.shift();
  if (!element) return;
  draw(element);
  setTimeout(drawNext);
}

function redraw() {
  if (!window.Plotly) return;
  const idle = !waiting.length;
  waiting = [...elements];
  if (idle) drawNext();
}

function drawNow() {
  if (!window.Plotly) return;
  waiting = [];
  elements.forEach(draw);
}

document.addEventListener("redraw", redraw);
document.addEventListener("change", ({ target }) => {
  if (target.name.startsWith("axes-")) target.closest("section").querySelectorAll(".graph").forEach(draw);
});
document.addEventListener("click", ({ target }) => {
  const reset = target.closest(".reset");
  if (reset) resetZoom(reset.previousElementSibling);
  const button = target.closest("[aria-pressed]");
  if (!button) return;
  button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
  button.closest("section").querySelectorAll(".graph").forEach(draw);
});

let lastWidth = innerWidth;
addEventListener("resize", () => {
  if (innerWidth !== lastWidth) redraw();
  lastWidth = innerWidth;
});

// Paper is light, and narrower than most screens.
let theme;
addEventListener("beforeprint", () => {
  theme = root.dataset.theme;
  root.dataset.theme = "light";
  root.classList.add("printing");
  drawNow();
});
addEventListener("afterprint", () => {
  root.classList.remove("printing");
  if (theme) root.dataset.theme = theme;
  else delete root.dataset.theme;
  redraw();
});

// plotly's script is packed; it is unpacked and run where there is a graph.
async function loadPlotly() {
  const script = document.createElement("script");
  script.textContent = await unpacked(document.getElementById("plotly").textContent);
  document.head.append(script);
}

function giveUp() {
  for (const element of elements) {
    element.style.minHeight = 0;
    element.textContent = "This browser cannot unpack the script that draws here; the numbers are below.";
  }
}

if (elements.length) loadPlotly().then(redraw, giveUp);

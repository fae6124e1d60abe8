// Switches: theme and units, and the list of contents. Graphs listen for "redraw" on the document.
const root = document.documentElement;

function chosen(name) {
  return document.querySelector(`input[name="${name}"]:checked`).value;
}

function showTheme(theme) {
  if (theme === "system") delete root.dataset.theme;
  else root.dataset.theme = theme;
  document.dispatchEvent(new Event("redraw"));
}

function showUnits(units) {
  for (const element of document.querySelectorAll("[data-decimal]")) {
    element.dataset.binary ??= element.textContent;
    element.textContent = element.dataset[units];
  }
  document.dispatchEvent(new Event("redraw"));
}

document.querySelector(`input[name="theme"][value="${root.dataset.theme ?? "system"}"]`).checked = true;

document.addEventListener("change", ({ target }) => {
  if (target.name === "theme") {
    try {
      localStorage.setItem("optprof-theme", target.value);
    } catch {
      // The choice then holds for this visit only.
    }
    showTheme(target.value);
  }
  if (target.name === "units") showUnits(target.value);
});

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => document.dispatchEvent(new Event("redraw")));

for (const heading of document.querySelectorAll("section > h2")) {
  const link = document.createElement("a");
  link.href = `#${heading.id}`;
  link.textContent = heading.textContent;
  const item = document.createElement("li");
  item.append(link);
  document.getElementById("contents").append(item);
}

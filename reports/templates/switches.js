// Switches: theme and units, kept for the next visit. Graphs listen for "redraw" on the document.
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

function keep(name, value) {
  try {
    localStorage.setItem(`optprof-${name}`, value);
  } catch {
    // The choice then holds for this visit only.
  }
}

function kept(name) {
  try {
    return localStorage.getItem(`optprof-${name}`);
  } catch {
    return null;
  }
}

document.querySelector(`input[name="theme"][value="${root.dataset.theme ?? "system"}"]`).checked = true;
// Browsers restore a form that the reader left, so the switch is set even for the usual units.
const units = kept("units") === "decimal" ? "decimal" : "binary";
document.querySelector(`input[name="units"][value="${units}"]`).checked = true;
if (units === "decimal") showUnits(units);

document.addEventListener("change", ({ target }) => {
  if (target.name !== "theme" && target.name !== "units") return;
  keep(target.name, target.value);
  if (target.name === "theme") showTheme(target.value);
  else showUnits(target.value);
});

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => document.dispatchEvent(new Event("redraw")));

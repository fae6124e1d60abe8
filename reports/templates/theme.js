// The reader's theme, before anything is painted; none means the system's.
document.documentElement.classList.add("scripting");
try {
  const theme = localStorage.getItem("optprof-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // A browser that keeps nothing starts with the system's theme.
}

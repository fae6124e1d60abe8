// Contents: the link of the section in view is marked; on a narrow screen the list is a menu.
const menu = document.querySelector("nav details");
const links = [...document.querySelectorAll("#contents a")];
const headings = links.map((link) => document.getElementById(link.hash.slice(1)));
const narrow = matchMedia("(max-width: 1099px)");

function markSection() {
  const atEnd = scrollY > 0 && scrollY + innerHeight >= root.scrollHeight - 2;
  const above = headings.filter((heading) => heading.getBoundingClientRect().top < innerHeight / 3);
  const current = atEnd ? links.length - 1 : Math.max(above.length - 1, 0);
  links.forEach((link, number) => {
    if (number === current) link.setAttribute("aria-current", "location");
    else link.removeAttribute("aria-current");
  });
  menu.querySelector("summary span").textContent = narrow.matches ? `Contents: ${links[current].textContent}` : "Contents";
  const list = menu.parentElement;
  const { top, bottom } = links[current].getBoundingClientRect();
  // The list scrolls alone; scrollIntoView would scroll the page too.
  if (!narrow.matches && (top < 40 || bottom > innerHeight - 40)) list.scrollTop += top - innerHeight / 2;
}

function foldMenu() {
  menu.open = !narrow.matches;
  markSection();
}

if (menu) {
  foldMenu();
  narrow.addEventListener("change", foldMenu);
  addEventListener("scroll", markSection, { passive: true });
  menu.addEventListener("click", ({ target }) => {
    if (target.closest("a") && narrow.matches) menu.open = false;
  });
  document.addEventListener("keydown", ({ key }) => {
    if (key !== "Escape" || !narrow.matches || !menu.open) return;
    menu.open = false;
    menu.querySelector("summary").focus();
  });
}

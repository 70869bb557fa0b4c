// Light, dark, or as the system has it. Runs in the head, so that nothing is painted in the wrong colours first.
(() => {
"use strict";
const KEY = "rlabel-theme", NAMES = ["system", "light", "dark"];
const read = () => { try { return localStorage.getItem(KEY); } catch { return null; } };
let theme = NAMES.includes(read()) ? read() : "system";
const show = () => {
  document.documentElement.dataset.theme = theme;
  const button = document.getElementById("theme");
  if (button) { button.hidden = false; button.textContent = "Colours: " + theme; }
};
show();
// What scrolls on its own can be reached by keyboard, and only that.
const reach = () => {
  for (const node of document.querySelectorAll(".card, .facts")) {
    const caption = node.querySelector("caption"), scrolls = node.scrollWidth > node.clientWidth || node.scrollHeight > node.clientHeight + 1;
    if (!scrolls) { for (const name of ["tabindex", "role", "aria-label"]) node.removeAttribute(name); continue; }
    node.tabIndex = 0;
    node.setAttribute("role", "group");
    node.setAttribute("aria-label", caption ? caption.textContent : node.dataset.name || "");
  }
};
addEventListener("load", reach);
addEventListener("resize", reach);
addEventListener("toggle", reach, true); // of details, which may have hidden a table
addEventListener("DOMContentLoaded", () => {
  show();
  document.getElementById("theme").addEventListener("click", () => {
    theme = NAMES[(NAMES.indexOf(theme) + 1) % NAMES.length];
    try { localStorage.setItem(KEY, theme); } catch { /* a browser that keeps nothing still shows it */ }
    show();
  });
});
})();

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
addEventListener("DOMContentLoaded", () => {
  show();
  document.getElementById("theme").addEventListener("click", () => {
    theme = NAMES[(NAMES.indexOf(theme) + 1) % NAMES.length];
    try { localStorage.setItem(KEY, theme); } catch { /* a browser that keeps nothing still shows it */ }
    show();
  });
});
})();

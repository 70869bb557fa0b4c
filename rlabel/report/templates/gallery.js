// The gallery of regions and their review. Texts come from strangers: they reach the page by textContent and setAttribute only.
(() => {
"use strict";
const $ = (id) => document.getElementById(id);
const section = $("gallery");
if (!section) return;
// Columns of a row, as rlabel/report/gallery.py writes them.
const KEY = 0, FILE = 1, OUTCOME = 2, CATEGORY = 3, SCORE = 4, MARGIN = 5, STEP = 6, TEXT = 7, TRUTH = 8, RIGHT = 9, NOTE = 10, THUMB = 11;
const OUTCOMES = ["label", "abstention", "failure"], FOLDER = "report/", MOST_MATCHES = 8, GAP = 10, CAPTION = 46;
let meta = null, rows = [], shown = [], active = -1, columns = 1, side = 160, nodes = new Map(), history = [];
const decisions = new Map();
const placeOfCategory = new Map();

// ---- loading: one script after the other, since file:// allows no fetch

const load = (name) => new Promise((done, fail) => {
  const script = document.createElement("script");
  script.src = FOLDER + name;
  script.onload = done;
  script.onerror = () => fail(new Error(FOLDER + name));
  document.head.append(script);
});
window.rlabelMeta = (value) => { meta = value; };
window.rlabelTake = ({ words, rows: more }) => {
  for (const row of more) {
    for (const column of [FILE, STEP, TEXT, NOTE]) row[column] = words[row[column]];
    row[TRUTH] = row[TRUTH] < 0 ? null : words[row[TRUTH]];
    rows.push(row);
  }
};
async function start() {
  try {
    await load("gallery.js");
    meta.categories.forEach(([id], place) => placeOfCategory.set(id, place));
    readDecisions();
    for (let chunk = 0; chunk < meta.num_chunks; chunk++) {
      await load(`chunk-${chunk}.js`);
      if (chunk === 0) refresh(); // something to see while the rest is read
    }
    fillChoices();
    refresh();
    section.dataset.ready = "true";
    performance.mark("gallery-ready");
  } catch (error) {
    $("g-trouble").hidden = false;
    $("g-trouble").textContent = `The regions cannot be read (${error.message}). Keep the folder “report” beside this page.`;
    $("g-count").textContent = "";
  }
}

// ---- filters and order

const names = (row) => row[CATEGORY] < 0 ? "" : meta.categories[row[CATEGORY]][1];
const title = (row) => row[OUTCOME] === 0 ? names(row) : row[OUTCOME] === 1 ? `“${row[TEXT]}”` : `failed: ${row[STEP]}`;
function fillChoices() {
  const add = (select, value, words) => { const option = document.createElement("option"); option.value = value; option.textContent = words; select.append(option); };
  const counts = new Map(), steps = new Map();
  for (const row of rows) {
    if (row[CATEGORY] >= 0) counts.set(row[CATEGORY], (counts.get(row[CATEGORY]) || 0) + 1);
    if (row[STEP]) steps.set(row[STEP], (steps.get(row[STEP]) || 0) + 1);
  }
  const byName = [...counts].map(([place, count]) => [meta.categories[place][1], place, count]).sort((a, b) => a[0] < b[0] ? -1 : 1);
  for (const [name, place, count] of byName) add($("f-category"), place, `${name} (${count})`);
  for (const [step, count] of [...steps].sort()) add($("f-step"), step, `${step} (${count})`);
}
function refresh() {
  if (!meta) return;
  const key = active >= 0 && shown.length ? rows[shown[active]][KEY] : null;
  const text = $("f-text").value.trim().toLowerCase(), category = $("f-category").value, outcome = $("f-outcome").value;
  const step = $("f-step").value, right = $("f-right") ? $("f-right").value : "", review = $("f-review").value;
  const low = $("f-low").value === "" ? -1 : Number($("f-low").value), high = $("f-high").value === "" ? 2 : Number($("f-high").value);
  shown = [];
  rows.forEach((row, place) => {
    if (category !== "" && row[CATEGORY] !== Number(category)) return;
    if (outcome !== "" && row[OUTCOME] !== Number(outcome)) return;
    if (step !== "" && row[STEP] !== step) return;
    if (right !== "" && row[RIGHT] !== Number(right)) return;
    if (review !== "" && decisions.has(row[KEY]) !== (review === "1")) return;
    if (row[SCORE] < low || row[SCORE] > high) return;
    if (text && !`${names(row)}\n${row[TEXT]}\n${row[FILE]}\n${row[KEY]}\n${row[TRUTH] || ""}\n${row[NOTE]}`.toLowerCase().includes(text)) return;
    shown.push(place);
  });
  const rank = [1, 0, 2]; // of doubt: abstentions, labels, failures
  const sort = $("f-sort").value;
  if (sort === "doubt") shown.sort((a, b) => rank[rows[a][OUTCOME]] - rank[rows[b][OUTCOME]] || rows[a][SCORE] - rows[b][SCORE] || rows[a][MARGIN] - rows[b][MARGIN] || a - b);
  if (sort === "low") shown.sort((a, b) => rows[a][SCORE] - rows[b][SCORE] || a - b);
  if (sort === "high") shown.sort((a, b) => rows[b][SCORE] - rows[a][SCORE] || a - b);
  active = shown.findIndex((place) => rows[place][KEY] === key);
  if (active < 0 && shown.length) active = 0;
  count();
  clear();
  if (active > 0) reveal(); else $("g-list").scrollTop = 0;
  draw();
  detail();
}
function count() {
  const done = decisions.size;
  $("g-count").textContent = `${shown.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} regions shown, ${done.toLocaleString("en")} decided`;
}

// ---- the list: only what is in view exists, and the active one, so that focus is never lost

function clear() { for (const node of nodes.values()) node.remove(); nodes.clear(); }
function measure() {
  const width = $("g-list").clientWidth - GAP;
  columns = Math.max(1, Math.floor(width / (150 + GAP)));
  side = Math.min(220, Math.floor(width / columns) - GAP);
  $("g-space").style.height = `${Math.ceil(shown.length / columns) * (side + CAPTION + GAP) + GAP}px`;
}
function draw() {
  if (!meta) return;
  measure();
  const list = $("g-list"), high = side + CAPTION + GAP;
  const first = Math.max(0, Math.floor(list.scrollTop / high) - 1) * columns;
  const last = Math.min(shown.length, (Math.ceil((list.scrollTop + list.clientHeight) / high) + 1) * columns);
  const wanted = new Set();
  for (let at = first; at < last; at++) wanted.add(at);
  if (active >= 0) wanted.add(active);
  for (const [at, node] of nodes) if (!wanted.has(at)) { node.remove(); nodes.delete(at); }
  for (const at of [...wanted].sort((a, b) => a - b)) place(at, high);
}
function place(at, high) {
  const row = rows[shown[at]];
  let node = nodes.get(at);
  if (!node) {
    node = document.createElement("div");
    node.className = "cell";
    node.setAttribute("role", "option");
    const picture = document.createElement("div"), words = document.createElement("div"), under = document.createElement("div");
    picture.className = "thumb"; words.className = "words"; under.className = "under";
    words.textContent = title(row);
    node.append(picture, words, under);
    node.addEventListener("click", () => go(at, true));
    nodes.set(at, node);
    const next = [...nodes.keys()].filter((other) => other > at).sort((a, b) => a - b)[0]; // reading order is that of the document
    $("g-space").insertBefore(node, next === undefined ? null : nodes.get(next));
  }
  node.style.width = `${side}px`;
  node.style.height = `${side + CAPTION}px`;
  node.style.left = `${GAP + (at % columns) * (side + GAP)}px`;
  node.style.top = `${GAP + Math.floor(at / columns) * high}px`;
  thumb(node.firstChild, row, side);
  const decision = decisions.get(row[KEY]);
  node.lastChild.textContent = under(row, decision);
  node.dataset.state = row[OUTCOME] === 0 ? (row[RIGHT] < 0 ? "label" : row[RIGHT] ? "right" : "wrong") : OUTCOMES[row[OUTCOME]];
  node.dataset.decided = decision ? decision.decision : "";
  node.tabIndex = at === active ? 0 : -1;
  node.setAttribute("aria-selected", String(at === active));
  node.setAttribute("aria-setsize", String(shown.length));
  node.setAttribute("aria-posinset", String(at + 1));
  node.setAttribute("aria-label", `${title(row)}, ${under(row, decision)}, ${row[FILE]}`);
}
function under(row, decision) {
  const judged = row[RIGHT] === 0 ? `truth: ${row[TRUTH]}` : row[RIGHT] === 1 ? "right" : row[TRUTH] ? `truth: ${row[TRUTH]}` : "";
  const review = !decision ? "" : decision.decision === "accept" ? "✓ accepted" : decision.decision === "abstain" ? "✕ abstained" : `→ ${meta.categories[placeOfCategory.get(decision.category_id)][1]}`;
  return [row[OUTCOME] === 2 ? "" : row[SCORE].toFixed(2), review || judged].filter(Boolean).join(" · ");
}
function thumb(node, row, px) {
  if (row[THUMB] < 0) { node.dataset.empty = "true"; node.style.backgroundImage = ""; return; }
  delete node.dataset.empty;
  const across = meta.sheet_columns, cell = row[THUMB] % (across * across);
  const url = `url("${FOLDER}sheet-${Math.floor(row[THUMB] / (across * across))}.jpg")`;
  if (node.style.backgroundImage !== url) node.style.backgroundImage = url;
  node.style.height = `${px}px`;
  node.style.backgroundSize = `${px * across}px`;
  node.style.backgroundPosition = `-${(cell % across) * px}px -${Math.floor(cell / across) * px}px`;
}
function reveal() {
  measure();
  const list = $("g-list"), high = side + CAPTION + GAP, top = Math.floor(active / columns) * high;
  if (top < list.scrollTop) list.scrollTop = top;
  if (top + high + GAP > list.scrollTop + list.clientHeight) list.scrollTop = top + high + GAP - list.clientHeight;
}
function go(at, withFocus) {
  if (!shown.length) return;
  active = Math.max(0, Math.min(shown.length - 1, at));
  reveal();
  draw();
  detail();
  if (withFocus) nodes.get(active).focus({ preventScroll: true });
}

// ---- the chosen region

function detail() {
  const row = active >= 0 && shown.length ? rows[shown[active]] : null;
  for (const id of ["b-accept", "b-abstain", "b-previous", "b-next", "c-input"]) $(id).disabled = !row;
  $("b-undo").disabled = !history.length;
  $("b-save").disabled = !decisions.size;
  $("d-facts").replaceChildren();
  if (!row) { $("d-name").textContent = "No region fits these filters."; $("d-picture").style.backgroundImage = ""; $("d-picture").setAttribute("aria-label", "no region chosen"); return; }
  $("b-accept").disabled = row[OUTCOME] !== 0;
  $("d-name").textContent = title(row);
  thumb($("d-picture"), row, $("d-picture").clientWidth);
  $("d-picture").setAttribute("aria-label", `region ${row[KEY]} of ${row[FILE]}${row[THUMB] < 0 ? ", no picture" : ", outlined"}`);
  const decision = decisions.get(row[KEY]);
  const facts = [
    ["review", decision ? under(row, decision).split(" · ").pop() : "undecided"],
    ["truth", row[TRUTH] === null ? "" : `${row[TRUTH]}${row[RIGHT] === 1 ? " (right)" : row[RIGHT] === 0 ? " (wrong)" : ""}`],
    ["score", row[OUTCOME] === 2 ? "" : `${row[SCORE].toFixed(3)}, margin ${row[MARGIN].toFixed(3)}`],
    ["answer", row[TEXT]], [row[OUTCOME] === 2 ? "kind" : "decided by", row[STEP]],
    [row[OUTCOME] === 1 ? "nearest name" : "reason", row[NOTE]], ["file", row[FILE]], ["region", row[KEY]],
  ];
  for (const [name, value] of facts) {
    if (!value) continue;
    const term = document.createElement("dt"), what = document.createElement("dd");
    term.textContent = name; what.textContent = value;
    $("d-facts").append(term, what);
  }
}

// ---- decisions

const stored = () => `rlabel-review-${meta.run}`;
function readDecisions() {
  try {
    const kept = JSON.parse(localStorage.getItem(stored()) || "[]");
    for (const one of kept) if (one.decision !== "category" || placeOfCategory.has(one.category_id)) decisions.set(one.region_key, one);
  } catch { /* nothing is kept, or by something else */ }
}
function keep() {
  try { localStorage.setItem(stored(), JSON.stringify([...decisions.values()])); }
  catch { say("This browser keeps nothing: download the decisions before you close the page."); }
}
function say(words) { $("d-said").textContent = words; }
function decide(decision, categoryPlace, withFocus = true) {
  if (active < 0 || !shown.length) return;
  const row = rows[shown[active]];
  if (decision === "accept" && row[OUTCOME] !== 0) { say("There is no label to accept: type a category, or abstain."); return; }
  history.push([row[KEY], decisions.get(row[KEY])]);
  const made = { region_key: row[KEY], decision };
  if (decision === "category") made.category_id = meta.categories[categoryPlace][0];
  decisions.set(row[KEY], made);
  keep();
  say(`${title(row)}: ${under(row, made).split(" · ").pop()}`);
  count();
  go(active + 1, withFocus);
}
function undo(withFocus = true) {
  const last = history.pop();
  if (!last) { say("Nothing to undo."); return; }
  const [key, before] = last;
  if (before) decisions.set(key, before); else decisions.delete(key);
  keep();
  count();
  say("Undone.");
  const at = shown.findIndex((place) => rows[place][KEY] === key);
  go(at < 0 ? active : at, withFocus);
}
function save() {
  const chosen = [...decisions.values()].sort((a, b) => a.region_key < b.region_key ? -1 : 1);
  const text = JSON.stringify({ format: "rlabel-review", version: 1, run: meta.run, decisions: chosen }, null, 1);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = "decisions.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  say(`${chosen.length} decisions in decisions.json.`);
}

// ---- typing a category

let matches = [], match = 0;
function suggest() {
  const typed = $("c-input").value.trim().toLowerCase();
  const starts = [], holds = [];
  if (typed) for (let place = 0; place < meta.categories.length; place++) {
    const at = meta.categories[place][1].toLowerCase().indexOf(typed);
    if (at === 0) starts.push(place); else if (at > 0) holds.push(place);
  }
  starts.sort((a, b) => meta.categories[a][1].length - meta.categories[b][1].length);
  matches = [...starts, ...holds].slice(0, MOST_MATCHES);
  match = 0;
  showMatches();
}
function showMatches() {
  $("c-list").replaceChildren(...matches.map((place, at) => {
    const item = document.createElement("li");
    item.id = `c-${at}`;
    item.setAttribute("role", "option");
    item.setAttribute("aria-selected", String(at === match));
    item.textContent = meta.categories[place][1];
    item.addEventListener("mousedown", (event) => { event.preventDefault(); match = at; take(); });
    return item;
  }));
  $("c-list").hidden = !matches.length;
  $("c-input").setAttribute("aria-expanded", String(matches.length > 0));
  if (matches.length) $("c-input").setAttribute("aria-activedescendant", `c-${match}`); else $("c-input").removeAttribute("aria-activedescendant");
}
function close() { $("c-input").value = ""; matches = []; showMatches(); }
function take() {
  if (!matches.length) { say("No category has this in its name."); return; }
  const place = matches[match];
  close();
  decide("category", place);
}
$("c-input").addEventListener("input", suggest);
$("c-input").addEventListener("blur", () => { matches = []; showMatches(); });
$("c-input").addEventListener("keydown", (event) => {
  if (event.key === "Enter") take();
  else if (event.key === "Escape") { close(); go(active, true); }
  else if (event.key === "ArrowDown" && matches.length) match = (match + 1) % matches.length;
  else if (event.key === "ArrowUp" && matches.length) match = (match + matches.length - 1) % matches.length;
  else return;
  event.preventDefault();
  if (event.key.startsWith("Arrow")) showMatches();
});

// ---- keys, buttons, and what changes the view

$("g-list").addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const page = Math.max(1, Math.floor($("g-list").clientHeight / (side + CAPTION + GAP))) * columns;
  const moves = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity, n: 1, p: -1 };
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key in moves) go(active + moves[key], true);
  else if (key === "a") decide("accept");
  else if (key === "x") decide("abstain");
  else if (key === "u") undo();
  else if (key === "c") $("c-input").focus();
  else return;
  event.preventDefault();
});
const actions = { "b-accept": () => decide("accept", -1, false), "b-abstain": () => decide("abstain", -1, false), "b-undo": () => undo(false), "b-previous": () => go(active - 1, false), "b-next": () => go(active + 1, false), "b-save": save };
for (const [id, act] of Object.entries(actions)) $(id).addEventListener("click", act);
let due = 0;
const soon = (act) => { cancelAnimationFrame(due); due = requestAnimationFrame(act); };
$("g-list").addEventListener("scroll", () => soon(draw), { passive: true });
addEventListener("resize", () => soon(() => { draw(); detail(); }));
let typing = 0;
$("g-filters").addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(refresh, 120); });
$("g-filters").addEventListener("reset", () => setTimeout(refresh));
$("g-filters").addEventListener("submit", (event) => event.preventDefault());
if (document.readyState === "complete") start(); else addEventListener("load", () => setTimeout(start)); // numbers are painted first
})();

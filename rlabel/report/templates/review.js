// What a person decides on the page: decisions, typing a category, keys. Continues gallery.js, in its scope.
// ---- decisions

const past = []; // steps to undo, each a list of [key, the decision before]
const former = new Map(); // of the review that the page was made after
const stored = () => `rlabel-review-${meta.run}`;
const fits = (one) => one && typeof one.region_key === "string" && (["accept", "abstain"].includes(one.decision) || (one.decision === "category" && placeOfCategory.has(one.category_id)));
function readDecisions() {
  for (const one of meta.decided) if (fits(one)) { former.set(one.region_key, one); decisions.set(one.region_key, one); }
  try {
    for (const one of JSON.parse(localStorage.getItem(stored()) || "[]")) {
      if (one.decision === "none") decisions.delete(one.region_key); else if (fits(one)) decisions.set(one.region_key, one);
    }
  } catch { /* nothing is kept, or by something else */ }
}
function keep() {
  const taken = [...former.keys()].filter((key) => !decisions.has(key)).map((key) => ({ region_key: key, decision: "none" }));
  try { localStorage.setItem(stored(), JSON.stringify([...decisions.values(), ...taken])); return true; }
  catch { say("This browser keeps nothing: download the decisions before you close the page."); return false; }
}
function say(words) { $("d-said").textContent = words; }
// Sets decisions, null to clear one, as one step to undo; returns whether the browser keeps them.
function put(changes) {
  past.push(changes.map(([key]) => [key, decisions.get(key)]));
  for (const [key, decision] of changes) if (decision) decisions.set(key, decision); else decisions.delete(key);
  count();
  return keep();
}
function decide(decision, categoryPlace, withFocus = true) {
  if (active < 0) return;
  const row = rows[shown[active]];
  if (decision === "accept" && row[OUTCOME] !== 0) { say("There is no label to accept: type a category, or abstain."); return; }
  const made = { region_key: row[KEY], decision };
  if (decision === "category") made.category_id = meta.categories[categoryPlace][0];
  if (put([[row[KEY], made]])) say(`${title(row)}: ${under(row, made).split(" · ").pop()}`);
  go(active + 1, withFocus);
}
function clearDecision(withFocus = true) {
  if (active < 0) return;
  const row = rows[shown[active]];
  if (!decisions.has(row[KEY])) { say("This region is undecided."); return; }
  if (put([[row[KEY], null]])) say(`${title(row)}: undecided`);
  go(active, withFocus);
}
function undo(withFocus = true) {
  const last = past.pop();
  if (!last) { say("Nothing to undo."); return; }
  for (const [key, before] of last) if (before) decisions.set(key, before); else decisions.delete(key);
  count();
  if (keep()) say(last.length === 1 ? "Undone." : `Undone for ${plain(last.length)} regions.`);
  const at = shown.findIndex((place) => rows[place][KEY] === last[0][0]);
  go(at < 0 ? active : at, withFocus);
}

// ---- all regions shown at once

let asked = [];
function ask() {
  asked = shown.map((place) => rows[place]).filter((row) => row[OUTCOME] === 0 && !decisions.has(row[KEY]));
  const others = shown.length - asked.length;
  $("q-words").textContent = !asked.length ? "No region that is shown has a label that is undecided." : `Accept ${plain(asked.length)} ${asked.length === 1 ? "label" : "labels"} as ${asked.length === 1 ? "it is" : "they are"}?${others ? ` ${plain(others)} of those shown have no label or are decided already: they stay as they are.` : ""}`;
  $("q-yes").hidden = !asked.length;
  $("q-yes").textContent = `Accept ${plain(asked.length)}`;
  $("q").showModal();
  $("q-no").focus();
}
function acceptAsked() {
  $("q").close();
  if (put(asked.map((row) => [row[KEY], { region_key: row[KEY], decision: "accept" }]))) say(`${plain(asked.length)} accepted.`);
  draw();
  detail();
}

// ---- files of decisions

function save() {
  const chosen = [...decisions.values()].sort((a, b) => a.region_key < b.region_key ? -1 : 1);
  const text = JSON.stringify({ format: "rlabel-review", version: 1, run: meta.run, decisions: chosen }, null, 1);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = "decisions.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  say(`${plain(chosen.length)} ${chosen.length === 1 ? "decision" : "decisions"} in decisions.json.`);
}
async function openFile(file) {
  const refuse = (why) => say(`${file.name}: ${why} Nothing was changed.`);
  let found = null;
  if (file.size > 256 * 1024 * 1024) { refuse("larger than 256 MiB."); return; }
  try { found = JSON.parse(await file.text()); } catch { refuse("expected JSON, got something else."); return; }
  if (!found || found.format !== "rlabel-review" || !Array.isArray(found.decisions)) { refuse("expected decisions that this page downloaded."); return; }
  if (found.run !== meta.run) { refuse(`expected decisions on this run (${meta.run.slice(0, 12)}), got some on another (${String(found.run).slice(0, 12)}).`); return; }
  const odd = found.decisions.findIndex((one) => !fits(one));
  if (odd >= 0) { refuse(`decision ${odd + 1} is none of this run's.`); return; }
  const before = decisions.size;
  if (!found.decisions.length) { refuse("it has no decisions."); return; }
  if (put(found.decisions.map((one) => [one.region_key, one]))) say(`${file.name}: ${plain(found.decisions.length)} decisions, ${plain(decisions.size - before)} of them on regions that were undecided.`);
  refresh();
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
    item.dir = "auto";
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
  else if (key === "i") togglePicture(true);
  else if (key === "Delete" || key === "Backspace") clearDecision();
  else return;
  event.preventDefault();
});
const actions = {
  "b-accept": () => decide("accept", -1, false), "b-abstain": () => decide("abstain", -1, false), "b-clear": () => clearDecision(false),
  "b-undo": () => undo(false), "b-previous": () => go(active - 1, false), "b-next": () => go(active + 1, false),
  "b-picture": () => togglePicture(false), "b-save": save, "b-open": () => $("f-file").click(),
  "b-all": ask, "q-yes": acceptAsked, "q-no": () => $("q").close(),
};
for (const [id, act] of Object.entries(actions)) $(id).addEventListener("click", act);
let due = 0;
const soon = (act) => { cancelAnimationFrame(due); due = requestAnimationFrame(act); };
$("g-list").addEventListener("scroll", () => soon(draw), { passive: true });
addEventListener("resize", () => soon(() => { draw(); detail(); }));
let typing = 0;
$("g-filters").addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(refresh, 120); });
$("g-filters").addEventListener("reset", () => { onlyFile = null; setTimeout(refresh); });
$("f-file").addEventListener("change", () => { if ($("f-file").files.length) openFile($("f-file").files[0]); $("f-file").value = ""; });
$("g-filters").addEventListener("submit", (event) => event.preventDefault());
if (document.readyState === "complete") start(); else addEventListener("load", () => setTimeout(start)); // numbers are painted first

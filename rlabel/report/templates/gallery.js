// The gallery of regions and their review. Texts come from strangers: they reach the page by textContent and setAttribute only.
const $ = (id) => document.getElementById(id);
const section = $("gallery");
// Columns of a row, as rlabel/report/gallery.py writes them.
const KEY = 0, FILE = 1, OUTCOME = 2, CATEGORY = 3, SCORE = 4, MARGIN = 5, STEP = 6, TEXT = 7, TRUTH = 8, RIGHT = 9, NOTE = 10, THUMB = 11;
const OUTCOMES = ["label", "abstention", "failure"], FOLDER = "report/", MOST_MATCHES = 8, GAP = 10, CAPTION = 46;
let meta = null, rows = [], shown = [], active = -1, columns = 1, side = 160, nodes = new Map(), onlyFile = null;
const decisions = new Map(), placeOfCategory = new Map();
const plain = (number) => number.toLocaleString("en");

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
  for (const [id, query] of [["f-more", "(max-width: 520px)"], ["d-more", "(max-width: 900px)"]]) { // closed where room is short
    const narrow = matchMedia(query), fit = () => { $(id).open = !narrow.matches; };
    narrow.addEventListener("change", fit);
    fit();
  }
  try {
    await load("gallery.js");
    meta.categories.forEach(([id], place) => placeOfCategory.set(id, place));
    readDecisions();
    for (let chunk = 0; chunk < meta.num_chunks; chunk++) {
      await load(`chunk-${chunk}.js`);
      if (chunk === 0) refresh(); // something to see while the rest is read
    }
    orders.clear();
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
const title = (row) => row[OUTCOME] === 0 ? names(row) : row[OUTCOME] === 1 ? (row[TEXT] ? `“${row[TEXT]}”` : "no answer") : `failed: ${row[STEP]}`;
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
// Every place in an order, and what a search looks through: made once, so that a filter goes over the rows once.
const orders = new Map(), hay = [];
function ordered(sort) {
  if (!orders.has(sort)) {
    const rank = [1, 0, 2]; // of doubt: abstentions, labels, failures
    const places = new Map(meta.categories.map(([, name], place) => [name, place]).sort((a, b) => a[0] < b[0] ? -1 : 1).map(([, place], at) => [place, at]));
    const byName = (row) => row[CATEGORY] < 0 ? Infinity : places.get(row[CATEGORY]);
    const compare = {
      doubt: (a, b) => rank[a[OUTCOME]] - rank[b[OUTCOME]] || a[SCORE] - b[SCORE] || a[MARGIN] - b[MARGIN],
      low: (a, b) => a[SCORE] - b[SCORE],
      high: (a, b) => b[SCORE] - a[SCORE],
      name: (a, b) => byName(a) - byName(b) || a[SCORE] - b[SCORE],
    }[sort];
    const all = rows.map((_, place) => place); // as the run has them: picture by picture
    orders.set(sort, compare ? all.sort((a, b) => compare(rows[a], rows[b]) || a - b) : all);
  }
  return orders.get(sort);
}
function holds(place, text) {
  const row = rows[place];
  hay[place] ??= `${names(row)}\n${row[TEXT]}\n${row[FILE]}\n${row[KEY]}\n${row[TRUTH] || ""}\n${row[NOTE]}`.toLowerCase();
  return hay[place].includes(text);
}
function refresh() {
  if (!meta) return;
  const key = active >= 0 && shown.length ? rows[shown[active]][KEY] : null;
  const text = $("f-text").value.trim().toLowerCase(), category = $("f-category").value, outcome = $("f-outcome").value;
  const step = $("f-step").value, right = $("f-right") ? $("f-right").value : "", review = $("f-review").value;
  const low = $("f-low").value === "" ? -1 : Number($("f-low").value), high = $("f-high").value === "" ? 2 : Number($("f-high").value);
  shown = ordered($("f-sort").value).filter((place) => {
    const row = rows[place];
    return (onlyFile === null || row[FILE] === onlyFile)
      && (category === "" || row[CATEGORY] === Number(category))
      && (outcome === "" || row[OUTCOME] === Number(outcome))
      && (step === "" || row[STEP] === step)
      && (right === "" || row[RIGHT] === Number(right))
      && (review === "" || decisions.has(row[KEY]) === (review === "1"))
      && row[SCORE] >= low && row[SCORE] <= high
      && (!text || holds(place, text));
  });
  active = shown.findIndex((place) => rows[place][KEY] === key);
  if (active < 0 && shown.length) active = 0;
  count();
  clear();
  if (active > 0) reveal(); else $("g-list").scrollTop = 0;
  draw();
  detail();
}
function count() {
  $("g-count").textContent = `${plain(shown.length)} of ${plain(rows.length)} regions shown${onlyFile === null ? "" : `, of ${onlyFile}`}`;
  $("g-done").textContent = `${plain(decisions.size)} decided`;
  $("b-all").disabled = !shown.length;
}
function togglePicture(withFocus) {
  if (active < 0) return;
  onlyFile = onlyFile === null ? rows[shown[active]][FILE] : null;
  refresh();
  if (withFocus) go(active, true);
}

// ---- the list: only what is in view exists, and the active one, so that focus is never lost

function clear() { for (const node of nodes.values()) node.remove(); nodes.clear(); }
const tall = () => (meta.num_thumbs ? side : 0) + CAPTION; // of a cell; without any thumbnail it has words only
function measure() {
  const width = $("g-list").clientWidth - GAP;
  columns = Math.max(2, Math.floor(width / (150 + GAP))); // one column of 100,000 would be higher than browsers lay out
  side = Math.min(220, Math.floor(width / columns) - GAP);
  $("g-space").style.height = `${Math.ceil(shown.length / columns) * (tall() + GAP) + GAP}px`;
}
function draw() {
  if (!meta) return;
  measure();
  const list = $("g-list"), high = tall() + GAP;
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
    picture.hidden = !meta.num_thumbs;
    words.dir = under.dir = "auto";
    words.textContent = title(row);
    node.append(picture, words, under);
    node.addEventListener("click", () => go(at, true));
    nodes.set(at, node);
    const next = [...nodes.keys()].filter((other) => other > at).sort((a, b) => a - b)[0]; // reading order is that of the document
    $("g-space").insertBefore(node, next === undefined ? null : nodes.get(next));
  }
  node.style.width = `${side}px`;
  node.style.height = `${tall()}px`;
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
  node.style.height = `${px}px`;
  if (row[THUMB] < 0) { node.dataset.empty = "no thumbnail"; node.style.backgroundImage = ""; return; }
  delete node.dataset.empty;
  const across = meta.sheet_columns, cell = row[THUMB] % (across * across);
  const url = `url("${FOLDER}sheet-${Math.floor(row[THUMB] / (across * across))}.jpg")`;
  if (node.style.backgroundImage !== url) node.style.backgroundImage = url;
  node.style.backgroundSize = `${px * across}px`;
  node.style.backgroundPosition = `-${(cell % across) * px}px -${Math.floor(cell / across) * px}px`;
}
function reveal() {
  measure();
  const list = $("g-list"), high = tall() + GAP, top = Math.floor(active / columns) * high;
  if (top < list.scrollTop) list.scrollTop = top;
  if (top + high + GAP > list.scrollTop + list.clientHeight) list.scrollTop = top + high + GAP - list.clientHeight;
}
function go(at, withFocus) {
  if (!shown.length) return;
  active = Math.max(0, Math.min(shown.length - 1, at));
  reveal();
  draw();
  detail();
  if (!withFocus) return;
  nodes.get(active).focus({ preventScroll: true });
  if (getComputedStyle($("g-list")).scrollMarginBottom !== "0px") $("g-list").scrollIntoView({ block: "nearest" }); // the detail lies over the page
}

// ---- the chosen region

function able(id, can) {
  if (!can && document.activeElement === $(id)) (nodes.get(active) || $("f-text")).focus({ preventScroll: true }); // a disabled button drops the focus
  $(id).disabled = !can;
}
function detail() {
  const row = active >= 0 && shown.length ? rows[shown[active]] : null;
  for (const id of ["b-abstain", "b-previous", "b-next", "c-input"]) able(id, Boolean(row));
  able("b-accept", Boolean(row) && row[OUTCOME] === 0);
  able("b-clear", Boolean(row) && decisions.has(row[KEY]));
  able("b-picture", Boolean(row) && Boolean(row[FILE] || onlyFile));
  able("b-undo", Boolean(past.length));
  able("b-save", Boolean(decisions.size));
  $("b-picture").setAttribute("aria-pressed", String(onlyFile !== null));
  $("d-facts").replaceChildren();
  $("d-picture").hidden = !meta.num_thumbs;
  if (!row) { $("d-name").textContent = "No region fits these filters."; $("d-picture").style.backgroundImage = ""; $("d-picture").setAttribute("aria-label", "no region chosen"); return; }
  $("d-name").textContent = title(row);
  thumb($("d-picture"), row, $("d-picture").clientWidth);
  $("d-picture").setAttribute("aria-label", `region ${row[KEY]} of ${row[FILE]}${row[THUMB] < 0 ? ", no thumbnail" : ", outlined"}`);
  const decision = decisions.get(row[KEY]);
  const facts = [
    ["review", decision ? under(row, decision).split(" · ").pop() : "undecided"],
    ["truth", row[TRUTH] === null ? "" : `${row[TRUTH]}${row[RIGHT] === 1 ? " (right)" : row[RIGHT] === 0 ? " (wrong)" : ""}`],
    ["score", row[OUTCOME] === 2 ? "" : `${row[SCORE].toFixed(3)}, margin ${row[MARGIN].toFixed(3)}`],
    ["label", names(row)], ["answer", row[TEXT]], [row[OUTCOME] === 2 ? "kind" : "decided by", row[STEP]],
    [row[OUTCOME] === 1 ? "nearest name" : "reason", row[NOTE]], ["file", row[FILE]], ["region", row[KEY]],
  ];
  for (const [name, value] of facts) {
    if (!value) continue;
    const term = document.createElement("dt"), what = document.createElement("dd");
    term.textContent = name; what.textContent = value; what.dir = "auto";
    $("d-facts").append(term, what);
  }
}


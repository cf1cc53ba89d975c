"use strict";
// Only rows in view are elements, so a tree of any size scrolls. Text of the
// model reaches the page through textContent alone.

const tree = JSON.parse(document.getElementById("tree").textContent);
const steps = tree.candidates;

const ROW_HEIGHT = 30;
const ROWS_OUT_OF_VIEW = 10;
const MAX_LINE_SHOWN = 50;
const FINISHED = ["correct", "wrong", "unparseable", "timeout", "unjudged"];

// title: of the column; key: of a step; isCount: an integer; isShare: in [0, 1].
const COLUMNS = [
  {title: "N", key: "visits", isCount: true,
    about: "visits: expansions at or below"},
  {title: "Q", key: "q", isShare: true, about: "search value"},
  {title: "Prior", key: "prior", isShare: true,
    about: "prior over the candidates of its state"},
  {title: "V", key: "value", isShare: true, about: "network's value"},
  {title: "R", key: "prm", isShare: true, about: "step score (PRM)"},
  {title: "f", key: "priority", about: "priority: the largest is expanded first"},
].filter(({key}) => key !== "priority" || steps.some((s) => s[key] !== null));
const MORE = [
  {title: "log p", key: "log_prob", about: "log-probability of its tokens"},
  {title: "samples", key: "count", isCount: true,
    about: "samples that were this step"},
  {title: "tokens", key: "tokens", isCount: true, about: "tokens of the step"},
];

const $ = (id) => document.getElementById(id);
const count = (n) => n.toLocaleString("en");
const grid = $("grid");

// ---------------------------------------------------------------- the tree

const roots = [];
const children = steps.map(() => []);
const level = [];
const rank = [];
steps.forEach(({parent}, i) => {
  const siblings = parent === null ? roots : children[parent];
  level.push(parent === null ? 1 : level[parent] + 1);
  rank.push(siblings.push(i));
});

function siblingsOf(i) {
  return steps[i].parent === null ? roots : children[steps[i].parent];
}

/** A step and those before it on its line, last to first. */
function line(i) {
  const found = [];
  for (let at = i; at !== null; at = steps[at].parent) found.push(at);
  return found;
}

const all = steps.map((_, i) => i);
const committed = all.filter((i) => steps[i].committed);

// ------------------------------------------------------- what is being shown

let open = new Set(committed);
let openUnfiltered = null; // `open` of before, while a filter is on.
let matches = null; // Steps the filter is for, and
let kept = null; // the same with the steps that lead to them.
let pattern = null;
let rows = []; // Steps in the order they are shown.
let selected = committed.at(-1) ?? roots[0] ?? null;

/** Children that the filter leaves. */
function below(i) {
  return kept ? children[i].filter((child) => kept.has(child)) : children[i];
}

function findRows() {
  const found = [];
  const stack = roots.filter((i) => !kept || kept.has(i)).reverse();
  while (stack.length) {
    const i = stack.pop();
    found.push(i);
    if (open.has(i)) stack.push(...below(i).toReversed());
  }
  return found;
}

function update() {
  rows = findRows();
  const isShown = new Set(rows);
  if (selected !== null && !isShown.has(selected)) {
    selected = line(selected).find((i) => isShown.has(i)) ?? null;
  }
  selected ??= rows.find((i) => !matches || matches.has(i)) ?? null;
  $("status").textContent = matches
    ? `${count(matches.size)} of ${count(steps.length)} steps match`
    : `${count(rows.length)} of ${count(steps.length)} steps shown`;
  grid.setAttribute("aria-rowcount", rows.length + 1);
  scrollToSelected();
  draw();
  drawDetails();
}

function applyFilter() {
  const query = $("query").value;
  const tests = [];
  pattern = null;
  if (query) {
    pattern = new RegExp(query.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&"), "iu");
    tests.push((i) => pattern.test(printable(steps[i].text)));
  }
  if ($("only-finished").checked) {
    tests.push((i) => FINISHED.includes(steps[i].fate));
  }
  if ($("only-correct").checked) {
    tests.push((i) => steps[i].fate === "correct");
  }
  if ($("only-expanded").checked) tests.push((i) => children[i].length > 0);
  if (tests.length) {
    openUnfiltered ??= open;
    matches = new Set(all.filter((i) => tests.every((test) => test(i))));
    kept = new Set();
    for (const i of matches) {
      for (let at = i; at !== null && !kept.has(at); at = steps[at].parent) {
        kept.add(at);
      }
    }
    open = new Set(kept);
    if (!matches.has(selected)) selected = null;
  } else if (kept) {
    open = openUnfiltered;
    openUnfiltered = matches = kept = null;
    reveal(selected);
  }
  update();
}

/** Opens what a step stands below. */
function reveal(i) {
  if (i !== null) line(i).slice(1).forEach((above) => open.add(above));
}

function toggle(i) {
  if (!open.delete(i)) open.add(i);
  update();
}

function select(i) {
  selected = i;
  scrollToSelected();
  draw();
  drawDetails();
}

// ------------------------------------------------------------------ drawing

/** Text with escapes for what cannot be seen, or would reorder its row. */
function printable(text) {
  return text.replace(/[^\P{C}]|[^\P{Z} ]/gu, (char) =>
    "\\u{" + char.codePointAt(0).toString(16) + "}");
}

function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function shown({key, isCount}, step, digits) {
  const value = step[key];
  if (value === null) return "–";
  return isCount ? count(value) : value.toFixed(digits);
}

function withMatchMarked(text) {
  const found = pattern && text.match(pattern);
  if (!found) return [text];
  const end = found.index + found[0].length;
  return [
    text.slice(0, found.index), element("mark", "", found[0]), text.slice(end)];
}

function drawStepCell(i) {
  const step = steps[i];
  const cell = element("div", "step");
  cell.setAttribute("role", "gridcell");
  const indent = element("span", "indent");
  indent.style.setProperty("--level", level[i] - 1);
  const twisty = element("span", "twisty");
  twisty.setAttribute("aria-hidden", "true");
  const text = element("span", "text");
  text.append(...withMatchMarked(printable(step.text)));
  text.title = printable(step.text);
  cell.append(indent, twisty, text);
  if (step.committed) {
    const mark = element("span", "star", "★");
    mark.setAttribute("role", "img");
    mark.setAttribute("aria-label", "committed");
    text.before(mark);
  }
  return cell;
}

function drawRow(i, position) {
  const step = steps[i];
  const row = element("div", "row");
  row.id = `step-${i}`;
  row.classList.toggle("committed", step.committed);
  row.classList.toggle("aside", matches !== null && !matches.has(i));
  row.style.top = `${position * ROW_HEIGHT}px`;
  const attributes = {
    "role": "row",
    "aria-level": level[i],
    "aria-posinset": rank[i],
    "aria-setsize": siblingsOf(i).length,
    "aria-rowindex": position + 2,
    "aria-selected": i === selected,
  };
  if (below(i).length) attributes["aria-expanded"] = open.has(i);
  for (const [name, value] of Object.entries(attributes)) {
    row.setAttribute(name, value);
  }
  const fate = element("div", "fate");
  fate.setAttribute("role", "gridcell");
  if (step.fate_words) {
    fate.append(element("span", `badge ${step.fate}`, step.fate_words));
  }
  row.append(drawStepCell(i), fate);
  for (const column of COLUMNS) {
    const cell = element("div", "number", shown(column, step, 2));
    cell.setAttribute("role", "gridcell");
    if (column.isShare) drawShare(cell, step[column.key]);
    row.append(cell);
  }
  return row;
}

function drawShare(cell, value) {
  cell.classList.add("share");
  cell.style.setProperty("--share", Math.min(Math.max(value, 0), 1));
}

function draw() {
  const first = Math.floor(grid.scrollTop / ROW_HEIGHT) - ROWS_OUT_OF_VIEW;
  const start = Math.max(first, 0);
  const numInView = Math.ceil(grid.clientHeight / ROW_HEIGHT);
  const end = first + numInView + 2 * ROWS_OUT_OF_VIEW;
  $("body").style.height = `${rows.length * ROW_HEIGHT}px`;
  $("body").replaceChildren(
    ...rows.slice(start, end).map((i, offset) => drawRow(i, start + offset)));
  $("body").classList.toggle("empty", !rows.length);
  if (selected === null) grid.removeAttribute("aria-activedescendant");
  else grid.setAttribute("aria-activedescendant", `step-${selected}`);
}

function scrollToSelected() {
  const top = rows.indexOf(selected) * ROW_HEIGHT;
  const room = grid.clientHeight - $("head").offsetHeight - ROW_HEIGHT;
  if (top < 0) return;
  // The body may have to grow before it can be scrolled.
  $("body").style.height = `${rows.length * ROW_HEIGHT}px`;
  grid.scrollTop = Math.min(Math.max(grid.scrollTop, top - room), top);
}

function drawFact(title, value, about) {
  const fact = element("div");
  fact.title = about;
  const description = element("dd");
  description.append(value);
  fact.append(element("dt", "", title), description);
  return fact;
}

function drawDetails() {
  const details = $("details");
  details.replaceChildren();
  if (selected === null) return;
  const step = steps[selected];
  const heading = element("h2", "", `Step ${level[selected]}`);
  heading.append(" ", element("span", `badge ${step.fate}`,
    step.fate_words || "goes on"));
  if (step.committed) heading.append(" ", element("span", "star", "★ committed"));
  const path = element("ol", "line");
  const shownLine = line(selected).slice(0, MAX_LINE_SHOWN).reverse();
  path.style.setProperty("--num-digits", String(level[selected]).length);
  path.start = level[selected] - shownLine.length + 1;
  path.append(
    ...shownLine.map((i) => element("li", "", printable(steps[i].text))));
  const facts = element("dl");
  for (const column of [...COLUMNS, ...MORE]) {
    const value = element("span", "number", shown(column, step, 4));
    if (column.isShare) drawShare(value, step[column.key]);
    const fact = drawFact(column.title, value, column.about);
    fact.append(element("dd", "about", column.about));
    facts.append(fact);
  }
  details.append(heading, facts, path);
}

function drawHeader() {
  const {solution} = tree;
  const isSolved = solution.outcome === "correct";
  const problem = printable(tree.problem);
  const graded = [0, 1].includes(solution.score) ? ""
    : `, score ${solution.score.toFixed(2)}`;
  document.title = `${problem} · ${tree.searcher}`;
  $("problem").textContent = problem;
  $("outcome").textContent = (isSolved ? "solved" : "not solved") + graded;
  $("outcome").classList.add(isSolved ? "correct" : "wrong");
  $("answer").textContent = printable(
    isSolved ? solution.answer : solution.reason);
  const facts = {
    "searcher": [tree.searcher, "what decided where to search"],
    "tokens": [tree.tokens, "generated and prefilled"],
    "expansions": [tree.expansions, "states whose next steps were sampled"],
    "candidates": [steps.length, "different steps that were sampled"],
    "V": [tree.value, "network's value of the problem"],
    "domain": [tree.domain, "rules of the problem"],
    "checkpoint": [tree.checkpoint_step, "gradient steps of the network"],
    "seed": [tree.seed, "of the play"],
  };
  for (const [title, [value, about]] of Object.entries(facts)) {
    const text = typeof value === "number" ? count(value) : value ?? "–";
    $("facts").append(drawFact(title, text, about));
  }
}

function drawHead() {
  const row = element("div", "row");
  row.setAttribute("role", "row");
  row.setAttribute("aria-rowindex", 1);
  const titles = [["Step", "in order of visits, then Q"],
    ["Why it ends", "what became of the branch"],
    ...COLUMNS.map(({title, about}) => [title, about])];
  for (const [title, about] of titles) {
    const cell = element("div", "", title);
    cell.setAttribute("role", "columnheader");
    cell.title = about;
    row.append(cell);
  }
  $("head").append(row);
  grid.setAttribute("aria-colcount", titles.length);
  grid.style.setProperty("--row-height", `${ROW_HEIGHT}px`);
  grid.style.setProperty("--num-numbers", COLUMNS.length);
}

// -------------------------------------------------------- keyboard and mouse

function move(to) {
  if (rows.length) select(rows[Math.min(Math.max(to, 0), rows.length - 1)]);
}

const KEYS = {
  ArrowDown: (at) => move(at + 1),
  ArrowUp: (at) => move(at - 1),
  PageDown: (at) => move(at + Math.floor(grid.clientHeight / ROW_HEIGHT) - 2),
  PageUp: (at) => move(at - Math.floor(grid.clientHeight / ROW_HEIGHT) + 2),
  Home: () => move(0),
  End: () => move(rows.length - 1),
  ArrowRight: () => {
    const [first] = below(selected);
    if (first === undefined) return;
    if (open.has(selected)) select(first);
    else toggle(selected);
  },
  ArrowLeft: () => {
    const {parent} = steps[selected];
    if (open.has(selected) && below(selected).length) toggle(selected);
    else if (parent !== null) select(parent);
  },
  Enter: () => toggle(selected),
  " ": () => toggle(selected),
};

grid.addEventListener("keydown", (event) => {
  const isPlain = !event.ctrlKey && !event.altKey && !event.metaKey;
  if (!isPlain || selected === null || !Object.hasOwn(KEYS, event.key)) return;
  event.preventDefault();
  KEYS[event.key](rows.indexOf(selected));
});

$("body").addEventListener("click", (event) => {
  const row = event.target.closest(".row");
  if (!row) return;
  selected = Number(row.id.slice("step-".length));
  if (event.target.closest(".twisty")) toggle(selected);
  else select(selected);
});

document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.target.matches("input")) return;
  event.preventDefault();
  $("query").select();
});

$("show-committed").addEventListener("click", () => {
  document.querySelectorAll("#tools input").forEach((input) => {
    input.value = "";
    input.checked = false;
  });
  applyFilter();
  selected = committed.at(-1) ?? selected;
  reveal(selected);
  update();
});
$("expand-all").addEventListener("click", () => {
  open = new Set(all);
  update();
});
$("collapse-all").addEventListener("click", () => {
  open = new Set();
  update();
});
$("tools").addEventListener("input", applyFilter);
grid.addEventListener("scroll", draw, {passive: true});
window.addEventListener("resize", draw);

drawHeader();
drawHead();
update();

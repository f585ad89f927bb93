// The rows: filters with counts, and a list of which only the visible part exists.

const HEIGHT = { one: 118, two: 136 };
const SOME_ABOVE = 6;

// How the answers of two runs stand to each other.
function agreementOf(line) {
  const [a, b] = line.sides;
  if (!a || !b) return "alone";
  if (a.e || b.e || line.alike === undefined) return "failed";
  return line.alike === 1 ? "same" : "differs";
}
const AGREEMENT = { same: "agree", differs: "differ", failed: "failed on a side", alone: "only on one side" };

let tokensKnown;
// Tokens where any answer has them, else characters.
function lengthIsTokens() {
  tokensKnown ??= index.lines.some((line) => line.sides.some((side) => side?.o !== undefined));
  return tokensKnown;
}
let modelsKnown;
const severalModels = () => (modelsKnown ??= new Set(index.lines.flatMap((line) => line.sides.map((side) => side?.m)).filter(Boolean)).size > 1);
const state = { words: [], ranges: {}, checks: {}, order: "place", left: [] };

// What a line can be filtered by: each gives the line's values.
function groups() {
  const of = (name) => (line) => line.sides.filter(Boolean).map((side) => side[name]).filter((value) => value !== undefined);
  const list = [];
  if (two()) list.push({ id: "agreement", title: "Answers", valuesOf: (line) => [agreementOf(line)], nameOf: (value) => AGREEMENT[value], fixed: ["same", "differs", "failed", "alone"] });
  list.push({ id: "outcome", title: "Outcome", valuesOf: (line) => [...new Set(line.sides.filter(Boolean).map((side) => (side.e ? "failed" : side.t === undefined || side.t.trim() === "" ? "empty" : "answered")))], nameOf: (value) => ({ failed: "failed", empty: "empty answer", answered: "answered" })[value], fixed: ["answered", "empty", "failed"] });
  list.push({ id: "error", title: "Error", valuesOf: of("e") });
  list.push({ id: "finish", title: "Ended by", valuesOf: of("f") });
  list.push({ id: "model", title: "Model", valuesOf: of("m") });
  list.push({ id: "tiles", title: "Tiles", valuesOf: (line) => [line.sides.find(Boolean)?.s].filter((value) => value !== undefined).map(String), nameOf: (value) => (value === "1" ? "1 tile" : `${value} tiles`), numeric: true });
  return list;
}

const LENGTH = {
  id: "length",
  valueOf: (line) => longest(line.sides.filter((side) => side && !side.e).map((side) => (lengthIsTokens() ? side.o : side.t && [...side.t].length))),
};
const TIME = { id: "time", valueOf: (line) => longest(line.sides.filter(Boolean).map(totalOf)) };
const TILES = { id: "tileCount", valueOf: (line) => line.sides.find((side) => side?.s !== undefined)?.s };
const longest = (values) => {
  const known = values.filter((value) => value !== undefined && value !== null);
  return known.length ? Math.max(...known) : undefined;
};

const ORDERS = [
  ["place", "as in the output", () => 0],
  ["longest", "longest answer", (a, b) => (LENGTH.valueOf(b) ?? -1) - (LENGTH.valueOf(a) ?? -1)],
  ["shortest", "shortest answer", (a, b) => (LENGTH.valueOf(a) ?? Infinity) - (LENGTH.valueOf(b) ?? Infinity)],
  ["slowest", "slowest", (a, b) => (TIME.valueOf(b) ?? -1) - (TIME.valueOf(a) ?? -1)],
  ["errors", "errors first", (a, b) => Number(b.sides.some((side) => side?.e)) - Number(a.sides.some((side) => side?.e))],
  ["apart", "least alike", (a, b) => (a.alike ?? 2) - (b.alike ?? 2)],
];

const texts = [];
// What is searched: prompt, answers, errors, in lower case.
function textOf(at) {
  texts[at] ??= [index.lines[at].prompt, ...index.lines[at].sides.flatMap((side) => (side ? [side.t, side.e, side.x] : []))].filter(Boolean).join("\n").toLowerCase();
  return texts[at];
}

// The filters that keep a line out: none, one by its name, or several.
function stoppedBy(at) {
  const line = index.lines[at];
  const stopped = [];
  if (!state.words.every((word) => textOf(at).includes(word))) stopped.push("words");
  for (const group of state.groups) {
    const checked = state.checks[group.id];
    if (checked.size > 0 && !group.values[at].some((value) => checked.has(value))) stopped.push(group.id);
  }
  for (const range of RANGES) {
    const wanted = state.ranges[range.id];
    const value = wanted && range.valueOf(line);
    if (wanted && (value === undefined || value < wanted[0] || value >= wanted[1])) stopped.push(range.id);
  }
  return stopped;
}
const RANGES = [LENGTH, TIME, TILES];

let charts = [];
let listBox;
let openRow;

function filtersPanel() {
  const panel = byId("filters");
  state.groups = groups().map((group) => {
    const values = index.lines.map(group.valuesOf);
    const counts = new Map();
    values.forEach((of) => new Set(of).forEach((value) => counts.set(value, (counts.get(value) ?? 0) + 1)));
    const order = group.fixed ? group.fixed.filter((value) => counts.has(value))
      : [...counts.keys()].sort((a, b) => (group.numeric ? Number(a) - Number(b) : counts.get(b) - counts.get(a)));
    state.checks[group.id] = new Set();
    return { ...group, values, order, boxes: new Map() };
  });
  for (const group of state.groups) {
    if (group.order.length === 0 || (group.order.length === 1 && group.id !== "error")) continue;
    const fields = el("fieldset", {}, el("legend", {}, group.title));
    for (const value of group.order) {
      const input = el("input", { type: "checkbox", on: { change: () => {
        if (input.checked) state.checks[group.id].add(value); else state.checks[group.id].delete(value);
        refresh();
      } } });
      const count = el("em");
      const label = el("label", { class: "check", "data-filter": `${group.id}:${value}` }, input, el("span", {}, group.nameOf ? group.nameOf(value) : value), count);
      group.boxes.set(value, { input, count, label });
      fields.append(label);
    }
    panel.append(fields);
  }
  const numbers = (range, title, unit) => {
    if (!index.lines.some((line) => range.valueOf(line) !== undefined)) return;
    const input = (name) => el("input", { type: "number", min: 0, step: "any", "aria-label": `${title}, ${name}`, placeholder: name, on: { input: () => read() } });
    const [from, to] = [input("from"), input("to")];
    const read = () => {
      const low = from.value === "" ? -Infinity : Number(from.value);
      const high = to.value === "" ? Infinity : Number(to.value);
      state.ranges[range.id] = from.value === "" && to.value === "" ? undefined : [low, high === Infinity ? high : high + (range === LENGTH ? 1 : 1e-9)];
      refresh();
    };
    range.show = () => {
      const wanted = state.ranges[range.id];
      if (document.activeElement === from || document.activeElement === to) return;
      from.value = wanted && Number.isFinite(wanted[0]) ? digits(wanted[0], 4).replaceAll(",", "") : "";
      to.value = wanted && Number.isFinite(wanted[1]) ? digits(range === LENGTH ? wanted[1] - 1 : wanted[1], 4).replaceAll(",", "") : "";
    };
    panel.append(el("fieldset", {}, el("legend", {}, `${title} (${unit})`), el("div", { class: "range" }, from, "–", to)));
  };
  numbers(LENGTH, "Answer length", lengthIsTokens() ? "tokens" : "characters");
  numbers(TIME, "Time", "seconds");
}

function chartsPanel() {
  const choose = (range) => (chosen) => { state.ranges[range.id] = chosen; refresh(); };
  const unit = lengthIsTokens() ? "tokens" : "characters";
  charts = [
    [LENGTH, histogram({ title: `Answer length, ${unit}`, integer: true, show: (value) => digits(value, 0), valueOf: LENGTH.valueOf, lines: index.lines, choose: choose(LENGTH), nothing: "no answer" })],
    [TIME, histogram({ title: "Time of a row", integer: false, show: duration, valueOf: TIME.valueOf, lines: index.lines, choose: choose(TIME), nothing: "times were not recorded" })],
    [TILES, histogram({ title: "Image tiles", integer: true, show: (value) => digits(value, 0), valueOf: TILES.valueOf, lines: index.lines, choose: choose(TILES), nothing: "tiles are known of local runs only" })],
  ];
  byId("charts").append(...charts.map(([, chart]) => chart.box));
}

function refresh() {
  state.left = [];
  // For each group, how many lines each value would leave, whatever is chosen in the group itself.
  const counts = new Map(state.groups.map((group) => [group.id, new Map()]));
  index.lines.forEach((_, at) => {
    const stopped = stoppedBy(at);
    if (stopped.length === 0) state.left.push(at);
    if (stopped.length > 1) return;
    for (const group of state.groups) {
      if (stopped.length === 1 && stopped[0] !== group.id) continue;
      const of = counts.get(group.id);
      new Set(group.values[at]).forEach((value) => of.set(value, (of.get(value) ?? 0) + 1));
    }
  });
  const order = ORDERS.find(([id]) => id === state.order)[2];
  state.left.sort((a, b) => order(index.lines[a], index.lines[b]) || a - b);
  for (const group of state.groups) {
    const of = counts.get(group.id);
    group.boxes.forEach(({ input, count, label }, value) => {
      count.textContent = whole.format(of.get(value) ?? 0);
      label.classList.toggle("empty", !of.get(value));
      input.checked = state.checks[group.id].has(value);
    });
  }
  charts.forEach(([range, chart]) => chart.update(state.left, state.ranges[range.id]));
  RANGES.forEach((range) => range.show?.());
  const all = index.lines.length;
  byId("count").textContent = state.left.length === all ? plural(all, "row") : `${whole.format(state.left.length)} of ${plural(all, "row")}`;
  const filtered = state.words.length > 0 || Object.values(state.checks).some((of) => of.size > 0) || Object.values(state.ranges).some(Boolean);
  byId("reset").disabled = !filtered;
  drawn.clear();
  listBox.replaceChildren();
  listBox.style.height = `${Math.max(200, state.left.length * rowHeight())}px`;
  if (state.left.length === 0) listBox.append(el("p", { class: "nothing-found" }, "No row passes these filters."));
  drawList();
}

const rowHeight = () => (two() ? HEIGHT.two : HEIGHT.one);
const drawn = new Map();

// Makes the rows that can be seen, and drops those that can't.
function drawList() {
  const height = rowHeight();
  const top = -listBox.getBoundingClientRect().top;
  const first = Math.max(0, Math.floor(top / height) - SOME_ABOVE);
  const last = Math.min(state.left.length, Math.ceil((top + window.innerHeight) / height) + SOME_ABOVE);
  const focused = document.activeElement?.closest?.(".row");
  drawn.forEach((node, place) => {
    if ((place < first || place >= last) && node !== focused) {
      node.remove();
      drawn.delete(place);
    }
  });
  for (let place = first; place < last; place += 1) {
    if (drawn.has(place)) continue;
    const node = rowOf(place, height);
    drawn.set(place, node);
    // In the order of the list, for readers and the tab key.
    let next = place + 1;
    while (next < last && !drawn.has(next)) next += 1;
    listBox.insertBefore(node, drawn.get(next) ?? null);
  }
}

// A text with the words that are searched marked.
function marked(text, most) {
  const part = shortened(text, most);
  if (state.words.length === 0) return [part];
  const lower = part.toLowerCase();
  // Letters whose small form has another length: nothing is marked rather than something else.
  if (lower.length !== part.length) return [part];
  const spans = [];
  let at = 0;
  while (at < part.length) {
    let found = -1;
    let length = 0;
    for (const word of state.words) {
      const place = lower.indexOf(word, at);
      if (place >= 0 && (found < 0 || place < found)) [found, length] = [place, word.length];
    }
    if (found < 0) break;
    spans.push(part.slice(at, found), el("mark", {}, part.slice(found, found + length)));
    at = found + length;
  }
  spans.push(part.slice(at));
  return spans;
}

// A text's beginning, or the part with what is searched.
function shortened(text, most) {
  if (most === undefined || text.length <= most) return text;
  const place = state.words.length ? text.toLowerCase().indexOf(state.words[0]) : 0;
  const from = place > most - 40 ? place - 40 : 0;
  return `${from > 0 ? "…" : ""}${text.slice(from, from + most)}`;
}

function thumbOf(line) {
  const slot = line.images[0];
  if (slot === undefined) return el("div", { class: "thumb" }, el("span", {}, "no image"));
  const source = pictureOf(slot);
  const more = line.images.length > 1 && el("em", {}, `+${line.images.length - 1}`);
  if (source) return el("div", { class: "thumb" }, el("img", { src: source, alt: "", decoding: "async", loading: "lazy" }), more);
  const about = index.slots[slot];
  return el("div", { class: "thumb" }, el("span", {}, about.u?.startsWith("http") ? "image at a URL" : "image can't be shown"), more);
}

function answerOf(side) {
  if (!side) return el("div", { class: "answer nothing" }, "not in this run");
  if (side.e) return el("div", { class: "answer bad" }, marked(side.x ? `${side.e}: ${side.x}` : side.e, 400));
  if (side.t === undefined || side.t === "") return el("div", { class: "answer nothing" }, "empty answer");
  return el("div", { class: "answer" }, marked(side.t, 400));
}

function aboutOf(side, short) {
  if (!side) return [];
  return [
    side.e && el("span", { class: "tag bad" }, "failed"),
    side.f && side.f !== "stop" && el("span", { class: "tag warn" }, side.f),
    side.f === "stop" && !short && el("span", {}, "stop"),
    side.o !== undefined && el("span", {}, plural(side.o, "token")),
    totalOf(side) !== undefined && el("span", {}, duration(totalOf(side))),
    side.s > 0 && !short && el("span", {}, plural(side.s, "tile")),
    side.m && !short && severalModels() && el("span", {}, side.m),
  ].filter(Boolean);
}

function rowOf(place, height) {
  const at = state.left[place];
  const line = index.lines[at];
  const own = line.sides.find(Boolean);
  const number = el("span", {}, `#${own.n + 1}${own.k ? `.${own.k}` : ""}`);
  const agreement = two() && agreementOf(line);
  const words = two()
    ? [el("div", { class: "answers" }, line.sides.map((side, of) => el("div", { class: "words" }, answerOf(side), el("div", { class: "about" }, letter(of), aboutOf(side, true))))),
      el("div", { class: "about" }, number, el("span", { class: agreement === "same" ? "tag good" : agreement === "differs" ? "tag warn" : "tag bad" }, AGREEMENT[agreement]), line.alike !== undefined && line.alike < 1 && el("span", {}, `${digits(line.alike * 100, 0)} % alike`))]
    : [answerOf(own), el("div", { class: "about" }, number, aboutOf(own))];
  return el("div", {
    class: "row", role: "listitem", tabindex: 0, style: { top: `${place * height}px`, height: `${height}px` },
    "aria-posinset": place + 1, "aria-setsize": state.left.length,
    on: { click: () => openRow(at, place), keydown: (event) => rowKey(event, at, place) },
  }, thumbOf(line), el("div", { class: "words" }, el("div", { class: "prompt" }, marked(line.prompt || "(prompt not recorded)", 300)), words));
}

function rowKey(event, at, place) {
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    openRow(at, place);
    return;
  }
  const to = { ArrowDown: place + 1, j: place + 1, ArrowUp: place - 1, k: place - 1, Home: 0, End: state.left.length - 1 }[event.key];
  if (to === undefined || to < 0 || to >= state.left.length) return;
  event.preventDefault();
  focusRow(to);
}

function focusRow(place) {
  const height = rowHeight();
  const top = listBox.getBoundingClientRect().top + place * height;
  if (top < 90) window.scrollBy(0, top - 90);
  else if (top + height > window.innerHeight) window.scrollBy(0, top + height - window.innerHeight);
  drawList();
  drawn.get(place)?.focus({ preventScroll: true });
}

function listPanel(open) {
  openRow = open;
  listBox = byId("list");
  const sort = byId("sort");
  const orders = ORDERS.filter(([id]) => (id !== "apart" || two()) && (id !== "slowest" || index.lines.some((line) => TIME.valueOf(line) !== undefined)));
  sort.append(...orders.map(([id, name]) => el("option", { value: id }, name)));
  sort.addEventListener("change", () => { state.order = sort.value; refresh(); });
  const search = byId("search");
  let waiting;
  search.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      // Words in quotes stay together.
      state.words = [...search.value.toLowerCase().matchAll(/"([^"]+)"|(\S+)/g)].map((match) => match[1] ?? match[2]);
      refresh();
    }, 80);
  });
  byId("reset").addEventListener("click", () => {
    search.value = "";
    state.words = [];
    state.ranges = {};
    Object.values(state.checks).forEach((of) => of.clear());
    refresh();
  });
  let due = false;
  const soon = () => {
    if (due) return;
    due = true;
    requestAnimationFrame(() => { due = false; drawList(); });
  };
  window.addEventListener("scroll", soon, { passive: true });
  window.addEventListener("resize", soon);
}

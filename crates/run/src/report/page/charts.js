// Plots: bars that are filters, and the timeline.

const BINS = 24;

function niceStep(span, count) {
  const rough = span / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((step) => step >= rough * 0.999);
}

// Borders of bars for values: even steps, and whatever is beyond the 99th percentile in the last bar.
function bordersOf(values, integer) {
  const sorted = Float64Array.from(values).sort();
  const low = sorted[0];
  const high = sorted[sorted.length - 1];
  if (low === high) return { start: low, step: integer ? 1 : Math.max(low * 0.1, 1e-9), count: 1, open: false };
  const most = sorted[Math.floor((sorted.length - 1) * 0.99)];
  const span = Math.max(most > low ? most - low : high - low, integer ? 1 : 1e-9);
  let step = niceStep(span, BINS - 2);
  if (integer) step = Math.max(1, Math.ceil(step));
  const start = Math.floor(low / step) * step;
  const needed = Math.floor((high - start) / step) + 1;
  const count = Math.min(needed, BINS);
  return { start, step, count, open: needed > count };
}

// A chart of bars. `valueOf` gives a line's value or undefined; `choose` is told the range of a chosen bar.
function histogram({ title, integer, show, valueOf, lines, choose, nothing }) {
  const values = lines.map(valueOf);
  const known = values.filter((value) => value !== undefined && value !== null);
  const heading = el("h2", {}, title);
  const box = el("div", { class: "chart", role: "group", "aria-label": title }, heading);
  if (known.length === 0) {
    box.append(el("p", { class: "none" }, nothing));
    return { box, update() {} };
  }
  const { start, step, count, open } = bordersOf(known, integer);
  const binOf = (value) => Math.min(count - 1, Math.max(0, Math.floor((value - start) / step + 1e-9)));
  const all = new Array(count).fill(0);
  known.forEach((value) => { all[binOf(value)] += 1; });
  const most = Math.max(...all, 1);
  const last = (bin) => open && bin === count - 1;
  const rangeOf = (bin) => [start + bin * step, last(bin) ? Infinity : start + (bin + 1) * step];
  const name = (bin) => {
    const [from, to] = rangeOf(bin);
    if (last(bin)) return `${show(from)} and more`;
    if (integer && step === 1) return show(from);
    return `${show(from)} to ${show(integer ? to - 1 : to)}`;
  };
  const bars = all.map((rows, bin) => {
    const background = el("i", { style: { height: `${rows ? Math.max(2, (rows / most) * 100) : 0}%` } });
    const front = el("i", { style: { height: "0" } });
    return el("button", {
      type: "button", tabindex: bin === 0 ? 0 : -1, "aria-pressed": "false",
      on: { click: (event) => press(bin, event.shiftKey), keydown: (event) => walk(event, bin) },
    }, background, front);
  });
  let chosen;
  function press(bin, extend) {
    if (extend && chosen) chosen = [Math.min(chosen[0], bin), Math.max(chosen[1], bin)];
    else chosen = chosen && chosen[0] === bin && chosen[1] === bin ? undefined : [bin, bin];
    choose(chosen && [rangeOf(chosen[0])[0], rangeOf(chosen[1])[1]]);
  }
  function walk(event, bin) {
    const to = { ArrowRight: bin + 1, ArrowLeft: bin - 1, Home: 0, End: count - 1 }[event.key];
    if (to === undefined || !bars[to]) return;
    event.preventDefault();
    bars[bin].tabIndex = -1;
    bars[to].tabIndex = 0;
    bars[to].focus();
  }
  box.append(
    el("div", { class: "bars", role: "group", "aria-label": `${title}: choose a bar to filter` }, bars),
    el("div", { class: "axis" }, el("span", {}, show(start)), el("span", {}, open ? `${show(start + (count - 1) * step)} +` : show(start + (integer && step === 1 ? count - 1 : count * step)))),
  );
  return {
    box,
    // Shows how the lines that are left are spread, and which bars are chosen.
    update(left, range) {
      const now = new Array(count).fill(0);
      const own = [];
      left.forEach((at) => {
        const value = values[at];
        if (value === undefined || value === null) return;
        now[binOf(value)] += 1;
        own.push(value);
      });
      own.sort((a, b) => a - b);
      const middle = own.length ? `median ${show(own[Math.floor((own.length - 1) / 2)])}` : "";
      heading.replaceChildren(title, el("span", {}, middle));
      if (!range) chosen = undefined;
      bars.forEach((bar, bin) => {
        bar.lastChild.style.height = `${now[bin] ? Math.max(2, (now[bin] / most) * 100) : 0}%`;
        const [from, to] = rangeOf(bin);
        const pressed = range !== undefined && from >= range[0] - 1e-9 && to <= range[1] + 1e-9;
        bar.setAttribute("aria-pressed", String(pressed));
        const text = `${name(bin)}: ${plural(now[bin], "row")}${now[bin] === all[bin] ? "" : ` of ${whole.format(all[bin])}`}`;
        bar.setAttribute("aria-label", text);
        bar.title = text;
      });
    },
  };
}

const svg = (tag, attributes, ...children) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
};

function legend(sums) {
  const all = sums.reduce((a, b) => a + b, 0);
  const share = (sum) => (all > 0 ? `${digits((sum / all) * 100, 1)} %` : "");
  return el("div", { class: "legend" }, PHASES.map((phase, at) =>
    el("span", {}, el("i", { class: `p${at}` }), `${phase} `, el("b", {}, duration(sums[at])), ` ${share(sums[at])}`)));
}

const ROWS_IN_WINDOW = 30;
const WIDTH = 1000;

// How many rows were in each phase over a session's time, and single rows of a part of it.
function timeline(lines, side, session, open) {
  const rows = [];
  lines.forEach((line, at) => {
    const times = line.sides[side]?.z;
    if (times && times[0] === session) rows.push({ at, start: times[1], phases: phasesOf(times), end: times[1] + times[6] });
  });
  rows.sort((a, b) => a.start - b.start);
  const end = rows.reduce((most, row) => Math.max(most, row.end), 1e-6);
  const sums = PHASES.map((_, phase) => rows.reduce((sum, row) => sum + row.phases[phase], 0));
  const box = el("div", {}, legend(sums));

  const buckets = 200;
  const inPhase = PHASES.map(() => new Float64Array(buckets));
  for (const row of rows) {
    let from = row.start;
    row.phases.forEach((length, phase) => {
      const to = from + length;
      const first = Math.max(0, Math.floor((from / end) * buckets));
      const last = Math.min(buckets - 1, Math.floor((to / end) * buckets));
      for (let bucket = first; bucket <= last; bucket += 1) {
        const overlap = Math.min(to, ((bucket + 1) / buckets) * end) - Math.max(from, (bucket / buckets) * end);
        if (overlap > 0) inPhase[phase][bucket] += (overlap / end) * buckets;
      }
      from = to;
    });
  }
  let most = 1e-9;
  for (let bucket = 0; bucket < buckets; bucket += 1) {
    most = Math.max(most, inPhase.reduce((sum, one) => sum + one[bucket], 0));
  }
  const height = 120;
  const floor = new Float64Array(buckets);
  const areas = [...PHASES.keys()].reverse().map((phase) => {
    const y = (value) => (height - (value / most) * (height - 14)).toFixed(1);
    const under = [...floor].map((value, bucket) => `${((bucket + 0.5) / buckets * WIDTH).toFixed(1)},${y(value)}`).reverse();
    const over = [...floor].map((value, bucket) => {
      floor[bucket] = value + inPhase[phase][bucket];
      return `${((bucket + 0.5) / buckets * WIDTH).toFixed(1)},${y(floor[bucket])}`;
    });
    return svg("polygon", { class: `p${phase}`, points: over.concat(under).join(" ") });
  });
  const view = svg("rect", { class: "window", y: 0, height, x: 0, width: 0 });
  box.append(
    el("p", { class: "legend" }, `Rows in work over ${duration(end)}, at most ${digits(most, 1)} at a time`),
    svg("svg", { class: "plot", viewBox: `0 0 ${WIDTH} ${height}`, preserveAspectRatio: "none", height, role: "img", "aria-label": "rows in each phase over time" }, ...areas, view),
  );

  const single = el("div");
  const where = el("span");
  const slider = el("input", {
    type: "range", min: 0, max: Math.max(0, rows.length - ROWS_IN_WINDOW), value: 0, "aria-label": "first row of the window",
    on: { input: () => draw(Number(slider.value)) },
  });
  function draw(first) {
    const part = rows.slice(first, first + ROWS_IN_WINDOW);
    const from = part[0].start;
    const to = Math.max(...part.map((row) => row.end), from + 1e-6);
    view.setAttribute("x", (from / end) * WIDTH);
    view.setAttribute("width", Math.max(1, ((to - from) / end) * WIDTH));
    where.textContent = `rows ${whole.format(first + 1)} to ${whole.format(first + part.length)} of ${whole.format(rows.length)} by start, ${duration(from)} to ${duration(to)}`;
    const lane = 13;
    const groups = part.map((row, at) => {
      let x = row.start;
      const y = at * lane;
      const name = `row ${lines[row.at].sides[side].n + 1}: ${PHASES.map((phase, of) => `${phase} ${duration(row.phases[of])}`).join(", ")}`;
      const group = svg("g", { role: "button", tabindex: 0, "aria-label": name }, svg("title", {}, name), svg("rect", { class: "hit", x: 0, y, width: WIDTH, height: lane }));
      row.phases.forEach((length, phase) => {
        if (length > 0) {
          const left = ((x - from) / (to - from)) * WIDTH;
          group.append(svg("rect", { class: `p${phase}`, x: left.toFixed(2), y: y + 2, width: Math.max(0.6, (length / (to - from)) * WIDTH).toFixed(2), height: lane - 4 }));
        }
        x += length;
      });
      group.addEventListener("click", () => open(row.at));
      group.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); open(row.at); } });
      return group;
    });
    single.replaceChildren(svg("svg", { class: "plot", viewBox: `0 0 ${WIDTH} ${part.length * lane}`, preserveAspectRatio: "none", height: part.length * lane, role: "group", "aria-label": "single rows" }, ...groups));
  }
  box.append(el("div", { class: "steer" }, where, rows.length > ROWS_IN_WINDOW && slider), single);
  draw(0);
  return box;
}

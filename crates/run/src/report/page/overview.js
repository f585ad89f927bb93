// Above the rows: what was run, how it went, and its record.

function head() {
  const made = new Date(index.made);
  byId("head").append(
    el("h1", {}, two() ? "Two runs side by side" : index.runs[0].name),
    el("div", { class: "under" }, index.runs.map((run, side) => {
      const record = run.record;
      return el("span", { class: "side-name" }, two() && letter(side), two() && el("b", {}, run.name),
        record && el("span", {}, record.model.name),
        record ? el("span", { class: `state ${record.state}` }, record.state) : "no run record",
        record && el("span", {}, record.created.replace("T", " ").replace("Z", " UTC")));
    })),
    el("div", { class: "under" }, el("span", {}, `Report of ${made.toLocaleString("en", { dateStyle: "medium", timeStyle: "short" })}, ${index.program}`),
      index.pairing && el("span", {}, `paired by ${index.pairing.by}: ${plural(index.pairing.paired, "pair")}`,
        index.pairing.only[0] > 0 && `, ${whole.format(index.pairing.only[0])} only in A`,
        index.pairing.only[1] > 0 && `, ${whole.format(index.pairing.only[1])} only in B`)),
  );
}

const fact = (value, name, bad) => el("div", { class: bad ? "fact bad" : "fact" }, el("b", {}, value), el("span", {}, name));

function middle(values) {
  const sorted = values.filter((value) => value !== undefined && value !== null).sort((a, b) => a - b);
  return sorted.length ? sorted[Math.floor((sorted.length - 1) / 2)] : undefined;
}

function facts() {
  const box = byId("facts");
  if (two()) {
    const count = { same: 0, differs: 0, failed: 0, alone: 0 };
    let alike = 0;
    index.lines.forEach((line) => {
      count[agreementOf(line)] += 1;
      alike += line.alike ?? 0;
    });
    const compared = count.same + count.differs;
    const share = (part) => (compared ? `${digits((part / compared) * 100, 1)} %` : "–");
    box.append(
      fact(whole.format(index.lines.length), "rows shown"),
      fact(whole.format(count.same), `agree (${share(count.same)})`),
      fact(whole.format(count.differs), `differ (${share(count.differs)})`),
      fact(compared ? `${digits((alike / compared) * 100, 1)} %` : "–", "alike on average"),
      fact(whole.format(count.failed), "failed on a side", count.failed > 0),
      count.alone > 0 && fact(whole.format(count.alone), "only on one side"),
    );
  }
  if (!two()) {
    const run = index.runs[0];
    const sides = index.lines.map((line) => line.sides[0]).filter(Boolean);
    const failed = sides.filter((side) => side.e).length;
    const counts = run.record?.counts;
    const sum = (name) => sides.reduce((all, side) => all + (side[name] ?? 0), 0);
    const seconds = run.record?.sessions.reduce((all, session) => all + session.seconds, 0);
    const done = run.record?.sessions.reduce((all, session) => all + session.rows, 0);
    const time = middle(sides.map(totalOf));
    const output = counts?.output_tokens ?? sum("o");
    box.append(
      fact(whole.format(counts?.rows ?? run.rows), "rows"),
      fact(whole.format(counts?.failed_rows ?? failed), "failed", (counts?.failed_rows ?? failed) > 0),
      fact(whole.format(sides.filter((side) => side.f === "length").length), "cut by length"),
      fact(whole.format(counts?.input_tokens ?? sum("i")), "prompt tokens"),
      fact(whole.format(output), "answer tokens"),
      time !== undefined && fact(duration(time), "median time of a row"),
      seconds > 0 && fact(duration(seconds), done > 0 ? `in all, ${digits(done / seconds, 2)} rows/s` : "in all"),
    );
  }
  const notes = index.runs.flatMap((run, side) => run.warnings.map((warning) => (two() ? `${LETTERS[side]}: ${warning}` : warning)));
  byId("notes").append(...notes.map((note) => el("p", { class: "notice" }, note)));
}

function showTimeline(open) {
  const panel = byId("timeline");
  const choices = [];
  index.runs.forEach((run, side) => {
    const sessions = new Set();
    index.lines.forEach((line) => { if (line.sides[side]?.z) sessions.add(line.sides[side].z[0]); });
    [...sessions].sort((a, b) => a - b).forEach((session) => choices.push([side, session, sessions.size]));
  });
  if (choices.length === 0) return;
  panel.hidden = false;
  const sums = [0, 0, 0, 0, 0];
  index.lines.forEach((line) => line.sides.forEach((side) => { if (side?.z) phasesOf(side.z).forEach((length, phase) => { sums[phase] += length; }); }));
  const all = sums.reduce((a, b) => a + b, 0);
  const shares = PHASES.map((phase, at) => (sums[at] > 0 ? `${phase} ${digits((sums[at] / all) * 100, 0)} %` : "")).filter(Boolean);
  panel.querySelector("summary").append(el("span", {}, `where the time of rows went: ${shares.join(", ")}`));
  const inside = panel.querySelector(".inside");
  const place = el("div");
  const names = choices.map(([side, session, all]) => [two() && `${LETTERS[side]}: ${index.runs[side].name}`, all > 1 && `session ${session + 1}`].filter(Boolean).join(", "));
  const select = el("select", { "aria-label": "which run and session", on: { change: () => show() } }, names.map((name, at) => el("option", { value: at }, name)));
  const show = () => {
    const [side, session] = choices[Number(select.value)];
    place.replaceChildren(timeline(index.lines, side, session, (at) => open(at)));
  };
  if (choices.length > 1) inside.append(select);
  inside.append(place);
  let shown = false;
  const first = () => { if (panel.open && !shown) { shown = true; show(); } };
  panel.addEventListener("toggle", first);
}

const told = (value) => (typeof value === "string" ? value : JSON.stringify(value));

function table(heads, rows) {
  return el("div", { class: "wide" }, el("table", {},
    el("thead", {}, el("tr", {}, heads.map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, rows.map((row) => el("tr", { class: row.differs && "differs" }, row.cells.map((cell, at) => el("td", { class: at === 0 && row.code ? "code" : undefined }, cell)))))));
}

function runTable(records) {
  const rows = [];
  const add = (name, of) => {
    const cells = records.map((record) => (record ? of(record) : ""));
    if (cells.some((cell) => cell !== undefined && cell !== "")) {
      rows.push({ cells: [name, ...cells.map((cell) => cell ?? "")], differs: cells.length > 1 && cells[0] !== cells[1] && name !== "output" });
    }
  };
  const time = (text) => text?.replace("T", " ").replace("Z", " UTC");
  add("output", (record) => record.output);
  add("state", (record) => record.state);
  add("fault", (record) => record.fault && `${record.fault.code}: ${record.fault.message}`);
  add("program", (record) => record.program);
  add("model", (record) => record.model.name);
  add("revision", (record) => record.model.revision);
  add("digest of the weights", (record) => record.model.digest);
  add("seed", (record) => (record.seed === null ? "none" : String(record.seed)));
  add("begun", (record) => time(record.created));
  add("last written", (record) => time(record.updated));
  add("input", (record) => record.input.named.join(", "));
  add("input files", (record) => record.input.files.map((file) => `${file.path}${file.bytes ? ` (${whole.format(file.bytes)} bytes, ${time(file.modified) ?? ""})` : ""}`).join("\n"));
  add("shard", (record) => record.input.shard);
  add("rows, failed", (record) => `${whole.format(record.counts.rows)}, ${whole.format(record.counts.failed_rows)}`);
  add("errors", (record) => Object.entries(record.counts.errors).map(([code, count]) => `${code}: ${whole.format(count)}`).join(", "));
  return table(["", ...(two() ? LETTERS : [""])], rows);
}

function settingsTable(records, changed) {
  const names = [...new Set(records.flatMap((record) => Object.keys(record?.config ?? {})))];
  const rows = [];
  names.forEach((name) => {
    const settings = records.map((record) => record?.config[name]);
    const values = settings.map((setting) => (setting ? told(setting.value) : ""));
    const differs = values.length > 1 && values[0] !== values[1];
    if (changed && !differs && settings.every((setting) => !setting || setting.origin === "default")) return;
    rows.push({ code: true, differs, cells: [name, ...values, [...new Set(settings.map((setting) => setting?.origin).filter(Boolean))].join(", ")] });
  });
  return table(["setting", ...(two() ? LETTERS : ["value"]), "from"], rows);
}

function showRecord() {
  const panel = byId("record");
  const records = index.runs.map((run) => run.record);
  const inside = panel.querySelector(".inside");
  if (records.every((record) => !record)) {
    panel.hidden = true;
    return;
  }
  panel.querySelector("summary").append(el("span", {}, "model, input, settings with their origins, sessions"));
  const settings = el("div");
  const all = el("input", { type: "checkbox", on: { change: () => settings.replaceChildren(settingsTable(records, !all.checked)) } });
  settings.append(settingsTable(records, true));
  const sessions = records.flatMap((record, side) => (record?.sessions ?? []).map((session, at) => ({
    cells: [
      two() ? `${LETTERS[side]} ${at + 1}` : String(at + 1), session.started.replace("T", " ").replace("Z", ""), duration(session.seconds),
      whole.format(session.rows_before), whole.format(session.rows), session.seconds > 0 ? digits(session.rows / session.seconds, 2) : "",
    ],
  })));
  inside.append(
    runTable(records), el("h3", {}, "Sessions"), table(["", "started (UTC)", "took", "rows before", "rows", "rows/s"], sessions),
    el("h3", {}, "Settings"), el("label", { class: "legend" }, all, "with defaults"), settings,
  );
}

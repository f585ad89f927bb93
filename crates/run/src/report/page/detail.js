// One row, with everything that is known of it.

let shownPlace;
let shownLine;

function section(title, ...content) {
  const there = content.flat().filter(Boolean);
  return there.length ? [el("h3", {}, title), ...there] : [];
}

function shot(slot) {
  const about = index.slots[slot];
  const source = pictureOf(slot);
  const size = about.w && `${whole.format(about.w)} × ${whole.format(about.h)}`;
  // Opened by hand only: the page itself loads nothing.
  const link = about.u && el("a", { href: about.u, target: "_blank", rel: "noopener noreferrer" }, "open the original");
  const caption = [about.n, size].filter(Boolean).join(" · ");
  return el("figure", {},
    source ? el("img", { src: source, alt: about.n ? `image ${about.n}` : "image of the row" }) : el("div", { class: "blank" }, about.y ?? "no image"),
    (caption || link) && el("figcaption", {}, caption, caption && link ? " · " : "", link));
}

function troubleOf(error) {
  return el("div", { class: "trouble" }, el("code", {}, String(error.code ?? "error")),
    error.attempts > 1 && ` after ${error.attempts} attempts`,
    error.message && el("p", {}, String(error.message)),
    error.hint && el("p", { class: "hint" }, `Hint: ${error.hint}`));
}

function timesOf(side) {
  if (!side.z) return undefined;
  const phases = phasesOf(side.z);
  const total = Math.max(side.z[6], 1e-9);
  return [
    el("div", { class: "times", role: "img", "aria-label": PHASES.map((phase, at) => `${phase} ${duration(phases[at])}`).join(", ") },
      phases.map((length, at) => length > 0 && el("i", { class: `p${at}`, style: { width: `${(length / total) * 100}%` } }))),
    el("div", { class: "legend" }, PHASES.map((phase, at) => phases[at] > 0 && el("span", {}, el("i", { class: `p${at}` }), `${phase} `, el("b", {}, duration(phases[at])))), el("span", {}, "total ", el("b", {}, duration(total)))),
  ];
}

// Log-probabilities: for each token its alternatives, the chosen one known by its place in the answer where it can be.
function tokensOf(logprobs, answer) {
  if (!Array.isArray(logprobs) || logprobs.length === 0) return undefined;
  let rest = answer ?? "";
  const spans = logprobs.filter((choices) => Array.isArray(choices) && choices.length > 0).map((choices) => {
    const chosen = choices.find((choice) => choice.token && rest.startsWith(choice.token)) ?? choices[0];
    if (rest.startsWith(chosen.token)) rest = rest.slice(chosen.token.length);
    const text = choices.map((choice) => `${JSON.stringify(choice.token)} ${digits(Math.exp(choice.logprob) * 100, 2)} %`).join("\n");
    return el("span", { title: text, style: { "--doubt": String(1 - Math.exp(Math.min(0, chosen.logprob))) } }, chosen.token);
  });
  return [el("div", { class: "tokens" }, spans), el("p", { class: "none" }, "the redder, the less likely; point at a token for its alternatives")];
}

// What differs between two texts, word by word.
function differences(a, b) {
  const words = (text) => text.match(/\s+|[\p{L}\p{N}]+|[^\s\p{L}\p{N}]/gu) ?? [];
  const [one, other] = [words(a), words(b)];
  if (one.length * other.length > 4e6) return undefined;
  const width = other.length + 1;
  const common = new Uint32Array((one.length + 1) * width);
  for (let i = one.length - 1; i >= 0; i -= 1) {
    for (let j = other.length - 1; j >= 0; j -= 1) {
      common[i * width + j] = one[i] === other[j] ? common[(i + 1) * width + j + 1] + 1 : Math.max(common[(i + 1) * width + j], common[i * width + j + 1]);
    }
  }
  const parts = [[], []];
  const push = (side, same, word) => {
    const last = parts[side].at(-1);
    if (last && last.same === same) last.text += word; else parts[side].push({ same, text: word });
  };
  let [i, j] = [0, 0];
  while (i < one.length || j < other.length) {
    if (i < one.length && j < other.length && one[i] === other[j]) {
      push(0, true, one[i]);
      push(1, true, other[j]);
      [i, j] = [i + 1, j + 1];
    } else if (j >= other.length || (i < one.length && common[(i + 1) * width + j] >= common[i * width + j + 1])) {
      push(0, false, one[i]);
      i += 1;
    } else {
      push(1, false, other[j]);
      j += 1;
    }
  }
  return parts.map((of, side) => of.map(({ same, text }) => (same ? text : el(side ? "ins" : "del", {}, text))));
}

function sideOf(line, detail, at, said) {
  const side = line.sides[at];
  if (!side) return [el("p", { class: "none" }, "not in this run")];
  const more = detail.sides[at] ?? {};
  const errors = (more.errors ?? []).map(troubleOf);
  const answers = more.answers ?? [side.t];
  const facts = [
    ["row", `${side.n + 1}${side.k ? `, answer ${side.k}` : ""}`], ["model", side.m], ["ended by", side.f],
    ["prompt tokens", side.i], ["vision tokens", side.v], ["tiles", side.s], ["answer tokens", side.o],
  ].filter(([, value]) => value !== undefined);
  return [
    ...section(answers.length > 1 ? "Answers" : "Answer", errors, answers.map((answer, of) =>
      (answer || errors.length === 0) && el("div", { class: answers.length > 1 ? "message" : undefined },
        answers.length > 1 && el("b", {}, String(of + 1)),
        answer ? el("div", { class: "text said" }, said?.[at] ?? marked(answer)) : el("p", { class: "none" }, "empty answer")))),
    ...section("Time", timesOf(side)),
    ...section("Log-probabilities", tokensOf(more.logprobs, side.t)),
    ...(more.extras ?? []).flatMap(([name, value]) => section(name, el("div", { class: "text" }, told(value)))),
    ...section("Facts", el("table", { class: "kv" }, el("tbody", {}, facts.map(([name, value]) => el("tr", {}, el("td", {}, name), el("td", {}, typeof value === "number" ? whole.format(value) : value)))))),
  ];
}

function messageOf(message) {
  const parts = Array.isArray(message.content) ? message.content : [{ type: "text", text: message.content }];
  return el("div", { class: "message" }, el("b", {}, String(message.role)),
    parts.map((part) => el("div", { class: "text" }, typeof part?.text === "string" ? marked(part.text) : part?.image_url ? `⟨image ${part.image_url.url ?? part.image_url}⟩` : told(part ?? null))));
}

async function openDetail(at, place) {
  const line = index.lines[at];
  [shownLine, shownPlace] = [at, place];
  const detail = await detailsOf(at);
  // Another row may have been asked for meanwhile.
  if (shownLine !== at) return;
  const own = line.sides.find(Boolean);
  const [a, b] = line.sides;
  const said = two() && a?.t && b?.t && line.alike < 1 ? differences(a.t, b.t) : undefined;
  const step = (by, name) => el("button", { type: "button", class: "quiet", disabled: place === undefined || place + by < 0 || place + by >= state.left.length, on: { click: () => move(by) } }, name);
  const dialog = byId("detail");
  dialog.replaceChildren(
    el("div", { class: "detail-bar" },
      el("h2", { id: "detail-title", tabindex: -1 }, `Row ${whole.format(own.n + 1)}`, place !== undefined && el("span", {}, `${whole.format(place + 1)} of ${whole.format(state.left.length)} listed`), two() && el("span", {}, AGREEMENT[agreementOf(line)], line.alike !== undefined && line.alike < 1 && `, ${digits(line.alike * 100, 1)} % alike`)),
      step(-1, "← Previous"), step(1, "Next →"),
      el("button", { type: "button", class: "quiet", "aria-label": "Close", on: { click: () => dialog.close() } }, "Close")),
    el("div", { class: "detail-body" },
      el("div", { class: "shots" }, line.images.map(shot), detail.image_fault && el("div", { class: "blank" }, detail.image_fault)),
      section("Prompt", el("div", { class: "text" }, marked(line.prompt || "(not recorded)"))),
      two()
        ? el("div", { class: "two" }, line.sides.map((_, side) => el("div", {}, el("h3", {}, letter(side), ` ${index.runs[side].name}`), sideOf(line, detail, side, said))))
        : sideOf(line, detail, 0),
      section("Messages", detail.messages.map(messageOf)),
      section("Other columns", detail.columns.length > 0 && el("table", { class: "kv" }, el("tbody", {}, detail.columns.map(([name, value]) => el("tr", {}, el("td", {}, name), el("td", {}, el("div", { class: "text" }, told(value))))))))),
  );
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  // The buttons were made anew, so what was focused is gone.
  byId("detail-title").focus();
}

function move(by) {
  if (shownPlace === undefined) return;
  const place = shownPlace + by;
  if (place >= 0 && place < state.left.length) openDetail(state.left[place], place);
}

function detailPanel() {
  const dialog = byId("detail");
  dialog.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, k: -1, ArrowRight: 1, j: 1 }[event.key];
    if (by && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      move(by);
    }
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => {
    if (shownPlace !== undefined) focusRow(shownPlace);
    shownLine = undefined;
  });
}

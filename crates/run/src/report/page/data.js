// What is in the file, unpacked as far as it is shown; and how elements are made.

// An element with attributes and children. Text is always text, never markup.
function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "on") for (const [event, act] of Object.entries(value)) node.addEventListener(event, act);
    else if (name === "style") for (const [key, of] of Object.entries(value)) node.style.setProperty(key, of);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== undefined && child !== null && child !== false));
  return node;
}

const byId = (id) => document.getElementById(id);

function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let at = 0; at < text.length; at += 1) bytes[at] = text.charCodeAt(at);
  return bytes;
}

async function unpacked(id) {
  const packed = bytesOf(byId(id).textContent);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

let index;
const chunks = new Map();

// What a line shows when it is opened.
async function detailsOf(at) {
  const chunk = Math.floor(at / index.chunk);
  if (!chunks.has(chunk)) chunks.set(chunk, unpacked(`details-${chunk}`));
  return (await chunks.get(chunk))[at % index.chunk];
}

const pictures = new Map();

// A small image as an address of its own, or nothing. Only the chunks looked at last stay split.
function pictureOf(slot) {
  const chunk = Math.floor(slot / index.chunk);
  let lines = pictures.get(chunk);
  if (lines === undefined) {
    lines = byId(`images-${chunk}`).textContent.split("\n");
    if (pictures.size >= 12) pictures.delete(pictures.keys().next().value);
    pictures.set(chunk, lines);
  }
  const data = lines[slot % index.chunk];
  return data ? `data:image/jpeg;base64,${data}` : undefined;
}

const whole = new Intl.NumberFormat("en");
const digits = (value, most) => new Intl.NumberFormat("en", { maximumFractionDigits: most }).format(value);
const plural = (count, one) => `${whole.format(count)} ${one}${count === 1 ? "" : "s"}`;

function duration(seconds) {
  if (seconds === undefined || seconds === null) return "";
  if (seconds < 0.0995) return `${digits(seconds * 1000, seconds < 0.01 ? 1 : 0)} ms`;
  if (seconds < 120) return `${digits(seconds, seconds < 10 ? 2 : 1)} s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.round((seconds % 3600) / 60)} min`;
}

// The phases of a row from [session, start, queue, prepare, encode, first token, total].
const PHASES = ["wait", "prepare", "encode", "prefill", "decode"];
function phasesOf(times) {
  const [, , queue, prepare, encode, first, total] = times;
  const before = (queue ?? 0) + (prepare ?? 0) + (encode ?? 0);
  // A backend that does not say when the first token came has one phase for the answer.
  const prefill = first === null ? 0 : Math.max(0, first - before);
  return [queue ?? 0, prepare ?? 0, encode ?? 0, prefill, Math.max(0, total - before - prefill)];
}
const totalOf = (side) => side?.z?.[6];
const two = () => index.runs.length > 1;
const LETTERS = ["A", "B"];
const letter = (side) => el("span", { class: side === 1 ? "letter b" : "letter" }, LETTERS[side]);

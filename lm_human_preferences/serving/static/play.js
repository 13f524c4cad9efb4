"use strict";

// The page on which models write as one types. Each change is one request; a newer one makes the older one void.

const base = location.pathname.replace(/\/$/, "");
const element = (id) => document.getElementById(id);
const names = JSON.parse(document.body.dataset.names);
const penalty = document.body.dataset.penalty;
const page = crypto.randomUUID ? crypto.randomUUID() : String(Math.random()).slice(2) + Date.now();
const WAIT = 250; // milliseconds without a key before a text is sent
const PARTS = [0.1, 0.5, 1.5, 3]; // nats of log(pi/rho) from which a colour is the next darker one
const SURPRISES = [0.1, 1, 2.5, 5]; // nats of minus log-probability, likewise

let number = 0; // of the request that is wanted
let controller = null;
let timer = null;
let busy = false;
let columns = names.map(() => []); // of each model its tokens as {text, logprobs, end}

function wish(wait) {
  clearTimeout(timer);
  controller?.abort();
  busy = true;
  timer = setTimeout(write, wait);
}

async function write() {
  const mine = ++number;
  controller = new AbortController();
  const options = {
    method: "POST",
    headers: { Accept: "application/json", "Content-Type": "application/json" },
    cache: "no-store",
    signal: controller.signal,
    body: JSON.stringify({
      page,
      number: mine,
      text: element("text").value,
      temperature: Number(element("temperature").value),
      seed: Number(element("seed").value),
      length: Number(element("length").value),
    }),
  };
  for (const place of names.keys()) element(`writing-${place}`).classList.add("stale");
  try {
    const response = await fetch(`${base}/write`, options).catch((error) => {
      throw error.name === "AbortError" ? error : new Error("The server cannot be reached. Is play still running?");
    });
    if (!response.ok) {
      const told = await response.json().catch(() => ({}));
      throw new Error(told.error || `The server answered with status ${response.status}.`);
    }
    for await (const event of eventsOf(response.body)) {
      if (mine !== number) return;
      take(event);
    }
    element("trouble").hidden = true;
  } catch (error) {
    if (error.name === "AbortError" || mine !== number) return;
    element("trouble").textContent = error.message;
    element("trouble").hidden = false;
  }
  for (const place of names.keys()) element(`writing-${place}`).classList.remove("stale");
  if (mine === number) busy = false;
}

// The objects of a stream of lines of JSON.
async function* eventsOf(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) yield JSON.parse(line);
  }
}

function take(event) {
  if (event.kind === "error") throw new Error(event.error);
  if (event.kind === "start") start(event.cut);
  if (event.kind === "token") add(event);
  if (event.kind === "scores") finish(event);
}

function start(cut) {
  columns = names.map(() => []);
  element("detail").textContent = "";
  element("cut").hidden = cut === 0;
  element("cut").textContent = `The text is longer than fits: its first ${cut} tokens are not read.`;
  for (const place of names.keys()) {
    const given = document.createElement("span");
    given.className = "given";
    given.textContent = element("text").value.replace(/ +$/, "");
    element(`writing-${place}`).classList.remove("stale");
    element(`writing-${place}`).replaceChildren(given);
    element(`figures-${place}`).replaceChildren();
    element(`numbers-${place}`).replaceChildren();
  }
}

function add({ column, text, logprobs, ended }) {
  const token = { text, logprobs, end: ended && text === "" };
  columns[column].push(token);
  const span = document.createElement("span");
  span.textContent = token.end ? "end" : text;
  span.dataset.place = columns[column].length - 1;
  paint(span, token, column);
  element(`writing-${column}`).append(span);
  const cells = [shownText(token), ...logprobs.map(signed)];
  if (names.length > 1) cells.push(signed(part(token)));
  const row = document.createElement("tr");
  for (const cell of cells) row.insertCell().textContent = cell;
  element(`numbers-${column}`).append(row);
}

// What a token adds to log(pi/rho), the first model against the last.
function part(token) {
  return token.logprobs[0] - token.logprobs[names.length - 1];
}

function paint(span, token, column) {
  const level = (value, limits) => limits.filter((limit) => value >= limit).length;
  const wanted = document.querySelector("input[name=colour]:checked").value;
  let kind = "";
  if (wanted === "logprob") {
    const darkness = level(-token.logprobs[column], SURPRISES);
    kind = darkness ? `p${darkness}` : "";
  } else {
    const value = part(token);
    const darkness = level(Math.abs(value), PARTS);
    kind = darkness ? (value > 0 ? "a" : "b") + darkness : "";
  }
  span.className = `token ${kind} ${token.end ? "end" : ""}`;
}

function finish({ scores, valid }) {
  for (const [place, tokens] of columns.entries()) {
    const rows = Object.entries(scores[place]).map(([name, score]) => [name, signed(score), "score"]);
    if (names.length > 1) rows.push(["log(π/ρ) of the whole, nats", signed(sum(tokens.map(part)))]);
    rows.push(["log-probability under its writer, nats", signed(sum(tokens.map((token) => token.logprobs[place])))]);
    rows.push(["tokens", String(tokens.length)]);
    if (!valid[place]) rows.push(["no valid end: in training its score is", penalty]);
    element(`figures-${place}`).replaceChildren(...rows.flatMap(row));
  }
  element("said").textContent = columns.map((tokens, place) => `${names[place]}: ${written(tokens)}`).join(". ");
}

function row([name, value, kind]) {
  const [term, figure] = [document.createElement("dt"), document.createElement("dd")];
  term.textContent = name;
  figure.textContent = value;
  if (kind) figure.className = kind;
  return [term, figure];
}

const sum = (values) => values.reduce((total, value) => total + value, 0);
const written = (tokens) => tokens.map((token) => token.text).join("");
const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;
const shownText = (token) => (token.end ? "end" : token.text.replaceAll("\n", "⏎") || "…");

// Tells of a token that is pointed at.
function pick(event) {
  const span = event.target.closest(".writing .token");
  if (!span) return;
  for (const other of document.querySelectorAll(".picked")) other.classList.remove("picked");
  span.classList.add("picked");
  const column = Number(span.parentElement.id.split("-")[1]);
  const token = columns[column][Number(span.dataset.place)];
  const chances = names.map((name, place) => `${(100 * Math.exp(token.logprobs[place])).toPrecision(2)}% under ${name}`);
  const apart = names.length > 1 ? `; log(π/ρ) ${signed(part(token))} nats` : "";
  element("detail").textContent = `“${shownText(token)}”: ${chances.join(", ")}${apart}`;
}

function repaint() {
  const wanted = document.querySelector("input[name=colour]:checked").value;
  for (const kind of ["kl", "logprob"]) element(`legend-${kind}`).hidden = kind !== wanted;
  for (const [column, tokens] of columns.entries()) {
    const spans = element(`writing-${column}`).querySelectorAll(".token");
    for (const [place, span] of spans.entries()) paint(span, tokens[place], column);
  }
}

element("text").addEventListener("input", () => wish(WAIT));
for (const id of ["temperature", "seed", "length"]) {
  element(id).addEventListener("input", () => {
    element("shown-temperature").textContent = element("temperature").value;
    wish(WAIT);
  });
}
element("another").addEventListener("click", () => {
  element("seed").value = (Number(element("seed").value) + 1) % (Number(element("seed").max) + 1);
  wish(0);
});
for (const input of document.querySelectorAll("input[name=colour]")) input.addEventListener("change", repaint);
document.addEventListener("pointerover", pick);
document.addEventListener("click", pick);
repaint();
if (element("text").value) wish(0);

"use strict";

// The labelling page: shows one question, sends each answer, and shows the next one only when it is saved.

const base = location.pathname.replace(/\/$/, "");
const mode = document.body.dataset.mode;
const asksSureness = document.body.dataset.sureness === "on";
const element = (id) => document.getElementById(id);
const KEYS = "people.keys"; // in the browser's own storage: whether keys are used

let shown = null; // what the server last told
let back = 0; // how many answers back the question shown is; 0: a new one
let ranking = []; // places in the order in which they were pressed
let sureness = null;
let afterC = false; // C was pressed, and a number is to follow
let busy = false; // an answer is under way: keys would be about a question that is not there yet
let nonce = null; // names this answer, so that sending it again does not double it
let timer = null;

async function ask(path, body) {
  const options = { headers: { Accept: "application/json" }, cache: "no-store" };
  if (body !== undefined) {
    options.method = "POST";
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(`${base}/${path}`, options);
  } catch {
    throw new Error("The server cannot be reached: nothing was saved. Please press again in a moment.");
  }
  const told = await response.json().catch(() => ({ error: `The server answered with status ${response.status}.` }));
  if (!response.ok) throw new Error(told.error || `The server answered with status ${response.status}.`);
  return told;
}

// Runs one request at a time; what goes wrong is said, and the question stays.
async function once(work) {
  if (busy) return;
  busy = true;
  document.body.setAttribute("aria-busy", "true");
  try {
    await work();
    element("trouble").hidden = true;
  } catch (error) {
    element("trouble").textContent = error.message;
    element("trouble").hidden = false;
  }
  busy = false;
  document.body.removeAttribute("aria-busy");
}

function say(text) {
  element("said").textContent = text;
}

function show(told, stepsBack, word) {
  shown = told;
  back = stepsBack;
  ranking = [];
  sureness = null;
  afterC = false;
  nonce = crypto.randomUUID ? crypto.randomUUID() : String(Math.random()).slice(2) + Date.now();
  for (const name of ["today", "answered", "open"]) element(name).textContent = told[name];
  element("waits").textContent = told.waits;
  element("waits").hidden = !told.waits;
  for (const name of ["question", "none", "read"]) element(name).hidden = told.state !== name;
  clearTimeout(timer);
  if (told.state === "none") {
    pollLater();
    if (word) element("none-head").focus();
  } else if (told.state === "read") {
    element("instructions").innerHTML = told.html; // made by the server from Markdown without HTML
    scrollTo(0, 0);
  } else {
    showQuestion(told);
  }
  say(`${word} ${told.state === "question" ? "A new question." : ""}`);
}

// Asks for what comes next until there is something, whatever goes wrong on the way.
async function poll() {
  await forward();
  if (!shown || shown.state === "none") pollLater();
}

function pollLater() {
  clearTimeout(timer);
  timer = setTimeout(poll, 3000);
}

function showQuestion(told) {
  element("query").textContent = told.query;
  element("cards").replaceChildren(...told.cards.map(card));
  element("changing").hidden = told.replaces === null;
  element("before").textContent = told.answer ? `It was: ${inWords(told.answer)}.` : "";
  sureness = told.answer ? told.answer.sureness : null;
  showSureness();
  showChosen();
  scrollTo(0, 0);
  element("query-head").focus({ preventScroll: true });
  for (const box of document.querySelectorAll(".text")) {
    if (box.scrollHeight > box.clientHeight) box.tabIndex = 0; // so that keys can scroll it
    else box.removeAttribute("tabindex");
  }
}

function card(text, place) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  const key = document.createElement("kbd");
  const label = document.createElement("span");
  const body = document.createElement("div");
  key.textContent = place + 1;
  label.textContent = mode === "rank" ? ` Next best` : ` This one is best`;
  button.type = "button";
  button.id = `choose-${place}`;
  body.id = `card-${place}`;
  button.setAttribute("aria-describedby", body.id);
  button.append(key, label);
  button.addEventListener("click", () => press(place));
  body.className = "text";
  body.dir = "auto";
  body.setAttribute("role", "group");
  body.setAttribute("aria-label", `Response ${place + 1}`);
  body.textContent = text;
  item.append(button, body);
  return item;
}

function inWords(answer) {
  if (answer.kind === "skip") return "cannot tell";
  if (answer.kind === "alike") return "all alike";
  return answer.places.map((place) => place + 1).join(", ");
}

// --- answers ---

function press(place) {
  if (mode === "choose") return send("choice", [place]);
  if (!ranking.includes(place)) {
    ranking.push(place);
    showChosen();
    say(`${place + 1} is number ${ranking.length}`);
  }
  if (ranking.length === shown.cards.length) return send("ranking", ranking);
  return undefined;
}

// Marks the cards of the ranking so far, and while that is empty those of the answer that is being changed.
function showChosen() {
  const before = shown?.answer && shown.answer.kind !== "alike" ? shown.answer.places : [];
  const chosen = ranking.length ? ranking : before;
  element("enough").hidden = mode !== "rank" || ranking.length === 0;
  [...element("cards").children].forEach((item, place) => {
    item.classList.toggle("chosen", chosen.includes(place));
    if (mode !== "rank") return;
    const at = ranking.indexOf(place);
    item.querySelector("span").textContent = at >= 0 ? ` is number ${at + 1}` : " Next best";
  });
}

function showSureness() {
  element("sure").hidden = !asksSureness;
  for (const input of document.querySelectorAll("input[name=sure]")) input.checked = Number(input.value) === sureness;
}

function send(kind, places) {
  if (!shown || shown.state !== "question") return;
  const answer = { showing: shown.showing, kind, places, sureness, nonce, replaces: shown.replaces };
  once(async () => {
    const next = await ask("answer", answer);
    show(next, 0, "Saved.");
  });
}

function undo() {
  if (!shown || shown.state === "read") return;
  once(async () => {
    const earlier = await ask(`earlier/${back + 1}`);
    show(earlier, back + 1, "An earlier question.");
  });
}

function forward() {
  return once(async () => show(await ask("next"), 0, ""));
}

// --- dialogs ---

function flag() {
  if (!shown || shown.state !== "question") return;
  element("note").value = "";
  element("flagging").showModal();
  element("note").focus();
}

function saveFlag() {
  const body = { showing: shown.showing, note: element("note").value };
  once(async () => {
    await ask("flag", body);
    element("flagging").close();
    say("Flagged.");
  });
}

function reread() {
  once(async () => {
    element("again").innerHTML = (await ask("instructions")).html;
    element("help").close();
    element("reading").showModal();
  });
}

function understood() {
  once(async () => show(await ask("instructions", { digest: shown.digest }), 0, ""));
}

// --- keys ---

const ACTIONS = {
  0: () => send("alike", []),
  s: () => send("skip", []),
  u: undo,
  f: flag,
  "?": () => element("help").showModal(),
  c: () => {
    afterC = asksSureness;
  },
  Escape: () => back > 0 && forward(),
  Backspace: () => {
    ranking.pop();
    showChosen();
  },
};

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || document.querySelector("dialog[open]")) return;
  if (!element("keys").checked || busy || /^(TEXTAREA|SELECT)$/.test(event.target.tagName)) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (afterC && /^[1-3]$/.test(key)) {
    sureness = Number(key);
    showSureness();
    say(`Sureness ${key}`);
    afterC = false;
  } else if (/^[1-9]$/.test(key) && shown && shown.state === "question") {
    if (Number(key) <= shown.cards.length) press(Number(key) - 1);
  } else if (key === "Enter" && ranking.length && event.target.tagName !== "BUTTON") {
    send("ranking", ranking);
  } else if (key in ACTIONS && (key !== "Backspace" || mode === "rank")) {
    afterC = false;
    ACTIONS[key]();
  } else {
    return;
  }
  event.preventDefault();
}

const CLICKS = {
  alike: ACTIONS[0],
  skip: ACTIONS.s,
  undo,
  "undo-none": undo,
  enough: () => send("ranking", ranking),
  flag,
  ask: ACTIONS["?"],
  understood,
  onward: forward,
  reread,
  "help-close": () => element("help").close(),
  "reading-close": () => element("reading").close(),
  "flag-save": saveFlag,
  "flag-close": () => element("flagging").close(),
};
for (const [id, act] of Object.entries(CLICKS)) element(id).addEventListener("click", act);
for (const input of document.querySelectorAll("input[name=sure]")) {
  input.addEventListener("change", () => {
    sureness = Number(input.value);
  });
}
document.addEventListener("keydown", onKey);
element("keys").checked = localStorage.getItem(KEYS) !== "off";
element("keys").addEventListener("change", () => {
  localStorage.setItem(KEYS, element("keys").checked ? "on" : "off");
});
poll();

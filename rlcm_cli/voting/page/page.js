"use strict";
// The key is in the fragment of the address, which is sent to no server.
const key = location.hash.slice(1);
const REMEMBERED = "rlcm-voter";
const KEYS = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "tie", s: "skip", S: "skip" };
const images = new Map();  // name → promise of an address of the loaded image
const history = [];  // pairs that were answered on this page, the newest last
let voter = null, progress = null, shown = null, turn = 0;

const find = (id) => document.getElementById(id);

function setState(state) {
  document.documentElement.dataset.state = state;
}

function open(section) {
  for (const main of document.querySelectorAll("main")) main.hidden = main.id !== section;
}

function complain(text) {
  find("fault").textContent = text;
  find("fault").hidden = !text;
}

async function ask(path, body) {
  const options = { headers: { Authorization: `Bearer ${key}` } };
  if (body !== undefined) {
    options.method = "POST";
    options.body = JSON.stringify(body);
    options.headers["Content-Type"] = "application/json";
  }
  let response;
  try {
    response = await fetch(`api/${path}`, options);
  } catch {
    throw new Error("The program has stopped. Every vote so far is stored; run the same rlcm vote command to resume.");
  }
  if (response.status === 401) throw new Error("Open the whole address that rlcm vote printed: its last part is the key.");
  if (!response.ok) throw new Error(`The program refuses: ${(await response.json()).detail}`);
  return response;
}

async function load(name) {
  const address = URL.createObjectURL(await (await ask(`images/${name}`)).blob());
  const image = new Image();
  image.src = address;
  await image.decode();
  return address;
}

function fetchImage(name) {
  if (!images.has(name)) images.set(name, load(name));
  return images.get(name);
}

function forgetImages(kept) {
  for (const [name, loading] of images) {
    if (kept.has(name)) continue;
    images.delete(name);
    loading.then(URL.revokeObjectURL, () => {});
  }
}

async function show(pair) {
  const own = ++turn;
  shown = null;
  setState("busy");
  const addresses = await Promise.all([fetchImage(pair.left), fetchImage(pair.right)]);
  if (own !== turn) return;  // another pair was asked for meanwhile
  for (const button of document.querySelectorAll(".chosen")) button.classList.remove("chosen");
  find("prompt").textContent = pair.prompt;
  [find("left").src, find("right").src] = addresses;
  await Promise.all([find("left").decode(), find("right").decode()]);
  if (own !== turn) return;
  find("bar").max = progress.total;
  find("bar").value = progress.done;
  find("count").textContent = `${progress.done} of ${progress.total}`;
  find("back").disabled = !history.length;
  shown = pair;
  setState("ready");
}

async function proceed() {
  const coming = progress.pairs;
  const kept = new Set([...coming, ...history.slice(-3)].flatMap((pair) => [pair.left, pair.right]));
  forgetImages(kept);
  if (!coming.length) {
    find("total").textContent = `All ${progress.total} pairs are answered.`;
    find("change").hidden = !history.length;
    open("done");
    setState("done");
    return;
  }
  open("vote");
  await show(coming[0]);
  for (const pair of coming.slice(1)) [pair.left, pair.right].forEach((name) => fetchImage(name).catch(() => images.delete(name)));
}

async function attempt(work) {
  complain("");
  try {
    await work();
  } catch (error) {
    complain(error.message);
    setState("failed");
  }
}

function answer(word) {
  if (!shown) return;  // nothing is voted on that is not seen yet
  const pair = shown;
  shown = null;
  setState("busy");
  for (const button of document.querySelectorAll(`[data-answer="${word}"]`)) button.classList.add("chosen");
  attempt(async () => {
    try {
      progress = await (await ask(`voters/${voter}`, { number: pair.number, answer: word })).json();
    } catch (error) {
      shown = pair;  // so that the same key tries again
      throw error;
    }
    history.push(pair);
    await proceed();
  });
}

function back() {
  if (!history.length || document.documentElement.dataset.state === "busy") return;
  const pair = history.pop();
  open("vote");
  attempt(() => show(pair));
}

async function start(name) {
  progress = await (await (name ? ask(`voters/${name}`) : ask("voters", {}))).json();
  voter = progress.voter;
  try {
    localStorage.setItem(REMEMBERED, voter);
  } catch { /* a browser that keeps nothing: the voter is chosen from the list again */ }
  await proceed();
}

function offer(text, name) {
  const button = document.createElement("button");
  button.textContent = text;
  button.dataset.voter = name ?? "";
  button.addEventListener("click", () => attempt(() => start(name)));
  find("voters").append(button);
  return button;
}

async function begin() {
  if (!key) throw new Error("Open the whole address that rlcm vote printed: its last part is the key.");
  const session = await (await ask("session")).json();
  let mine = null;
  try {
    mine = localStorage.getItem(REMEMBERED);
  } catch { /* as above */ }
  const minutes = Math.max(1, Math.round(session.pairs / 15));
  const time = minutes === 1 ? "a minute" : `${minutes} minutes`;
  find("task").textContent = `${session.pairs} pairs of ${session.images} images, about ${time}.`;
  const known = session.voters.sort((a, b) => (b.voter === mine) - (a.voter === mine));
  const buttons = known.map(({ voter, done }) =>
    offer(`${voter === mine ? "Resume" : `Resume as voter ${voter}`} (${done} of ${session.pairs} answered)`, voter));
  buttons.push(offer(known.length ? "Start as another voter" : "Start", null));
  open("start");
  buttons[0].classList.add("main");
  buttons[0].focus();
  setState("start");
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-answer]");
  if (button) answer(button.dataset.answer);
});
document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.altKey || event.metaKey || !voter) return;
  if (event.key === "Backspace") back();
  else if (KEYS[event.key]) answer(KEYS[event.key]);
  else return;
  event.preventDefault();
});
find("back").addEventListener("click", back);
find("change").addEventListener("click", back);
addEventListener("hashchange", () => location.reload());
attempt(begin);

// The chat's page. What comes from others is only ever put into textContent.
"use strict";

const $ = id => document.getElementById(id);
const page = document.querySelector(".chat").dataset;
const url = page.url || (page.port && (location.protocol === "https:" ? "wss://" : "ws://") + location.hostname + ":" + page.port + "/");

const SHORTEST = 500, LONGEST = 15000;            // ms: the wait before a new attempt is a random part of something between these
const ANSWER = 4000, QUIET = 15000, DEAD = 25000; // ms: ask again after, ping after, take the connection for dead after
const KEPT = 300;                                 // lines on the page, and messages that wait for their receipt

// What survives a reload of the page, in this tab alone: two tabs are two people.
const store = window.sessionStorage;
const key = store.secret = store.secret || Array.from(crypto.getRandomValues(new Uint8Array(16)), byte => byte.toString(16).padStart(2, "0")).join("");
const query = new URLSearchParams(location.search);
let nick = query.get("nick") || store.nick || "";
let room = query.get("room") || store.room || "lobby";

let socket = null, joined = false, entered = false;
let attempts = 0, retry = 0, heard = 0, asked = 0, lost = 0, number = 0;
let to = "";                     // whom the composer writes to; the room when empty
const waiting = new Map();       // id -> {request, line, sent}: said, and no receipt yet
const shown = new Set();         // sender and id of what is on the page

// The connection ------------------------------------------------------------------------------------------------------------------

function show(state, text) {
  $("state").dataset.state = state;
  $("state").textContent = text;
}

function connect() {
  clearTimeout(retry);
  drop();
  if (!url) return show("offline", "no gateway here");
  show("connecting", "connecting…");
  const mine = socket = new WebSocket(url);
  asked = heard = Date.now();
  mine.onopen = () => { heard = Date.now(); join(); };
  mine.onmessage = event => { heard = Date.now(); receive(JSON.parse(event.data)); };
  mine.onclose = () => { if (socket === mine) again(); };
}

// Forget the connection at once: a close that waits for the other side may wait for long.
function drop() {
  if (socket) { socket.onopen = socket.onmessage = socket.onclose = null; socket.close(); }
  if (joined) lost = lost || Date.now();
  socket = null;
  joined = false;
}

// "Full jitter": all pages lost the gateway in the same moment, and should not all come back in the same moment.
function again() {
  drop();
  const wait = Math.random() * Math.min(LONGEST, SHORTEST * 2 ** attempts++);
  show("offline", wait < 1000 ? "reconnecting…" : "reconnecting in " + Math.ceil(wait / 1000) + " s");
  retry = setTimeout(connect, wait);
}

function send(request) {
  if (socket && socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(request));
}

function join() {
  asked = Date.now();
  send({ type: "join", nick, room, key });
}

// Once a second: ask again for what brought no answer, ping when it is quiet, give up what is silent.
function tick() {
  const now = Date.now();
  if (!socket) return;
  if (now - heard > DEAD) return again();
  if (socket.readyState !== WebSocket.OPEN) return;
  if (!joined) { if (now - asked > ANSWER) join(); return; }
  for (const entry of waiting.values()) if (now - entry.sent > ANSWER) { entry.sent = now; send(entry.request); }
  if (now - Math.max(heard, asked) > QUIET) { asked = now; send({ type: "ping" }); }
}

// What is said to this page -----------------------------------------------------------------------------------------------------

const receivers = {
  joined(said) {
    const back = joined ? 0 : lost;
    ({ nick, room } = said);
    Object.assign(store, { nick, room });
    joined = true; attempts = 0; lost = 0;
    $("title").textContent = said.title;
    if (!entered) enter();
    if (back) note("Reconnected. What others said in the last " + Math.max(1, Math.round((Date.now() - back) / 1000)) + " s is not here.");
    show("online", "online as " + nick);
    around(said);
    mark();
    for (const entry of waiting.values()) { entry.sent = Date.now(); send(entry.request); }
  },
  message: said => said.room === room ? spoken(said) : settle(said),
  private: spoken,
  members(said) { if (said.room === room) around(said); },
  pong: around,
  error(said) {
    const entry = waiting.get(said.id);
    if (entry) { waiting.delete(said.id); entry.line.className = "failed"; note(said.error); }
    else if (!joined || said.code === "nick") ask(said.error);
    else note(said.error);
  },
};

function receive(said) {
  const receiver = Object.hasOwn(receivers, said.type) && receivers[said.type];
  if (receiver) receiver(said);
}

// The receipt of what was said here.
function settle(said) {
  const entry = said.from === nick && waiting.get(said.id);
  if (entry) { waiting.delete(said.id); entry.line.remove(); }
}

function spoken(said) {
  settle(said);
  const name = said.from + " " + said.id;
  if (shown.has(name)) return;
  shown.add(name);
  if (shown.size > 4 * KEPT) shown.delete(shown.values().next().value);
  write(said, said.from === nick && said.via === "chat" ? "mine" : "");
}

function around(said) {
  for (const { room: name, count } of said.rooms || []) seats(name, count);
  if (said.members) { seats(room, said.count); people(said.members, said.count); }
}

// What is on the page -----------------------------------------------------------------------------------------------------------

function element(tag, text = "", className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = className;
  return made;
}

function append(line) {
  const list = $("messages"), below = list.scrollHeight - list.scrollTop - list.clientHeight;
  list.append(line);
  while (list.childElementCount > KEPT) list.firstElementChild.remove();
  if (below < 80) list.scrollTop = list.scrollHeight;
  return line;
}

function write(said, className) {
  const line = element("li", "", className), head = element("div");
  const towards = said.type === "private" ? " → " + (said.to === nick ? "you" : said.to) : "";
  const time = element("time", new Date(said.at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }));
  time.dateTime = said.at;
  head.append(element("strong", said.from + towards), time);
  if (said.type === "private") { line.classList.add("private"); head.append(element("small", "private")); }
  if (said.via === "http") head.append(element("small", "by HTTP request"));
  line.append(head, element("p", said.text));
  return append(line);
}

function note(text) {
  append(element("li", text, "note"));
}

function people(names, count) {
  $("count").textContent = count;
  $("members").replaceChildren(...names.map(name => {
    const item = element("li"), button = element("button");
    button.type = "button";
    button.append(element("span", name), element("small", name === nick ? "you" : ""));
    button.disabled = name === nick;
    button.title = name === nick ? "" : "Write to " + name + " alone";
    button.onclick = () => address(name);
    item.append(button);
    return item;
  }));
  if (count > names.length) $("members").append(element("li", "and " + (count - names.length) + " more", "note"));
}

function seats(name, count) {
  const button = document.querySelector("[data-room=" + CSS.escape(name) + "]");
  if (button) button.lastElementChild.textContent = count || "";
}

function mark() {
  for (const button of document.querySelectorAll("[data-room]")) button.setAttribute("aria-current", button.dataset.room === room);
}

function address(name) {
  to = name;
  $("to").hidden = !name;
  $("to").textContent = name ? "to " + name + " ✕" : "";
  $("text").placeholder = name ? "For " + name + " alone" : "Say something";
  $("text").focus();
}

function enter() {
  entered = true;
  $("enter").hidden = true;
  $("seats").hidden = false;
  $("text").focus();
}

// The nickname was refused, or there is none yet.
function ask(text) {
  entered = false;
  nick = store.nick = "";
  clearTimeout(retry);
  drop();
  lost = 0;
  show("offline", "not connected");
  $("refused").textContent = text;
  $("enter").hidden = false;
  $("seats").hidden = true;
  $("nick").focus();
}

// What one can do ---------------------------------------------------------------------------------------------------------------

$("enter").onsubmit = event => {
  event.preventDefault();
  nick = $("nick").value.trim();
  $("refused").textContent = "";
  if (nick) connect();
};

$("composer").onsubmit = event => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text || waiting.size >= KEPT) return;
  $("text").value = "";
  const id = key.slice(0, 8) + "-" + Date.now().toString(36) + "-" + number++;
  const request = to ? { type: "tell", to, text, id } : { type: "say", room, text, id };
  const line = write({ type: to ? "private" : "message", from: nick, to, text, at: new Date().toISOString() }, "mine waiting");
  waiting.set(id, { request, line, sent: Date.now() });
  if (joined) send(request);
};

$("to").onclick = () => address("");

$("rooms").onclick = event => {
  const button = event.target.closest("[data-room]");
  if (!button || button.dataset.room === room) return;
  room = button.dataset.room;
  $("messages").replaceChildren();
  address("");
  mark();
  if (joined) { joined = false; join(); }
};

// Do not wait out the delay when the network is back or somebody looks.
window.addEventListener("online", () => { if (entered && !joined) connect(); });
document.addEventListener("visibilitychange", () => { if (!document.hidden && entered && !socket) connect(); });

setInterval(tick, 1000);
if (nick) { $("nick").value = nick; connect(); } else show("offline", "not connected");

// Shows the messages. Every value has a time at which it stops being live; text is inserted as text, never as markup.
"use strict";

const VALENCE_WORDS = ["very unpleasant", "unpleasant", "neutral", "pleasant", "very pleasant"];
const AROUSAL_WORDS = ["very calm", "calm", "moderate", "stirring", "very stirring"];
const LIVE_MS = 1000; // an older reading or frame is not live
const STATUS_MS = 3000; // three heartbeats
const SILENCE_MS = 5000; // then the connection counts as dead
const RETRY_MS = [250, 500, 1000];
const NARRATIONS = 4;
const OLD_S = 30; // a sentence about an older reading fades
const FRAME_MS = 30; // between two drawings; the browser may run on the device itself

const query = new URLSearchParams(location.search);
const projection = query.get("mode") === "projection";
document.documentElement.dataset.mode = projection ? "projection" : "desk";
const byId = (id) => document.getElementById(id);
const plane = makePlane(byId("plane"), projection ? 20_000 : 12_000);

const seen = {}; // the newest message of each type, with the time at which it was made
let link = "connecting", refusal = "", retries = 0;

// ---- the connection

function connect() {
  const address = new URL("socket" + location.search, location.href);
  address.protocol = address.protocol.replace("http", "ws");
  const socket = new WebSocket(address);
  let received = 0, heardMs = performance.now();
  socket.binaryType = "blob";
  socket.onopen = () => { link = "open"; refusal = ""; refresh(); };
  socket.onmessage = ({ data }) => {
    heardMs = performance.now();
    retries = 0;
    if (data instanceof Blob) showPreview(data); else take(JSON.parse(data));
    socket.send(String(++received)); // the acknowledgement: number of messages received
  };
  const timer = setInterval(() => { if (!seen.end && performance.now() - heardMs > SILENCE_MS) lose(); }, 500);
  const lose = (event) => { // does not wait for the answer to a close
    clearInterval(timer);
    socket.onmessage = socket.onclose = null;
    socket.close();
    link = "lost";
    refusal = event?.code === 1013 ? event.reason : "";
    refresh();
    setTimeout(connect, RETRY_MS[Math.min(retries++, RETRY_MS.length - 1)]);
  };
  socket.onclose = lose;
}

function take(message) {
  message.newMs = performance.now() - message.waited_s * 1000;
  if (message.type === "start") reset();
  seen[message.type] = message;
  ({ start: showStart, reading: showReading, narration: addNarration, status: showStatus, notice: showNotice })[message.type]?.(message);
  if (message.type === "preview") byId("preview").hidden = projection;
  refresh();
}

function reset() { // a run begins, or the page connects again
  for (const type of Object.keys(seen)) delete seen[type];
  plane.clear();
  for (const id of ["words", "committed", "ellipse", "notice"]) byId(id).textContent = "";
  for (const id of ["valence", "arousal"]) byId(id).textContent = "–";
  for (const id of ["emotions", "narrations", "lights", "figures"]) byId(id).replaceChildren();
}

// ---- formatting

const signed = (value, digits = 2) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);
const level = (value, words) => words[Math.min(words.length - 1, Math.max(0, Math.floor((value + 1) / 2 * words.length)))];
const whole = (value) => Math.round(value).toLocaleString("en").replaceAll(",", " ");
const percent = (share) => `${Math.round(share * 100)} %`;
const seconds = (value) => (value < 10 ? value.toFixed(1) : whole(value)) + " s";

function duration(s) {
  const part = (value) => String(Math.floor(value)).padStart(2, "0");
  return `${Math.floor(s / 3600)}:${part(s / 60 % 60)}:${part(s % 60)}`;
}

function ago(s) {
  if (s < 60) return `${Math.max(0, Math.round(s))} s ago`;
  return s < 3600 ? `${Math.round(s / 60)} min ago` : `${Math.round(s / 3600)} h ago`;
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

// ---- messages

function showStart(start) {
  byId("source").textContent = `${start.source} · ${start.bundle}`;
  byId("source").title = start.engines.join("\n");
  document.title = `${start.source}: vaemotion`;
}

function showReading(reading) {
  const calibrated = reading.valence_interval !== null && reading.arousal_interval !== null;
  const spread = calibrated ? [reading.valence_interval, reading.arousal_interval] : [reading.valence_sd, reading.arousal_sd];
  byId("ellipse").textContent = calibrated ? "ellipse: on each axis, 90 in 100 lie within" : "ellipse: one predicted standard deviation";
  const words = `${level(reading.arousal, AROUSAL_WORDS)}, ${level(reading.valence, VALENCE_WORDS)}`;
  byId("words").textContent = projection ? reading.label ?? words : words;
  const sure = reading.confidence === null ? "" : ` (${percent(reading.confidence)} sure)`;
  byId("committed").textContent = reading.label === null ? "" : reading.label + sure;
  byId("valence").textContent = `${signed(reading.valence)} ± ${spread[0].toFixed(2)}`;
  byId("arousal").textContent = `${signed(reading.arousal)} ± ${spread[1].toFixed(2)}`;
  byId("plane").setAttribute("aria-label", `${words}: valence ${signed(reading.valence)}, arousal ${signed(reading.arousal)}`);
  document.documentElement.style.setProperty("--affect", rgba(affectColor(reading.valence, reading.arousal)));
  showEmotions(reading);
  plane.add(reading.valence, reading.arousal, spread, reading.newMs);
}

function showEmotions({ emotions, label }) {
  const list = byId("emotions"), strongest = Math.max(...Object.values(emotions));
  Object.entries(emotions).forEach(([name, share], i) => {
    const row = list.children[i] ?? list.appendChild(document.createElement("li"));
    if (row.dataset.name !== name) {
      row.dataset.name = name;
      row.replaceChildren(element("span", "name", name), element("span", "track", ""), element("span", "share", ""));
      row.children[1].append(element("i", "", ""));
    }
    row.classList.toggle("strongest", share === strongest);
    row.classList.toggle("label", name === label);
    row.querySelector("i").style.transform = `scaleX(${share})`;
    row.querySelector(".share").textContent = percent(share);
  });
  while (list.children.length > Object.keys(emotions).length) list.lastChild.remove();
}

function addNarration({ text, about_s }) {
  const row = element("li", "", ""), list = byId("narrations");
  const sentence = element("p", "", text);
  const time = Object.assign(element("time", "technical", ""), { aboutS: about_s, ariaLive: "off" });
  if (text.length > 90) sentence.dataset.length = text.length > 180 ? "very-long" : "long";
  row.append(sentence, time);
  list.prepend(row);
  while (list.children.length > NARRATIONS) list.lastChild.remove();
}

function showNotice(notice) {
  byId("notice").textContent = `${duration(notice.time_s)}  ${notice.text}`;
}

let previewMs = -Infinity;
async function showPreview(blob) {
  const cameMs = performance.now(), canvas = byId("picture");
  const bitmap = await createImageBitmap(blob).catch(() => null);
  if (!bitmap) return;
  Object.assign(canvas, { width: bitmap.width, height: bitmap.height });
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  bitmap.close();
  previewMs = cameMs;
}

// ---- health

function light(name, state, kind) {
  const row = element("li", kind, "");
  row.append(element("span", "name", name), element("span", "state", state));
  return row;
}

function deviceLight(name, { state, age_s, losses }) {
  const kind = { live: "good", absent: "warn", frozen: "bad", lost: "bad" }[state] ?? "off";
  const words = [state === "none" ? "not configured" : state];
  if (age_s !== null && state !== "live") words.push(seconds(age_s));
  if (losses) words.push(`lost ${losses} ×`);
  return light(name, words.join(" · "), kind);
}

function showStatus(status) {
  const clock = { true: ["synchronized", "good"], false: ["not synchronized", "bad"] }[status.clock_synchronised] ?? ["unknown", "off"];
  const lights = [
    deviceLight("camera", status.camera),
    deviceLight("microphone", status.microphone),
    light("based on", "", "path"),
    light("state", status.state, { degraded: "warn", muted: "warn", empty: "off" }[status.state] ?? "good"),
    light("output", status.muted ? "muted" : "on", status.muted ? "warn" : "good"),
    light("narrator", status.narrator, { on: "good", slowed: "warn" }[status.narrator] ?? "off"),
    light("wall clock", ...clock),
  ];
  if (status.ignoring_audio_s > 0) lights.push(light("sound", `ignored for ${seconds(status.ignoring_audio_s)}`, "warn"));
  byId("lights").replaceChildren(...lights);
}

function showFigures(nowMs) {
  const { reading, status } = seen;
  const since_s = reading ? (nowMs - reading.newMs) / 1000 : 0;
  const unit = (value, name, digits = 0) => value === null || value === undefined ? "–" : `${digits ? value.toFixed(digits) : whole(value)} ${name}`;
  const age = (value) => value === null || value === undefined ? "–" : seconds(value + since_s);
  const rows = [
    ["latency", unit(reading?.latency_ms, "ms")],
    ["latency p99", unit(status?.latency_p99_ms, "ms")],
    ["p99, narrating", unit(status?.latency_p99_narrating_ms, "ms")],
    ["frame age", age(reading?.visual_age_s)],
    ["sound age", age(reading?.audio_age_s)],
    ["skew", status && status.skew_ms !== null ? `${signed(status.skew_ms, 0)} ms` : "–"],
    ["drift", status && status.drift_ppm !== null ? `${signed(status.drift_ppm, 1)} ppm` : "–"],
    ["pace", unit(status?.realtime_ratio, "×", 2)],
    ["ticks dropped", unit(status?.dropped_moments, "")],
    ["messages dropped", unit(status?.dropped_messages, "")],
    ["readings", unit(status?.readings, "")],
    ["up for", status ? duration(status.uptime_s) : "–"],
  ];
  const list = byId("figures");
  rows.forEach(([name, value], i) => {
    const row = list.children[i] ?? list.appendChild(document.createElement("div"));
    if (!row.firstChild) row.append(element("dt", "", name), element("dd", "", ""));
    row.lastChild.textContent = value;
  });
}

// ---- liveness

function liveness(nowMs) {
  if (seen.end) return "ended";
  if (link !== "open") return link;
  if (!seen.reading) return "waiting";
  return nowMs - seen.reading.newMs > LIVE_MS ? "stale" : "live";
}

const LINK_WORDS = {
  connecting: "connecting", waiting: "waiting for the first reading", live: "live", stale: "no new reading",
  lost: "connection lost, trying again",
};

function refresh() {
  const nowMs = performance.now(), live = liveness(nowMs), body = document.body.dataset;
  const write = (id, text) => { if (byId(id).textContent !== text) byId(id).textContent = text; };
  body.live = live;
  body.status = link === "open" && seen.status && nowMs - seen.status.newMs < STATUS_MS && !seen.end ? "live" : "stale";
  body.muted = String(seen.status?.muted || seen.status?.state === "muted");
  plane.setLive(live === "live");
  write("link-words", live === "ended" ? `the run ended: ${seen.end.reason}` : refusal || LINK_WORDS[live]);
  const newest = seen.reading ?? seen.status;
  write("since", seen.reading && ["stale", "lost"].includes(live) ? `for ${seconds(Math.max(0, (nowMs - seen.reading.newMs) / 1000))}` : "");
  write("clock", newest ? duration(newest.time_s) : "");
  const ran_s = newest && !seen.end ? (nowMs - newest.newMs) / 1000 : 0;
  for (const time of byId("narrations").querySelectorAll("time")) {
    const age_s = newest ? newest.time_s + ran_s - time.aboutS : 0;
    time.textContent = ago(age_s);
    time.parentElement.classList.toggle("old", age_s > OLD_S);
  }
  const path = document.querySelector("#lights .path");
  if (path) {
    path.lastChild.textContent = live === "live" ? seen.reading.path : "nothing";
    path.classList.toggle("good", live === "live");
    path.classList.toggle("off", live !== "live");
  }
  showFigures(nowMs);
  const sighted = live === "live" && seen.reading.visual_age_s !== null; // a preview may still hold the last frame of a dead camera
  byId("preview").classList.toggle("stale", !sighted || nowMs - previewMs > LIVE_MS);
}

let drawnMs = 0;
function frame(nowMs) {
  if (nowMs - drawnMs > FRAME_MS) plane.draw(drawnMs = nowMs);
  requestAnimationFrame(frame);
}

document.addEventListener("visibilitychange", refresh);
if (projection) document.addEventListener("click", () => document.documentElement.requestFullscreen?.().catch(() => {}));
setInterval(refresh, 200);
requestAnimationFrame(frame);
connect();

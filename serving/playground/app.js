// The playground: what is chosen becomes a request, a request becomes a clip. No build step, no library.

import {ask, call, follow, forget, isFinal, upload} from "./api.js";
import {Zone} from "./dropping.js";
import {Painter} from "./painting.js";
import {look, tell} from "./preflight.js";
import {listRecent} from "./recent.js";
import {showClip} from "./showing.js";
import {curl, openai} from "./snippets.js";

const at = (id) => document.getElementById(id);
const PLAIN = ["model", "quality", "size", "num_frames", "fps", "num_inference_steps", "guidance_scale", "seed"];
const NUMBERS = new Set(["num_frames", "fps", "num_inference_steps", "guidance_scale", "seed"]);
let current = null, shown = null, watch = null, tab = "curl", pending = 0;

const painter = new Painter(() => changed());
const image = new Zone(at("image_zone"), "img", async (file) => {
  at("paint").disabled = !file;
  await painter.load(file).catch(() => { at("paint").disabled = true; });
  changed();
});
const motion = new Zone(at("motion_zone"), "video", () => changed());

function wish() {
  const fields = {prompt: at("prompt").value.trim()};
  for (const name of PLAIN) {
    const value = at(name).value.trim();
    if (value && !(name === "quality" && value === "exact")) fields[name] = NUMBERS.has(name) ? Number(value) : value;
  }
  if (at("keep_audio").checked) fields.keep_audio = true;
  return fields;
}

/** The request with its files sent ahead, or null where something is missing yet. */
async function toRequest(onWords = () => {}) {
  if (!image.file || !motion.file) return null;
  const shares = {}, files = {input_reference: image.file, [at("kind").value]: motion.file};
  const mask = await painter.toFile();
  if (mask) files.mask = mask;
  const sending = Object.entries(files).map(async ([medium, file]) => {
    const id = await upload(file, (share) => {
      shares[medium] = share;
      const parts = Object.values(shares);
      onWords(`sending the files, ${Math.round(100 * parts.reduce((sum, part) => sum + part, 0) / parts.length)} %`);
    });
    return [medium, {file_id: id}];
  });
  return {...wish(), ...Object.fromEntries(await Promise.all(sending))};
}

function changed() {
  snippet();
  clearTimeout(pending);
  pending = setTimeout(() => look(async (onWords) => {
    const request = await toRequest(onWords);
    if (request) delete request.prompt;
    return request;
  }), 400);
}

for (const id of [...PLAIN, "kind", "keep_audio"]) at(id).addEventListener("change", changed);
at("prompt").addEventListener("input", snippet);

function snippet() {
  at("code_card").hidden = !(image.file && motion.file);
  if (at("code_card").hidden) return;
  const names = {input_reference: image.file.name, [at("kind").value]: motion.file.name};
  if (painter.painted) names.mask = "mask.png";
  const fields = shown ? {...wish(), seed: wish().seed ?? shown.seed} : wish();
  const withKey = Boolean(at("key").value.trim());
  at("snippet").textContent = (tab === "curl" ? curl : openai)(location.origin, fields, names, withKey);
}

for (const button of document.querySelectorAll("[data-tab]")) {
  button.addEventListener("click", () => {
    tab = button.dataset.tab;
    document.querySelectorAll("[data-tab]").forEach((one) => one.setAttribute("aria-selected", one === button));
    snippet();
  });
}
at("copy").addEventListener("click", async () => {
  await navigator.clipboard.writeText(at("snippet").textContent);
  at("copy").textContent = "Copied";
  setTimeout(() => { at("copy").textContent = "Copy"; }, 1500);
});

at("form").addEventListener("submit", (event) => { event.preventDefault(); animate(); });
at("again").addEventListener("click", () => { at("seed").value = ""; animate(); });
at("remix").addEventListener("click", () => { at("prompt").focus(); at("prompt").select(); });
at("paint").addEventListener("click", () => at("paint").setAttribute("aria-pressed", painter.toggle()));

async function animate() {
  at("problem").textContent = "";
  if (!image.file || !motion.file) { at("problem").textContent = "Choose an image of a person and a video first."; return; }
  if (!at("prompt").value.trim()) {
    at("problem").textContent = "Say in the prompt what the clip shows.";
    at("prompt").focus();
    return;
  }
  at("go").disabled = true;
  try {
    await watchJob(await start(), motion.file);
  } catch (problem) {
    at("problem").textContent = problem.message;
  } finally {
    at("go").disabled = false;
  }
}

async function start() {
  const request = await toRequest((words) => tell([["wait", words]]));
  try {
    return await ask("v1/videos", {json: request});
  } catch (problem) {
    if (problem.code !== "file_not_found") throw problem;
    for (const file of [image.file, motion.file, await painter.toFile()]) if (file) forget(file); // expired there
    return ask("v1/videos", {json: await toRequest()});
  }
}

async function watchJob(video, driving) {
  watch?.abort();
  watch = new AbortController();
  current = video.id;
  at("result").hidden = true;
  at("job").hidden = false;
  for await (const now of follow(video, watch.signal)) { video = now; progress(now); }
  if (!isFinal(video)) return;
  if (video.status === "failed") throw new Error(video.error.message);
  at("job").hidden = true;
  if (video.status === "completed") await present(video, driving);
}

function progress(video) {
  const place = video.queue_position ? `, place ${video.queue_position} in the queue` : "";
  const left = video.eta_s ? `, about ${Math.ceil(video.eta_s)} s left` : "";
  at("state").textContent = (video.status === "in_progress" ? video.stage : video.status) + place + left;
  at("bar").value = video.progress;
}

async function present(video, driving) {
  shown = video;
  await showClip(video, driving);
  snippet();
  await refresh();
}

const refresh = () => listRecent(async (video) => {
  at("problem").textContent = "";
  try {
    if (video.status === "completed") await present(video, null);
    else if (isFinal(video)) at("problem").textContent = video.error?.message || `that clip was ${video.status}`;
    else await watchJob(video, null);
  } catch (problem) { at("problem").textContent = problem.message; }
}).catch(() => {});

at("cancel").addEventListener("click", async () => {
  if (!current) return;
  at("state").textContent = "cancelling";
  try { await call(`v1/videos/${current}/cancel`, {method: "POST"}); } catch (problem) {
    at("problem").textContent = problem.message;
  }
});

at("example").addEventListener("click", async () => {
  const take = async (name, kind) => new File([await (await call(`playground/${name}`)).blob()], name, {type: kind});
  try {
    at("kind").value = "driving_video";
    at("prompt").value = at("prompt").value || at("example").dataset.prompt;
    image.take(await take("example-person.webp", "image/webp"));
    motion.take(await take("example-motion.mp4", "video/mp4"));
  } catch (problem) { at("problem").textContent = problem.message; }
});

async function greet() {
  try {
    const {data} = await ask("v1/models");
    const names = data.map((one) => `${one.id} (${one.family === "mini" ? "mini: a small model for trying out" : one.version})`);
    at("served").textContent = names.length ? `serving ${names.join(", ")}` : "no worker is warm yet: jobs wait in the queue";
    at("model").replaceChildren(new Option("the served one", ""), ...data.map((one) => new Option(one.id, one.id)));
    at("example").hidden = !data.some((one) => one.family === "mini"); // the example is a marionette: mini models know them
    if (!names.length) setTimeout(greet, 3000);
  } catch (problem) { at("served").textContent = problem.message; }
}
at("key").addEventListener("change", () => { greet(); refresh(); changed(); });
greet();
refresh();

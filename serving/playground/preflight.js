// What a job would come to, asked as soon as there is something to ask about.

import {ask} from "./api.js";

const list = document.getElementById("findings");
let turn = 0;

/** Shows one line for each finding of [kind, words]; kind is good, warn, bad or wait. */
export function tell(findings) {
  list.hidden = findings.length === 0;
  list.replaceChildren(...findings.map(([kind, words]) =>
    Object.assign(document.createElement("li"), {className: kind, textContent: words})));
}

/** Asks the service about a request; an answer that another question has overtaken is not shown. */
export async function look(toRequest) {
  const mine = ++turn;
  try {
    const request = await toRequest((words) => mine === turn && tell([["wait", words]]));
    if (mine !== turn) return;
    if (!request) { tell([]); return; }
    tell([["wait", "looking at the image and the motion"]]);
    const found = await ask("v1/videos/preflight", {json: {prompt: "preflight", ...request}});
    if (mine === turn) tell(words(found));
  } catch (problem) {
    if (mine === turn) tell([["bad", problem.message]]);
  }
}

function words(found) {
  const lines = [];
  if (found.persons_in_image === 0) lines.push(["bad", "no person was found in the image"]);
  else if (found.persons_in_image === 1) lines.push(["good", "one person in the image"]);
  const of = found.frames_available ? ` of ${found.frames_available}` : "";
  lines.push(["good", `${found.num_frames}${of} frames at ${+found.fps.toFixed(2)} a second: a clip of ${found.seconds} s`]);
  const crop = found.crop ? `, the image is cut to ${found.crop[2] - found.crop[0]}x${found.crop[3] - found.crop[1]} pixels` : "";
  lines.push(["good", `${found.size}${crop}`]);
  for (const warning of found.warnings || []) lines.push(["warn", warning]);
  const price = found.cost == null ? "" : ` (${found.cost})`;
  const cost = found.gpu_seconds != null ? `about ${Math.ceil(found.gpu_seconds)} s of rendering${price}` : null;
  const eta = found.eta_s != null ? `done in about ${Math.ceil(found.eta_s)} s` : null;
  if (cost || eta) lines.push(["good", [cost, eta].filter(Boolean).join(", ")]);
  return lines;
}

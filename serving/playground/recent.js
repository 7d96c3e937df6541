// Clips made before, newest first, with their thumbnails.

import {ask, bytes, call, isFinal} from "./api.js";

const at = (id) => document.getElementById(id);
const PAGE = 8;
let last = null;

/** Fills the list anew; `onShow` is called with the job that is chosen. */
export async function listRecent(onShow) {
  at("recent").replaceChildren();
  last = null;
  await more(onShow);
  at("older").onclick = () => more(onShow);
}

async function more(onShow) {
  const page = await ask(`v1/videos?limit=${PAGE}${last ? `&after=${last}` : ""}`);
  last = page.last_id;
  at("older").hidden = !page.has_more;
  at("recent").append(...page.data.map((video) => entry(video, onShow)));
  at("recent_card").hidden = at("recent").childElementCount === 0;
}

function entry(video, onShow) {
  const box = Object.assign(document.createElement("div"), {className: "past"});
  const show = Object.assign(document.createElement("button"), {type: "button", className: "show", title: video.prompt});
  const picture = Object.assign(document.createElement("div"), {className: "picture", textContent: video.status});
  const words = Object.assign(document.createElement("span"), {className: "words", textContent: video.prompt});
  const drop = Object.assign(document.createElement("button"), {
    type: "button", className: "plain drop-it", textContent: isFinal(video) ? "Delete" : "Stop and delete",
  });
  show.append(picture, words);
  box.append(show, drop);
  show.addEventListener("click", () => onShow(video));
  drop.addEventListener("click", async () => {
    drop.disabled = true;
    try { await call(`v1/videos/${video.id}`, {method: "DELETE"}); box.remove(); } catch (problem) {
      drop.disabled = false;
      drop.title = problem.message;
    }
  });
  if (video.status === "completed") thumbnail(video, picture);
  return box;
}

async function thumbnail(video, place) {
  try {
    const picture = Object.assign(document.createElement("img"), {className: "picture", alt: video.prompt});
    picture.src = URL.createObjectURL(await bytes(`v1/videos/${video.id}/content?variant=thumbnail`));
    place.replaceWith(picture);
  } catch { place.textContent = "expired"; }
}

// The finished clip: played beside its driving video, under a slider that shows more of one or the other.

import {bytes} from "./api.js";

const at = (id) => document.getElementById(id);
const clip = at("clip"), source = at("source");
let url = null;

const show = (share) => at("compare").style.setProperty("--share", `${share}%`);
at("slider").addEventListener("input", () => show(at("slider").value));
at("play").addEventListener("click", () => clip.paused ? clip.play() : clip.pause());
clip.addEventListener("play", () => { at("play").textContent = "Pause"; source.play().catch(() => {}); });
clip.addEventListener("pause", () => { at("play").textContent = "Play"; source.pause(); });
clip.addEventListener("timeupdate", () => {
  // The clip shows the first frames of the motion: both start again together.
  if (source.src && Math.abs(source.currentTime - clip.currentTime) > 0.25) source.currentTime = clip.currentTime;
});

/** Shows a completed job; `motion` is the driving video's File where this page still has it. */
export async function showClip(video, motion) {
  const content = await bytes(`v1/videos/${video.id}/content`);
  if (url) URL.revokeObjectURL(url);
  url = URL.createObjectURL(content);
  clip.src = url;
  if (source.src) { URL.revokeObjectURL(source.src); source.removeAttribute("src"); }
  for (const id of ["source", "divider", "slider_row"]) at(id).hidden = !motion;
  at("slider").value = motion ? 30 : 0;
  show(at("slider").value);
  if (motion) source.src = URL.createObjectURL(motion);
  clip.play().catch(() => {}); // a browser may refuse to start by itself
  Object.assign(at("download"), {href: url, download: `${video.id}.mp4`});
  const version = video.model_version ? ` ${video.model_version}` : "";
  at("facts").textContent = `${video.size}, ${video.num_frames} frames, ${video.seconds} s, ${video.quality}, ` +
    `seed ${video.seed}, model ${video.model}${version}`;
  at("result").hidden = false;
  at("result").scrollIntoView({behavior: "smooth", block: "nearest"});
}

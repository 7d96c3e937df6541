// What the page asks of the service. Errors are Errors whose message is the service's own.

const key = document.getElementById("key");
key.value = sessionStorage.getItem("dynamictrl-key") || "";
key.addEventListener("change", () => sessionStorage.setItem("dynamictrl-key", key.value.trim()));

function headers(more = {}) {
  const word = key.value.trim();
  return word ? {Authorization: `Bearer ${word}`, ...more} : more;
}

async function reason(answer) {
  if (answer.status === 401) document.getElementById("key_row").hidden = false;
  try {
    const {error} = await answer.json();
    return Object.assign(new Error(error.message), {code: error.code, param: error.param, status: answer.status});
  } catch {
    return Object.assign(new Error(`the service answered ${answer.status}`), {status: answer.status});
  }
}

export async function call(path, {json, method, body, signal, headers: more} = {}) {
  const sent = json === undefined ? body : JSON.stringify(json);
  const kind = json === undefined ? {} : {"Content-Type": "application/json"};
  const answer = await fetch(path, {
    method: method || (sent === undefined ? "GET" : "POST"), body: sent, signal, headers: headers({...kind, ...more}),
  });
  if (!answer.ok) throw await reason(answer);
  return answer;
}

export const ask = async (path, options) => (await call(path, options)).json();
export const bytes = async (path) => (await call(path)).blob();

const sent = new WeakMap(); // File -> promise of its id: a file is sent once, for preflight and job alike

/** The id of a file in /v1/files; `onShare` is told how much of it is there, 0 to 1. */
export function upload(file, onShare = () => {}) {
  if (!sent.has(file)) {
    const sending = send(file, onShare);
    sent.set(file, sending);
    sending.catch(() => sent.delete(file));
  }
  return sent.get(file);
}

/** After a file has expired or was deleted: the next use sends it again. */
export const forget = (file) => sent.delete(file);

function send(file, onShare) {
  const body = new FormData();
  body.append("purpose", "user_data");
  body.append("file", file, file.name);
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest(); // fetch does not tell how far an upload is
    request.open("POST", "v1/files");
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => event.lengthComputable && onShare(event.loaded / event.total);
    request.onerror = () => reject(new Error("the connection broke while the file was sent"));
    request.onload = async () => {
      if (request.status < 300) resolve(JSON.parse(request.responseText).id);
      else reject(await reason(new Response(request.responseText, {status: request.status})));
    };
    request.send(body);
  });
}

const FINAL = ["completed", "failed", "cancelled"];
export const isFinal = (video) => FINAL.includes(video.status);

/** Yields a job at each change until it is over: server-sent events, resumed where the connection breaks. */
export async function* follow(video, signal) {
  let last = "", current = video;
  yield current;
  while (!isFinal(current)) {
    try {
      const more = last ? {"Last-Event-ID": last} : {};
      const answer = await call(`v1/videos/${video.id}/events`, {signal, headers: more});
      if (answer.status === 204) break;
      for await (const event of events(answer.body)) {
        if (event.id) last = event.id;
        if (event.event === "video.deleted") throw Object.assign(new Error("the clip was deleted"), {status: 404});
        current = JSON.parse(event.data);
        yield current;
      }
    } catch (problem) {
      if (signal?.aborted || (problem.status && problem.status < 500)) throw problem;
      await new Promise((wake) => setTimeout(wake, 1000)); // the service restarts; the job is still there
    }
  }
  if (!isFinal(current)) yield await ask(`v1/videos/${video.id}`);
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  while (true) {
    const {value, done} = await reader.read();
    if (done) return;
    text += value;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const event = {};
      for (const line of block.split("\n")) {
        const at = line.indexOf(":");
        if (at > 0) event[line.slice(0, at)] = line.slice(at + 1).trimStart();
      }
      if (event.data) yield event;
    }
  }
}

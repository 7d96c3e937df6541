// The same request for other hands. `wish` has the plain fields, `names` the file names by medium.

const shell = (text) => `'${String(text).replaceAll("'", `'\\''`)}'`;
const python = (value) => typeof value === "boolean" ? (value ? "True" : "False") : JSON.stringify(value);

export function curl(origin, wish, names, withKey) {
  const lines = [`curl ${origin}/v1/videos`];
  if (withKey) lines.push(`-H "Authorization: Bearer $DYNAMICTRL_API_KEY"`);
  for (const [name, value] of Object.entries(wish)) lines.push(`-F ${name}=${shell(value)}`);
  for (const [medium, name] of Object.entries(names)) lines.push(`-F ${medium}=${shell(`@${name}`)}`);
  return `${lines.join(" \\\n  ")}
# {"id": "video_...", "status": "queued", ...}; then, once it is completed:
curl ${withKey ? `-H "Authorization: Bearer $DYNAMICTRL_API_KEY" ` : ""}${origin}/v1/videos/VIDEO_ID/content -o clip.mp4`;
}

export function openai(origin, wish, names, withKey) {
  const {prompt, size, model, ...rest} = wish, {input_reference, ...media} = names;
  const lines = [
    "import os", "", "from openai import OpenAI", "",
    `client = OpenAI(base_url=${python(`${origin}/v1`)}, ` +
      `api_key=${withKey ? `os.environ["DYNAMICTRL_API_KEY"]` : `"none"`})`,
  ];
  for (const [medium, name] of Object.entries(media)) {
    lines.push(`${medium} = client.files.create(file=open(${python(name)}, "rb"), purpose="user_data")`);
  }
  const extra = Object.keys(media).map((medium) => `"${medium}": {"file_id": ${medium}.id}`);
  extra.push(...Object.entries(rest).map(([name, value]) => `"${name}": ${python(value)}`));
  lines.push("video = client.videos.create_and_poll(", `    prompt=${python(prompt)},`);
  if (model) lines.push(`    model=${python(model)},`);
  if (size) lines.push(`    size=${python(size)},`);
  lines.push(`    input_reference=open(${python(input_reference)}, "rb"),`, `    extra_body={${extra.join(", ")}},`, ")");
  lines.push(`client.videos.download_content(video.id).write_to_file("clip.mp4")`);
  return lines.filter((line) => withKey || line !== "import os").join("\n").trim();
}

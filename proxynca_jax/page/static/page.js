"use strict";
// What is searched for is in the history: {id} of an image of the index, or {upload}, the number of a photograph that
// this page keeps in memory. Labels come from names of folders, so they are only ever set as text.

const K = 60;
const $ = (id) => document.getElementById(id);
const uploads = new Map();
let points = [];  // operating points of the index: {far, threshold}
let maxBytes = 0;
let matches = [];
let latest = 0;  // number of the newest search; answers of older ones are dropped

async function ask(address, options) {
  let answer;
  try {
    answer = await fetch(address, options);
  } catch {
    throw new Error("The server does not answer. Is it still running?");
  }
  const body = await answer.json().catch(() => ({ error: `The server answered with status ${answer.status}.` }));
  if (!answer.ok) throw new Error(body.error);
  return body;
}

function say(status, fault = "") {
  $("status").textContent = status;
  $("error").textContent = fault;
  $("error").hidden = !fault;
}

// Of the loosest measured point at which at most one in a hundred pairs of different things is taken for the same.
function startingThreshold() {
  const strict = points.filter((point) => point.far <= 0.01).sort((one, other) => other.far - one.far);
  return (strict[0] ?? points.at(-1)).threshold;
}

function meaning(score) {
  if (!points.length) return "1 means the same image; unrelated images score about 0.";
  const kept = points.filter((point) => score >= point.threshold).map((point) => point.far);
  if (!kept.length) return "Lower than all measured thresholds: expect many images that only look alike.";
  const one = Math.round(1 / Math.min(...kept));
  return `Of pairs of images that show different things, about 1 in ${one.toLocaleString("en")} scores this high.`;
}

function tile(match) {
  const button = document.createElement("button");
  button.type = "button";
  button.title = match.path;
  const image = document.createElement("img");
  image.loading = "lazy";
  image.alt = match.label ? `Image of ${match.label}` : "Image without a label";
  image.onerror = () => {
    const gone = document.createElement("span");
    gone.className = "gone";
    gone.textContent = "The file is gone or changed";
    image.replaceWith(gone);
  };
  image.src = `/thumbnail/${match.id}`;
  const score = document.createElement("span");
  score.className = "score";
  score.textContent = match.score.toFixed(3);
  const label = document.createElement("span");
  label.className = "label";
  label.textContent = match.label;
  button.append(image, score, label);
  button.setAttribute("aria-label", `${image.alt}, score ${score.textContent}. Search for images like it`);
  button.onclick = () => go({ id: match.id, name: match.label });
  const item = document.createElement("li");
  item.append(button);
  return item;
}

function show() {
  const lowest = Number($("score").value) || -1;
  $("score-value").textContent = lowest < 0 ? "any" : lowest.toFixed(3);
  $("score-meaning").textContent = meaning(lowest);
  const kept = matches.filter((match) => match.score >= lowest);
  $("results").replaceChildren(...kept.map(tile));
  $("results").hidden = !kept.length;
  if (kept.length) {
    say(`${kept.length} similar ${kept.length === 1 ? "image" : "images"}. Choose one to search on from it.`);
  } else if (matches.length) {
    const best = matches[0].score.toFixed(3);
    say(`None of these: the most similar image scores ${best}, below your lowest score. Move the slider to see it.`);
  } else {
    say("The index has no other image with this label.");
  }
}

async function search() {
  const query = history.state;
  const number = ++latest;
  const file = uploads.get(query?.upload);
  const started = Boolean(query?.id || file);
  $("filters").hidden = !started;
  $("query-image").hidden = !started;
  matches = [];
  if (!started) {
    $("results").hidden = true;
    $("query-text").textContent = "Drop a photograph here, paste one, or choose a file. You will see the images that look most like it.";
    say("", query?.upload ? "The page was loaded again and no longer has your photograph. Choose it again." : "");
    return;
  }
  const image = $("query-image");
  if (image.src.startsWith("blob:")) URL.revokeObjectURL(image.src);
  image.src = file ? URL.createObjectURL(file) : `/thumbnail/${query.id}`;
  image.alt = file ? `Your photograph, ${file.name || "pasted"}` : `Image of ${query.name || "the index"}`;
  $("query-text").textContent = file
    ? "Your photograph. Drop, paste or choose another one to search again."
    : `From the index: ${query.name || "an image without a label"}. Drop, paste or choose a photograph to search for another one.`;
  if (file && file.size > maxBytes) {
    $("results").hidden = true;
    document.body.classList.remove("busy");
    say("", `The photograph has more than ${Math.floor(maxBytes / 1e6)} MB. Make it smaller, and try again.`);
    return;
  }
  const parameters = new URLSearchParams({ k: K });
  if ($("label").value) parameters.set("label", $("label").value);
  document.body.classList.add("busy");
  say("Searching …");
  try {
    const type = file?.type.startsWith("image/") ? file.type : "application/octet-stream";
    const answer = file
      ? await ask(`/api/search?${parameters}`, { method: "POST", body: file, headers: { "Content-Type": type } })
      : await ask(`/api/similar/${encodeURIComponent(query.id)}?${parameters}`);
    if (number !== latest) return;
    matches = answer.matches;
    show();
  } catch (error) {
    if (number !== latest) return;
    $("results").hidden = $("filters").hidden = true;
    say("", error.message);
  } finally {
    if (number === latest) document.body.classList.remove("busy");
  }
}

function go(query) {
  history.pushState(query, "", query.id ? `#${query.id}` : "#photograph");
  search();
  window.scrollTo(0, 0);
  $("file").focus({ preventScroll: true });
}

function take(files) {
  const [file] = files;
  if (!file) return;
  const upload = crypto.randomUUID?.() ?? String(Math.random());
  uploads.set(upload, file);
  go({ upload });
}

$("query-image").addEventListener("error", () => { $("query-image").hidden = true; });
addEventListener("dragover", (event) => { event.preventDefault(); $("query").classList.add("over"); });
addEventListener("dragleave", () => $("query").classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  $("query").classList.remove("over");
  take(event.dataTransfer.files);
});
addEventListener("paste", (event) => take(event.clipboardData.files));
addEventListener("popstate", search);
$("file").addEventListener("change", (event) => { take(event.target.files); event.target.value = ""; });
$("label").addEventListener("change", search);
$("score").addEventListener("input", show);
$("filters").addEventListener("submit", (event) => event.preventDefault());

async function start() {
  try {
    const [about, labels] = await Promise.all([ask("/api/about"), ask("/api/labels")]);
    $("about").textContent = `${about.images.toLocaleString("en")} images, ${labels.length.toLocaleString("en")} labels. Your photographs stay on this server and are not kept.`;
    points = about.operating_points;
    maxBytes = about.max_bytes;
    if (points.length) $("score").value = startingThreshold();
    for (const { label, images } of labels) $("label").append(new Option(`${label} (${images.toLocaleString("en")})`, label));
    const id = location.hash.slice(1);
    if (!history.state && /^[0-9a-f]{32}$/.test(id)) history.replaceState({ id }, "");
    search();
  } catch (error) {
    say("", error.message);
  }
}
start();

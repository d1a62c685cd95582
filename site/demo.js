// The page: a photo, what the sliders make of it, and what both networks answer.

import {UNTOUCHED, SIZE, change, readPhoto, thumbnailOf} from "./pixels.js";
import {at, get, paint, paintRgb, percent, say} from "./common.js";
import {collect} from "./ownset.js";

const NETWORKS = ["cnn", "vgg16"], SLIDERS = ["blur", "dark", "noise", "turn", "jpeg", "square", "paste"];
const ready = new Set();
let settings = {...UNTOUCHED}, bitmap, other, example, examples = [];

// --- The worker ---------------------------------------------------------------------------

let worker, latest = 0, onAnswer, oneIsReady;
const firstNetwork = new Promise(resolve => { oneIsReady = resolve; });

function startWorker() {
  if (typeof WebAssembly === "undefined") return fail("this browser has no WebAssembly");
  worker = new Worker("worker.js", {type: "module"});
  worker.onmessage = ({data}) => {
    if (data.kind === "progress") showProgress(data);
    if (data.kind === "ready") networkIsReady(data.network);
    if (data.kind === "failed") fail(data.message);
    if (data.kind === "answer" && data.id === latest) onAnswer(data.network, data.outputs);
  };
  worker.onerror = event => fail(event.message || "its script could not be loaded");
}

// Have both networks look at 32x32 pixels; answered(network, outputs) is called as each is ready. An answer that comes
// after the next thumbnail was asked about is dropped.
function ask(thumbnail, answered) {
  onAnswer = answered;
  worker.postMessage({id: ++latest, thumbnail});
}

// Return {cnn, vgg16, thumbnail}: what both networks say to a photo.
export async function classify(file) {
  const thumbnail = thumbnailOf(await readPhoto(file)), found = {thumbnail};
  return new Promise(resolve => ask(thumbnail, (network, outputs) => {
    found[network] = outputs;
    if (NETWORKS.every(name => found[name])) resolve(found);
  }));
}

function showProgress({loaded, total}) {
  at("loaded").max = total;
  at("loaded").value = loaded;
  at("megabytes").textContent = `${(loaded / 1e6).toFixed(0)} of ${(total / 1e6).toFixed(0)} MB`;
}

function networkIsReady(network) {
  ready.add(network);
  at("drop").hidden = false;
  at("state").textContent = "The CNN answers already; VGG16 is being loaded …";
  at("loading").hidden = ready.size === NETWORKS.length;
  oneIsReady();
}

function fail(message) {
  at("loaded").hidden = at("megabytes").hidden = true;
  at("state").classList.add("bad");
  at("state").textContent =
    `The model could not be loaded (${message}). Try again, or another browser; the study's page says how to run it on your own computer.`;
}

// --- Answers ------------------------------------------------------------------------------

function showAnswer(network, outputs) {
  const probability = outputs.probability.data[0], neither = outputs.neither?.data[0] > 0;
  const values = {ship: 1 - probability, truck: probability}, name = probability >= 0.5 ? "truck" : "ship";
  const verdict = neither ? "Neither" : `${name === "ship" ? "Ship" : "Truck"}, ${percent(values[name])}`;
  at(network + "-verdict").textContent = verdict;
  for (const each of ["ship", "truck"]) {
    at(`${network}-${each}`).value = values[each];
    at(`${network}-${each}-value`).textContent = percent(values[each]);
  }
  if (network === "cnn") for (const block of [1, 2, 3]) showMaps(block, outputs[`block${block}`]);
  else paint(at("map"), outputs.places.dims[2], outputs.places.dims[1], number => [255, 200, 0, 190 * outputs.places.data[number]]);
}

// Show eight feature maps of a block, each scaled to its own range.
function showMaps(block, {dims: [, height, width, channels], data}) {
  at(`block${block}`).replaceChildren(...Array.from({length: 8}, (_, channel) => {
    const canvas = document.createElement("canvas");
    const values = Array.from({length: width * height}, (_, place) => data[place * channels + channel]);
    const lowest = Math.min(...values), range = Math.max(...values) - lowest || 1;
    paint(canvas, width, height, place => [...Array(3).fill(255 * (values[place] - lowest) / range), 255]);
    return canvas;
  }));
}

const isUntouched = () => SLIDERS.every(name => settings[name] === UNTOUCHED[name]);

// Look at the photo as the sliders have it.
let looking = false, again = false;
async function look() {
  if (!bitmap) return;
  if (looking) return void (again = true);  // one change at a time; the last one counts
  looking = true;
  try {
    await showAsItIs();
  } finally {
    looking = false;
  }
  if (again) {
    again = false;
    await look();
  }
}

async function showAsItIs() {
  const canvas = await change(bitmap, settings, other);
  const thumbnail = thumbnailOf(isUntouched() ? bitmap : canvas);
  at("photo").width = canvas.width;
  at("photo").height = canvas.height;
  at("photo").getContext("2d").drawImage(canvas, 0, 0);
  paintRgb(at("thumbnail"), SIZE, thumbnail);
  at("pictures").hidden = at("answers").hidden = at("bench").hidden = false;
  say("");
  for (const network of NETWORKS) if (!ready.has(network)) at(network + "-verdict").textContent = "being loaded …";
  ask(thumbnail, showAnswer);
  keepInTheLink();
}

// Take a photo, which fetchPhoto() returns; number: of the example that it is, or undefined.
let latestPhoto = 0;
async function take(fetchPhoto, number) {
  const mine = ++latestPhoto;  // a newer photo overtakes one that is slow to come
  say("Looking …");
  at("own").hidden = true;
  try {
    const read = await readPhoto(await fetchPhoto());
    if (mine !== latestPhoto) return read.close();
    bitmap?.close();
    [bitmap, example] = [read, number];
    await look();
  } catch (error) {
    if (mine !== latestPhoto) return;
    for (const id of ["pictures", "answers", "bench"]) at(id).hidden = true;
    bitmap = undefined;
    say(error.message, true);
  }
}

// --- Sliders and link ---------------------------------------------------------------------

function showSettings() {
  for (const name of SLIDERS) {
    at(name).value = settings[name];
    at(name + "-value").textContent = settings[name];
  }
}

function reset() {
  settings = {...UNTOUCHED};
  showSettings();
  look();
}

async function choosePasted(number) {
  other = number === "" ? undefined : await readPhoto(await fetchExample(number));
}

// The address holds the state, for an example; a photo of one's own never leaves the device, so it is not in there.
function keepInTheLink() {
  const parts = Object.entries(settings).filter(([name, value]) => value !== UNTOUCHED[name]);
  const state = new URLSearchParams([["example", example], ...parts, ["other", at("other").value]]);
  history.replaceState(null, "", example === undefined ? location.pathname : "#" + state);
  at("link").hidden = example === undefined;
}

async function openTheLink() {
  const state = new URLSearchParams(location.hash.slice(1)), number = Number(state.get("example"));
  if (!state.has("example") || !examples[number]) return;
  for (const name of Object.keys(UNTOUCHED)) {
    const value = Number(state.get(name) ?? UNTOUCHED[name]);
    if (Number.isFinite(value)) settings[name] = value;
  }
  at("other").value = examples[Number(state.get("other"))] ? state.get("other") : "0";
  await choosePasted(at("other").value);
  showSettings();
  await take(() => fetchExample(number), number);
}

const fetchExample = async number => (await get(examples[number].file)).blob();

for (const name of SLIDERS) at(name).addEventListener("input", () => {
  settings[name] = Number(at(name).value);
  at(name + "-value").textContent = at(name).value;
  look();
});
at("other").addEventListener("change", async () => {
  await choosePasted(at("other").value);
  look();
});
at("reset").addEventListener("click", reset);
at("link").addEventListener("click", async () => {
  await navigator.clipboard?.writeText(location.href);  // there is none without HTTPS; the address bar has it
  at("link").textContent = navigator.clipboard ? "Copied" : "It stands in the address bar";
});

// The grey square is dragged over the photo.
function dragSquare(event) {
  if (!event.buttons || !settings.square) return;
  const box = at("photo").getBoundingClientRect();
  settings.x = Math.round(100 * (event.clientX - box.left) / box.width);
  settings.y = Math.round(100 * (event.clientY - box.top) / box.height);
  look();
}
at("photo").addEventListener("pointerdown", dragSquare);
at("photo").addEventListener("pointermove", dragSquare);
at("photo").addEventListener("keydown", event => {
  const step = {ArrowLeft: [-5, 0], ArrowRight: [5, 0], ArrowUp: [0, -5], ArrowDown: [0, 5]}[event.key];
  if (!step || !settings.square) return;
  event.preventDefault();
  settings.x += step[0];
  settings.y += step[1];
  look();
});

// --- The page -----------------------------------------------------------------------------

function takeFiles(files, otherwise) {
  if (!ready.size) say("The model is not loaded yet.", true);
  else if (files.length > 1) collect(files, classify);
  else if (files.length) take(() => files[0]);
  else say(otherwise, true);
}

async function showExamples() {
  examples = await (await get("examples.json")).json();
  examples.forEach(({file, text}, number) => {
    const button = document.createElement("button"), image = document.createElement("img");
    Object.assign(image, {src: file, alt: text});
    Object.assign(button, {type: "button", title: text});
    button.append(image);
    button.addEventListener("click", () => take(() => fetchExample(number), number));
    at("examples").append(button);
    at("other").append(new Option(text, number));
  });
  at("other").value = "0";
  await choosePasted("0");
}

showSettings();
at("state").textContent = "Loading the networks …";
at("loaded").hidden = false;
startWorker();
at("file").addEventListener("change", () => {
  if (at("file").files.length) takeFiles(at("file").files);
  at("file").value = "";
});
at("show").addEventListener("change", () => { at("map").hidden = !at("show").checked; });
at("drop").addEventListener("submit", event => event.preventDefault());
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, event => {
    event.preventDefault();
    at("drop").classList.toggle("over", name === "dragover");
    if (name === "drop") takeFiles(event.dataTransfer.files, "That was no file. Drop a photo, not a link.");
  });
}
document.addEventListener("paste", event => takeFiles(event.clipboardData.files, "There is no photo on the clipboard."));

showExamples().then(() => firstNetwork).then(openTheLink).catch(error => say(`The examples are missing (${error.message}).`, true));

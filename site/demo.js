// From a photo to an answer in the browser: the JavaScript twin of service/photo.py and service/app.py.
// A photo is decoded by the browser, reduced as service/photo.py does it, and given to the model that the service runs.

const SIZE = 32, LONG_SIDE = 1024, TILE = 2048;  // pixels
const at = id => document.getElementById(id);
let session, runtime, latest = 0;  // an answer that comes after a newer photo was chosen is dropped

// --- The model --------------------------------------------------------------

// Return a file's bytes: from the browser's store of earlier visits where it is there, or from the server. Only bytes that
// are the right ones are used or stored: the login page of a network may have answered, or a transfer been cut.
// progress(bytes) is told of each part that arrives. Some browsers keep no store (in private windows, or without HTTPS).
async function load({name, bytes, sha256}, store, progress) {
  const kept = await (await store?.match(name))?.blob();
  if (kept && await isRight(kept, bytes, sha256)) {
    progress(bytes);
    return unpack(kept);
  }
  const response = await fetch(name, {cache: "no-cache"});
  if (!response.ok) throw new Error(`${name}: the server answered ${response.status}`);
  const parts = [];
  for (const reader = response.body.getReader();;) {
    const {done, value} = await reader.read();
    if (done) break;
    parts.push(value);
    progress(value.length);
  }
  const blob = new Blob(parts);
  if (!await isRight(blob, bytes, sha256))
    throw new Error(`${name}: not the right ${bytes.toLocaleString("en")} bytes came. Does your network want you to log in first? Then reload this page`);
  await store?.put(name, new Response(blob)).catch(() => {});  // no room: it is loaded again the next time
  return unpack(blob);
}

async function isRight(blob, bytes, sha256) {
  if (blob.size !== bytes || !globalThis.crypto?.subtle) return blob.size === bytes;  // there is none without HTTPS
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", await blob.arrayBuffer()));
  return sha256 === Array.from(digest, byte => byte.toString(16).padStart(2, "0")).join("");
}

async function unpack(blob) {
  const plain = blob.stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(plain).arrayBuffer());
}

async function start() {
  at("state").textContent = "Loading the model …";
  at("loaded").hidden = false;
  if (typeof WebAssembly === "undefined") throw new Error("this browser has no WebAssembly");
  const {version, files} = await (await fetch("files.json", {cache: "no-cache"})).json();
  const total = files.reduce((sum, file) => sum + file.bytes, 0), name = "ship-truck-" + version;
  const store = await globalThis.caches?.open(name).catch(() => undefined);
  for (const old of await globalThis.caches?.keys().catch(() => []) ?? [])
    if (old.startsWith("ship-truck-") && old !== name) await caches.delete(old);
  let loaded = 0;
  at("loaded").max = total;
  const progress = bytes => {
    loaded += bytes;
    at("loaded").value = loaded;
    at("megabytes").textContent = `${(loaded / 1e6).toFixed(0)} of ${(total / 1e6).toFixed(0)} MB`;
  };
  runtime = await import("./ort.wasm.bundle.min.mjs");
  const [binary, model] = [await load(files[0], store, progress), await load(files[1], store, progress)];
  at("state").textContent = "Preparing the model …";
  runtime.env.wasm.numThreads = 1;  // more of them need headers that a plain file server doesn't send
  runtime.env.wasm.wasmBinary = binary;
  session = await runtime.InferenceSession.create(model, {executionProviders: ["wasm"]});
  say("");
  at("loading").hidden = true;
  at("drop").hidden = false;
}

// --- From a photo to 32x32 pixels, as service/photo.py does it ------------------------

const NOT_OBEYED = ["gAMA", "cHRM", "cICP"];  // a PNG file's parts that browsers obey and libvips does not

// Return a PNG file without these parts, so that page and service see the same pixels; another file as it is.
async function asTheServiceReads(file) {
  const bytes = new Uint8Array(await file.arrayBuffer()), view = new DataView(bytes.buffer), parts = [bytes.subarray(0, 8)];
  if (bytes.length < 8 || view.getUint32(0) !== 0x89504E47) return file;
  for (let start = 8; start + 12 <= bytes.length;) {
    const end = start + 12 + view.getUint32(start);
    if (!NOT_OBEYED.includes(String.fromCharCode(...bytes.subarray(start + 4, start + 8)))) parts.push(bytes.subarray(start, end));
    start = end;
  }
  return new Blob(parts, {type: "image/png"});
}

// Return {width, height, pixels} of a photo, RGB bytes, on white where it is transparent; blocks of a large one averaged.
async function readPhoto(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(await asTheServiceReads(file));
  } catch {
    throw new Error("This file is no image that your browser can read, or it is damaged. Save it as JPEG or PNG.");
  }
  const factor = Math.max(1, Math.min(
    Math.ceil(Math.max(bitmap.width, bitmap.height) / LONG_SIDE), Math.floor(Math.min(bitmap.width, bitmap.height) / SIZE)));
  const width = Math.ceil(bitmap.width / factor), height = Math.ceil(bitmap.height / factor);
  const pixels = new Uint8Array(3 * width * height), step = factor * Math.max(1, Math.floor(TILE / factor));
  const canvas = document.createElement("canvas");
  canvas.width = Math.min(step, bitmap.width);
  canvas.height = Math.min(step, bitmap.height);
  const context = canvas.getContext("2d", {alpha: false, willReadFrequently: true});
  for (let top = 0; top < bitmap.height; top += step)
    for (let left = 0; left < bitmap.width; left += step) {
      const across = Math.min(step, bitmap.width - left), down = Math.min(step, bitmap.height - top);
      context.fillStyle = "white";
      context.fillRect(0, 0, across, down);
      context.drawImage(bitmap, left, top, across, down, 0, 0, across, down);
      const tile = context.getImageData(0, 0, across, down).data;
      for (let y = 0; y < down; y += factor)
        for (let x = 0; x < across; x += factor)
          for (let colour = 0; colour < 3; colour++)
            pixels[3 * ((top + y) / factor * width + (left + x) / factor) + colour] =
              blockMean(tile, across, x, y, Math.min(x + factor, across), Math.min(y + factor, down), colour);
    }
  bitmap.close();
  return {width, height, pixels};
}

function blockMean(tile, across, left, top, right, bottom, colour) {
  let sum = 0;
  for (let y = top; y < bottom; y++)
    for (let x = left; x < right; x++) sum += tile[4 * (y * across + x) + colour];
  return Math.round(sum / ((right - left) * (bottom - top)));
}

const sinc = x => x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
const lanczos = x => Math.abs(x) < 3 ? sinc(x) * sinc(x / 3) : 0;

// Return for each of 32 new pixels the first old one that counts and the weights from there on: Lanczos, as in Pillow.
function lanczosWeights(length) {
  const scale = length / SIZE, filterScale = Math.max(scale, 1), weights = [];
  for (let place = 0; place < SIZE; place++) {
    const centre = (place + 0.5) * scale;
    const first = Math.max(0, Math.floor(centre - 3 * filterScale + 0.5));
    const end = Math.min(length, Math.floor(centre + 3 * filterScale + 0.5)), row = [];
    for (let x = first; x < end; x++) row.push(lanczos((x - centre + 0.5) / filterScale));
    const sum = row.reduce((total, weight) => total + weight);
    weights.push([first, row.map(weight => weight / sum)]);
  }
  return weights;
}

// Reduce rows of pixels to 32 pixels each and turn the picture over its diagonal: twice, and both sides are done.
function reduceAndTurn({width, height, pixels}) {
  const weights = lanczosWeights(width), turned = new Uint8ClampedArray(3 * SIZE * height);
  for (let y = 0; y < height; y++)
    for (let place = 0; place < SIZE; place++)
      for (let colour = 0; colour < 3; colour++) {
        const [first, row] = weights[place];
        let sum = 0;
        if (width === SIZE) sum = pixels[3 * (y * width + place) + colour];
        else row.forEach((weight, x) => { sum += weight * pixels[3 * (y * width + first + x) + colour]; });
        turned[3 * (place * height + y) + colour] = Math.round(sum);
      }
  return {width: height, height: SIZE, pixels: turned};
}

function thumbnailOf(photo) {
  return new Uint8Array(reduceAndTurn(reduceAndTurn(photo)).pixels);
}

// --- The answer ---------------------------------------------------------------

// Return {probability (of truck), neither (above 0: neither), places, thumbnail} of a photo.
export async function classify(file) {
  const thumbnail = thumbnailOf(await readPhoto(file));
  const image = new runtime.Tensor("uint8", thumbnail, [1, SIZE, SIZE, 3]);
  const {probability, neither, places} = await session.run({image});
  return {probability: probability.data[0], neither: neither.data[0], places, thumbnail};
}

function say(text, bad = false) {
  at("verdict").textContent = text;
  at("verdict").classList.toggle("bad", bad);
}

function percent(value) {
  if (value > 0.999) return "> 99.9 %";
  return value < 0.001 ? "< 0.1 %" : (100 * value).toFixed(1) + " %";
}

// Paint a canvas of width x height pixels; colourOf(number) gives red, green, blue and opacity, each 0 to 255.
function paint(canvas, width, height, colourOf) {
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d"), pixels = context.createImageData(width, height);
  for (let number = 0; number < width * height; number++) pixels.data.set(colourOf(number), 4 * number);
  context.putImageData(pixels, 0, 0);
}

function show({probability, neither, places, thumbnail}, seconds) {
  const values = {ship: 1 - probability, truck: probability};
  const [name, other] = probability >= 0.5 ? ["Truck", "truck"] : ["Ship", "ship"];
  say(neither > 0 ? "Neither" : `${name}, ${percent(values[other])}`);
  at("reason").textContent =
    neither > 0 ? "This looks like neither a ship nor a truck. If it is one of them, then:" : "";
  for (const each of ["ship", "truck"]) {
    at(each).value = values[each];
    at(each + "-value").textContent = percent(values[each]);
  }
  at("took").textContent = `${seconds.toFixed(1)} s. The percentages are meant for photographs of ships and trucks.`;
  paint(at("map"), places.dims[2], places.dims[1], number => [255, 200, 0, 190 * places.data[number]]);
  paint(at("thumbnail"), SIZE, SIZE, number => [...thumbnail.slice(3 * number, 3 * number + 3), 255]);
  at("bars").hidden = at("pictures").hidden = false;
}

async function answer(file) {
  const mine = ++latest;
  at("bars").hidden = at("pictures").hidden = at("map").hidden = true;
  at("reason").textContent = "";
  at("show").checked = false;
  say("Looking …");
  URL.revokeObjectURL(at("photo").src);
  at("photo").src = URL.createObjectURL(file);
  await new Promise(resolve => setTimeout(resolve, 30));  // the page is drawn before the model takes the thread
  try {
    const started = performance.now(), result = await classify(file);
    if (mine === latest) show(result, (performance.now() - started) / 1000);
  } catch (error) {
    if (mine === latest) say(error.message, true);
  }
}

// --- The page -------------------------------------------------------------------

function takePhoto(files, otherwise) {
  if (!session) say("The model is not loaded yet.", true);
  else if (files.length) answer(files[0]);
  else say(otherwise, true);
}

async function showExamples() {
  for (const {file, text} of await (await fetch("examples.json")).json()) {
    const button = document.createElement("button"), image = document.createElement("img");
    Object.assign(image, {src: file, alt: text});
    Object.assign(button, {type: "button", title: text});
    button.append(image);
    button.addEventListener("click", async () => answer(await (await fetch(file)).blob()));
    at("examples").append(button);
  }
}

at("file").addEventListener("change", () => { if (at("file").files.length) answer(at("file").files[0]); });
at("show").addEventListener("change", () => { at("map").hidden = !at("show").checked; });
at("drop").addEventListener("submit", event => event.preventDefault());
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, event => {
    event.preventDefault();
    at("drop").classList.toggle("over", name === "dragover");
    if (name === "drop") takePhoto(event.dataTransfer.files, "That was no file. Drop a photo, not a link.");
  });
}
document.addEventListener("paste", event => takePhoto(event.clipboardData.files, "There is no photo on the clipboard."));

try {
  await Promise.all([start(), showExamples()]);
} catch (error) {
  at("loaded").hidden = at("megabytes").hidden = true;
  at("state").classList.add("bad");
  at("state").textContent =
    `The model could not be loaded (${error.message}). Try again, or another browser; the study's page says how to run it on your own computer.`;
}

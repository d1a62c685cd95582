// Both networks, in a thread of their own, so that the page never stalls. The page sends thumbnails, and gets answers:
// first those of the CNN, which is small and there at once, then those of VGG16.

import {get} from "./common.js";

const LOGIN = "Does your network want you to log in first? Then reload this page";
let runtime, waiting, busy = false;
const sessions = {};

// Return a file's bytes: from the browser's store of earlier visits where it is there, or from the server. Only bytes that
// are the right ones are used or stored: the login page of a network may have answered, or a transfer been cut.
// progress(bytes) is told of each part that arrives. Some browsers keep no store (in private windows, or without HTTPS).
async function load({name, bytes, sha256}, store, progress) {
  const kept = await (await store?.match(name))?.blob();
  if (kept && await isRight(kept, bytes, sha256)) {
    progress(bytes);
    return unpack(kept);
  }
  const response = await get(name), parts = [];
  for (const reader = response.body.getReader();;) {
    const {done, value} = await reader.read();
    if (done) break;
    parts.push(value);
    progress(value.length);
  }
  const blob = new Blob(parts);
  if (!await isRight(blob, bytes, sha256))
    throw new Error(`${name}: not the right ${bytes.toLocaleString("en")} bytes came. ${LOGIN}`);
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
  const {version, files} = await (await get("files.json")).json().catch(() => {
    throw new Error(`files.json is not what it should be. ${LOGIN}`);
  });
  const total = files.reduce((sum, file) => sum + file.bytes, 0), name = "ship-truck-" + version;
  const store = await globalThis.caches?.open(name).catch(() => undefined);
  for (const old of await globalThis.caches?.keys().catch(() => []) ?? [])
    if (old.startsWith("ship-truck-") && old !== name) await caches.delete(old);
  let loaded = 0;
  const progress = bytes => postMessage({kind: "progress", loaded: loaded += bytes, total});
  runtime = await import("./ort.wasm.bundle.min.mjs");
  const [binary, ...models] = files;
  runtime.env.wasm.numThreads = 1;  // more of them need headers that a plain file server doesn't send
  runtime.env.wasm.wasmBinary = await load(binary, store, progress);
  for (const file of models) {
    const network = file.name.replace(".bin", "");
    sessions[network] = await runtime.InferenceSession.create(await load(file, store, progress), {executionProviders: ["wasm"]});
    postMessage({kind: "ready", network});
    answerTheLatest();
  }
}

// Answer the latest thumbnail, network by network. Where a newer one comes in between, the older gets no further answer.
async function answerTheLatest() {
  if (busy) return;
  busy = true;
  try {
    for (let network; (network = nextNetwork());) await answerBy(network);
  } catch (error) {
    postMessage({kind: "failed", message: error.message});
  } finally {
    busy = false;
  }
}

async function answerBy(network) {
  const {id, thumbnail, answered} = waiting;
  answered.add(network);
  const outputs = await sessions[network].run({image: new runtime.Tensor("uint8", thumbnail, [1, 32, 32, 3])});
  const plain = Object.entries(outputs).map(([name, {dims, data}]) => [name, {dims, data}]);
  postMessage({kind: "answer", network, id, outputs: Object.fromEntries(plain)});
  await new Promise(resolve => setTimeout(resolve));  // newer thumbnails come in
}

const nextNetwork = () => waiting && Object.keys(sessions).find(network => !waiting.answered.has(network));

onmessage = ({data}) => {
  waiting = {...data, answered: new Set()};
  answerTheLatest();
};

start().catch(error => postMessage({kind: "failed", message: error.message}));

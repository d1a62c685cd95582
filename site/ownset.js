// A test set of one's own: say of each photo what it shows, then see how often each network is right.

import {at, get, paintRgb, percent, say} from "./common.js";
import {SIZE} from "./pixels.js";

const LABELS = ["ship", "truck", "neither"], NAMES = {cnn: "CNN", vgg16: "VGG16"};
let photos = [], waiting = [], classify;

// Take more photos, File objects, and ask for their labels one after another; look: what returns the networks' answers.
export function collect(files, look) {
  classify = look;
  waiting.push(...files);
  for (const id of ["pictures", "answers", "bench"]) at(id).hidden = true;
  at("own").hidden = false;
  say("");
  showNext();
}

function showNext() {
  at("labelling").hidden = !waiting.length;
  at("results").hidden = Boolean(waiting.length) || !photos.length;
  if (!waiting.length) return photos.length && showResults();
  URL.revokeObjectURL(at("unlabelled").src);
  at("unlabelled").src = URL.createObjectURL(waiting[0]);
  at("progress").textContent = `Photo ${photos.length + 1} of ${photos.length + waiting.length}: what does it show?`;
}

let labelling = false;
async function label(answer) {
  if (labelling || !waiting.length) return;
  labelling = true;
  const file = waiting.shift();
  at("progress").textContent = "Both networks are looking …";
  try {
    const {cnn, vgg16, thumbnail} = await classify(file);
    photos.push({name: file.name, label: answer, thumbnail, cnn: cnn.probability.data[0], vgg16: vgg16.probability.data[0],
      refused: vgg16.neither.data[0] > 0});
  } catch (error) {
    say(`${file.name} is left out. ${error.message}`, true);
  }
  labelling = false;
  showNext();
}

// --- Results ------------------------------------------------------------------------------

// Wilson's 95 % interval (1927) of a share.
function wilson(right, n) {
  const z = 1.96, p = right / n, centre = p + z * z / (2 * n), spread = z * Math.sqrt(p * (1 - p) / n + z * z / (4 * n * n));
  return [centre - spread, centre + spread].map(end => end / (1 + z * z / n));
}

const isRight = (photo, network) => photo[network] >= 0.5 === (photo.label === 1);
const ofTheTwo = () => photos.filter(photo => photo.label < 2);
const inOneDecimal = value => (100 * value).toFixed(1) + " %";

function table(head, rows) {
  const element = document.createElement("table");
  for (const [place, cells] of [head, ...rows].entries()) {
    const row = element.insertRow();
    for (const text of cells) {
      const cell = document.createElement(place ? "td" : "th");
      cell.textContent = text;
      row.append(cell);
    }
  }
  return element;
}

async function showResults() {
  const known = await (await get("study.json")).json(), judged = ofTheTwo(), n = judged.length;
  const rows = Object.keys(NAMES).map(network => {
    const right = judged.filter(photo => isRight(photo, network)).length, {accuracy, interval95, n: many} = known[network];
    const own = n ? `${right} of ${n}, ${inOneDecimal(right / n)} (${wilson(right, n).map(inOneDecimal).join(" to ")})` : "no ship or truck";
    return [NAMES[network], own, `${inOneDecimal(accuracy)} of ${many.toLocaleString("en")} (${interval95.map(inOneDecimal).join(" to ")})`];
  });
  at("accuracy").replaceChildren(table(["", "your photos", "CIFAR-10's test images"], rows));
  const matrix = LABELS.map((name, place) => {
    const own = photos.filter(photo => photo.label === place), count = test => own.filter(test).length;
    return [name, count(p => p.cnn < 0.5), count(p => p.cnn >= 0.5), count(p => !p.refused && p.vgg16 < 0.5),
      count(p => !p.refused && p.vgg16 >= 0.5), count(p => p.refused)];
  });
  at("confusion").replaceChildren(table(["you say", "CNN: ship", "truck", "VGG16: ship", "truck", "neither"], matrix));
  showRisks(judged);
  const wrong = judged.filter(photo => !isRight(photo, "cnn") || !isRight(photo, "vgg16"));
  at("wrong").replaceChildren(...wrong.map(photo => {
    const figure = document.createElement("figure"), canvas = document.createElement("canvas"), text = document.createElement("figcaption");
    paintRgb(canvas, SIZE, photo.thumbnail);
    text.textContent = `${photo.name}: wrong by ` + Object.keys(NAMES).filter(network => !isRight(photo, network)).map(network =>
      `${NAMES[network]} (${percent(Math.max(photo[network], 1 - photo[network]))} sure)`).join(" and ");
    figure.append(canvas, text);
    return figure;
  }));
  at("none-wrong").hidden = wrong.length > 0;
}

// Draw the risk-coverage curves: the error among the answers that are left if the least confident are declined.
function showRisks(judged) {
  const lines = Object.keys(NAMES).map(network => {
    const sorted = [...judged].sort((a, b) => Math.abs(b[network] - 0.5) - Math.abs(a[network] - 0.5));
    let wrong = 0;
    const points = sorted.map((photo, place) => {
      wrong += !isRight(photo, network);
      return `${30 + 260 * (place + 1) / sorted.length},${120 - 100 * wrong / (place + 1)}`;
    });
    return `<polyline class="${network}" points="${points.join(" ")}"/>`;
  });
  at("risks").innerHTML = `<path class="axis" d="M30 20V120H290"/>${lines.join("")}
    <text x="26" y="24" text-anchor="end">100 %</text><text x="26" y="122" text-anchor="end">0</text>
    <text x="290" y="136" text-anchor="end">all answered</text><text x="34" y="14">error; lines: CNN dashed, VGG16 solid</text>`;
}

// --- Saving -------------------------------------------------------------------------------

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
}

at("save-table").addEventListener("click", () => {
  const lines = photos.map(({name, label, cnn, vgg16, refused}) =>
    [`"${name.replaceAll('"', '""')}"`, LABELS[label], cnn.toFixed(4), vgg16.toFixed(4), Number(refused)].join(","));
  save(new Blob([["name,label,cnn,vgg16,refused", ...lines, ""].join("\n")], {type: "text/csv"}), "my_photos.csv");
});
at("save-images").addEventListener("click", () => {
  const canvas = document.createElement("canvas");
  paintRgb(canvas, SIZE, photos.flatMap(photo => [...photo.thumbnail]));
  canvas.toBlob(blob => save(blob, "my_photos.png"));
});
at("again").addEventListener("click", () => {
  photos = [];
  at("own").hidden = true;
});
for (const [place, name] of LABELS.entries()) at(`say-${name}`).addEventListener("click", () => label(place));
document.addEventListener("keydown", event => {
  const place = {s: 0, t: 1, " ": 2}[event.key.toLowerCase()];
  if (place === undefined || at("own").hidden || !waiting.length) return;
  event.preventDefault();
  label(place);
});

// From a photo to 32x32 pixels, as service/photo.py does it; and what the sliders do to it before.

export const SIZE = 32;
const LONG_SIDE = 1024, TILE = 2048, BENCH = 320;  // pixels

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

// Return a photo as a bitmap.
export async function readPhoto(file) {
  try {
    return await createImageBitmap(await asTheServiceReads(file));
  } catch {
    throw new Error("This file is no image that your browser can read, or it is damaged. Save it as JPEG or PNG.");
  }
}

// Return {width, height, pixels} of a bitmap, RGB bytes, on white where it is transparent; blocks of a large one averaged.
function pixelsOf(bitmap) {
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

// Return what the networks see of a bitmap or canvas: 32x32 RGB bytes.
export function thumbnailOf(bitmap) {
  return new Uint8Array(reduceAndTurn(reduceAndTurn(pixelsOf(bitmap))).pixels);
}

// --- What the sliders do ------------------------------------------------------------------

export const UNTOUCHED = {blur: 0, dark: 0, noise: 0, turn: 0, jpeg: 100, square: 0, x: 50, y: 50, paste: 0};

// Return the side lengths of the canvas on which a photo is changed: the longer one has 320 pixels.
function benchSize({width, height}) {
  const scale = BENCH / Math.max(width, height);
  return [width, height].map(side => Math.max(1, Math.round(scale * side)));
}

// Return a canvas with a photo, changed; other: a bitmap whose middle is pasted in, if any.
export async function change(bitmap, settings, other) {
  const canvas = document.createElement("canvas"), context = canvas.getContext("2d", {willReadFrequently: true});
  const [width, height] = [canvas.width, canvas.height] = benchSize(bitmap);
  context.fillRect(0, 0, width, height);  // black, where a turned photo leaves corners
  context.imageSmoothingQuality = "high";
  context.filter = `blur(${settings.blur}px) brightness(${100 - settings.dark}%)`;
  context.translate(width / 2, height / 2);
  context.rotate(settings.turn * Math.PI / 180);
  context.fillStyle = "white";  // behind what is transparent
  context.fillRect(-width / 2, -height / 2, width, height);
  context.drawImage(bitmap, -width / 2, -height / 2, width, height);
  context.resetTransform();
  context.filter = "none";
  if (settings.noise) addNoise(context, width, height, settings.noise);
  if (settings.paste && other) {
    const part = settings.paste / 100, left = (1 - part) / 2;
    context.drawImage(other, left * other.width, left * other.height, part * other.width, part * other.height,
      left * width, left * height, part * width, part * height);
  }
  if (settings.square) {
    const side = settings.square / 100;
    context.fillStyle = "rgb(127, 127, 127)";
    context.fillRect((settings.x / 100 - side / 2) * width, (settings.y / 100 - side / 2) * height, side * width, side * height);
  }
  if (settings.jpeg < 100) {
    const blob = await new Promise(resolve => canvas.toBlob(resolve, "image/jpeg", settings.jpeg / 100));
    context.drawImage(await createImageBitmap(blob), 0, 0);
  }
  return canvas;
}

// Add the same noise each time, so that a picture does not flicker: sums of three evenly distributed numbers.
function addNoise(context, width, height, deviation) {
  const image = context.getImageData(0, 0, width, height);
  let state = 1;
  const random = () => (state = Math.imul(state, 1664525) + 1013904223 >>> 0) / 2 ** 32;
  for (let at = 0; at < image.data.length; at++)
    if (at % 4 !== 3) image.data[at] += deviation * 2 * (random() + random() + random() - 1.5);
  context.putImageData(image, 0, 0);
}

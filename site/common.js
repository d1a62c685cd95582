// What the parts of the page share.

export const at = id => document.getElementById(id);

// Fetch a file of this page. Raises Error.
export async function get(name) {
  const response = await fetch(name, {cache: "no-cache"});
  if (!response.ok) throw new Error(`${name}: the server answered ${response.status}`);
  return response;
}

export function percent(value) {
  if (value > 0.999) return "> 99.9 %";
  return value < 0.001 ? "< 0.1 %" : (100 * value).toFixed(1) + " %";
}

export function say(text, bad = false) {
  at("message").textContent = text;
  at("message").classList.toggle("bad", bad);
}

// Paint a canvas of so many pixels across with RGB bytes, row by row.
export function paintRgb(canvas, width, rgb) {
  paint(canvas, width, rgb.length / (3 * width), number => [...rgb.slice(3 * number, 3 * number + 3), 255]);
}

// Paint a canvas of width x height pixels; colourOf(number) gives red, green, blue and opacity, each 0 to 255.
export function paint(canvas, width, height, colourOf) {
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d"), pixels = context.createImageData(width, height);
  for (let number = 0; number < width * height; number++) pixels.data.set(colourOf(number), 4 * number);
  context.putImageData(pixels, 0, 0);
}

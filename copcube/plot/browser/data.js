"use strict";

// What the page holds: cells in rows from the north, and numbers of each, packed as bytes.

const about = JSON.parse(document.getElementById("about").textContent);

const parsed = new Promise((done) => {
  if (document.readyState !== "loading") done();
  else document.addEventListener("DOMContentLoaded", done);
});

// Blocks before this script are whole; of those after it the parser may have read a part.
const whole = new Set([...document.querySelectorAll("script[type='text/plain']")].map((e) => e.id));

/** Bytes of a block: base64 of a zlib stream. */
async function unpacked(id) {
  if (!whole.has(id)) await parsed;
  const block = document.getElementById(id);
  const packed = atob(block.textContent.trim());
  block.remove();
  const bytes = new Uint8Array(packed.length);
  for (let i = 0; i < packed.length; i++) bytes[i] = packed.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Codes of a plane, a signed byte a cell; value = code * scale + offset. */
async function codesOf(plane) {
  const codes = new Int8Array((await unpacked(plane.id)).buffer);
  if (plane.differences) for (let i = 1; i < codes.length; i++) codes[i] += codes[i - 1];
  return codes;
}

const kept = new Map();

function once(id, make) {
  if (!kept.has(id)) kept.set(id, make());
  return kept.get(id);
}

const codesIn = (plane) => once(plane.id, () => codesOf(plane));

/** Images of each cell, from four planes of bytes, the lowest first. */
const counts = () => once("counts", async () => {
  const bytes = await unpacked("counts"), n = about.cells, values = new Uint32Array(n);
  for (let i = 0; i < n; i++) {
    values[i] = bytes[i] + 256 * (bytes[n + i] + 256 * (bytes[2 * n + i] + 256 * bytes[3 * n + i]));
  }
  return values;
});

const modalities = () => once("modalities", () => unpacked("modalities"));

/** Lines of [longitude, latitude, …] in degrees. */
const coastlines = () => once("coast", async () => {
  const points = new Int16Array((await unpacked("coast")).buffer), lines = [[]];
  for (let i = 0; i < points.length; i += 2) {
    if (points[i] === -32768) lines.push([]);
    else lines[lines.length - 1].push(points[i] / 100, points[i + 1] / 100);
  }
  return lines;
});

// Where the cells are. `index` says which cell lies at a row and column of the window, or -1.

const step = 0.25;
const index = new Int32Array(about.rows * about.cols).fill(-1);
const position = new Int32Array(about.cells);

async function placeCells() {
  const bits = await unpacked("mask");
  for (let i = 0, cell = 0; i < index.length; i++) {
    if (bits[i >> 3] & (128 >> (i & 7))) {
      position[cell] = i;
      index[i] = cell++;
    }
  }
}

/** Latitude and longitude of the centre of a cell, -180 to 180. */
function centre(cell) {
  const i = position[cell], row = Math.floor(i / about.cols), col = i % about.cols;
  return [90 - step * (about.row0 + row), turned(step * (about.col0 + col))];
}

const turned = (lon) => ((lon + 180) % 360 + 360) % 360 - 180;

/** The cell that holds a point; -1 where there is none. Edges are those of `copcube.grid`. */
function cellAt(lat, lon) {
  if (!(Math.abs(lat) <= 90)) return -1;
  const row = Math.floor((90 + step / 2 - lat) / step) - about.row0;
  const east = ((lon % 360) + 360) % 360;
  const col = ((Math.floor((east + step / 2) / step) - about.col0) % 1440 + 1440) % 1440;
  return row >= 0 && row < about.rows && col < about.cols ? index[row * about.cols + col] : -1;
}

/** Cosine of the components of every cell with those of one. */
async function cosines(cell) {
  const n = about.cells, dot = new Float64Array(n), squares = new Float64Array(n);
  let square = 0;
  for (const each of about.components) {
    const codes = await codesIn(each), { scale, offset } = each;
    const wanted = codes[cell] * scale + offset;
    square += wanted * wanted;
    for (let i = 0; i < n; i++) {
      const value = codes[i] * scale + offset;
      dot[i] += value * wanted;
      squares[i] += value * value;
    }
  }
  for (let i = 0; i < n; i++) dot[i] /= Math.sqrt(squares[i] * square);
  return dot;
}

/** The n best of some values, apart from `here` and from each other by some km. */
function best(values, here, n, apart) {
  const least = Math.cos(Math.min(apart / 6371.0088, Math.PI)), at = apart > 0 ? onSphere() : null;
  const left = Float64Array.from(values, (value) => (Number.isFinite(value) ? value : -Infinity));
  const found = [];
  let from = here;
  for (;;) {
    if (at) {
      const [x, y, z] = at.subarray(3 * from, 3 * from + 3);
      for (let i = 0, j = 0; i < left.length; i++, j += 3) {
        if (at[j] * x + at[j + 1] * y + at[j + 2] * z >= least) left[i] = -Infinity;
      }
    }
    left[from] = -Infinity;
    if (found.length === n) return found;
    from = 0;
    for (let i = 1; i < left.length; i++) if (left[i] > left[from]) from = i;
    if (left[from] === -Infinity) return found;
    found.push(from);
  }
}

let sphere = null;

/** Points of the unit sphere, three numbers a cell. */
function onSphere() {
  if (sphere) return sphere;
  sphere = new Float64Array(3 * about.cells);
  const circle = Array.from({ length: 1440 }, (_, i) => step * i * Math.PI / 180);
  const sines = circle.map(Math.sin), cosines = circle.map(Math.cos);
  for (let cell = 0; cell < about.cells; cell++) {
    const i = position[cell], col = (about.col0 + i % about.cols) % 1440;
    const row = about.row0 + Math.floor(i / about.cols);
    // Rows count from the north pole: the sine of that angle is the cosine of the latitude.
    sphere.set([sines[row] * cosines[col], sines[row] * sines[col], cosines[row]], 3 * cell);
  }
  return sphere;
}

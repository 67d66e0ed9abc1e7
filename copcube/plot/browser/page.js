// What is under the pointer, places that look alike, the address, pointers and keys.

// What is under the pointer

async function read(lat, lon) {
  const cell = Math.abs(lat) <= 90 ? cellAt(lat, lon) : -1;
  marks.hover = cell;
  redraw();
  const words = await described(cell, lat, lon);
  if (marks.hover === cell) tell(words);
}

function tell(lines) {
  element("readout").replaceChildren(...lines.flatMap((line) => {
    const words = document.createElement("span");
    words.textContent = line;
    return [words, "\n"];
  }));
}

/** Lines about a cell, or about a point where there is none. */
async function described(cell, lat, lon) {
  if (cell < 0) return Math.abs(lat) <= 90 ? [placeName([lat, turned(lon)]), "no image"] : [];
  const lines = [placeName(centre(cell))];
  const which = shown.kind === "component" ? [shown.component]
    : shown.rgb.filter((i) => i < about.components.length);
  const planes = which.map((i) => about.components[i]);
  const codes = await Promise.all(planes.map(codesIn));
  const values = planes.map((p, k) => `${named(which[k])}: ${number(codes[k][cell] * p.scale + p.offset)}`);
  if (asked.values) lines.push(`cosine: ${number(asked.values[cell])}`);
  lines.push(...new Set(values));
  if (about.spread) {
    const each = about.spread;
    lines.push(`spread: ${number((await codesIn(each))[cell] * each.scale + each.offset)}`);
  }
  if (about.counts) lines.push(`images: ${counted((await counts())[cell])}`);
  if (about.modalities) {
    const bits = (await modalities())[cell];
    const there = about.modalities.filter((_, bit) => bits >> bit & 1);
    const all = there.length === about.modalities.length;
    lines.push(`modalities: ${all ? "all" : there.join(", ") || "none"}`);
  }
  return lines;
}

// Places that look alike

async function ask(lat, lon) {
  const cell = cellAt(lat, lon);
  if (cell < 0) {
    element("asked").textContent = `At ${placeName([lat, turned(lon)])} there is no image to compare with.`;
    return;
  }
  asked.place = centre(cell);
  asked.cell = cell;
  marks.place = asked.place;
  element("asked").textContent = `Like ${placeName(asked.place)}, by the cosine:`;
  asked.values = await cosines(cell);
  if (asked.cell !== cell) return;
  list();
  await show("similar");
  remember();
}

function list() {
  if (asked.cell < 0) return;
  marks.best = best(asked.values, asked.cell, BEST, asked.apart);
  element("forget").hidden = false;
  element("places").replaceChildren(...marks.best.map((cell) => {
    const entry = document.createElement("li"), button = document.createElement("button");
    const value = document.createElement("span"), place = centre(cell);
    button.type = "button";
    value.textContent = asked.values[cell].toFixed(3);
    button.append(placeName(place), value);
    button.addEventListener("click", () => {
      [view.lat, view.lon] = place;
      settle();
      read(...place);
      remember();
    });
    entry.append(button);
    return entry;
  }));
  redraw();
}

function forget() {
  Object.assign(asked, { place: null, values: null, cell: -1 });
  Object.assign(marks, { place: null, best: [] });
  element("places").replaceChildren();
  element("forget").hidden = true;
  element("asked").textContent = INVITATION;
  show(shown.kind === "similar" ? KINDS[0][0] : shown.kind);
  remember();
}

const INVITATION = element("asked").textContent;

// The address: what follows # holds the view

let late = 0;

function remember() {
  clearTimeout(late);
  late = setTimeout(() => {
    try {
      history.replaceState(null, "", `#${address()}`);
    } catch {
      // In a frame of another page the address may not be changed, and the map works all the same.
    }
  }, 150);
}

function address() {
  const round = (value) => Number(value.toFixed(3));
  const which = { rgb: `,${shown.rgb.join()}`, component: `,${shown.component}` }[shown.kind] || "";
  const parts = [`lat=${round(view.lat)}`, `lon=${round(view.lon)}`,
    `across=${round(view.across)}`, `show=${shown.kind}${which}`];
  if (asked.place) parts.push(`place=${asked.place.join()}`, `apart=${asked.apart}`);
  return parts.join("&");
}

/** Take the view from the address; what it does not say or says wrongly stays as it is. */
async function follow() {
  const words = new URLSearchParams(location.hash.slice(1));
  const numbers = (key) => (words.get(key) ?? "").split(",").filter(Boolean).map(Number);
  for (const key of ["across", "lat", "lon"]) {
    const [value] = numbers(key);
    if (Number.isFinite(value)) view[key] = value;
  }
  settle();
  const [kind, ...which] = (words.get("show") ?? "").split(",");
  const known = which.length > 0 && which.every((text) => text !== "" && about.components[text]);
  if (kind === "rgb" && known && which.length === 3) shown.rgb = which.map(Number);
  if (kind === "component" && known) shown.component = Number(which[0]);
  if (KINDS.some(([each]) => each === kind)) shown.kind = kind;
  const [apart] = numbers("apart");
  if ([...element("apart").options].some((each) => each.value === String(apart))) {
    asked.apart = apart;
    element("apart").value = apart;
  }
  const chosen = shown.kind, place = numbers("place");
  await show(chosen);
  if (place.length === 2 && place.every(Number.isFinite)) {
    await ask(...place);
    await read(...place);
    if (words.has("show")) await show(chosen);
  }
}

// Pointers, wheel and keys

const pointers = new Map();
let moved = 0, span = 0;

/** Where a pointer is, in pixels of the canvas. */
function spot(event) {
  const box = canvas.getBoundingClientRect(), pixel = canvas.width / box.width;
  return [(event.clientX - box.left) * pixel, (event.clientY - box.top) * pixel];
}

canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, spot(event));
  marks.cross = false;
  if (pointers.size === 1) moved = 0;
  span = 0;
});

canvas.addEventListener("pointermove", (event) => {
  const [x, y] = spot(event), before = pointers.get(event.pointerId);
  if (before) {
    const shift = [x - before[0], y - before[1]];
    moved += Math.hypot(...shift);
    pointers.set(event.pointerId, [x, y]);
    if (moved > 5 * (window.devicePixelRatio || 1)) {
      if (pointers.size === 2) pinch(shift);
      else panBy(...shift);
      remember();
    }
  }
  if (pointers.size < 2) read(...degreesAt(x, y));
});

/** Two fingers: the map follows their middle, and their distance. */
function pinch([x, y]) {
  const [a, b] = [...pointers.values()];
  const now = Math.hypot(a[0] - b[0], a[1] - b[1]);
  panBy(x / 2, y / 2);
  if (span > 0) zoomBy(now / span, (a[0] + b[0]) / 2, (a[1] + b[1]) / 2);
  span = now;
}

canvas.addEventListener("pointerup", (event) => {
  const alone = pointers.size === 1;
  pointers.delete(event.pointerId);
  if (alone && moved <= 5 * (window.devicePixelRatio || 1)) {
    const [lat, lon] = degreesAt(...spot(event));
    read(lat, lon);
    ask(lat, lon);
  }
});
canvas.addEventListener("pointercancel", (event) => pointers.delete(event.pointerId));
canvas.addEventListener("pointerleave", () => {
  if (pointers.size || marks.cross) return;
  marks.hover = -1;
  tell([]);
  redraw();
});

canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  zoomBy(Math.exp(-event.deltaY / (event.deltaMode ? 10 : 400)), ...spot(event));
  redraw();
  remember();
}, { passive: false });

const KEYS = {
  ArrowLeft: () => panBy(canvas.width / 12, 0),
  ArrowRight: () => panBy(-canvas.width / 12, 0),
  ArrowUp: () => panBy(0, canvas.height / 12),
  ArrowDown: () => panBy(0, -canvas.height / 12),
  "+": () => zoomBy(1.5),
  "=": () => zoomBy(1.5),
  "-": () => zoomBy(1 / 1.5),
  Home: showAll,
  Enter: () => ask(view.lat, view.lon),
  Escape: forget,
};

canvas.addEventListener("keydown", (event) => {
  if (!(event.key in KEYS) || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  marks.cross = true;
  KEYS[event.key]();
  read(view.lat, view.lon);
  remember();
});
canvas.addEventListener("blur", () => {
  marks.cross = false;
  redraw();
});

for (const [id, press] of [["in", () => zoomBy(1.5)], ["out", () => zoomBy(1 / 1.5)], ["home", showAll]]) {
  element(id).addEventListener("click", () => {
    press();
    redraw();
    remember();
  });
}

element("forget").addEventListener("click", forget);
element("apart").addEventListener("change", (event) => {
  asked.apart = Number(event.target.value);
  list();
  remember();
});
element("show").addEventListener("change", (event) => {
  show(event.target.value);
  remember();
});

function fit() {
  const box = canvas.getBoundingClientRect(), pixel = window.devicePixelRatio || 1;
  canvas.width = Math.max(1, Math.round(box.width * pixel));
  canvas.height = Math.max(1, Math.round(box.height * pixel));
}

async function start() {
  for (const [kind, words] of KINDS) option(element("show"), kind, words);
  for (const [label, words] of about.lines) {
    const row = element("about-table").tBodies[0].insertRow();
    row.insertCell().textContent = label;
    row.insertCell().textContent = words;
  }
  element("computed").textContent = about.computed;
  fit();
  showAll();
  await placeCells();
  coast = await coastlines();
  await follow();
  new ResizeObserver(() => {
    fit();
    settle();
    draw();
  }).observe(canvas);
  addEventListener("hashchange", follow);
  performance.mark("first picture");
  await parsed;
  element("status").textContent = `${counted(about.cells)} cells, ${about.components.length} components`;
  document.documentElement.dataset.state = "ready";
}

start().catch((error) => {
  const old = typeof DecompressionStream === "undefined";
  element("status").className = "failed";
  element("status").textContent = old
    ? "This browser is too old to unpack the map: it needs DecompressionStream, as browsers have since 2023."
    : `The map cannot be shown: ${error.message}. The file may be damaged; get a new copy.`;
  document.documentElement.dataset.state = "failed";
});

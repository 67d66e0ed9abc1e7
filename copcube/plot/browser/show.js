// What is shown: the controls that choose it, its colours and its legend.

const element = (id) => document.getElementById(id);
const number = (value, digits = 3) => value.toLocaleString("en", { maximumSignificantDigits: digits });
const counted = (value) => value.toLocaleString("en");

const KINDS = [
  ["rgb", "Three components as colours", about.components.length >= 3],
  ["component", "One component", true],
  ["counts", "Number of images", about.counts !== null],
  ["spread", "Disagreement of its images", about.spread !== null],
  ["similar", "Likeness to a place", true],
].filter(([, , there]) => there);

const shown = { kind: KINDS[0][0], rgb: [0, 1, 2], component: 0 };
const asked = { place: null, values: null, cell: -1, apart: 500 };
const BEST = 10;

const named = (i) => `component ${i}`;
const share = (i) => `${number(100 * about.components[i].share)} % of ${about.whose}`;
const placeName = ([lat, lon]) => `${degrees(lat, "N", "S")} ${degrees(lon, "E", "W")}`;

async function recolour() {
  const wanted = `${shown.kind} ${shown.rgb} ${shown.component}`;
  const colour = await colours();
  // Another choice may have come while numbers were unpacked.
  if (wanted !== `${shown.kind} ${shown.rgb} ${shown.component}`) return;
  paint(colour);
  legend();
  redraw();
}

async function colours() {
  if (shown.kind === "rgb") {
    const planes = shown.rgb.map((i) => about.components[i]);
    const codes = await Promise.all(planes.map(codesIn));
    const tables = planes.map((plane) => table(plane, (value) =>
      Math.round(255 * Math.min(Math.max(0.5 + value / plane.limit / 2, 0), 1))));
    return (i) => opaque(tables.map((each, k) => each[codes[k][i] & 255]));
  }
  if (shown.kind === "component" || shown.kind === "spread") {
    const plane = shown.kind === "spread" ? about.spread : about.components[shown.component];
    const codes = await codesIn(plane);
    const colour = table(plane, (value) => opaque(shown.kind === "spread"
      ? ramp("rising", value / plane.limit) : ramp("both", 0.5 + value / plane.limit / 2)));
    return (i) => colour[codes[i] & 255];
  }
  const colour = Array.from({ length: 256 }, (_, i) => opaque(ramp("rising", i / 255)));
  if (shown.kind === "counts") {
    const values = await counts(), most = Math.log(Math.max(2, about.counts.most));
    return (i) => colour[Math.round(255 * Math.log(values[i]) / most)];
  }
  const values = asked.values;
  if (values === null) return () => opaque([0xc4, 0xc4, 0xc4]);
  return (i) => (Number.isFinite(values[i]) ? colour[Math.round(127.5 * (values[i] + 1))] : 0);
}

/** What a function makes of the value of each of the 256 codes. */
const table = (plane, make) => Array.from({ length: 256 }, (_, byte) =>
  make((byte << 24 >> 24) * plane.scale + plane.offset));

function legend() {
  const bars = {
    rgb: () => shown.rgb.map((i, k) => {
      const limit = about.components[i].limit, full = ["#f00", "#0f0", "#00f"][k];
      return bar(`${["red", "green", "blue"][k]}: ${named(i)}, ${share(i)}`,
        ["#000", full], [-limit, 0, limit].map((v) => number(v)));
    }),
    component: () => {
      const limit = about.components[shown.component].limit;
      return [bar(`${named(shown.component)}, ${share(shown.component)}`, rampStops("both"),
        [-limit, 0, limit].map((v) => number(v)))];
    },
    counts: () => [bar("images in the cell, logarithmic", rampStops("rising"),
      logTicks(Math.max(2, about.counts.most)))],
    spread: () => [bar("root of the mean squared distance of the images' embeddings from their "
      + "mean, no unit", rampStops("rising"), [0, about.spread.limit / 2, about.spread.limit]
      .map((v) => number(v)))],
    similar: () => [bar(asked.place ? `cosine with ${placeName(asked.place)}`
      : "cosine with a place; none is asked for yet", rampStops("rising"), ["-1", "0", "1"])],
  };
  const foot = document.createElement("figure");
  foot.append(swatch(EMPTY, "no image"));
  if (shown.kind === "rgb" || shown.kind === "component") {
    const words = document.createElement("figcaption");
    words.textContent = "Components have no unit; colours end at 2.5 standard deviations.";
    foot.append(words);
  }
  element("legend").replaceChildren(...bars[shown.kind](), foot);
}

/** First and last number of a logarithmic scale, and the one in its middle. */
const logTicks = (most) => [1, Math.sqrt(most), most].map((v) => counted(Math.round(v)));

function bar(caption, stops, ticks) {
  const figure = document.createElement("figure"), words = document.createElement("figcaption");
  const strip = document.createElement("div"), scale = document.createElement("div");
  words.textContent = caption;
  strip.className = "bar";
  strip.style.background = `linear-gradient(to right, ${stops.join()})`;
  scale.className = "ticks";
  for (const tick of ticks) scale.appendChild(document.createElement("span")).textContent = tick;
  figure.append(words, strip, scale);
  return figure;
}

function swatch(colour, caption) {
  const words = document.createElement("figcaption"), box = document.createElement("span");
  box.className = "swatch";
  box.style.background = colour;
  words.append(box, ` ${caption}`);
  return words;
}

function option(select, value, words) {
  const made = select.appendChild(document.createElement("option"));
  made.value = value;
  made.textContent = words;
}

/** Choices of components: three, one or none. */
function choices() {
  const parts = { rgb: ["red", "green", "blue"], component: ["which"] }[shown.kind] || [];
  element("components").replaceChildren(...parts.map((part, k) => {
    const label = document.createElement("label"), select = document.createElement("select");
    label.textContent = part;
    about.components.forEach((_, i) => option(select, i, i));
    select.id = `choose-${part}`;
    select.value = shown.kind === "rgb" ? shown.rgb[k] : shown.component;
    select.addEventListener("change", () => {
      if (shown.kind === "rgb") shown.rgb[k] = Number(select.value);
      else shown.component = Number(select.value);
      recolour();
      remember();
    });
    label.append(select);
    return label;
  }));
}

function show(kind) {
  shown.kind = kind;
  element("show").value = kind;
  choices();
  return recolour();
}

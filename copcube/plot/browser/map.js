// Colours, and the picture on the canvas. Both colour maps can be told apart by people who see
// red and green alike: cividis (Nuñez et al., 2018) and PuOr (ColorBrewer).

const RAMPS = {
  rising: "#00224e,#002d68,#163770,#2e416d,#3f4c6c,#4e566c,#5c616e,#696b71,#767676,#838179,"
    + "#928c78,#a09875,#afa471,#bfb06b,#cfbd62,#dfca57,#f0d846,#fee838",
  both: "#7f3b08,#b35806,#e08214,#fdb863,#fee0b6,#f7f7f7,#d8daeb,#b2abd2,#8073ac,#542788,#2d004b",
};
const EMPTY = "#e6e6e6", COAST = "#404040";

const rampStops = (name) => RAMPS[name].split(",");

/** Colour of a ramp at 0…1, as [red, green, blue]. */
function ramp(name, share) {
  const stops = rampStops(name), at = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
  const low = Math.min(Math.floor(at), stops.length - 2), part = at - low;
  return [1, 3, 5].map((i) => {
    const [a, b] = [low, low + 1].map((stop) => parseInt(stops[stop].slice(i, i + 2), 16));
    return Math.round(a + (b - a) * part);
  });
}

const opaque = ([red, green, blue]) => (255 << 24 | blue << 16 | green << 8 | red) >>> 0;

const picture = document.createElement("canvas");
picture.width = about.cols;
picture.height = about.rows;

/** Fill the picture: `colour(cell)` is the number that `opaque` makes. */
function paint(colour) {
  const pen = picture.getContext("2d"), image = pen.createImageData(about.cols, about.rows);
  const pixels = new Uint32Array(image.data.buffer);
  for (let cell = 0; cell < about.cells; cell++) pixels[position[cell]] = colour(cell);
  pen.putImageData(image, 0, 0);
  dots = about.cells <= 500 ? Array.from({ length: about.cells }, (_, cell) => colour(cell)) : [];
}

let dots = [];

// The view: the middle, and how many degrees of longitude lie across the map.

const canvas = document.getElementById("map"), pen = canvas.getContext("2d");
const view = { lat: 0, lon: 0, across: 360 };
const marks = { place: null, best: [], hover: -1, cross: false };

const west = step * about.col0 - step / 2, north = 90 + step / 2 - step * about.row0;
const high = step * about.rows, wide = step * about.cols;

/** Pixels of the canvas a degree, along longitude and latitude. */
const scales = () => {
  const x = canvas.width / view.across;
  return [x, x * about.aspect];
};

function showAll() {
  const room = canvas.width / canvas.height, margin = wide < 360 ? 1.1 : 1;
  view.across = Math.max(wide, high * room * about.aspect) * margin;
  view.lon = turned(west + wide / 2);
  view.lat = north - high / 2;
  if (wide === 360) view.lon = 0;
  settle();
}

/** Keep the view within what there is. */
function settle() {
  view.across = Math.min(Math.max(view.across || 360, 2), 360);
  view.lon = turned(view.lon || 0);
  const half = canvas.height / 2 / scales()[1];
  const most = Math.max(0, 90 - half);
  view.lat = Math.min(Math.max(view.lat || 0, -most), most);
}

/** Degrees under a point of the canvas. */
function degreesAt(x, y) {
  const [sx, sy] = scales();
  const lon = view.lon + (x - canvas.width / 2) / sx, lat = view.lat - (y - canvas.height / 2) / sy;
  return [lat, lon];
}

/** Zoom by a factor about a point of the canvas, which stays where it is. */
function zoomBy(factor, x = canvas.width / 2, y = canvas.height / 2) {
  const [lat, lon] = degreesAt(x, y);
  view.across = Math.min(Math.max(view.across / factor, 2), 360);
  const [sx, sy] = scales();
  view.lon = lon - (x - canvas.width / 2) / sx;
  view.lat = lat + (y - canvas.height / 2) / sy;
  settle();
}

function panBy(x, y) {
  const [sx, sy] = scales();
  view.lon -= x / sx;
  view.lat += y / sy;
  settle();
}

let coast = [], drawing = false;

function redraw() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    draw();
  });
}

function draw() {
  const { width, height } = canvas, [sx, sy] = scales(), pixel = window.devicePixelRatio || 1;
  const toY = (lat) => height / 2 - (lat - view.lat) * sy;
  const toX = (lon) => width / 2 + (lon - view.lon) * sx;
  const turns = [-720, -360, 0, 360, 720];
  pen.clearRect(0, 0, width, height);
  pen.save();
  pen.beginPath();
  pen.rect(0, toY(90), width, toY(-90) - toY(90));
  pen.clip();
  pen.fillStyle = EMPTY;
  pen.fillRect(0, 0, width, height);
  // Enlarged, a cell has sharp edges; made smaller, neighbours are mixed.
  pen.imageSmoothingEnabled = sx * step < 1;
  pen.imageSmoothingQuality = "high";
  for (const turn of turns) {
    const left = toX(west + turn);
    if (left > width || left + wide * sx < 0) continue;
    pen.drawImage(picture, left, toY(north), wide * sx, high * sy);
  }
  lattice(toX, toY, pixel);
  pen.beginPath();
  for (const turn of turns) {
    if (toX(turn - 180) > width || toX(turn + 180) < 0) continue;
    for (const line of coast) {
      pen.moveTo(toX(line[0] + turn), toY(line[1]));
      for (let i = 2; i < line.length; i += 2) pen.lineTo(toX(line[i] + turn), toY(line[i + 1]));
    }
  }
  pen.strokeStyle = COAST;
  pen.lineWidth = 0.7 * pixel;
  pen.stroke();
  pen.restore();
  for (const turn of turns) mark((lat, lon) => [toX(lon + turn), toY(lat)], sx, sy, pixel);
  if (marks.cross) cross(width / 2, height / 2, pixel);
}

/** Meridians and parallels, with their degrees at the edges. */
function lattice(toX, toY, pixel) {
  const { width, height } = canvas, [sx] = scales();
  const apart = [1, 2, 5, 10, 15, 30, 60].find((degrees) => degrees * sx > 90 * pixel) || 90;
  pen.font = `${11 * pixel}px system-ui, sans-serif`;
  pen.strokeStyle = "#00000022";
  pen.lineWidth = pixel;
  const half = view.across / 2;
  const words = [];
  for (let lon = Math.ceil((view.lon - half) / apart) * apart; lon <= view.lon + half; lon += apart) {
    stroke(toX(lon), 0, toX(lon), height);
    words.push([degrees(turned(lon), "E", "W"), toX(lon) + 3 * pixel, toY(-90), "lon"]);
  }
  for (let lat = Math.ceil(-89 / apart) * apart; lat < 90; lat += apart) {
    stroke(0, toY(lat), width, toY(lat));
    words.push([degrees(lat, "N", "S"), width, toY(lat) - 3 * pixel, "lat"]);
  }
  pen.lineWidth = 3 * pixel;
  pen.strokeStyle = "#ffffffcc";
  pen.fillStyle = "#333";
  for (const [word, x, y, kind] of words) {
    const left = kind === "lat" ? width - pen.measureText(word).width - 4 * pixel : x;
    const base = kind === "lon" ? Math.min(height, y) - 5 * pixel : y;
    pen.strokeText(word, left, base);
    pen.fillText(word, left, base);
  }
}

function stroke(x0, y0, x1, y1) {
  pen.beginPath();
  pen.moveTo(x0, y0);
  pen.lineTo(x1, y1);
  pen.stroke();
}

/** A few cells of a large map as dots, the cell under the pointer, and the places found. */
function mark(at, sx, sy, pixel) {
  if (sx * step < 6 * pixel) {
    dots.forEach((colour, cell) => {
      const css = `rgb(${colour & 255} ${colour >> 8 & 255} ${colour >> 16 & 255})`;
      disc(at(...centre(cell)), 5 * pixel, css, "#404040");
    });
  }
  if (marks.hover >= 0) {
    const [lat, lon] = centre(marks.hover);
    const [x, y] = at(lat + step / 2, lon - step / 2);
    const size = [Math.max(step * sx, 4 * pixel), Math.max(step * sy, 4 * pixel)];
    pen.lineWidth = 2 * pixel;
    pen.strokeStyle = "#ffffff";
    pen.strokeRect(x, y, ...size);
    pen.lineWidth = pixel;
    pen.strokeStyle = "#000000";
    pen.strokeRect(x, y, ...size);
  }
  marks.best.forEach((cell, i) => {
    const [x, y] = disc(at(...centre(cell)), 8 * pixel, "#d55e00", "#ffffff");
    pen.fillStyle = "#ffffff";
    pen.font = `600 ${10 * pixel}px system-ui, sans-serif`;
    pen.fillText(i + 1, x - pen.measureText(i + 1).width / 2, y + 3.5 * pixel);
  });
  if (marks.place) {
    const [x, y] = at(...marks.place);
    pen.beginPath();
    for (let i = 0; i < 10; i++) {
      const size = (i % 2 ? 4.5 : 11) * pixel, angle = Math.PI * (i / 5 - 0.5);
      pen.lineTo(x + size * Math.cos(angle), y + size * Math.sin(angle));
    }
    pen.closePath();
    filled("#cc79a7", "#ffffff", pixel);
  }
}

function disc([x, y], size, fill, edge) {
  pen.beginPath();
  pen.arc(x, y, size, 0, 2 * Math.PI);
  filled(fill, edge, window.devicePixelRatio || 1);
  return [x, y];
}

function filled(fill, edge, pixel) {
  pen.fillStyle = fill;
  pen.fill();
  pen.strokeStyle = edge;
  pen.lineWidth = 1.5 * pixel;
  pen.stroke();
}

function cross(x, y, pixel) {
  for (const [colour, width] of [["#ffffff", 4], ["#000000", 1.5]]) {
    pen.strokeStyle = colour;
    pen.lineWidth = width * pixel;
    stroke(x - 10 * pixel, y, x + 10 * pixel, y);
    stroke(x, y - 10 * pixel, x, y + 10 * pixel);
  }
}

function degrees(value, above, below) {
  const size = String(Math.round(Math.abs(value) * 100) / 100);
  return `${size}°${value === 0 || Math.abs(value) === 180 ? "" : value > 0 ? above : below}`;
}

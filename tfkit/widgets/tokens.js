// Following points through tokens, as tfkit.tracks does it, for any widget's page: page.source puts
// this file before a view's own. Tokens come as tfkit.widgets.compact makes them.

const VIRIDIS = "440154 482475 414487 355f8d 2a788e 21918c 22a884 44bf70 7ad151 bddf26 fde725"
  .split(" ").map((hex) => [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16)));
const RAMP = Uint8ClampedArray.from({ length: 256 * 3 }, (_, i) => {
  const at = Math.floor(i / 3) / 255 * (VIRIDIS.length - 1), low = Math.min(Math.floor(at), 9);
  return VIRIDIS[low][i % 3] + (at - low) * (VIRIDIS[low + 1][i % 3] - VIRIDIS[low][i % 3]);
});
const WINDOW = 5, TEMPERATURE = 0.02, HIDDEN = 255; // as tracks.locate and compact.HIDDEN have them

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const distance = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]);

const HALVES = new Float32Array(65536).map((_, bits) => {
  const exponent = (bits >> 10) & 31, fraction = bits & 1023;
  const value = exponent ? 2 ** (exponent - 25) * (1024 + fraction) : 2 ** -24 * fraction;
  return bits & 32768 ? -value : value;
});

function normalize(values, width) {
  for (let i = 0; i < values.length; i += width) {
    let squares = 0;
    for (let j = i; j < i + width; j++) squares += values[j] ** 2;
    for (let j = i; j < i + width; j++) values[j] /= Math.sqrt(squares) || 1;
  }
  return values;
}

/** float16 tokens (frames, rows * columns, width) as floats of unit length. */
function decode({ grid: [rows, columns], width, values }) {
  const bits = new Uint16Array(values.byteLength / 2), places = rows * columns;
  for (let i = 0; i < bits.length; i++) bits[i] = values.getUint16(2 * i, true);
  const tokens = normalize(Float32Array.from(bits, (half) => HALVES[half]), width);
  return { rows, columns, width, places, tokens };
}

/** The token at a point, bilinearly between centres. */
function readAt({ rows, columns, width, places, tokens }, [frame, x, y], [h, w]) {
  const u = clamp((x + 0.5) * columns / w - 0.5, 0, columns - 1);
  const v = clamp((y + 0.5) * rows / h - 0.5, 0, rows - 1);
  const out = new Float32Array(width), left = Math.floor(u), top = Math.floor(v);
  for (const [r, c] of [[top, left], [top, left + 1], [top + 1, left], [top + 1, left + 1]]) {
    const weight = (1 - Math.abs(v - r)) * (1 - Math.abs(u - c));
    const start = (frame * places + r * columns + c) * width;
    if (weight > 0) for (let i = 0; i < width; i++) out[i] += weight * tokens[start + i];
  }
  return normalize(out, width);
}

/** Cosine similarity of a token of unit length with every token of every frame. */
function similarity({ width, tokens }, query) {
  const scores = new Float32Array(tokens.length / width);
  for (let n = 0, at = 0; n < scores.length; n++) {
    let sum = 0;
    for (let i = 0; i < width; i++) sum += query[i] * tokens[at++];
    scores[n] = sum;
  }
  return scores;
}

/** Where one frame's scores are highest: softmax-weighted mean place around the best token. */
function locate(scores, { rows, columns }, [h, w]) {
  let best = 0;
  for (let i = 1; i < scores.length; i++) if (scores[i] > scores[best]) best = i;
  const row = Math.floor(best / columns), column = best % columns, reach = WINDOW >> 1;
  let x = 0, y = 0, total = 0;
  for (let r = Math.max(0, row - reach); r <= Math.min(rows - 1, row + reach); r++) {
    for (let c = Math.max(0, column - reach); c <= Math.min(columns - 1, column + reach); c++) {
      const weight = Math.exp((scores[r * columns + c] - scores[best]) / TEMPERATURE);
      total += weight;
      x += weight * ((c + 0.5) * w / columns - 0.5);
      y += weight * ((r + 0.5) * h / rows - 0.5);
    }
  }
  return [x / total, y / total, scores[best]];
}

/** Scores of a point with the tokens of every frame, and its match [x, y, score] in each. */
function explore(layer, point, size, count) {
  const scores = similarity(layer, readAt(layer, point, size));
  const matches = Array.from({ length: count }, (_, i) =>
    locate(scores.subarray(i * layer.places, (i + 1) * layer.places), layer, size));
  const [frame, x, y] = point;
  matches[frame] = [x, y, matches[frame][2]]; // the point itself, as tracks.track_points has it
  return { scores, matches };
}

/** Where a point truly is in every frame: [x, y], or null where it is hidden. */
function truePlaces(truth, [frame, x, y], [h, w], count) {
  const [rows, columns] = truth.grid;
  const row = clamp(Math.floor((y + 0.5) * rows / h), 0, rows - 1);
  const column = clamp(Math.floor((x + 0.5) * columns / w), 0, columns - 1);
  const dx = x - ((column + 0.5) * w / columns - 0.5), dy = y - ((row + 0.5) * h / rows - 0.5);
  const start = ((frame * rows + row) * columns + column) * count * 2;
  return Array.from({ length: count }, (_, i) => {
    const a = truth.places.getUint8(start + 2 * i), b = truth.places.getUint8(start + 2 * i + 1);
    if (i === frame) return [x, y];
    return a === HIDDEN ? null : [a / 254 * (w - 1) + dx, b / 254 * (h - 1) + dy];
  });
}

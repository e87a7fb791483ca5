// What views of tokens share: marks, and rows of frames. page.source puts this file, and before it
// tokens.js and page.js, before a view's own.

// Okabe and Ito's colours, which the colour-blind can tell apart; numbers say it again
const COLORS = ["#e69f00", "#56b4e9", "#cc79a7", "#f0e442", "#0072b2", "#009e73"];
const GAP = 8, CAPTION = 18; // pixels of the page: between frames, above each

function stroke(pen, path, color, wide = 2) {
  for (const [style, width] of [["#000", wide + 2], [color, wide]]) {
    pen.strokeStyle = style;
    pen.lineWidth = width;
    pen.beginPath();
    path();
    pen.stroke();
  }
}

/** The largest frames, h x w, of which all are seen at once: {zoom, cells: [[left, top]], high}. */
function arrange(count, [h, w], width, most, below = 0) {
  const columns = clamp(Math.floor((width + GAP) / 88), 1, count);
  let chosen = columns, zoom = 0, best = 0;
  for (let c = columns; c >= 1; c--) {
    const cell = Math.min(300, (width - GAP * (c - 1)) / c), rows = Math.ceil(count / c);
    const fits = rows * (CAPTION + cell * h / w + below + GAP) < most;
    const score = cell * count / (rows * c);
    if ((fits || c === columns) && score > best) [chosen, zoom, best] = [c, cell / w, score];
  }
  const tall = CAPTION + h * zoom + below + GAP;
  const cells = Array.from({ length: count }, (_, i) =>
    [(i % chosen) * (w * zoom + GAP), Math.floor(i / chosen) * tall + CAPTION]);
  return { zoom, cells, high: Math.ceil(count / chosen) * tall };
}

/** Makes a canvas as wide as it is shown, sharp on any screen; its pen draws in page pixels. */
function fit(canvas, width, high) {
  const sharp = devicePixelRatio;
  Object.assign(canvas, { width: Math.round(width * sharp), height: Math.round(high * sharp) });
  canvas.style.height = `${high}px`;
  const pen = canvas.getContext("2d");
  pen.setTransform(sharp, 0, 0, sharp, 0, 0);
  return pen;
}

/** Which frame an event is on, and where in it, in its pixels: [frame, x, y], or null. */
function placeOn({ cells, zoom }, [h, w], { offsetX, offsetY }) {
  const i = cells.findIndex(([left, top]) => offsetX >= left && offsetX < left + w * zoom
    && offsetY >= top && offsetY < top + h * zoom);
  if (i < 0) return null;
  const [left, top] = cells[i];
  return [i, clamp((offsetX - left) / zoom - 0.5, 0, w - 1),
    clamp((offsetY - top) / zoom - 0.5, 0, h - 1)];
}

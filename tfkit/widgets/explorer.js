// The page's half of tfkit.widgets.CorrespondenceExplorer. The model's traits are the truth: a view
// draws them, and sets them when it is touched. What it computes with is in tokens.js: no kernel.

const TRUE = "#d55e00";
const MARKS = {
  probe: (pen, x, y) => {
    stroke(pen, () => pen.arc(x, y, 6, 0, 7), "#fff");
    stroke(pen, () => pen.arc(x, y, 0.5, 0, 7), "#fff");
  },
  match: (pen, x, y) => stroke(pen, () => {
    for (const s of [1, -1]) { pen.moveTo(x - 5, y - 5 * s); pen.lineTo(x + 5, y + 5 * s); }
  }, "#fff"),
  truth: (pen, x, y) => stroke(pen, () => {
    for (const [dx, dy] of [[0, -8], [8, 0], [0, 8], [-8, 0]]) pen.lineTo(x + dx, y + dy);
    pen.closePath();
  }, TRUE),
};

function pinMark(pen, x, y, number, own) {
  pen.fillStyle = COLORS[number % COLORS.length];
  stroke(pen, () => own ? pen.rect(x - 7, y - 7, 14, 14) : pen.arc(x, y, 7, 0, 7), pen.fillStyle);
  pen.fill();
  pen.fillStyle = number % COLORS.length > 3 ? "#fff" : "#000";
  pen.textAlign = "center";
  pen.fillText(number + 1, x, y + 4);
}

function render({ model, el }) {
  const data = model.get("_data"), size = data.size, [h, w] = size, count = data.frames.length;
  const held = hold(model), { listen, set } = held;
  const decoded = new Map(), images = Array(count).fill(null);
  const brush = document.createElement("canvas");
  let found, tracks, cells, zoom, laidOut, sharp, ink, drawing = 0, telling = 0;

  const root = element(el, "div", { className: "tfkit-view tfkit-explorer" });
  keepKeys(root, listen);
  const bar = element(root, "div", { className: "bar" });
  const canvas = element(root, "canvas", { tabIndex: 0 });
  const pen = canvas.getContext("2d");
  const status = element(root, "p", { role: "status" });
  const help = "Hover or drag over a frame: probe. Click or Enter: pin. Arrows: move (Shift: "
    + "faster). Page Up, Page Down: other frame. Backspace: unpin the last. Escape: unpin all.";
  element(root, "p", { className: "keys" }, help);
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-label", `Correspondences between ${count} frames. ${help}`);

  // --- Traits and view ---

  function control(name, tag, properties, read, options = []) {
    const made = element(element(bar, "label", {}, name), tag, properties);
    for (const [value, words] of options) element(made, "option", { value }, words);
    const show = () => { made.value = model.get(name); };
    made.addEventListener("input", () => set(name, read(made.value)), listen);
    held.on(`change:${name}`, show);
    show();
  }

  const names = new Map(data.tokens.map((item) => [item.layer, item.grid]));
  control("layer", "select", {}, String, [...names].map(([name, grid]) =>
    [name, `${name.replace(".transformer_blocks.0.attn1", "")} (${grid.join(" × ")})`]));
  control("timestep", "select", {}, Number,
    [...new Set(data.tokens.map((item) => item.timestep))].map((t) => [t, t]));
  const slider = { type: "range", min: 0, step: 0.02 };
  control("contrast", "input", { ...slider, max: 0.98 }, Number);
  control("opacity", "input", { ...slider, max: 1 }, Number);
  for (const [words, action] of [["Pin", pin], ["Clear pins", () => set("pins", [])]]) {
    element(bar, "button", { type: "button" }, words).addEventListener("click", action, listen);
  }

  function layer() {
    const key = data.tokens.findIndex((item) =>
      item.layer === model.get("layer") && item.timestep === model.get("timestep"));
    if (!decoded.has(key)) decoded.set(key, decode(data.tokens[key]));
    return decoded.get(key);
  }
  function followed(point) {
    const truth = data.truth ? truePlaces(data.truth, point, size, count) : null;
    return { ...explore(layer(), point, size, count), truth };
  }
  function pin() {
    const [frame, ...point] = model.get("probe"), pins = model.get("pins");
    const others = pins.filter(([i, ...at]) => i !== frame || distance(at, point) * zoom > 9);
    set("pins", others.length < pins.length ? others : [...pins, [frame, ...point]]);
  }
  function move(frame, x, y) {
    set("probe", [clamp(frame, 0, count - 1), clamp(x, 0, w - 1), clamp(y, 0, h - 1)]);
  }

  function redraw() {
    if (!held.left()) drawing ||= requestAnimationFrame(draw);
  }
  for (const name of ["probe", "layer", "timestep", "pins", "contrast", "opacity"]) {
    held.on(`change:${name}`, () => {
      if (name === "probe" || name === "layer" || name === "timestep") found = null;
      if (name === "pins" || name === "layer" || name === "timestep") tracks = null;
      redraw();
    });
  }

  // --- One picture of it all ---

  function layout() {
    const width = root.clientWidth;
    if (!width) return;
    if (width === laidOut && sharp === devicePixelRatio) return redraw();
    laidOut = width;
    const head = width < 620 ? 48 : 26, most = clamp(Math.floor(width / 105), 1, count);
    let columns = most, best = 0; // the largest frames seen at once, with few gaps
    for (let c = most; c >= 1; c--) {
      const cell = Math.min(300, (width - GAP * (c - 1)) / c), rows = Math.ceil(count / c);
      const fits = head + rows * (CAPTION + cell * h / w + GAP) < 0.75 * innerHeight;
      const score = cell * count / (rows * c);
      if ((fits || c === most) && score > best) [columns, zoom, best] = [c, cell / w, score];
    }
    const tall = CAPTION + h * zoom + GAP;
    const high = head + Math.ceil(count / columns) * tall;
    cells = images.map((_, i) =>
      [(i % columns) * (w * zoom + GAP), head + Math.floor(i / columns) * tall + CAPTION]);
    sharp = devicePixelRatio;
    Object.assign(canvas, { width: Math.round(width * sharp), height: Math.round(high * sharp) });
    canvas.style.height = `${high}px`;
    redraw();
  }

  /** One frame's scores, a pixel a token. */
  function heat(i) {
    const { rows, columns, places } = layer(), image = new ImageData(columns, rows);
    for (let n = 0; n < places; n++) {
      const share = (found.scores[i * places + n] - found.low) / (1 - found.low || 1);
      const color = 3 * Math.round(255 * clamp(share, 0, 1));
      for (let c = 0; c < 3; c++) image.data[4 * n + c] = RAMP[color + c];
      image.data[4 * n + 3] = 255;
    }
    Object.assign(brush, { width: columns, height: rows });
    brush.getContext("2d").putImageData(image, 0, 0);
    return brush;
  }

  function legend() {
    const narrow = laidOut < 620, y = narrow ? 34 : 10;
    let x = narrow ? 8 : 270;
    pen.textAlign = "left";
    pen.fillText(`cosine ${found.low.toFixed(2)}`, 0, 14);
    pen.fillText("1", 212, 14);
    for (let i = 0; i < 128; i++) {
      pen.fillStyle = `rgb(${RAMP.slice(6 * i, 6 * i + 3)})`;
      pen.fillRect(78 + i, 4, 1.5, 12);
    }
    const marks = { probe: "probe", match: "most similar", ...(data.truth && { truth: "truth" }) };
    for (const [mark, words] of Object.entries(marks)) {
      MARKS[mark](pen, x, y);
      pen.fillStyle = ink;
      pen.fillText(words, x + 14, y + 4);
      x += pen.measureText(words).width + 40;
    }
  }

  function drawFrame(i) {
    const [left, top] = cells[i], [own, ...point] = model.get("probe");
    const [x, y, score] = found.matches[i];
    const at = (place) => [left + (place[0] + 0.5) * zoom, top + (place[1] + 0.5) * zoom];
    const truth = found.truth?.[i], wide = w * zoom;
    let words = score.toFixed(2);
    if (i === own) words = "probe";
    else if (found.truth) words = truth ? `${distance([x, y], truth).toFixed(1)} px off` : "hidden";
    pen.fillStyle = ink;
    pen.textAlign = "left";
    pen.fillText(wide < 130 ? i : `frame ${i}`, left, top - 5);
    pen.textAlign = "right";
    pen.fillText(words, left + wide, top - 5);
    pen.save();
    pen.beginPath();
    pen.rect(left, top, wide, h * zoom);
    pen.clip();
    pen.imageSmoothingEnabled = zoom < 1; // tokens and small pixels are seen as what they are
    if (images[i]) pen.drawImage(images[i], left, top, wide, h * zoom);
    pen.globalAlpha = model.get("opacity");
    pen.drawImage(heat(i), left, top, wide, h * zoom);
    pen.globalAlpha = 1;
    tracks.forEach(({ matches, truth }, number) => {
      const line = (places) => () => places.forEach((place) => place && pen.lineTo(...at(place)));
      stroke(pen, line(matches), COLORS[number % COLORS.length], 1);
      if (truth) stroke(pen, line(truth), TRUE, 1);
      const pinned = model.get("pins")[number], mine = pinned[0] === i;
      pinMark(pen, ...at(mine ? pinned.slice(1) : matches[i]), number, mine);
    });
    if (i === own) {
      MARKS.probe(pen, ...at(point));
    } else {
      if (truth) {
        stroke(pen, () => { pen.moveTo(...at([x, y])); pen.lineTo(...at(truth)); }, TRUE, 1);
        MARKS.truth(pen, ...at(truth));
      }
      MARKS.match(pen, ...at([x, y]));
    }
    pen.restore();
  }

  function draw() {
    drawing = 0;
    if (!laidOut) return;
    const begun = performance.now(), probe = model.get("probe");
    found ??= followed(probe);
    tracks ??= model.get("pins").map(followed);
    found.ranked ??= found.scores.slice().sort();
    found.low = found.ranked[Math.floor(model.get("contrast") * (found.ranked.length - 1))];
    ink = getComputedStyle(root).color;
    pen.setTransform(sharp, 0, 0, sharp, 0, 0);
    pen.clearRect(0, 0, canvas.width, canvas.height);
    pen.font = "12px sans-serif";
    pen.fillStyle = ink;
    legend();
    for (let i = 0; i < count; i++) drawFrame(i);
    clearTimeout(telling);
    telling = setTimeout(tell, 200);
    const { matches, truth, low } = found, ms = performance.now() - begun;
    const detail = { probe, matches, truth, low, ms, tracks: tracks.map((t) => t.matches) };
    el.dispatchEvent(new CustomEvent("explored", { detail, bubbles: true }));
  }

  /** The picture in words, once it stands still. */
  function tell() {
    if (!found) return; // it is being drawn anew
    const [frame, x, y] = model.get("probe");
    const others = found.matches.map((match, i) => [match[2], i]).filter(([, i]) => i !== frame);
    others.sort((a, b) => a[0] - b[0]);
    let words = `Frame ${frame}, pixel (${x.toFixed(0)}, ${y.toFixed(0)}).`;
    if (others.length) {
      const [[low, worst], [high, best]] = [others[0], others.at(-1)];
      words += ` Most similar places: cosine ${high.toFixed(3)} in frame ${best}`
        + (best === worst ? "." : `, down to ${low.toFixed(3)} in frame ${worst}.`);
    }
    const off = (found.truth || []).flatMap((true_, i) =>
      true_ && i !== frame ? [distance(true_, found.matches[i])] : []).sort((a, b) => a - b);
    if (off.length) {
      words += ` Off the truth by ${off[off.length >> 1].toFixed(1)} px (median of the `
        + `${off.length} frames where it is visible).`;
    }
    status.textContent = words;
  }

  // --- Hands ---

  function place({ offsetX, offsetY }) {
    const i = cells.findIndex(([left, top]) => offsetX >= left && offsetX < left + w * zoom
      && offsetY >= top && offsetY < top + h * zoom);
    const [left, top] = cells[i] ?? [];
    return i < 0 ? null : [i, (offsetX - left) / zoom - 0.5, (offsetY - top) / zoom - 0.5];
  }
  function probe(event) {
    const at = place(event);
    if (at) move(...at);
    return at;
  }
  let finger = false; // a finger's tap is its hover: it pins with the button
  canvas.addEventListener("pointermove", probe, listen);
  canvas.addEventListener("pointerdown", (event) => {
    finger = event.pointerType === "touch";
    probe(event);
  }, listen);
  canvas.addEventListener("click", (event) => { if (!finger && probe(event)) pin(); }, listen);
  const unit = Math.max(1, Math.round(w / 128));
  const STEPS = {
    ArrowLeft: [0, -1, 0], ArrowRight: [0, 1, 0], ArrowUp: [0, 0, -1], ArrowDown: [0, 0, 1],
    PageUp: [-1, 0, 0], PageDown: [1, 0, 0],
  };
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const [frame, x, y] = model.get("probe"), by = event.shiftKey ? 8 * unit : unit;
    const step = STEPS[event.key];
    if (step) move(frame + step[0], x + by * step[1], y + by * step[2]);
    else if (event.key === "Enter") pin();
    else if (event.key === "Backspace") set("pins", model.get("pins").slice(0, -1));
    else if (event.key === "Escape") set("pins", []);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }, listen);

  data.frames.forEach(async (file, i) => {
    const image = await createImageBitmap(new Blob([file], { type: "image/webp" }));
    if (held.left()) return image.close();
    images[i] = image;
    redraw();
  });
  addEventListener("resize", layout, listen); // zoom may change the pixels alone
  const observer = new ResizeObserver(layout);
  observer.observe(root);
  return () => {
    held.leave();
    observer.disconnect();
    cancelAnimationFrame(drawing);
    clearTimeout(telling);
    images.forEach((image) => image?.close());
    root.remove();
  };
}

export default { render };

// The page's half of tfkit.widgets.PCAExplorer. The model's traits are the truth; colours and
// slices are made here, from a few components of every token: no kernel.

const CHANNELS = ["red", "green", "blue"];
const PANELS = { film: "film", joint: "one basis for all frames", frame: "each frame's own basis" };
const BRIEF = { film: "film", joint: "one basis", frame: "own bases" };
const LINE = "#d55e00";
const HELP = "Drag over a frame: the line of the slices; click: a whole row. On the frames: arrows "
  + "move the line (Shift: faster), [ and ] turn it, + and − change its length, H and V make it a "
  + "whole row or column. On the slices: arrows move the mark, Escape takes it off.";

function render({ model, el }) {
  const data = model.get("_data"), size = data.size, [h, w] = size, count = data.frames.length;
  const held = hold(model), { listen, set } = held;
  const images = Array(count).fill(null), films = Array(count).fill(null), decoded = new Map();
  const brush = document.createElement("canvas"), sheet = document.createElement("canvas");
  let colors = null, cuts = null, place, panels, pen, low, laidOut = "", drawing = 0, telling = 0;
  let dragged = null;

  const root = element(el, "div", { className: "tfkit-view tfkit-components" });
  keepKeys(root, listen);
  const bar = element(root, "div", { className: "bar" });
  const mixer = element(root, "div", { className: "bar" });
  const canvas = element(root, "canvas", { tabIndex: 0 });
  const slices = element(root, "canvas", { tabIndex: 0, className: "slices" });
  const status = element(root, "p");
  status.setAttribute("role", "status");
  element(root, "p", { className: "keys" }, HELP);
  for (const [made, words] of [[canvas, `${count} frames`], [slices, "Slices over time"]]) {
    made.setAttribute("role", "application");
    made.setAttribute("aria-label", `${words}. ${HELP}`);
  }

  // --- Traits and view ---

  function redraw() {
    if (!held.left()) drawing ||= requestAnimationFrame(draw);
  }
  function follow(names, action) {
    for (const name of names) held.on(`change:${name}`, () => { action(); redraw(); });
  }
  /** A labelled control that shows what ``read`` reads, and hands on what it is set to. */
  function control(parent, label, tag, properties, read, write, options = []) {
    const made = element(element(parent, "label", {}, label), tag, properties);
    for (const [value, words] of options) element(made, "option", { value }, words);
    const show = () => { made.value = read(); };
    made.addEventListener("input", () => write(made.value), listen);
    show();
    return show;
  }
  const trait = (parent, name, tag, properties, kind, options) => follow([name], control(parent,
    name, tag, properties, () => model.get(name), (value) => set(name, kind(value)), options));
  const names = new Map(data.tokens.map((item) => [item.layer, item.grid]));
  trait(bar, "layer", "select", {}, String, [...names].map(([name, grid]) =>
    [name, `${name.replace(".transformer_blocks.0.attn1", "")} (${grid.join(" × ")})`]));
  trait(bar, "timestep", "select", {}, Number,
    [...new Set(data.tokens.map((item) => item.timestep))].map((t) => [t, t]));
  trait(bar, "basis", "select", {}, String, [["joint", PANELS.joint], ["frame", PANELS.frame]]);
  trait(bar, "opacity", "input", { type: "range", min: 0, max: 1, step: 0.05 }, Number);
  for (const [words, action] of [["Row", row], ["Column", column]]) {
    const made = element(bar, "button", { type: "button" }, words);
    made.title = `Slice along a whole ${words.toLowerCase()}`;
    made.addEventListener("click", action, listen);
  }
  const put = (name, i, value) => set(name, Object.assign([...model.get(name)], { [i]: value }));
  const choices = CHANNELS.map((color, i) => {
    const item = () => data.tokens.find(shown);
    const wide = Array.from({ length: data.tokens[0].width }, (_, k) => [k, k]);
    const label = element(mixer, "span", { className: `channel ${color}` });
    const show = control(label, color, "select", {}, () => model.get("components")[i],
      (value) => put("components", i, Number(value)), wide);
    const strong = control(label, "strength", "input",
      { type: "range", min: -2, max: 2, step: 0.1, title: "0 is flat, negative turns it round" },
      () => model.get("strength")[i], (value) => put("strength", i, Number(value)));
    for (const [tag, name] of [["select", "component"], ["input", "strength"]]) {
      label.querySelector(tag).setAttribute("aria-label", `${name} of ${color}`);
    }
    follow(["components"], show);
    follow(["strength"], strong);
    return () => label.querySelectorAll("option").forEach((option, k) => {
      const share = item()[`${model.get("basis")}_energy`][k];
      option.textContent = `${k} (${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %)`;
    });
  });
  const reset = element(mixer, "button", { type: "button" }, "Reset");
  reset.addEventListener("click", () => {
    set("components", [0, 1, 2]);
    set("strength", [1, 1, 1]);
  }, listen);
  follow(["layer", "timestep", "components", "strength"], () => { colors = cuts = null; });
  follow(["line"], () => { cuts = null; });
  follow(["basis", "opacity", "probe"], () => {});
  follow(["layer", "timestep", "basis"], () => choices.forEach((show) => show()));
  choices.forEach((show) => show());

  // --- Colours and slices ---

  function shown(item) {
    return item.layer === model.get("layer") && item.timestep === model.get("timestep");
  }
  function shares(item, basis) {
    const key = `${item.timestep} ${item.layer} ${basis}`, bytes = item[basis];
    if (!decoded.has(key)) {
      if (decoded.size > 7) decoded.delete(decoded.keys().next().value);
      const bits = new Uint16Array(bytes.byteLength / 2);
      for (let i = 0; i < bits.length; i++) bits[i] = bytes.getUint16(2 * i, true);
      decoded.set(key, Float32Array.from(bits, (half) => HALVES[half]));
    }
    return decoded.get(key);
  }
  /** Every token's colour in either basis: four bytes a token, frame by frame. */
  function paint() {
    const item = data.tokens.find(shown), [rows, columns] = item.grid, { width } = item;
    const three = model.get("components"), strength = model.get("strength");
    const made = { rows, columns, places: rows * columns };
    for (const basis of ["joint", "frame"]) {
      const values = shares(item, basis), bytes = new Uint8ClampedArray(4 * values.length / width);
      for (let n = 0, at = 0; n < bytes.length; n += 4, at += width) {
        for (let c = 0; c < 3; c++) {
          bytes[n + c] = 255 * (0.5 + strength[c] * (values[at + three[c]] - 0.5));
        }
        bytes[n + 3] = 255;
      }
      made[basis] = bytes;
    }
    return made;
  }
  /** A pixel of a film's frame, between its centres bilinearly. */
  function between({ width, height, data: from }, px, py, out, at) {
    const u = clamp((px + 0.5) * width / w - 0.5, 0, width - 1), left = Math.floor(u);
    const v = clamp((py + 0.5) * height / h - 0.5, 0, height - 1), top = Math.floor(v);
    const right = Math.min(left + 1, width - 1), under = Math.min(top + 1, height - 1);
    for (let c = 0; c < 4; c++) {
      const [a, b, d, e] = [[top, left], [top, right], [under, left], [under, right]]
        .map(([y, x]) => from[4 * (y * width + x) + c]);
      const high = a + (u - left) * (b - a), deep = d + (u - left) * (e - d);
      out[at + c] = high + (v - top) * (deep - high);
    }
  }
  /** The slices along the line, [panel]: {image, flicker}; a column a pixel, a row a frame. */
  function cut() {
    const [x, y, toX, toY] = model.get("line"), { rows, columns, places } = colors;
    const long = Math.round(Math.hypot(toX - x, toY - y)) + 1, made = {};
    const points = Array.from({ length: long }, (_, i) => {
      const share = long > 1 ? i / (long - 1) : 0;
      return [x + share * (toX - x), y + share * (toY - y)];
    });
    const cell = (v, side, cells) => clamp(Math.floor((v + 0.5) * cells / side), 0, cells - 1);
    for (const name of Object.keys(PANELS)) {
      const image = new ImageData(long, count), out = image.data;
      if (name === "film" && !films.every(Boolean)) continue;
      for (let i = 0, at = 0; i < count; i++) {
        for (const [px, py] of points) {
          if (name === "film") between(films[i], px, py, out, at);
          else {
            const source = 4 * (i * places + cell(py, h, rows) * columns + cell(px, w, columns));
            for (let c = 0; c < 4; c++) out[at + c] = colors[name][source + c];
          }
          at += 4;
        }
      }
      let change = 0;
      for (let n = 4 * long; n < out.length; n++) change += Math.abs(out[n] - out[n - 4 * long]);
      made[name] = { image, flicker: change / 255 / 3 / long / Math.max(1, count - 1) };
    }
    return made;
  }
  /** Pixels, drawn as large as wanted. */
  function stamp(on, image, left, top, wide, high) {
    Object.assign(brush, { width: image.width, height: image.height });
    brush.getContext("2d").putImageData(image, 0, 0);
    on.imageSmoothingEnabled = false; // tokens are seen as what they are
    on.drawImage(brush, left, top, wide, high);
  }

  // --- One picture of it all ---

  function layout() {
    const width = root.clientWidth, wanted = `${width} ${devicePixelRatio}`;
    if (!width || wanted === laidOut) return;
    laidOut = wanted;
    place = arrange(count, size, width, 0.5 * innerHeight);
    pen = fit(canvas, width, place.high);
    const rows = width < 560 ? 3 : 1, wide = (width - GAP * (3 / rows - 1)) * rows / 3;
    const high = clamp(Math.round(150 / count), 3, 16) * count;
    panels = Object.keys(PANELS).map((name, k) => ({
      name, left: rows > 1 ? 0 : k * (wide + GAP), wide, high,
      top: CAPTION + (rows > 1 ? k * (high + CAPTION + GAP) : 0),
    }));
    low = fit(slices, width, rows * (high + CAPTION + GAP));
  }
  function drawFrames(ink) {
    const { cells, zoom } = place, [x, y, toX, toY] = model.get("line"), probe = model.get("probe");
    const { rows, columns, places } = colors, basis = colors[model.get("basis")];
    pen.clearRect(0, 0, canvas.width, canvas.height);
    pen.font = "12px sans-serif";
    cells.forEach(([left, top], i) => {
      const at = (px, py) => [left + (px + 0.5) * zoom, top + (py + 0.5) * zoom];
      pen.fillStyle = ink;
      pen.fillText(w * zoom < 110 ? i : `frame ${i}`, left, top - 5);
      pen.imageSmoothingEnabled = zoom < 1;
      if (images[i]) pen.drawImage(images[i], left, top, w * zoom, h * zoom);
      pen.globalAlpha = model.get("opacity");
      const mine = basis.subarray(4 * i * places, 4 * (i + 1) * places);
      stamp(pen, new ImageData(mine, columns, rows), left, top, w * zoom, h * zoom);
      pen.globalAlpha = 1;
      stroke(pen, () => { pen.moveTo(...at(x, y)); pen.lineTo(...at(toX, toY)); }, LINE);
      if (probe[0] === i) {
        const [px, py] = at(x + probe[1] * (toX - x), y + probe[1] * (toY - y));
        stroke(pen, () => pen.arc(px, py, 6, 0, 7), "#fff");
      }
    });
  }
  function drawSlices(ink) {
    const [frame, share] = model.get("probe");
    low.clearRect(0, 0, slices.width, slices.height);
    low.font = "12px sans-serif";
    for (const { name, left, top, wide, high } of panels) {
      if (!cuts[name]) continue;
      low.fillStyle = ink;
      const words = `${PANELS[name]}: ${cuts[name].flicker.toFixed(3)} a frame`;
      const short = `${BRIEF[name]}: ${cuts[name].flicker.toFixed(3)}`; // where the panel is narrow
      low.fillText(low.measureText(words).width > wide ? short : words, left, top - 5);
      stamp(low, cuts[name].image, left, top, wide, high);
      if (frame === undefined) continue;
      const px = left + share * wide, py = top + (frame + 0.5) * high / count;
      stroke(low, () => low.arc(px, py, 5, 0, 7), "#fff");
    }
  }
  function draw() {
    drawing = 0;
    layout();
    if (!place || held.left()) return;
    const begun = performance.now(), ink = getComputedStyle(root).color;
    colors ??= paint();
    cuts ??= cut();
    drawFrames(ink);
    drawSlices(ink);
    clearTimeout(telling);
    telling = setTimeout(() => { if (cuts) status.textContent = inWords(); }, 200);
    const mean = [0, 1, 2].map((c) => {
      const bytes = colors[model.get("basis")];
      let sum = 0;
      for (let n = c; n < bytes.length; n += 4) sum += bytes[n];
      return sum / (bytes.length / 4) / 255;
    });
    const flicker = Object.fromEntries(Object.entries(cuts).map(([k, v]) => [k, v.flicker]));
    const detail = {
      line: model.get("line"), probe: model.get("probe"), layer: model.get("layer"), mean, flicker,
      timestep: model.get("timestep"), basis: model.get("basis"), ready: films.every(Boolean),
      components: model.get("components"), strength: model.get("strength"),
      long: cuts.joint.image.width, ms: performance.now() - begun,
    };
    el.dispatchEvent(new CustomEvent("explored", { detail, bubbles: true }));
  }
  function inWords() {
    const [x, y, toX, toY] = model.get("line").map((v) => v.toFixed(0));
    const [film, joint, own] = Object.keys(PANELS).map((name) => cuts[name]?.flicker.toFixed(3));
    const [i, share] = model.get("probe");
    let words = `Line from (${x}, ${y}) to (${toX}, ${toY}). From frame to frame, colours along it `
      + `change by ${joint} in one basis, by ${own} in each frame's own; the film by ${film}.`;
    if (i !== undefined) words += ` Mark: frame ${i}, ${(100 * share).toFixed(0)} % of the line.`;
    return words;
  }

  // --- Hands ---

  const unit = Math.max(1, Math.round(w / 128));
  const inside = ([x, y]) => [clamp(x, 0, w - 1), clamp(y, 0, h - 1)];
  function lay(from, to) {
    const [x, y] = inside(from), [toX, toY] = inside(to);
    if (Math.hypot(toX - x, toY - y) >= 1) set("line", [x, y, toX, toY]);
  }
  function row() {
    const [, y, , toY] = model.get("line");
    lay([0, (y + toY) / 2], [w - 1, (y + toY) / 2]);
  }
  function column() {
    const [x, , toX] = model.get("line");
    lay([(x + toX) / 2, 0], [(x + toX) / 2, h - 1]);
  }
  /** Where in the frame that a drag began in the event is, even beside it. */
  function within({ offsetX, offsetY }, frame) {
    const [left, top] = place.cells[frame];
    return inside([(offsetX - left) / place.zoom - 0.5, (offsetY - top) / place.zoom - 0.5]);
  }
  canvas.addEventListener("pointerdown", (event) => {
    const at = placeOn(place, size, event);
    if (!at || event.button) return;
    dragged = { frame: at[0], from: at.slice(1), moved: false };
    canvas.setPointerCapture(event.pointerId);
  }, listen);
  canvas.addEventListener("pointermove", (event) => {
    if (!dragged) return;
    const { frame, from } = dragged, to = within(event, frame);
    if (event.shiftKey) {
      const across = Math.abs(to[0] - from[0]) > Math.abs(to[1] - from[1]) ? 1 : 0;
      to[across] = from[across];
    }
    dragged.moved ||= distance(from, to) * place.zoom > 4;
    if (dragged.moved) lay(from, to);
  }, listen);
  canvas.addEventListener("pointerup", () => {
    if (dragged && !dragged.moved) lay([0, dragged.from[1]], [w - 1, dragged.from[1]]);
    dragged = null;
  }, listen);
  canvas.addEventListener("pointercancel", () => { dragged = null; }, listen);
  const mark = ({ offsetX, offsetY }) => {
    const panel = panels.find(({ left, top, wide, high }) => offsetX >= left
      && offsetX <= left + wide && offsetY >= top && offsetY < top + high);
    if (!panel) return;
    const { left, top, wide, high } = panel;
    set("probe", [clamp(Math.floor((offsetY - top) / high * count), 0, count - 1),
      clamp((offsetX - left) / wide, 0, 1)]);
  };
  slices.addEventListener("pointermove", mark, listen);
  slices.addEventListener("pointerdown", mark, listen);

  const ARROWS = {
    ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1],
  };
  function turn(angle, stretch = 1) {
    const [x, y, toX, toY] = model.get("line"), middle = [(x + toX) / 2, (y + toY) / 2];
    const [dx, dy] = [(toX - x) / 2 * stretch, (toY - y) / 2 * stretch];
    const [a, b] = [Math.cos(angle), Math.sin(angle)].map((v) => Math.round(v * 1e9) / 1e9);
    const arm = [dx * a - dy * b, dx * b + dy * a];
    lay([middle[0] - arm[0], middle[1] - arm[1]], [middle[0] + arm[0], middle[1] + arm[1]]);
  }
  function moveLine([dx, dy], by) {
    const [x, y, toX, toY] = model.get("line");
    const right = clamp(dx * by, -Math.min(x, toX), w - 1 - Math.max(x, toX)); // as one
    const down = clamp(dy * by, -Math.min(y, toY), h - 1 - Math.max(y, toY));
    set("line", [x + right, y + down, toX + right, toY + down]);
  }
  const KEYS = {
    "[": () => turn(-Math.PI / 36), "]": () => turn(Math.PI / 36), "+": () => turn(0, 1.1),
    "=": () => turn(0, 1.1), "-": () => turn(0, 1 / 1.1), h: row, v: column,
  };
  function keys(on, arrows, others) {
    on.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      const arrow = ARROWS[event.key], by = event.shiftKey ? 8 : 1;
      if (arrow) arrows(arrow, by);
      else if (others[event.key]) others[event.key]();
      else return;
      event.preventDefault();
    }, listen);
  }
  keys(canvas, (arrow, by) => moveLine(arrow, by * unit), KEYS);
  keys(slices, ([dx, dy], by) => {
    const [frame = 0, share = 0.5] = model.get("probe");
    set("probe", [clamp(frame + dy, 0, count - 1), clamp(share + 0.01 * dx * by, 0, 1)]);
  }, { Escape: () => set("probe", []) });

  data.frames.forEach(async (file, i) => {
    const image = await createImageBitmap(new Blob([file], { type: "image/webp" }));
    if (held.left()) return image.close();
    images[i] = image;
    Object.assign(sheet, { width: image.width, height: image.height });
    const reader = sheet.getContext("2d", { willReadFrequently: true });
    reader.drawImage(image, 0, 0);
    films[i] = reader.getImageData(0, 0, image.width, image.height);
    cuts = null;
    redraw();
  });
  addEventListener("resize", redraw, listen); // zoom may change the pixels alone
  const observer = new ResizeObserver(redraw);
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

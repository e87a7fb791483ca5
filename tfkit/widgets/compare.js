// The page's half of tfkit.widgets.VideoCompare. The model's traits are the truth: a view draws
// them, and sets them when it is touched. Frames and clock come from film.js: no kernel.

const GAP = 8, CAPTION = 20; // pixels of the page: between pictures, above each
const VIEWS = { wipe: "Wipe", difference: "Difference", grid: "Side by side" };
const HELP = "Space: play. Left, Right: step; Home, End: first, last. W: wipe, D: difference, G: side"
  + " by side. Shift+Left, Shift+Right: move the wipe. +, −: gain of the difference. L: loop.";

function render({ model, el }) {
  const { names, size: [h, w], whole, films, error } = model.get("_data");
  const count = films[0].length, shrunk = whole[0] !== h || whole[1] !== w;
  const held = hold(model, () => model.get("playing") ? 250 : 60), { listen, set } = held;
  const brush = new OffscreenCanvas(w, h).getContext("2d", { willReadFrequently: true });
  let drawing = 0, telling = 0, mean = null, cells = [], zoom = 1, shown = -1;

  const root = element(el, "div", { className: "tfkit-compare", role: "group" });
  keepKeys(root, listen);
  root.setAttribute("aria-label", `Comparison of ${names.join(", ")}: ${count} frames. ${HELP}`);
  root.setAttribute("aria-busy", "true");
  const bar = element(root, "div", { className: "bar" });
  const canvas = element(root, "canvas", { tabIndex: 0 });
  const transport = element(root, "div", { className: "bar" });
  const status = element(root, "p", { role: "status" });
  element(root, "p", { className: "keys" }, HELP);
  const pen = canvas.getContext("2d");
  canvas.setAttribute("role", "img");
  const reel = projector(films, [h, w], redraw);
  const clock = metronome(advance);

  // --- Traits and view ---

  function follow(name, action) {
    held.on(`change:${name}`, action);
    action();
  }
  function on(made, event, action) {
    made.addEventListener(event, action, listen);
    return made;
  }
  function button(parent, words, label, action) {
    const made = element(parent, "button", { type: "button", title: label }, words);
    made.setAttribute("aria-label", label);
    return on(made, "click", action);
  }
  function field(parent, name, tag, properties) {
    const made = element(element(parent, "label", {}, name), tag, properties);
    made.setAttribute("aria-label", name); // not what else stands in its label
    const property = properties.type === "checkbox" ? "checked" : "value";
    if (tag === "select") for (const value of names) element(made, "option", { value }, value);
    on(made, "input", () => {
      const value = tag === "select" || property === "checked" ? made[property] : made.valueAsNumber;
      if (value === value && made.checkValidity()) set(name, value); // no NaN of an empty field
    });
    on(made, "change", () => { made[property] = model.get(name); }); // what was refused goes back
    follow(name, () => { if (made[property] !== String(model.get(name))) made[property] = model.get(name); });
    return made.parentElement;
  }

  const views = element(bar, "span", { role: "group" });
  views.setAttribute("aria-label", "view");
  for (const [name, words] of Object.entries(VIEWS)) {
    const made = button(views, words, `${words} (${name[0]})`, () => set("view", name));
    follow("view", () => made.setAttribute("aria-pressed", model.get("view") === name));
  }
  const two = [field(bar, "left", "select", {}), field(bar, "right", "select", {})];
  const wiping = field(bar, "wipe", "input", { type: "range", min: 0, max: 1, step: 0.01 });
  const gaining = field(bar, "gain", "input", { type: "range", min: 1, max: 64, step: 1 });
  const gained = element(gaining, "span", { className: "told" });
  follow("gain", () => { gained.textContent = `× ${model.get("gain")}`; });
  follow("view", () => {
    const view = model.get("view");
    for (const label of two) label.hidden = view === "grid";
    wiping.hidden = view !== "wipe";
    gaining.hidden = view !== "difference";
    canvas.classList.toggle("wipes", view === "wipe");
  });

  button(transport, "◀", "Previous frame (Left)", () => step(-1));
  const player = button(transport, "", "Play (Space)", play);
  button(transport, "▶", "Next frame (Right)", () => step(1));
  const slide = field(transport, "frame", "input", { type: "range", min: 0, max: count - 1, step: 1 });
  slide.className = "frame";
  const counted = element(slide, "span", { className: "told" });
  field(transport, "loop", "input", { type: "checkbox" });
  field(transport, "fps", "input", { type: "number", min: 0.1, max: 240, step: "any" });
  follow("frame", () => { counted.textContent = `${model.get("frame")} / ${count - 1}`; });

  // --- Time ---

  function step(by) {
    set("playing", false);
    set("frame", (model.get("frame") + by + count) % count);
  }
  function play() {
    const starts = !model.get("playing");
    if (starts && !model.get("loop") && model.get("frame") === count - 1) set("frame", 0);
    set("playing", starts);
    held.save();
  }
  function advance(passed) {
    const to = model.get("frame") + passed, end = to >= count - 1 && !model.get("loop");
    const next = end ? count - 1 : to % count;
    if (!films.every((_, film) => !seen().includes(film) || reel.frame(film, next))) return;
    shown = next; // ours, so the clock keeps its beat
    set("frame", next);
    if (end) set("playing", false);
  }
  if (stillness() && model.get("playing")) set("playing", false); // nothing moves by itself
  const run = () => { if (model.get("playing")) clock.start(model.get("fps")); else clock.stop(); };
  follow("playing", () => {
    const words = model.get("playing") ? "Pause" : "Play";
    player.textContent = words;
    player.setAttribute("aria-label", `${words} (Space)`);
    run();
  });
  follow("fps", run);
  follow("frame", () => { if (model.get("frame") !== shown) clock.restart(); });
  for (const name of ["frame", "view", "left", "right", "wipe", "gain", "playing"]) follow(name, redraw);

  // --- The picture ---

  function redraw() {
    if (!held.left()) drawing ||= requestAnimationFrame(draw);
  }
  /** The clips that the view shows, by number. */
  function seen() {
    if (model.get("view") === "grid") return names.map((_, film) => film);
    return [names.indexOf(model.get("left")), names.indexOf(model.get("right"))];
  }

  function layout() {
    const width = root.clientWidth, tall = Math.max(240, 0.7 * innerHeight);
    const pictures = model.get("view") === "grid" ? names.length : 1;
    let columns = 1;
    zoom = 0;
    for (let c = 1; c <= pictures; c++) { // as large as fits
      const across = (width - GAP * (c - 1)) / c / w;
      const fits = Math.min(across, (tall / Math.ceil(pictures / c) - CAPTION) / h);
      if (fits > zoom) [columns, zoom] = [c, fits];
    }
    zoom = Math.min(zoom, Math.max(1, 640 / w));
    const high = CAPTION + h * zoom;
    cells = Array.from({ length: pictures }, (_, i) =>
      [(i % columns) * (w * zoom + GAP), Math.floor(i / columns) * (high + GAP) + CAPTION]);
    const sharp = devicePixelRatio, wide = columns * (w * zoom + GAP) - GAP;
    const all = Math.ceil(pictures / columns) * (high + GAP) - GAP;
    const [across, down] = [Math.round(wide * sharp), Math.round(all * sharp)];
    if (canvas.width !== across || canvas.height !== down) {
      Object.assign(canvas, { width: across, height: down });
      canvas.style.width = `${wide}px`;
      canvas.style.height = `${all}px`;
    }
    pen.setTransform(sharp, 0, 0, sharp, 0, 0);
  }

  /** |a − b| times the gain, of each level, onto the brush; returns the mean before the gain. */
  function subtract(a, b) {
    const [first, second] = [a, b].map((picture) => {
      brush.drawImage(picture, 0, 0);
      return brush.getImageData(0, 0, w, h);
    });
    const gain = model.get("gain"), out = first.data, other = second.data;
    let sum = 0;
    for (let i = 0; i < out.length; i++) {
      if (i % 4 === 3) continue;
      const off = Math.abs(out[i] - other[i]);
      sum += off;
      out[i] = gain * off;
    }
    brush.putImageData(first, 0, 0);
    return sum / (3 * w * h);
  }

  function caption(words, x, y, room, align = "left") {
    let text = words;
    while (text.length > 1 && pen.measureText(text).width > room) text = `${text.slice(0, -2)}…`;
    pen.textAlign = align;
    pen.fillText(text, x, y - 6);
  }

  function draw() {
    drawing = 0;
    if (!root.clientWidth) return;
    const begun = performance.now(), view = model.get("view"), frame = model.get("frame");
    const clips = seen(), pictures = clips.map((film) => reel.frame(film, frame));
    if (reel.ready()) root.setAttribute("aria-busy", "false");
    if (!pictures.every(Boolean)) return; // the last picture stays until all are there
    layout();
    pen.clearRect(0, 0, canvas.width, canvas.height);
    pen.font = "13px sans-serif";
    pen.fillStyle = getComputedStyle(root).color;
    pen.imageSmoothingEnabled = zoom < 1; // enlarged pixels are seen as what they are
    mean = null;
    if (view === "grid") {
      cells.forEach(([x, y], i) => {
        caption(names[i], x, y, w * zoom);
        pen.drawImage(pictures[i], x, y, w * zoom, h * zoom);
      });
    } else {
      const [[x, y]] = cells, [left, right] = clips.map((film) => names[film]), wide = w * zoom;
      if (view === "difference") {
        mean = subtract(...pictures);
        caption(`|${left} − ${right}| × ${model.get("gain")}`, x, y, wide);
        pen.drawImage(brush.canvas, x, y, wide, h * zoom);
      } else {
        const at = model.get("wipe") * wide;
        caption(left, x, y, wide / 2 - GAP);
        caption(right, x + wide, y, wide / 2 - GAP, "right");
        pen.drawImage(pictures[0], x, y, wide, h * zoom);
        pen.save();
        pen.beginPath();
        pen.rect(x + at, y, wide - at, h * zoom);
        pen.clip();
        pen.drawImage(pictures[1], x, y, wide, h * zoom);
        pen.restore();
        for (const [color, line] of [["#000", 4], ["#fff", 2]]) {
          pen.fillStyle = color;
          pen.fillRect(x + clamp(at - line / 2, 0, wide - line), y, line, h * zoom);
          pen.beginPath();
          pen.arc(x + clamp(at, 8, wide - 8), y + h * zoom / 2, 5 + line, 0, 7);
          pen.fill();
        }
      }
    }
    clearTimeout(telling);
    if (!model.get("playing")) telling = setTimeout(tell, 200);
    const detail = { frame, view, mean, ms: performance.now() - begun, at: begun };
    el.dispatchEvent(new CustomEvent("compared", { detail, bubbles: true }));
  }

  /** The picture in words, once it stands still. */
  function tell() {
    const view = model.get("view"), [left, right] = [model.get("left"), model.get("right")];
    if (view === "difference" && mean === null) return; // it is not drawn yet
    let words = `Frame ${model.get("frame")} of 0 to ${count - 1}. `;
    if (view === "grid") words += `Side by side: ${names.join(", ")}.`;
    else if (view === "wipe") {
      words += `Left ${Math.round(100 * model.get("wipe"))} %: ${left}; the rest: ${right}.`;
    } else {
      words += `${left} and ${right} differ by ${mean.toFixed(2)} of 255 on average.`;
      if (shrunk) words += ` They are shown at ${w} × ${h} of ${whole[1]} × ${whole[0]} pixels, and `
        + "compared so: fine differences are lost on the way.";
      if (error) words += ` The pictures are lossy: ${error.toFixed(1)} of 255 (RMS) are theirs.`;
    }
    status.textContent = words;
    canvas.setAttribute("aria-label", words);
  }

  // --- Hands ---

  function wipe({ offsetX }) {
    if (model.get("view") === "wipe") set("wipe", clamp(offsetX / (w * zoom), 0, 1));
  }
  on(canvas, "pointerdown", (event) => {
    if (event.button) return;
    canvas.setPointerCapture(event.pointerId);
    wipe(event);
  });
  on(canvas, "pointermove", (event) => { if (event.buttons & 1) wipe(event); });
  const nudge = (name, by, low, high) => set(name, clamp(model.get(name) + by, low, high));
  const KEYS = {
    ArrowLeft: () => step(-1), ArrowRight: () => step(1), Home: () => set("frame", 0),
    End: () => set("frame", count - 1), " ": play, w: () => set("view", "wipe"),
    d: () => set("view", "difference"), g: () => set("view", "grid"),
    l: () => set("loop", !model.get("loop")), "+": () => nudge("gain", 1, 1, 64),
    "-": () => nudge("gain", -1, 1, 64),
  };
  on(root, "keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const own = event.target.matches("select, input[type=number]") // they take keys themselves
      || (event.target.matches("input") && /^(Arrow|Home|End)|^ $/.test(event.key))
      || (event.target.matches("button") && event.key === " ");
    const shifted = { ArrowLeft: -0.02, ArrowRight: 0.02 }[event.shiftKey && event.key];
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (own || !(key in KEYS)) return;
    if (shifted) nudge("wipe", shifted, 0, 1);
    else KEYS[key]();
    event.preventDefault();
  });

  addEventListener("resize", redraw, listen); // zoom may change the pixels alone
  const observer = new ResizeObserver(redraw);
  observer.observe(root);
  return () => {
    held.leave();
    observer.disconnect();
    clock.stop();
    cancelAnimationFrame(drawing);
    clearTimeout(telling);
    reel.close();
    root.remove();
  };
}

export default { render };

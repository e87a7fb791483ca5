// The page's half of tfkit.widgets.EditStepper. The model's traits are the truth; what the kernel
// has sent of a stop (pictures, weights, fields) stays in the view, which needs no kernel for it.
// The kernel answers in the order of asking: what came before an answer and has none was lost on
// the way. After a long silence, and each time it has doubled, the view asks how it stands, so that
// nothing waits for ever.

const BAR = 7; // pixels: the weights under a frame
const LOADED = 16; // stops whose pictures stay unpacked, and fields that are kept
const PACE = 250; // ms between steps that were taken before
const LOOKS = ["picture", "field", "tell"]; // what is asked for and changes nothing
const PATIENCE = 4000; // ms without a word until the page says that it waits
const GONE = "The kernel is gone: steps that were seen can still be looked at, new ones cannot be "
  + "taken. Run the cell again to go on.";
const HELP = "Hover a frame: its weights, and where the field finds the place. On a strip: arrows "
  + "move the place (Shift: faster), Page Up and Page Down change the frame, Escape lets go; "
  + "N: next step, B: back, Space: play or stop, R: redraw keyframes.";

function render({ model, el }) {
  const data = model.get("_data"), size = data.size, [h, w] = size, count = data.frames;
  const held = hold(model), { listen, set } = held;
  const stops = new Map(), fields = new Map(), asked = new Map(), strips = new Map();
  const tried = new Set();
  const own = Math.random(); // of several views of a model, all hear the answers
  let gone = false, number = 0, drawing = 0, dwelling = 0, waiting = 0, telling = 0, pacing = 0;
  let width = 0, laidOut = "";

  const root = element(el, "div", { className: "tfkit-view tfkit-stepper" });
  keepKeys(root, listen);
  const bar = element(root, "div", { className: "bar" });
  const settings = element(root, "div", { className: "bar" });
  const looks = element(root, "div", { className: "bar" });
  const alarm = element(root, "p", { className: "alarm" });
  alarm.setAttribute("role", "alert");
  const body = element(root, "div");
  const status = element(root, "p", { className: "told" });
  status.setAttribute("role", "status");
  element(root, "p", { className: "keys" }, HELP);

  // --- Traits and kernel ---

  const branch = (name) => model.get("_state")[name];
  const total = () => branch(model.get("active")).timesteps.length;
  /** Where a branch is; of the active one the trait, which the page moves by itself. */
  const at = (name) => name === model.get("active") ? model.get("position")
    : branch(name).position;
  /** Whether a branch can go back: there is a step before, which is not forgotten. */
  const kept = (name) => at(name) > 0 && branch(name).path[at(name) - 1] != null;
  const moving = () => model.get("together") ? model.get("branches") : [model.get("active")];

  /** Asks the kernel for something, once until it answers. */
  function ask(what, words = {}, once = what) {
    const known = tried.has(once) || [...asked.values()].some((one) => one.once === once);
    if (gone || held.left() || known) return;
    if (what === "picture" || what === "field") tried.add(once); // what fails is not asked again
    if (!LOOKS.includes(what)) held.flush(); // it is for where the page stands now
    asked.set(++number, { what, once, since: performance.now() });
    try {
      Promise.resolve(model.send({ do: what, with: words, number: [own, number] })).catch(lose);
    } catch {
      lose();
    }
    watch();
    show();
  }
  function lose() {
    if (held.left() || gone) return;
    gone = true;
    asked.clear();
    show();
  }
  function watch() {
    clearTimeout(waiting);
    if (asked.size) waiting = setTimeout(() => {
      const doubled = Math.floor(Math.log2(silence() / PATIENCE));
      if (doubled >= 0) ask("tell", {}, `tell ${doubled}`); // one of these may be lost as well
      show();
      watch();
    }, PATIENCE / 2);
  }
  /** Milliseconds since the first of what is asked and not answered. */
  const silence = () =>
    performance.now() - Math.min(...[...asked.values()].map(({ since }) => since));
  function answered([view, last]) {
    if (view !== own) return;
    for (const [at, { once }] of asked) if (at <= last) {
      asked.delete(at);
      if (at < last) tried.delete(once); // lost
    }
  }
  held.onLost(lose);
  held.on("comm_live_update", lose); // of Jupyter's widgets, where their comm closes
  held.on("msg:custom", (message, buffers = []) => {
    gone = false;
    if (message.done) answered(message.done);
    else if (message.picture !== undefined) receive(message, buffers);
    else if (message.field !== undefined) {
      const [index, close] = buffers.map((b) => new DataView(b.buffer ?? b, b.byteOffset ?? 0));
      fields.set(`${message.field} ${message.layer}`, { index, close });
    }
    watch();
    show();
  });
  function receive({ picture, keyframes, weights }, buffers) {
    if (stops.has(picture)) return; // another view has asked for it too
    const files = buffers.map((file) => new Blob([file], { type: "image/webp" }));
    stops.set(picture, { keyframes, weights, files, images: null, loading: false });
  }
  /** Unpacks a stop's pictures; of those not seen now, a few stay unpacked. */
  async function load(stop) {
    if (stop.loading || stop.images) return;
    stop.loading = true;
    const images = await Promise.all(stop.files.map((file) => createImageBitmap(file)));
    stop.loading = false;
    if (held.left()) return images.forEach((image) => image.close());
    stop.images = images;
    const seen = new Set([...strips.values()].map((strip) => strip.seen)).add(stop);
    const others = [...stops.values()].filter((one) => one.images && !seen.has(one));
    others.slice(0, -LOADED).forEach(pack);
    show();
  }
  function pack(stop) {
    stop.images?.forEach((image) => image.close());
    stop.images = null;
  }
  /** What no branch passes any more is forgotten. */
  function forget() {
    tried.clear();
    const alive = new Set(Object.values(model.get("_state")).flatMap(({ path }) => path));
    const seen = new Set([...strips.values()].map((strip) => strip.seen));
    for (const [number, stop] of stops) if (!alive.has(number) && !seen.has(stop)) {
      pack(stop);
      stops.delete(number);
    }
    for (const key of [...fields.keys()].slice(0, -LOADED)) fields.delete(key);
    show();
  }
  held.on("change:_state", forget);

  // --- Controls ---

  function button(parent, words, title, action) {
    const made = element(parent, "button", { type: "button", title }, words);
    made.addEventListener("click", action, listen);
    return made;
  }
  const back = button(bar, "◀ Back", "Costs nothing (B)", goBack);
  const step = button(bar, "Step ▶", "Take the next step (N)", goOn);
  const play = button(bar, "Play", "Step after step (Space)", togglePlay);
  const slide = element(element(bar, "label", {}, "steps taken"), "input",
    { type: "range", min: 0, step: 1 });
  const where = element(bar, "span");
  const progress = element(bar, "progress");
  const how = element(bar, "span");
  slide.addEventListener("input", () => {
    set("playing", false);
    set("position", Number(slide.value));
  }, listen);

  const prompt = element(element(settings, "label", { className: "wide" }, "prompt"), "input",
    { type: "text", name: "prompt" });
  const guidance = element(element(settings, "label", {}, "guidance"), "input",
    { type: "number", step: "any", name: "guidance" });
  const apply = element(settings, "button", { type: "button" }, "Apply from here on");
  const seed = element(element(settings, "label", {}, "seed"), "input",
    { type: "number", min: 0, step: 1, value: 1, name: "seed" });
  const redraw = button(settings, "Redraw keyframes", "From here on, by the seed (R)", drawAnew);
  const fork = button(settings, "Branch", "Another edit from here on, beside this one",
    () => ask("branch"));
  const beyond = element(settings, "span", { className: "note" });
  apply.addEventListener("click", () =>
    ask("change", { prompt: prompt.value, guidance: guidance.valueAsNumber }), listen);
  settings.addEventListener("keydown", (event) => { // JupyterLab keeps Enter from forms
    if (event.key !== "Enter" || event.target.tagName !== "INPUT") return;
    event.preventDefault();
    event.stopPropagation();
    (event.target === seed ? redraw : apply).click();
  }, listen);
  function drawAnew() {
    ask("change", { seed: seed.valueAsNumber });
    seed.value = (seed.valueAsNumber || 0) + 1;
  }

  const together = element(element(looks, "label", {}, "step all branches"), "input",
    { type: "checkbox" });
  const shown = element(element(looks, "label", {}, "fields"), "input", { type: "checkbox" });
  const layer = element(element(looks, "label", {}, "layer"), "select");
  for (const { name, grid } of data.layers) {
    const short = name.replace(".transformer_blocks.0.attn1", "");
    element(layer, "option", { value: name }, `${short} (${grid.join(" × ")})`);
  }
  const legend = element(looks, "span", { className: "note" });
  together.addEventListener("change", () => set("together", together.checked), listen);
  shown.addEventListener("change", () => set("fields", shown.checked), listen);
  layer.addEventListener("input", () => set("layer", layer.value), listen);

  function goBack() {
    set("playing", false);
    if (model.get("together") && !gone) ask("back");
    else if (kept(model.get("active"))) set("position", model.get("position") - 1);
  }
  function goOn() {
    const known = branch(model.get("active")).path.length - 1;
    if (!model.get("together") && model.get("position") < known) {
      set("position", model.get("position") + 1); // taken before
    } else {
      ask("step", { positions: Object.fromEntries(moving().map((name) => [name, at(name)])) });
    }
  }
  function togglePlay() {
    set("playing", !model.get("playing") && !gone);
    held.save();
  }
  /** While it plays: the next step, as soon as all that this one has brought is seen. */
  function drive() {
    if (!model.get("playing") || held.left() || gone || document.hidden) return;
    const busy = [...asked.values()].some(({ what }) => what !== "field");
    const seen = (name) => stops.get(branch(name).path[at(name)])?.images;
    if (!busy && model.get("branches").every(seen)
      && moving().some((name) => at(name) < branch(name).timesteps.length)) {
      if (moving().some((name) => at(name) >= branch(name).path.length - 1)) goOn();
      else pacing ||= setTimeout(pace, PACE); // whatever is drawn meanwhile
    }
  }
  function pace() {
    pacing = 0;
    if (model.get("playing")) goOn();
  }
  document.addEventListener("visibilitychange", drive, listen);

  // --- What is shown ---

  function show() {
    if (!held.left()) drawing ||= requestAnimationFrame(draw);
  }
  for (const name of ["branches", "active", "position", "seed", "layer", "probe", "fields",
    "together", "playing", "progress", "message", "_state"]) held.on(`change:${name}`, show);
  const fill = (input, name) => {
    const take = () => { input.value = model.get(name); };
    held.on(`change:${name}`, take);
    take();
  };
  fill(prompt, "prompt");
  fill(guidance, "guidance");

  function drawControls() {
    const position = model.get("position"), steps = total(), known = branch(model.get("active"));
    const [done, expected] = model.get("progress"), playing = model.get("playing") && !gone;
    const busy = [...asked.values()].some(({ what }) => !LOOKS.includes(what));
    const ends = moving().every((name) => at(name) >= branch(name).timesteps.length);
    back.disabled = !moving().some(kept);
    step.disabled = ends || busy || (gone && position >= known.path.length - 1);
    play.disabled = !playing && (ends || gone);
    play.textContent = playing ? "Stop" : "Play";
    for (const made of [apply, redraw, fork]) made.disabled = gone || busy;
    redraw.disabled ||= !known.rows[position];
    slide.min = known.path.findIndex((number) => number !== null);
    slide.max = known.path.length - 1;
    slide.value = position;
    where.textContent = `${position} of ${steps}`;
    progress.hidden = !expected;
    Object.assign(progress, { max: expected || 1, value: done || 0 });
    how.textContent = expected ? `pass ${done} of ${expected}` : "";
    const forgotten = known.path.length - 1 - position;
    beyond.textContent = forgotten ? `a change forgets ${forgotten} steps beyond this one` : "";
    together.checked = model.get("together");
    together.parentNode.hidden = model.get("branches").length < 2;
    shown.checked = model.get("fields");
    layer.value = model.get("layer");
    const late = !expected && silence() > PATIENCE;
    alarm.textContent = gone ? GONE : model.get("message")
      || (late ? "Waiting for the kernel: it is busy, or gone." : "");
    root.classList.toggle("busy", Boolean(expected));
  }

  /** One row for each branch: its name, which is a button, and its frames. */
  function drawRows() {
    const names = model.get("branches");
    for (const [name, { row }] of strips) if (!names.includes(name)) {
      row.remove();
      strips.delete(name);
    }
    for (const name of names) if (!strips.has(name)) addRow(name);
    const wanted = `${names} ${root.clientWidth} ${devicePixelRatio}`;
    if (wanted !== laidOut) {
      [laidOut, width] = [wanted, root.clientWidth];
      const most = Math.max(0.7 * innerHeight / names.length, 120);
      for (const strip of strips.values()) {
        Object.assign(strip, arrange(count, size, width, most, BAR));
        strip.pen = fit(strip.canvas, width, strip.high);
      }
    }
    for (const name of names) drawRow(name);
  }

  function addRow(name) {
    const row = element(body, "section"), head = element(row, "div", { className: "bar" });
    const title = button(head, "", "Make this branch the active one", () => {
      set("active", name);
      set("position", branch(name).position);
      set("playing", false);
    });
    const drop = button(head, "✕", `Forget branch ${name}`, () => ask("drop", { name }));
    drop.setAttribute("aria-label", `Forget branch ${name}`);
    const canvas = element(row, "canvas", { tabIndex: 0 });
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-label", `Branch ${name}: ${count} frames. ${HELP}`);
    strips.set(name, { row, title, drop, canvas });
    const hover = (event) => {
      const place = placeOn(strips.get(name), size, event);
      if (place) set("probe", place);
    };
    canvas.addEventListener("pointermove", hover, listen);
    canvas.addEventListener("pointerdown", hover, listen);
    canvas.addEventListener("keydown", (event) => press(event), listen);
  }

  /** Where a field finds the probe: [x, y, similarity] in each keyframe; null while unknown. */
  function matches(number, keyframes) {
    const name = model.get("layer"), field = fields.get(`${number} ${name}`);
    const probe = model.get("probe");
    if (!field || !probe.length) return null;
    const [rows, columns] = data.layers.find((one) => one.name === name).grid;
    const row = clamp(Math.floor((probe[2] + 0.5) * rows / h), 0, rows - 1);
    const column = clamp(Math.floor((probe[1] + 0.5) * columns / w), 0, columns - 1);
    return keyframes.map((_, k) => {
      const place = (probe[0] * keyframes.length + k) * rows * columns + row * columns + column;
      const found = field.index.getUint16(2 * place, true);
      return [(found % columns + 0.5) * w / columns - 0.5,
        (Math.floor(found / columns) + 0.5) * h / rows - 0.5,
        field.close.getUint8(place) / 127.5 - 1];
    });
  }

  function drawRow(name) {
    const strip = strips.get(name), { pen, zoom, cells } = strip, known = branch(name);
    const position = at(name), number = known.path[position], stop = stops.get(number);
    const active = name === model.get("active"), ink = getComputedStyle(root).color;
    if (!stop && number != null) ask("picture", { stop: number }, `picture ${number}`);
    const t = position ? `t = ${known.timesteps[position - 1]}` : "the source";
    strip.title.textContent = `${name}: step ${position} of ${known.timesteps.length}, ${t}, `
      + `“${known.prompt}”, guidance ${known.guidance}`;
    strip.title.setAttribute("aria-pressed", active);
    strip.drop.hidden = model.get("branches").length < 2;
    strip.row.classList.toggle("waits", !stop);
    if (stop?.images) strip.seen = stop; // until the next one is there
    else if (stop) load(stop);
    if (!strip.seen) return;
    const { images, keyframes, weights } = strip.seen, [frame, ...point] = model.get("probe");
    const next = known.rows[position] ?? [], own = frame === undefined ? null : weights?.[frame];
    const found = weights && stop === strip.seen ? matches(number, keyframes) : null;
    strip.found = found;
    const wide = w * zoom, tall = h * zoom, narrow = wide < 110;
    pen.clearRect(0, 0, width, strip.high);
    pen.font = "12px sans-serif";
    pen.imageSmoothingEnabled = zoom < 1;
    images.forEach((image, i) => {
      const [left, top] = cells[i], k = keyframes ? keyframes.indexOf(i) : -1;
      const color = COLORS[k % COLORS.length];
      pen.fillStyle = ink;
      pen.textAlign = "left";
      const mark = k < 0 ? "" : narrow ? " ◆" : " ◆ keyframe";
      pen.fillText((narrow ? "" : "frame ") + i + mark, left, top - 5);
      if (k >= 0 && own) {
        pen.textAlign = "right";
        pen.fillText(`${(100 * own[k]).toFixed(0)} %`, left + wide, top - 5);
      }
      pen.drawImage(image, left, top, wide, tall);
      let x = left;
      weights?.[i].forEach((weight, j) => { // what it takes from which keyframe
        pen.fillStyle = COLORS[j % COLORS.length];
        pen.fillRect(x, top + tall + 2, weight * wide, BAR - 2);
        x += weight * wide;
      });
      if (k >= 0) stroke(pen, () => pen.rect(left + 2, top + 2, wide - 4, tall - 4), color, 3);
      if (next.includes(i)) {
        pen.setLineDash([4, 4]);
        stroke(pen, () => pen.rect(left + 6, top + 6, wide - 12, tall - 12), "#fff", 1);
        pen.setLineDash([]);
      }
      const spot = ([a, b]) => [left + (a + 0.5) * zoom, top + (b + 0.5) * zoom];
      if (i === frame) {
        stroke(pen, () => pen.arc(...spot(point), 6, 0, 7), "#fff");
      } else if (k >= 0 && found) {
        const [a, b] = spot(found[k]);
        pen.globalAlpha = own?.[k] ? 1 : 0.4; // the frame takes nothing from it
        stroke(pen, () => {
          for (const s of [1, -1]) { pen.moveTo(a - 5, b - 5 * s); pen.lineTo(a + 5, b + 5 * s); }
        }, color);
        pen.globalAlpha = 1;
      }
    });
  }

  function draw() {
    drawing = 0;
    if (!root.clientWidth || held.left()) return;
    const begun = performance.now();
    drawControls();
    drawRows();
    const active = model.get("active"), { found, seen } = strips.get(active);
    legend.textContent = seen?.keyframes ? "◆ coloured: keyframes of this step; dashed: of the "
      + "next; bars: whose tokens a frame takes"
      : "this propagation has no keyframes";
    shown.parentNode.hidden = layer.parentNode.hidden = !seen?.weights;
    clearTimeout(dwelling);
    dwelling = setTimeout(wantFields, 250);
    clearTimeout(telling);
    telling = setTimeout(() => { status.textContent = inWords(); }, 150);
    drive();
    const number = branch(active).path[model.get("position")];
    const detail = {
      active, position: model.get("position"), playing: model.get("playing"), gone, found,
      stop: number, ready: Boolean(seen) && seen === stops.get(number),
      keyframes: seen?.keyframes ?? null,
      weights: seen?.weights ?? null, progress: model.get("progress"), message: alarm.textContent,
      branches: model.get("branches"), ms: performance.now() - begun,
    };
    el.dispatchEvent(new CustomEvent("explored", { detail, bubbles: true }));
  }

  /** Fields cost the kernel a pass: only once the mouse rests, and not while it plays. */
  function wantFields() {
    if (!model.get("fields") || !model.get("probe").length || model.get("playing")) return;
    if ([...asked.values()].some(({ what }) => what === "step")) return;
    for (const name of model.get("branches")) {
      const number = branch(name).path[at(name)], layer = model.get("layer");
      const words = { stop: number, layer }, key = `${number} ${layer}`;
      if (stops.get(number)?.weights && !fields.has(key)) ask("field", words, `field ${key}`);
    }
  }

  function inWords() {
    const name = model.get("active"), { seen, found } = strips.get(name) ?? {};
    const [frame] = model.get("probe"), keyframes = seen?.keyframes;
    if ([...asked.values()].some(({ what }) => what === "field")) return "Computing the field …";
    if (!keyframes) return "";
    let words = `Branch ${name}: keyframes ${keyframes.join(", ")}.`;
    if (frame === undefined || !seen.weights) return words;
    const own = seen.weights[frame], from = keyframes.flatMap((key, k) => own[k]
      ? [`${(100 * own[k]).toFixed(0)} % from ${key}`
        + (found ? ` at (${found[k][0].toFixed(0)}, ${found[k][1].toFixed(0)}), `
          + `cosine ${found[k][2].toFixed(2)}` : "")] : []);
    return `${words} Frame ${frame} takes ${from.join("; ")}.`;
  }

  // --- Keys ---

  const unit = Math.max(1, Math.round(w / 128));
  const MOVES = {
    ArrowLeft: [0, -1, 0], ArrowRight: [0, 1, 0], ArrowUp: [0, 0, -1], ArrowDown: [0, 0, 1],
    PageUp: [-1, 0, 0], PageDown: [1, 0, 0],
  };
  const ACTIONS = { n: step, b: back, " ": play, r: redraw };
  root.addEventListener("keydown", (event) => { // of buttons, whose titles name them
    if (event.target.matches("button") && event.key !== " " && ACTIONS[event.key]) press(event);
  }, listen);
  function press(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const [frame, x, y] = model.get("probe"), by = event.shiftKey ? 8 * unit : unit;
    const move = MOVES[event.key];
    if (move && frame === undefined) set("probe", [0, (w - 1) / 2, (h - 1) / 2]);
    else if (move) {
      set("probe", [clamp(frame + move[0], 0, count - 1), clamp(x + by * move[1], 0, w - 1),
        clamp(y + by * move[2], 0, h - 1)]);
    } else if (event.key === "Escape") set("probe", []);
    else if (ACTIONS[event.key]) ACTIONS[event.key].click();
    else return;
    event.preventDefault();
  }

  addEventListener("resize", show, listen); // zoom may change the pixels alone
  const observer = new ResizeObserver(show);
  observer.observe(root);
  show();
  return () => {
    if (model.get("playing")) set("playing", false); // or nobody could stop it
    held.leave();
    observer.disconnect();
    cancelAnimationFrame(drawing);
    [dwelling, waiting, telling, pacing].forEach(clearTimeout);
    [...stops.values()].forEach(pack);
    root.remove();
  };
}

export default { render };

// The page's half of tfkit.PreferenceStudy. It knows sides, never methods. Python owns the answers:
// a choice is sent, written to the disk, and only then does `trial` move on; until it does, the page
// keeps the choice, and says so where nobody takes it.

const PATIENCE = 4000; // milliseconds without a word from Python, until we say so
const HELP = "Left arrow: the left video. Right arrow: the right one. Space: pause.";
const GONE = "The kernel does not answer: it is busy, or gone. If it is gone, restart it and run the "
  + "study's cell again: what was saved is kept, and it goes on at this question.";

function render({ model, el }) {
  const held = hold(model), { listen } = held;
  let reel = null, frame = 0, playing = !stillness(), begun = 0, drawing = 0, waiting = 0;
  let pending = null, sent = 0;

  const root = element(el, "div", { className: "tfkit-study", role: "group", tabIndex: 0 });
  keepKeys(root, listen);
  root.setAttribute("aria-label", `Preference study. ${HELP}`);
  const place = element(root, "p");
  const progress = element(place, "progress", { value: 0 });
  progress.setAttribute("aria-label", "questions answered");
  const number = element(place, "span");
  element(root, "h3", {}, model.get("question"));
  const prompt = element(root, "p");
  const alarm = element(root, "div", { className: "alarm", role: "alert", hidden: true });
  const said = element(alarm, "span");
  const again = element(alarm, "button", { type: "button" }, "Try again");
  const stage = element(root, "div", { className: "films" });
  const buttons = {}, canvases = ["source", "left", "right"].map((name) => {
    const figure = element(stage, "figure", { className: name });
    element(figure, "figcaption", {}, name);
    const canvas = element(figure, "canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${name} video`);
    if (name !== "source") {
      const words = name === "left" ? "← Left" : "Right →";
      buttons[name] = element(figure, "button", { type: "button", disabled: true }, words);
      buttons[name].setAttribute("aria-label", `The ${name} video`);
      buttons[name].addEventListener("click", () => answer(name), listen);
    }
    return canvas;
  });
  const player = element(root, "button", { type: "button" });
  const status = element(root, "p", { className: "status", role: "status" });
  element(root, "p", { className: "keys" }, HELP);

  // --- Films ---

  const clock = metronome((passed) => {
    const count = reel.count, next = (frame + passed) % count;
    if (![0, 1, 2].every((film) => reel.frame(film, next))) return;
    frame = next;
    redraw();
  });
  function run() {
    player.textContent = playing ? "Pause" : "Play";
    if (playing && reel) clock.start(reel.fps);
    else clock.stop();
  }
  function play() {
    playing = !playing;
    run();
  }
  function redraw() {
    if (!held.left()) drawing ||= requestAnimationFrame(draw);
  }
  function draw() {
    drawing = 0;
    if (!reel || !root.clientWidth) return;
    const pictures = canvases.map((_, film) => reel.frame(film, frame));
    if (!pictures.every(Boolean) || !reel.ready()) return;
    canvases.forEach((canvas, film) => {
      canvas.classList.toggle("shrunk", canvas.clientWidth < canvas.width);
      canvas.getContext("2d").drawImage(pictures[film], 0, 0);
    });
    if (!begun) { // from here on it can be answered, and the time counts
      begun = performance.now();
      root.setAttribute("aria-busy", "false");
      run();
      enable();
    }
    el.dispatchEvent(new CustomEvent("studied", { detail: { frame }, bubbles: true }));
  }
  function show() {
    clearTimeout(waiting);
    if (pending) status.textContent = "Saved.";
    const answered = pending;
    pending = null;
    alarm.hidden = true;
    clock.stop();
    reel?.close();
    reel = null;
    [frame, begun] = [0, 0];
    const { films, size, fps } = model.get("_data"), total = model.get("total");
    const trial = model.get("trial"), over = !films;
    Object.assign(progress, { value: trial, max: total });
    number.textContent = over ? ` ${trial} of ${total}` : ` Question ${trial + 1} of ${total}`;
    const words = model.get("prompt");
    prompt.textContent = words && `The source was to become: “${words}”`;
    stage.hidden = player.hidden = over;
    enable();
    if (over) {
      root.setAttribute("aria-busy", "false");
      status.textContent = `Thank you: all ${total} answers are saved.`;
    } else {
      root.setAttribute("aria-busy", "true");
      for (const canvas of canvases) [canvas.height, canvas.width] = size;
      reel = Object.assign(projector(films, size, redraw), { count: films[0].length, fps });
      redraw();
    }
    if (answered) root.focus({ preventScroll: true }); // Space is to pause, not to answer again
  }

  // --- Answers ---

  function enable() {
    for (const name in buttons) buttons[name].disabled = !begun || Boolean(pending);
  }
  function answer(choice) {
    if (!begun || pending) return;
    const seconds = Number(((performance.now() - begun) / 1000).toFixed(3));
    pending = { trial: model.get("trial"), choice, seconds };
    enable();
    send();
  }
  function send() {
    alarm.hidden = true;
    status.textContent = "Saving…";
    tell({ ...pending, sent: ++sent });
  }
  /** To Python, which must answer: with another trial, a problem, or a pong. */
  function tell(message) {
    clearTimeout(waiting);
    try {
      model.send(message);
    } catch {
      return warn(GONE);
    }
    waiting = setTimeout(() => warn(GONE), PATIENCE);
  }
  /** Says that, and why, the answer is not on the disk. */
  function warn(why) {
    clearTimeout(waiting);
    const open = pending ? `NOT SAVED: “${pending.choice}” for question ${pending.trial + 1}. ` : "";
    status.textContent = "";
    said.textContent = `${open}${why} `;
    alarm.hidden = false;
  }
  held.on("change:trial", show);
  held.on("change:problem", () => {
    const words = model.get("problem");
    if (words && pending) warn(`It could not be written: ${words}.`);
  });
  held.on("msg:custom", () => {
    if (pending) return;
    clearTimeout(waiting);
    alarm.hidden = true;
  });
  const ask = () => pending ? send() : tell({ ping: true });
  held.on("comm_live_update", ask); // the notebook has lost the kernel, or found it again
  again.addEventListener("click", ask, listen);
  player.addEventListener("click", play, listen);
  root.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.shiftKey) return;
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      if (!event.repeat) answer(event.key === "ArrowLeft" ? "left" : "right");
    } else if (event.key === " " && !event.target.matches("button")) play();
    else return;
    event.preventDefault();
  }, listen);

  show();
  run();
  const observer = new ResizeObserver(redraw);
  observer.observe(root);
  return () => {
    held.leave();
    observer.disconnect();
    clock.stop();
    cancelAnimationFrame(drawing);
    clearTimeout(waiting);
    reel?.close();
    root.remove();
  };
}

export default { render };

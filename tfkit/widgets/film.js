// Films in a page: frames decoded in step, and the clock that plays them. page.source puts this file
// before a view's own. Films come as tfkit.widgets.films packs them.

const ROOM = 256e6; // bytes of decoded frames that are kept; what is over is decoded again
const AHEAD = 4; // frames that are decoded before they are due, where not all are kept

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const stillness = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** Frames of films: `frame(film, i)` is a picture, or null until it is decoded; then `arrived`. */
function projector(films, [h, w], arrived) {
  const count = films[0].length, pictures = new Map(); // null while it is decoded; oldest use first
  const most = Math.max(Math.floor(ROOM / (4 * h * w)), 2 * films.length * (AHEAD + 1));
  const all = films.length * count <= most;
  let closed = false;

  async function decode(key) {
    pictures.set(key, null);
    const file = new Blob([films[Math.floor(key / count)][key % count]], { type: "image/webp" });
    const picture = await createImageBitmap(file, { colorSpaceConversion: "none" });
    if (closed) return picture.close();
    pictures.set(key, picture);
    for (const [old, bitmap] of pictures) {
      if (pictures.size <= most) break;
      if (!bitmap) continue;
      bitmap.close();
      pictures.delete(old);
    }
    arrived();
  }
  function frame(film, i) {
    const key = film * count + i, picture = pictures.get(key);
    if (picture) { // used last
      pictures.delete(key);
      pictures.set(key, picture);
    }
    for (let ahead = 0; ahead <= (all ? 0 : AHEAD); ahead++) {
      const next = film * count + (i + ahead) % count;
      if (!pictures.has(next)) decode(next);
    }
    return picture ?? null;
  }
  if (all) for (let i = 0; i < count; i++) films.forEach((_, film) => frame(film, i));
  return {
    frame,
    ready: () => all ? pictures.size === films.length * count && [...pictures.values()].every(Boolean)
      : films.every((_, film) => frame(film, 0)),
    close() {
      closed = true;
      for (const bitmap of pictures.values()) bitmap?.close();
      pictures.clear();
    },
  };
}

/** Calls `tick(frames passed)` at a rate, in step with the screen; nothing runs while it stands. */
function metronome(tick) {
  let handle = 0, due = 0, period = 0;
  function beat(now) {
    handle = requestAnimationFrame(beat);
    if (now < due) return;
    const passed = 1 + Math.floor((now - due) / period);
    due += passed * period;
    tick(passed);
  }
  return {
    start(fps) {
      period = 1000 / fps;
      due = performance.now() + period;
      if (!handle) handle = requestAnimationFrame(beat);
    },
    restart() { due = performance.now() + period; }, // someone else has moved the film
    stop() {
      cancelAnimationFrame(handle);
      handle = 0;
    },
  };
}

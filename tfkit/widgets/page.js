// What every view is made of: elements, and a hold on its model's traits. page.source puts this file
// before a view's own.

function element(parent, tag, properties = {}, words = "") {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(words);
  parent.append(made);
  return made;
}

/**
 * A view's hold on its model: it sets traits, follows them, and lets go when it is left. The page
 * runs at its own pace; the kernel hears of it every so many milliseconds, which is enough.
 */
function hold(model, every = () => 60) {
  const stop = new AbortController(), listen = { signal: stop.signal };
  let saving = 0, lost = () => {};
  function save() {
    clearTimeout(saving);
    saving = 0;
    try {
      Promise.resolve(model.save_changes()).catch(() => lost());
    } catch {
      lost(); // the kernel is gone; the view goes on without it
    }
  }
  function flush() {
    if (saving) save();
  }
  return {
    listen, save, flush,
    onLost: (action) => { lost = action; },
    set(name, value) {
      model.set(name, value);
      saving ||= setTimeout(save, every());
    },
    on(event, action) {
      model.on(event, action);
      stop.signal.addEventListener("abort", () => model.off(event, action));
    },
    left: () => stop.signal.aborted,
    leave() {
      stop.abort();
      flush();
    },
  };
}

/** Keys pressed in a view are its own: JupyterLab would cut, insert or convert the cell by them. */
function keepKeys(root, listen) {
  root.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key !== "Enter" || !event.shiftKey) event.stopPropagation(); // Shift+Enter runs the cell
  }, listen);
}

"""A page's script that removes a widget's view and tells what of it still runs."""

# A model like the page's, which counts who listens to it.
LEAVING = """async (module) => {
  const { default: widget } = await import("data:text/javascript;base64," + module);
  const state = JSON.parse(document.getElementById("state").textContent, (key, value) =>
    value?.base64 === undefined ? value :
      new DataView(Uint8Array.from(atob(value.base64), (c) => c.charCodeAt(0)).buffer));
  const heard = [];
  const model = {
    get: (name) => state[name], save_changes() { throw new Error("the kernel is gone"); },
    set(name, value) {
      state[name] = value;
      heard.filter(([e]) => e === "change:" + name).forEach(([, f]) => f());
    },
    on: (...pair) => heard.push(pair),
    off: (e, f) => heard.splice(heard.findIndex((pair) => pair[0] === e && pair[1] === f), 1),
  };
  const el = document.body.appendChild(document.createElement("div"));
  let drawn = 0;
  el.addEventListener("explored", () => drawn++);
  const pause = () => new Promise((done) => setTimeout(done, 400));
  const leave = widget.render({ model, el });
  await pause();
  model.set("probe", [0, 5, 6]);
  await pause();
  const alive = [heard.length, drawn, el.children.length];
  model.set("probe", [0, 9, 9]);
  leave();
  model.set("probe", [0, 7, 6]);
  dispatchEvent(new Event("resize"));
  await pause();
  return [alive, [heard.length, drawn, el.children.length]];
}"""

"""Scripts that browser tests run in a page."""

# In JupyterLab: what a name or expression is worth in the kernel, and code that it runs.
KERNEL = "jupyterapp.shell.currentWidget.sessionContext.session.kernel"
ASK = f"""async (code) => {{
  const wanted = {{ code: "", user_expressions: {{ it: code }} }};
  const reply = await {KERNEL}.requestExecute(wanted).done;
  return reply.content.user_expressions.it.data["text/plain"];
}}"""
RUN = f"async (code) => {{ await {KERNEL}.requestExecute({{ code }}).done; }}"

_LEAVING = """async (module) => {
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
  el.addEventListener("EVENT", () => drawn++);
  const running = () => [heard.length, drawn, el.children.length];
  const pause = () => new Promise((done) => setTimeout(done, 600));
  const leave = widget.render({ model, el });
  await pause();
  USE
  await pause();
  const alive = running();
  LAST
  leave();
  GONE
  await pause();
  return [alive, running(), TELL];
}"""


def leaving(event: str, use: str, last: str, gone: str, tell: str = "") -> str:
    """Renders a saved page's widget a second time, removes that view, and tells what still runs.

    The view hangs on a model like the page's, which counts who listens to it. event: what the
    widget sends whenever it has drawn. use, last, gone: what is done with `model` while the view is
    there, right before it is removed, and after that. Gives [alive, left, ...tell], the first two
    as [listeners, drawings, elements].
    """
    script = _LEAVING
    parts = {"EVENT": event, "USE": use, "LAST": last, "GONE": gone, "TELL": tell}
    for name, part in parts.items():
        script = script.replace(name, part)
    return script


def told(page, *parts: str) -> None:
    """Waits until a page's view says all these words of what it shows."""
    script = "(parts) => parts.every((part) => document.querySelector('[role=status]').innerText"
    page.wait_for_function(f"{script}.includes(part))", arg=list(parts))

// Explorers in the page's own colours: its reader may have chosen others than the system's.
function dress() {
  for (const frame of document.querySelectorAll("iframe.explorer")) {
    frame.src = `${frame.src.split("#")[0]}#${document.body.dataset.theme}`;
  }
}

addEventListener("DOMContentLoaded", () => {
  dress();
  new MutationObserver(dress).observe(document.body, { attributeFilter: ["data-theme"] });
});

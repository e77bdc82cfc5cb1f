// The playground's live turn: <section data-stream="URL"> listens to server-sent events. `said` carries a player's place, its
// text so far and its state; `end` reads the page anew, which then holds everything. A place that is not drawn yet (the run
// had not begun) reads the page anew too. A lost connection is opened again by the browser.
"use strict";

(() => {
  const section = document.querySelector("[data-stream]");
  if (!section) return;
  const source = new EventSource(section.dataset.stream);
  const again = () => { source.close(); location.reload(); };

  source.addEventListener("said", (event) => {
    const { place, text, state, why } = JSON.parse(event.data);
    const article = section.querySelector(`[data-place="${place}"]`);
    if (!article) return again();
    article.querySelector("[data-text]").textContent = text;
    article.querySelector("[data-state]").textContent = state;
    const reason = article.querySelector("[data-why]");
    reason.textContent = why;
    reason.hidden = !why;
  });
  source.addEventListener("end", again);
  addEventListener("pagehide", () => source.close());
})();

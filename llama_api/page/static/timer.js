/** The page's one timer. */

const HIDDEN_SECONDS = 60; // between two looks while the page is hidden
const ATTENTIVE = 60_000; // milliseconds after a key or pointer event; after that, looks are a third as frequent
const OVERDUE = new DOMException("No answer came in time.", "TimeoutError");

let touched = performance.now();
for (const sign of ["keydown", "pointermove"]) {
  document.addEventListener(sign, () => { touched = performance.now(); }, { passive: true });
}

function pace(seconds) {
  if (document.hidden) return 1000 * HIDDEN_SECONDS;
  return performance.now() - touched < ATTENTIVE ? 1000 * seconds : 3000 * seconds;
}

/**
 * Call `look(signal)` now and every `seconds`, less often while the page is idle. A look still running when the
 * next one is due is aborted first, with a TimeoutError. Returns a function that looks at once.
 */
export function every(seconds, look) {
  let timer = 0;
  let current = new AbortController();

  function tick(reason) {
    clearTimeout(timer);
    current.abort(reason);
    current = new AbortController();
    timer = setTimeout(tick, pace(seconds), OVERDUE);
    look(current.signal);
  }

  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) tick();
  });
  tick();
  return () => tick();
}

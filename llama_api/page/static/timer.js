/** The page's one timer. */

const HIDDEN_SECONDS = 60; // between two looks while nobody sees the page
const OVERDUE = new DOMException("No answer came in time.", "TimeoutError");

/**
 * Call `look(signal)` now and every `seconds`, less often while the page is hidden. A look that is still under way
 * when the next one is due is aborted first, as a TimeoutError. Returns a function that looks at once.
 */
export function every(seconds, look) {
  let timer = 0;
  let current = new AbortController();

  function tick(reason) {
    clearTimeout(timer);
    current.abort(reason);
    current = new AbortController();
    timer = setTimeout(tick, 1000 * (document.hidden ? HIDDEN_SECONDS : seconds), OVERDUE);
    look(current.signal);
  }

  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) tick();
  });
  tick();
  return () => tick();
}

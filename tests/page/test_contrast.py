"""The page can be read: contrast in both schemes and every state, and room at every width."""

import pytest

from tests.support.page import PROMPT, STATS, ask

# Per text that is shown: its contrast (WCAG 2 §1.4.3) with the ground below it.
CONTRAST = """
(() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => numbers(colour).slice(0, 3).map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, n) => sum + c * [0.2126, 0.7152, 0.0722][n], 0);
  const ground = (element) => { const own = getComputedStyle(element).backgroundColor;
    return numbers(own)[3] === 0 ? ground(element.parentElement) : own; };
  const pairs = [];
  for (const element of document.querySelectorAll('body *')) {
    if (!element.checkVisibility() || element.ariaDisabled === 'true' || element.closest('.unseen')) continue;
    const style = getComputedStyle(element);
    const below = () => ground(element.ownerSVGElement?.parentElement || element);
    if ([...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) {
      pairs.push([element.outerHTML.slice(0, 80), element.ownerSVGElement ? style.fill : style.color, below()]);
    }
    for (const pseudo of ['::placeholder', '::before']) {
      const its = getComputedStyle(element, pseudo);
      if (pseudo === '::before' ? /\\w/.test(its.content.replace(/none|normal/, '')) : element.placeholder) {
        pairs.push([element.id + pseudo, its.color, below()]);
      }
    }
  }
  return pairs.map(([name, ...colours]) => { const [a, b] = colours.map(light).sort((x, y) => x - y);
    return [Math.round(100 * (b + 0.05) / (a + 0.05)) / 100, name]; }).sort((a, b) => a[0] - b[0]);
})()
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_and_sizes(api, visit, scheme):
    """All text stands out at least 4.5 to 1 in every state; nothing runs over the side down to a phone's width."""
    tab = visit(api, stats=STATS)
    tab.resize(1280, 800, scheme)
    assert tab.evaluate("document.querySelector('figure').getBoundingClientRect().bottom") <= 800
    tab.evaluate("for (const id of ['options', 'table']) document.getElementById(id).open = true")
    seen = []
    for prompt in (PROMPT, PROMPT, "[[fault=oom]]"):
        ask(tab, prompt)
        for state in ("healthy", "degraded", "unhealthy", "down"):
            tab.evaluate(f"document.body.dataset.state = '{state}'; document.getElementById('key-form').hidden = false")
            seen += tab.evaluate(CONTRAST)
    assert len(seen) > 1000 and min(seen)[0] >= 4.5, sorted(map(tuple, seen))[:5]
    for width in (1680, 1280, 820, 390, 320):
        tab.resize(width, 800, scheme)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width

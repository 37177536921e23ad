"use strict";
/* A whole text, coloured by one neuron's value at every token; and the tokens that a neuron promotes by itself. */
(function (lens) {
  const { element, number } = lens.text;
  const FULL = 3; // σ from the mean at which a colour is at its strongest

  /* From −1 (far below the mean) to 1; a constant neuron has no colour. */
  function strength(value, mean, std) {
    if (value === null || !(std > 0)) return 0;
    return Math.max(-1, Math.min(1, (value - mean) / std / FULL));
  }

  /*
   * One tab stop for the whole text: inside it the arrow keys go from token to token, and `read` says what is there.
   *   tokens: [text]; values: [number]; at: the token to begin with
   */
  function draw(box, { tokens, values, mean, std, at, read }) {
    const spans = tokens.map((token, i) => {
      const share = strength(values[i], mean, std);
      return element("span", {
        class: share < 0 ? "token low" : "token high",
        style: { "--share": `${Math.round(100 * Math.abs(share))}%` },
        "data-token": i,
      }, lens.examples.visible(token, true).replace(/⏎/g, "⏎\n"));
    });
    let current = -1;
    const go = (to) => {
      const next = Math.min(Math.max(to, 0), spans.length - 1);
      spans[current]?.removeAttribute("aria-current");
      spans[next].setAttribute("aria-current", "true");
      current = next;
      read(`${lens.examples.visible(tokens[next], true)} · position ${next} · ${number(values[next])} (${number((values[next] - mean) / std, 2)} σ from the mean)`);
    };
    box.replaceChildren(...spans);
    box.onpointerover = (event) => { if (event.target.dataset.token) go(Number(event.target.dataset.token)); };
    box.onkeydown = (event) => {
      const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10, Home: -Infinity, End: Infinity }[event.key];
      if (by === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      event.stopPropagation(); // not the page's own arrow keys
      go(current + by);
      show();
    };
    // Within the box alone: `scrollIntoView` would move the page, too.
    const show = () => {
      const { offsetTop, offsetHeight } = spans[current];
      if (offsetTop < box.scrollTop || offsetTop + offsetHeight > box.scrollTop + box.clientHeight) box.scrollTop = offsetTop - box.clientHeight / 2;
    };
    go(at);
    show();
  }

  /* [[token, effect], …] as a list; what is nothing but space is shown as signs. */
  function drawTokens(list, side, vocabulary) {
    list.replaceChildren(...side.map(([token, effect]) => element("li", {},
      element("span", { class: "piece mono" }, lens.examples.visible(vocabulary[token] ?? `#${token}`, true).replace(/^ /, "␣")),
      element("span", { class: "quiet" }, number(effect, 2)))));
  }

  lens.whole = { draw, drawTokens, strength };
})((globalThis.lens ??= {}));

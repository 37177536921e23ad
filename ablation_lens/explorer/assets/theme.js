"use strict";
/* Colours and fonts of the figures, from the same CSS variables as the page. */
(function (lens) {
  const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif";
  const PIN_DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];

  function isDark() {
    const chosen = document.documentElement.dataset.theme;
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  }

  function color(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  }

  function colors() {
    const names = ["ink", "quiet", "line", "paper", "bars", "bars-edge", "chosen", "overlay", "map-low", "map-middle", "map-high"];
    const found = Object.fromEntries(names.map((name) => [name, color(name)]));
    found.pins = [1, 2, 3, 4, 5, 6].map((number) => color(`pin-${number}`));
    return found;
  }

  function method(palette, name) {
    return palette[isDark() ? "dark" : "light"][name] ?? palette.other;
  }

  /* A colour made for lines, as small text: a third of the way to the ink. */
  function legible(hex, shade) {
    const parts = (text) => [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16));
    const [from, to] = [parts(hex), parts(shade.ink)];
    return `rgb(${from.map((part, i) => Math.round(part + (to[i] - part) * 0.35)).join(",")})`;
  }

  function axis(shade, more = {}) {
    return {
      color: shade.quiet,
      gridcolor: shade.line,
      linecolor: shade.line,
      zeroline: false,
      automargin: true,
      tickfont: { size: 11 },
      fixedrange: false,
      exponentformat: "power",
      ...more,
    };
  }

  function layout(shade, more = {}) {
    return {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: FONT, size: 12, color: shade.ink },
      hoverlabel: { bgcolor: shade.paper, bordercolor: shade.line, font: { family: FONT, size: 12, color: shade.ink } },
      showlegend: false,
      margin: { l: 8, r: 8, t: 8, b: 8 },
      ...more,
    };
  }

  const CONFIG = { displayModeBar: false, displaylogo: false, responsive: false, doubleClick: "reset", plotlyServerURL: "" };

  lens.theme = { isDark, colors, method, legible, axis, layout, CONFIG, PIN_DASHES, FONT };
})((globalThis.lens ??= {}));

"use strict";
/* What each method costs the model: lines over the share of ablated neurons, and the numbers at the largest share. */
(function (lens) {
  const { element, number, plain } = lens.text;
  const SCORES = [
    { title: "Δ cross-entropy (nats)", at: 2, format: (value) => number(value, 3) },
    { title: "Δ top-1", at: 1, format: (value) => (value === null ? "–" : `${number(100 * value, 3)} pp`) },
  ];

  function figure(lines, score, shade, palette) {
    const data = lines.map((line) => ({
      type: "scatter",
      mode: "lines+markers",
      name: plain(line.method),
      x: line.points.map((point) => 100 * point[0]),
      y: line.points.map((point) => (point[score.at] === null ? null : point[score.at] * (score.at === 1 ? 100 : 1))),
      line: { color: lens.theme.method(palette, line.method), width: 2 },
      marker: { size: 5 },
      hovertemplate: `${plain(line.method)}: %{y:.4g} at %{x:.0f} %<extra></extra>`,
    }));
    const layout = lens.theme.layout(shade, {
      hovermode: "closest",
      margin: { l: 8, r: 12, t: 8, b: 8 },
      xaxis: lens.theme.axis(shade, { title: { text: "neurons ablated (%)", font: { size: 11 }, standoff: 6 }, range: [-2, 102], showgrid: false }),
      yaxis: lens.theme.axis(shade, {
        title: { text: score.at === 1 ? "Δ top-1 (percentage points)" : score.title, font: { size: 11 }, standoff: 6 }, zeroline: true, zerolinecolor: shade.line,
      }),
    });
    return { data, layout };
  }

  /* A row per method, the mildest first by what is shown. */
  function drawTable(table, lines, palette) {
    const last = Math.max(...lines.flatMap((line) => line.points.map((point) => point[0])));
    const rows = lines
      .map((line) => ({ line, point: line.points.find((point) => point[0] === last) }))
      .filter(({ point }) => point)
      .sort((a, b) => (a.point[2] ?? Infinity) - (b.point[2] ?? Infinity));
    table.replaceChildren(
      element("caption", {}, `with ${number(100 * last, 3)} % of the neurons ablated`),
      element("thead", {}, element("tr", {}, ...["method", "Δ cross-entropy", "Δ top-1", "runs"].map((title) => element("th", { scope: "col" }, title)))),
      element("tbody", {}, ...rows.map(({ line, point }) =>
        element("tr", {},
          element("th", { scope: "row" }, element("span", { class: "swatch", style: { background: lens.theme.method(palette, line.method) } }), line.method),
          element("td", {}, SCORES[0].format(point[2])),
          element("td", {}, SCORES[1].format(point[1])),
          element("td", {}, String(point[3]))))),
    );
  }

  lens.damage = { figure, drawTable, SCORES };
})((globalThis.lens ??= {}));

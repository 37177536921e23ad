"use strict";
/* What the model loses with a neuron set to a constant, on the value axis of its histogram. */
(function (lens) {
  const { number, plain } = lens.text;
  const DOMAINS = { curve: [0, 0.34], histogram: [0.42, 1] };

  function ends(curve) {
    return [curve.value[0], curve.value.at(-1)];
  }

  /* The minimum and the loss there, in words; at an end of the curve it may lie further out. */
  function told({ minimum, minimum_sigma: sigma, edge, floor, resolved }) {
    const sign = edge ? (sigma < 0 ? "≤ " : "≥ ") : "";
    return { at: `${sign}${number(minimum)} (${number(sigma, 2)} σ)`, floor: number(floor, 2), resolved };
  }

  /* Plotly's traces and the axis of the lower panel; `lines` are the centers that have a line in the histogram. */
  function panel(curve, title, lines, shade) {
    const { value, difference, low, high, minimum, floor } = curve;
    const common = { type: "scatter", xaxis: "x", yaxis: "y2" };
    const known = [...low, ...high].every((end) => end !== null);
    const band = {
      ...common, mode: "lines", x: [...value, ...[...value].reverse()], y: known ? [...high, ...[...low].reverse()] : [],
      fill: "toself", fillcolor: shade.bars, opacity: 0.45, line: { width: 0 }, hoverinfo: "skip",
    };
    const cross = {
      ...common, mode: "lines", x: [...ends(curve), null, minimum, minimum], y: [floor, floor, null, floor, Math.max(...difference)],
      line: { color: shade.quiet, width: 1, dash: "dot" }, hoverinfo: "skip",
    };
    const line = {
      ...common, mode: "lines+markers", x: value, y: difference, line: { color: shade.ink, width: 1.6 }, marker: { size: 4 },
      customdata: value.map((each, i) => [number(each), number(difference[i], 3), number(low[i], 3), number(high[i], 3)]),
      hovertemplate: "set to %{customdata[0]}: %{customdata[1]} [%{customdata[2]}, %{customdata[3]}]<extra></extra>",
    };
    const marks = curve.centers.flatMap(([name, at, loss]) => {
      const color = lines.find((each) => each.name === name)?.color;
      return color ? [{
        ...common, mode: "markers", x: [at], y: [loss], marker: { color, size: 9, line: { color: shade.paper, width: 1 } },
        hovertemplate: `${plain(name)}: ${number(loss, 3)}<extra></extra>`,
      }] : [];
    });
    const axis = lens.theme.axis(shade, {
      domain: DOMAINS.curve, nticks: 4, zeroline: true, zerolinecolor: shade.line, title: { text: plain(title), font: { size: 11 }, standoff: 6 },
    });
    return { traces: [band, cross, line, ...marks], axis };
  }

  lens.curve = { ends, told, panel, DOMAINS };
})((globalThis.lens ??= {}));

"use strict";
/* Layer by head, and the dims of one head. */
(function (lens) {
  const { neuronName, headName, hasHeads } = lens.names;
  const { BY_COLUMN, written, byHead, byDim } = lens.measures;

  function titleOf(measure) {
    return measure.startsWith("shape:") ? `share ${measure.slice(6)}` : BY_COLUMN[measure].title;
  }

  /* As wide as it is high, about, in a whole number of columns. */
  function dimColumns(dims) {
    if (dims <= 16) return dims;
    const wanted = Math.sqrt(dims * 1.6);
    return [8, 16, 32, 64, 128, 256].reduce((a, b) => (Math.abs(b - wanted) < Math.abs(a - wanted) ? b : a));
  }

  const sequence = (count) => Array.from({ length: count }, (_, i) => i);

  /* Far values would leave one bright cell on a dark map: colours end at the 98th percentile where these are far. */
  function colorEnd(z) {
    const values = z.flat().filter((value) => value !== null && Number.isFinite(value)).sort((a, b) => a - b);
    if (!values.length) return { low: 0, high: 1, cut: false };
    const most = values[values.length - 1];
    const usual = values[Math.floor(0.98 * (values.length - 1))];
    const cut = values.length >= 16 && most > 2 * usual && usual > 0;
    const low = values[0];
    return { low, high: cut ? usual : most > low ? most : low + 1, cut };
  }

  /* Plotly's data and layout, and which neurons (or head) a cell stands for. */
  function figure(dataset, state, shade) {
    const [layers, heads, dims] = dataset.shape;
    const drilled = state.head !== null;
    const columns = dimColumns(dims);
    const z = drilled
      ? byDim(dataset, state.measure, state.head[0], state.head[1], columns)
      : byHead(dataset, state.measure, state.how);
    const title = titleOf(state.measure);
    const cell = (row, column) => {
      if (!drilled) return { head: [row, column] };
      const dim = row * columns + column;
      return dim < dims ? { neuron: (state.head[0] * heads + state.head[1]) * dims + dim } : {};
    };
    const text = z.map((row, y) => row.map((value, x) => {
      const at = cell(y, x);
      if (at.head) return `${headName(y, x, dataset)}<br>${state.how === "max" ? "greatest" : "mean"} ${title} ${written(state.measure, value)}`;
      return at.neuron === undefined ? "" : `${neuronName(at.neuron, dataset)}<br>${title} ${written(state.measure, value)}`;
    }));
    const { low, high, cut } = colorEnd(z);
    const [width, height] = drilled ? [columns, z.length] : [heads, layers];
    const data = [{
      type: "heatmap",
      z,
      text,
      x: sequence(width),
      y: sequence(height).map((row) => (drilled ? row * columns : row)),
      hovertemplate: "%{text}<extra></extra>",
      hoverongaps: false,
      zmin: low,
      zmax: high,
      xgap: width > 40 ? 0 : 1,
      ygap: height > 40 ? 0 : 1,
      colorscale: [[0, shade["map-low"]], [0.5, shade["map-middle"]], [1, shade["map-high"]]],
      colorbar: {
        thickness: 8,
        outlinewidth: 0,
        tickfont: { size: 10, color: shade.quiet },
        nticks: 5,
        tickformat: BY_COLUMN[state.measure]?.format ? ".2~%" : "",
        title: { text: cut ? `${title}<br>(cut)` : title, font: { size: 11, color: shade.quiet }, side: "top" },
        xpad: 6,
        len: 1.04,
      },
    }];
    const ticks = (count) => (count <= 12 ? 1 : count <= 24 ? 2 : count <= 48 ? 4 : Math.ceil(count / 8));
    const layout = lens.theme.layout(shade, {
      xaxis: lens.theme.axis(shade, {
        title: { text: drilled ? "dim" : hasHeads(dataset) ? "head" : "", font: { size: 11 }, standoff: 4 }, showgrid: false, dtick: ticks(width), fixedrange: true,
        range: [-0.5, width - 0.5], showticklabels: drilled || hasHeads(dataset), ...(drilled || hasHeads(dataset) ? {} : { ticks: "" }),
      }),
      yaxis: lens.theme.axis(shade, {
        title: { text: drilled ? "" : "layer", font: { size: 11 }, standoff: 4 }, showgrid: false,
        dtick: drilled ? columns * ticks(height) : ticks(height), fixedrange: true,
        range: drilled ? [(height - 0.5) * columns, -0.5 * columns] : [height - 0.5, -0.5],
        ...(drilled ? { tickprefix: dataset.naming.at(-1) } : {}),
      }),
      shapes: marks(dataset, state, shade),
      margin: { l: 8, r: 4, t: 8, b: 6 },
    });
    return { data, layout, cell };
  }

  /* A frame around the chosen neuron's cell, or its head's. */
  function marks(dataset, state, shade) {
    const [, heads, dims] = dataset.shape;
    const drilled = state.head !== null;
    const columns = dimColumns(dims);
    const shapes = [];
    const [chosenLayer, chosenHead] = [Math.floor(state.neuron / (heads * dims)), Math.floor(state.neuron / dims) % heads];
    const mark = (x, y, h) => shapes.push({
      type: "rect", x0: x - 0.5, x1: x + 0.5, y0: y - h / 2, y1: y + h / 2, line: { color: shade.chosen, width: 2 },
    });
    if (state.neuron >= 0 && !drilled) mark(chosenHead, chosenLayer, 1);
    else if (state.neuron >= 0 && chosenLayer === state.head[0] && chosenHead === state.head[1]) {
      const dim = state.neuron % dims;
      mark(dim % columns, Math.floor(dim / columns) * columns, columns);
    }
    return shapes;
  }

  lens.heatmap = { figure, marks, dimColumns, titleOf };
})((globalThis.lens ??= {}));

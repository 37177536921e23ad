"use strict";
/* The neuron's histogram: bars, what lies over them, and a line per center. */
(function (lens) {
  const { number, whole, plain } = lens.text;

  const LABEL_ROW = 15;

  /* Centers close together get their labels in rows: the first row with room, left to right. */
  function labelRows(lines, range, pixels) {
    const perPixel = (range[1] - range[0]) / pixels;
    const ends = [];
    return lines.map(({ at, name }) => {
      const half = (name.length * 3.4 + 5) * perPixel;
      // A label near either end leans inwards.
      const middle = Math.min(Math.max(at, range[0] + half), range[1] - half);
      let row = 0;
      while (ends[row] !== undefined && ends[row] > middle - half) row++;
      ends[row] = middle + half;
      return { row, middle };
    });
  }

  /* Outline of a histogram that lies over the bars, as a line of steps. */
  function steps(shown, scale, style) {
    const x = [], y = [];
    const from = shown.first * shown.epsilon;
    x.push(from); y.push(0);
    shown.counts.forEach((count, i) => {
      const height = scale(count, shown);
      x.push(from + i * shown.epsilon, from + (i + 1) * shown.epsilon);
      y.push(height, height);
    });
    x.push(from + shown.counts.length * shown.epsilon); y.push(0);
    return { type: "scatter", mode: "lines", x, y, line: { width: 1.6, ...style }, hoverinfo: "skip" };
  }

  function ends(shown) {
    return [shown.first * shown.epsilon, (shown.first + shown.counts.length) * shown.epsilon];
  }

  /*
   * Plotly's data and layout.
   *   main: the neuron at the chosen width; others: [{shown, color, dash}] over it; lines: [{name, at, color}];
   *   ghosts: the peak at the other widths; bin: the chosen bin's number on the grid, or null;
   *   curve: {curve, title} to be drawn under it, or null.
   */
  function figure({ main, others, lines, ghosts, bin, log, pixels, curve = null }, shade, peakColor) {
    // Bins of several neurons differ in width, so heights are then densities.
    const density = others.length > 0;
    const scale = (count, shown) => (density ? count / shown.total / shown.epsilon : count);
    const x = Array.from(main.counts, (_, i) => (main.first + i + 0.5) * main.epsilon);
    const y = Array.from(main.counts, (count) => scale(count, main));
    const chosen = bin === null ? -1 : bin - main.first;
    const bars = {
      type: "bar",
      x,
      y,
      width: main.epsilon,
      marker: {
        color: x.map((_, i) => (i === chosen ? shade.chosen : shade.bars)),
        line: { width: main.counts.length > 70 ? 0 : 0.6, color: shade["bars-edge"] },
      },
      customdata: Array.from(main.counts, (count, i) => [
        number((main.first + i) * main.epsilon),
        number((main.first + i + 1) * main.epsilon),
        whole(count),
        number((100 * count) / main.total, 3),
      ]),
      hovertemplate: "%{customdata[0]} to %{customdata[1]}<br>approximate count %{customdata[2]} (%{customdata[3]} %)<extra></extra>",
    };
    const all = [main, ...others.map((other) => other.shown)].map(ends);
    if (curve) all.push(lens.curve.ends(curve.curve));
    let range = [Math.min(...all.map((end) => end[0])), Math.max(...all.map((end) => end[1]))];
    const margin = (range[1] - range[0]) * 0.02;
    range = [range[0] - margin, range[1] + margin];
    const visible = lines.filter(({ at }) => at >= range[0] && at <= range[1]).sort((a, b) => a.at - b.at);
    const labels = labelRows(visible, range, pixels);
    const rows = Math.max(0, ...labels.map((label) => label.row + 1));
    const shapes = visible.map(({ at, color, name }) => ({
      type: "line", x0: at, x1: at, y0: 0, y1: 1, yref: "paper", layer: "above",
      line: { color, width: name.startsWith("peak") && name === "peak" ? 2.4 : 1.5 },
    }));
    for (const ghost of ghosts) {
      shapes.push({ type: "line", x0: ghost, x1: ghost, y0: 0, y1: -0.028, yref: "paper", line: { color: peakColor, width: 2 } });
    }
    const annotations = visible.map(({ name, color }, i) => ({
      x: labels[i].middle, y: 1, yref: "paper", yanchor: "bottom", yshift: 1 + labels[i].row * LABEL_ROW, showarrow: false,
      text: plain(name), font: { size: 11, color: lens.theme.legible(color, shade) }, borderpad: 0,
    }));
    const layout = lens.theme.layout(shade, {
      bargap: 0,
      hovermode: "x",
      dragmode: "zoom",
      shapes,
      annotations,
      margin: { l: 8, r: 12, t: 10 + rows * LABEL_ROW, b: 46 },
      xaxis: lens.theme.axis(shade, {
        range, title: { text: "activation", font: { size: 11 }, standoff: 6 }, ticks: "outside", ticklen: 7, tickcolor: "rgba(0,0,0,0)", showgrid: false,
        automargin: false,
      }),
      yaxis: lens.theme.axis(shade, {
        type: log ? "log" : "linear",
        rangemode: "tozero",
        title: { text: density ? "density" : "values per bin", font: { size: 11 }, standoff: 6 },
        nticks: 6,
        // In a log plot, only whole powers of ten; 2 and 5 between them crowd.
        ...(log ? { dtick: 1, exponentformat: "none" } : {}),
      }),
    });
    const under = curve ? lens.curve.panel(curve.curve, curve.title, visible, shade) : null;
    if (under) {
      layout.xaxis.anchor = "y2";
      layout.yaxis.domain = lens.curve.DOMAINS.histogram;
      layout.yaxis2 = under.axis;
    }
    const outlines = others.map(({ shown, color, dash }) => steps(shown, scale, { color, dash }));
    return { data: [bars, ...outlines, ...(under?.traces ?? [])], layout };
  }

  lens.histogram = { figure, labelRows, ends };
})((globalThis.lens ??= {}));

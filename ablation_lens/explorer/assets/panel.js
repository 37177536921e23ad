"use strict";
/* The words and tables around the histogram. */
(function (lens) {
  const { element, number, percent, whole } = lens.text;
  const { neuronName } = lens.names;

  /* Every center of a neuron: what the page was given, zero, and the peak at the chosen width. */
  function centersOf(dataset, index, peak) {
    return dataset.centers.map((name) => ({
      name,
      at: name === "zero" ? 0 : name === "peak" ? peak : dataset.column[`center:${name}`][index],
    }));
  }

  function drawNumbers(list, dataset, index, total, curve = null) {
    const { column } = dataset;
    const pairs = [
      ["mean μ", number(column.mean[index])],
      ["σ", number(column.std[index])],
      ["range", `${number(column.min[index], 3)} … ${number(column.max[index], 3)}`],
      ["|peak|/σ", number(column.peak_over_sigma[index], 3)],
      ["|μ−peak|/σ", number(column.mean_to_peak_over_sigma[index], 3)],
      ["peaks", String(column.peaks[index])],
      ["skew", number(column.skew[index], 3)],
      ["excess kurtosis", number(column.excess_kurtosis[index], 3)],
      ["values", whole(total)],
      ...(column.share_zero[index] > 0 ? [["exactly 0", `${number(100 * column.share_zero[index])} %`]] : []),
      ...(column.overlap ? [["moved/σ, overlap", `${number(column.moved_over_sigma[index], 2)}, ${number(column.overlap[index], 2)}`]] : []),
    ];
    const share = lens.measures.effectOf(dataset);
    if (share) {
      const raw = share.replace(/_share$/, "");
      pairs.push([raw.replace(/_/, "'s "), `${number(column[raw][index])} (${percent(column[share][index])})`]);
    }
    if (curve) {
      const { at, floor, resolved } = lens.curve.told(curve);
      pairs.push(["least loss at", resolved ? at : `${at}, or noise`], ["loss there, Δ", floor]);
    }
    list.replaceChildren(...pairs.map(([term, words]) => element("div", {}, element("dt", {}, term), element("dd", {}, words))));
  }

  function swatch(color, dash) {
    return element("span", { class: dash ? `swatch line ${dash}` : "swatch", style: { "--swatch": color } });
  }

  /* With a second collection (`compared`: its label and centers), that one's values, too, and how far each center moved. */
  function drawCenters(table, centers, { dataset, index, lines, colorOf, toggle, compared }) {
    const { mean, std } = dataset.column;
    const inSigma = (difference) => number(difference / std[index], 3);
    const second = new Map((compared?.centers ?? []).map(({ name, at }) => [name, at]));
    const rows = centers.map(({ name, at }) => {
      const box = element("input", { type: "checkbox", id: `line-${name}` });
      box.checked = lines.includes(name);
      box.addEventListener("change", () => toggle(name));
      const label = element("label", { for: `line-${name}` }, box, swatch(colorOf(name)), name);
      const cells = [number(at), name === "mean" ? "–" : inSigma(at - mean[index])];
      if (compared) cells.push(number(second.get(name)), name === "zero" ? "–" : inSigma((second.get(name) ?? NaN) - at));
      const row = element("tr", {}, element("th", { scope: "row" }, label), ...cells.map((cell) => element("td", {}, cell)));
      row.dataset.center = name;
      return row;
    });
    const titles = compared ? ["center", dataset.label, "from μ, σ", compared.label, "moved, σ"] : ["center", "value", "from μ in σ"];
    table.replaceChildren(
      element("thead", {}, element("tr", {}, ...titles.map((title) => element("th", { scope: "col", title }, title)))),
      element("tbody", {}, ...rows),
    );
  }

  function drawWidths(table, shownAt, width, std, choose) {
    const finest = shownAt[0].shown.peak;
    const rows = shownAt.map(({ width: each, shown }) => {
      const button = element("button", { type: "button", class: "link", id: `at-most-${each}`, "aria-label": `show at most ${each} bins`, click: () => choose(each) }, `≤ ${each}`);
      const cells = [number(shown.epsilon, 3), number(shown.peak), number((shown.peak - finest) / std, 2)];
      const row = element("tr", { "aria-current": each === width ? "true" : null }, element("th", { scope: "row" }, button), ...cells.map((cell) => element("td", {}, cell)));
      row.dataset.peak = String(shown.peak);
      return row;
    });
    table.replaceChildren(
      element("thead", {}, element("tr", {}, ...["bins", "ε", "peak", "moved, σ"].map((title) => element("th", { scope: "col" }, title)))),
      element("tbody", {}, ...rows),
    );
  }

  /* What is drawn, with a button to unpin; hidden while there is only one thing. */
  function drawLegend(list, main, others, dataset, unpin) {
    const items = [element("li", {}, swatch(main.color), main.name)];
    for (const other of others) {
      const close = other.pin === undefined ? null
        : element("button", { type: "button", class: "close", "aria-label": `unpin ${neuronName(other.pin, dataset)}`, click: () => unpin(other.pin) }, "×");
      items.push(element("li", {}, swatch(other.color, other.dash), other.name, close));
    }
    list.replaceChildren(...items);
    list.hidden = others.length === 0;
  }

  function spoken(name, shape, shown, dataset, index) {
    const { mean, std } = dataset.column;
    const about = shown.exact ? "" : `, give or take ${number(shown.epsilon / 2, 2)}`;
    return `${name}, ${shape}: peak ${number(shown.peak)}${about}, mean ${number(mean[index])}, standard deviation ${number(std[index])}.`;
  }

  lens.panel = { centersOf, drawNumbers, drawCenters, drawWidths, drawLegend, spoken };
})((globalThis.lens ??= {}));

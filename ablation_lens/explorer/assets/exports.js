"use strict";
/* The shown neuron as a file. */
(function (lens) {
  const { element } = lens.text;

  function bins(name, shown) {
    const rows = ["neuron,bin_low,bin_high,approximate_count"];
    shown.counts.forEach((count, i) => {
      rows.push([name, (shown.first + i) * shown.epsilon, (shown.first + i + 1) * shown.epsilon, count].join(","));
    });
    return `${rows.join("\n")}\n`;
  }

  /* A cell of CSV: one line, and nothing that a spreadsheet would run as a formula. */
  function cell(text) {
    // eslint-disable-next-line no-control-regex
    const line = text.replace(/[\u0000-\u001f\u007f-\u009f\u2028\u2029]+/g, " ");
    const safe = /^[=+\-@＝＋－＠]/.test(line) ? `'${line}` : line;
    return /[",]/.test(safe) ? `"${safe.replace(/"/g, '""')}"` : safe;
  }

  /* As many digits as the number has: float32 columns would otherwise show the noise of their last bits. */
  function written(values, index) {
    const value = values[index];
    if (Number.isNaN(value)) return "";
    return String(values instanceof Float32Array ? Number(value.toPrecision(7)) : value);
  }

  /* The listed neurons, in the list's order, with every column; the second collection's after the first's. */
  function neurons(order, datasets, noteOf) {
    const [dataset, second] = datasets;
    const [, heads, dims] = dataset.shape;
    const visible = (each) => each.columns.map(({ name }) => name).filter((name) => !lens.measures.INTERNAL.includes(name));
    const columns = visible(dataset).map((name) => [name, dataset.column[name]]);
    if (second) columns.push(...visible(second).map((name) => [`compared:${name}`, second.column[name]]));
    const titles = ["neuron", "layer", "head", "dim", "shape", ...columns.map(([name]) => name.replace(/\bcenter:/, "")), "note"];
    const rows = Array.from(order, (index) => [
      lens.names.neuronName(index, dataset), Math.floor(index / (heads * dims)), Math.floor(index / dims) % heads, index % dims,
      dataset.shapes[dataset.column.shape[index]], ...columns.map(([, values]) => written(values, index)), cell(noteOf(index)),
    ].join(","));
    return `${[titles.map(cell).join(","), ...rows].join("\n")}\n`;
  }

  function save(content, type, name) {
    const address = URL.createObjectURL(new Blob([content], { type }));
    const link = element("a", { href: address, download: name });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(address), 10_000);
  }

  /* Plotly gives a data URL; made into bytes here, as the page may fetch nothing, not even that. */
  async function picture(figure, format, name, background) {
    const options = { format: "svg", width: 900, height: 520 };
    const drawn = { data: figure.data, layout: { ...figure.layout, paper_bgcolor: background, plot_bgcolor: background } };
    const address = await globalThis.Plotly.toImage(drawn, format === "svg" ? options : { ...options, format, scale: 2 });
    const [head, body] = [address.slice(0, address.indexOf(",")), address.slice(address.indexOf(",") + 1)];
    const content = head.endsWith(";base64")
      ? Uint8Array.from(atob(body), (character) => character.charCodeAt(0))
      : decodeURIComponent(body);
    save(content, format === "svg" ? "image/svg+xml" : "image/png", `${name}.${format}`);
  }

  lens.exports = { bins, cell, neurons, save, picture };
})((globalThis.lens ??= {}));

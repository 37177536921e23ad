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

  lens.exports = { bins, save, picture };
})((globalThis.lens ??= {}));

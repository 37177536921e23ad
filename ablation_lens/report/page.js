"use strict";
// Draws the page's figures in light or dark colours, and hands out its files.
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const dark = read("dark-colors");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const button = document.getElementById("theme");
  let chosen = null; // until somebody chooses, as the system has it

  const figures = Array.from(document.querySelectorAll("[data-figure]"), (place) => ({
    place,
    figure: read(place.dataset.figure),
  }));

  const swap = (color) => {
    const known = dark[color.toLowerCase()];
    if (known) return known;
    const parts = /^rgba\((\d+,\d+,\d+),([\d.]+)\)$/.exec(color.replace(/\s/g, ""));
    return parts && dark[`rgb(${parts[1]})`] ? dark[`rgb(${parts[1]})`].replace(")", `,${parts[2]})`) : color;
  };

  const recolored = (value, key) => {
    if (typeof value === "string") return /color$/i.test(key) ? swap(value) : value;
    if (value === null || typeof value !== "object") return value;
    if (Array.isArray(value)) return value.map((item) => recolored(item, key));
    // Plotly gives the chosen button a light ground whatever it is told, so menus stay light altogether.
    if (key === "updatemenus") return { ...value, font: { ...value.font, color: dark.ink_of_menus } };
    return Object.fromEntries(Object.entries(value).map(([name, part]) => [name, recolored(part, name)]));
  };

  const draw = (isDark) => {
    document.documentElement.dataset.theme = isDark ? "dark" : "light";
    button.textContent = isDark ? "Light" : "Dark";
    button.setAttribute("aria-label", isDark ? "Light colours" : "Dark colours");
    for (const { place, figure } of figures) {
      const { data, layout } = isDark ? recolored(figure, "") : JSON.parse(JSON.stringify(figure));
      Plotly.react(place, data, layout, { responsive: true, displaylogo: false });
    }
  };

  const show = () => draw(chosen === null ? system.matches : chosen);
  button.hidden = false;
  button.addEventListener("click", () => {
    chosen = !(chosen === null ? system.matches : chosen);
    show();
  });
  system.addEventListener("change", show);
  addEventListener("beforeprint", () => draw(false));
  addEventListener("afterprint", show);

  for (const giver of document.querySelectorAll("button[data-file]")) {
    giver.addEventListener("click", () => {
      const text = atob(document.getElementById(giver.dataset.file).textContent);
      const bytes = Uint8Array.from(text, (letter) => letter.charCodeAt(0));
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([bytes], { type: giver.dataset.type }));
      link.download = giver.dataset.name;
      link.click();
      // Later: a browser may begin to read only after the click is over.
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    });
  }
  show();
  document.documentElement.dataset.ready = "yes";
})();

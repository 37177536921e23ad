"use strict";
/* What is shown, to and from the URL's hash: a link opens the same view. */
(function (lens) {
  const { neuronName, neuronIndex } = lens.text;

  /* Lines that crowd the figure, and few look for at first. */
  const SELDOM = ["peak-smooth", "half-sample", "peak-trimmed"];

  function defaults(dataset) {
    return {
      neuron: -1, // the first of the list
      width: dataset.widths[0],
      log: false,
      pins: [],
      lines: dataset.centers.filter((name) => !SELDOM.includes(name)),
      measure: "peak_over_sigma",
      how: "mean",
      head: null,
      sort: "peak_over_sigma",
      descending: true,
      query: "",
      shape: "",
      overlay: true,
      bin: null,
      theme: "",
    };
  }

  const MOST_PINS = 6;

  function formatted(state, dataset) {
    const usual = defaults(dataset);
    const parts = new URLSearchParams();
    const add = (key, value, isUsual) => { if (!isUsual) parts.set(key, value); };
    add("n", neuronName(state.neuron, dataset.shape), state.neuron < 0);
    add("bins", state.width, state.width === usual.width);
    add("log", "1", !state.log);
    add("pins", state.pins.map((pin) => neuronName(pin, dataset.shape)).join(" "), !state.pins.length);
    add("lines", state.lines.join(" "), state.lines.join(" ") === usual.lines.join(" "));
    add("map", state.measure, state.measure === usual.measure);
    add("how", state.how, state.how === usual.how);
    add("head", state.head ? `L${state.head[0]}.H${state.head[1]}` : "", !state.head);
    add("sort", (state.descending ? "-" : "") + state.sort, state.sort === usual.sort && state.descending);
    add("q", state.query, !state.query);
    add("shape", state.shape, !state.shape);
    add("overlay", "0", state.overlay);
    add("bin", state.bin, state.bin === null);
    add("theme", state.theme, !state.theme);
    return parts.toString();
  }

  /* Anyone may write a link: what does not fit this model is ignored. */
  function parsed(hash, dataset) {
    const state = defaults(dataset);
    const parts = new URLSearchParams(hash.replace(/^#/, ""));
    const take = (key, use) => { if (parts.has(key)) use(parts.get(key)); };
    const sortable = ["name", "shape", ...dataset.columns.map((column) => column.name)];
    take("n", (text) => { state.neuron = neuronIndex(text, dataset.shape); });
    take("bins", (text) => { if (dataset.widths.includes(Number(text))) state.width = Number(text); });
    take("log", (text) => { state.log = text === "1"; });
    take("pins", (text) => {
      const pins = text.split(" ").map((name) => neuronIndex(name, dataset.shape)).filter((index) => index >= 0);
      state.pins = [...new Set(pins)].slice(0, MOST_PINS);
    });
    take("lines", (text) => {
      const wanted = text.split(" ");
      state.lines = dataset.centers.filter((name) => wanted.includes(name));
    });
    take("map", (text) => {
      const share = text.startsWith("shape:") && dataset.shapes.includes(text.slice(6));
      if (share || lens.measures.BY_COLUMN[text]) state.measure = text;
    });
    take("how", (text) => { if (text === "max") state.how = text; });
    take("head", (text) => {
      const index = neuronIndex(`${text}.D0`, dataset.shape);
      const [, heads, dims] = dataset.shape;
      if (index >= 0) state.head = [Math.floor(index / (heads * dims)), Math.floor(index / dims) % heads];
    });
    take("sort", (text) => {
      const by = text.replace(/^-/, "");
      if (sortable.includes(by)) Object.assign(state, { sort: by, descending: text.startsWith("-") });
    });
    take("q", (text) => { state.query = text; });
    take("shape", (text) => { if (dataset.shapes.includes(text) || text === "examples") state.shape = text; });
    take("overlay", (text) => { state.overlay = text !== "0"; });
    take("bin", (text) => { if (/^-?\d+$/.test(text)) state.bin = Number(text); });
    take("theme", (text) => { if (text === "light" || text === "dark") state.theme = text; });
    return state;
  }

  lens.state = { defaults, formatted, parsed, MOST_PINS };
})((globalThis.lens ??= {}));

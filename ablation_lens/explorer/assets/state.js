"use strict";
/* What is shown, to and from the URL's hash: a link opens the same view. */
(function (lens) {
  const { neuronName, neuronIndex } = lens.names;
  const { headOf, withHead } = lens.filter;
  const LONGEST = 80; // of what is told of a bad link

  /* Lines that crowd the figure, and few look for at first. */
  const SELDOM = ["peak-smooth", "half-sample", "peak-trimmed"];

  function defaults(dataset) {
    // Whoever gives effects came for them.
    const first = lens.measures.effectOf(dataset) ?? "peak_over_sigma";
    return {
      neuron: -1, // the first of the list
      width: dataset.widths[0],
      log: false,
      pins: [],
      lines: dataset.centers.filter((name) => !SELDOM.includes(name)),
      measure: first,
      how: "mean",
      head: null, // the one that the query asks for
      sort: first,
      descending: true,
      query: "",
      shape: "",
      overlay: true,
      bin: null,
      text: null, // the document of the example that is shown whole
      theme: "",
    };
  }

  const MOST_PINS = 6;

  function formatted(state, dataset) {
    const usual = defaults(dataset);
    const parts = new URLSearchParams();
    const add = (key, value, isUsual) => { if (!isUsual) parts.set(key, value); };
    add("n", neuronName(state.neuron, dataset), state.neuron < 0);
    add("bins", state.width, state.width === usual.width);
    add("log", "1", !state.log);
    add("pins", state.pins.map((pin) => neuronName(pin, dataset)).join(" "), !state.pins.length);
    add("lines", state.lines.join(" "), state.lines.join(" ") === usual.lines.join(" "));
    add("map", state.measure, state.measure === usual.measure);
    add("how", state.how, state.how === usual.how);
    add("sort", (state.descending ? "-" : "") + state.sort, state.sort === usual.sort && state.descending);
    add("q", state.query, !state.query);
    add("shape", state.shape, !state.shape);
    add("overlay", "0", state.overlay);
    add("bin", state.bin, state.bin === null);
    add("text", state.text, state.text === null);
    add("theme", state.theme, !state.theme);
    return parts.toString();
  }

  /* Anyone may write a link: what does not fit this model is named in `problems`, and the rest is shown. */
  function parsed(hash, dataset) {
    const state = defaults(dataset);
    const parts = new URLSearchParams(hash.replace(/^#/, ""));
    const problems = [];
    const refuse = (key, text) => problems.push(`${key}=${text}`.slice(0, LONGEST));
    const sortable = ["name", "shape", ...dataset.columns.map((column) => column.name)];
    const neurons = (key, texts) => texts.map((text) => {
      const index = neuronIndex(text, dataset);
      if (index < 0) refuse(key, text);
      return index;
    }).filter((index) => index >= 0);
    const isKnown = (key, text, known) => {
      if (!known.includes(text)) refuse(key, text);
      return known.includes(text);
    };
    const take = {
      n: (text) => { state.neuron = neurons("n", [text])[0] ?? -1; },
      bins: (text) => { if (isKnown("bins", text, dataset.widths.map(String))) state.width = Number(text); },
      log: (text) => { state.log = isKnown("log", text, ["0", "1"]) && text === "1"; },
      pins: (text) => {
        const pins = [...new Set(neurons("pins", text.split(" ").filter(Boolean)))];
        state.pins = pins.slice(0, MOST_PINS);
        for (const pin of pins.slice(MOST_PINS)) refuse("pins", `${neuronName(pin, dataset)} (more than ${MOST_PINS})`);
      },
      lines: (text) => {
        const wanted = text.split(" ").filter(Boolean);
        state.lines = dataset.centers.filter((name) => wanted.includes(name));
        for (const name of wanted) if (!dataset.centers.includes(name)) refuse("lines", name);
      },
      map: (text) => {
        const shares = dataset.shapes.map((shape) => `shape:${shape}`);
        if (isKnown("map", text, [...shares, ...lens.measures.measuresOf(dataset).map(({ column }) => column)])) state.measure = text;
      },
      how: (text) => { if (isKnown("how", text, ["mean", "max"])) state.how = text; },
      sort: (text) => {
        const by = text.replace(/^-/, "");
        if (isKnown("sort", by, sortable)) Object.assign(state, { sort: by, descending: text.startsWith("-") });
      },
      q: (text) => { state.query = text; },
      // Links of before: now a head is a word of the filter.
      head: (text) => {
        const head = headOf(text, dataset);
        if (!head) refuse("head", text);
        else if (!headOf(state.query, dataset)) state.query = withHead(state.query, head, dataset);
      },
      shape: (text) => { if (isKnown("shape", text, ["examples", "notes", "curves", ...dataset.shapes])) state.shape = text; },
      overlay: (text) => { state.overlay = !isKnown("overlay", text, ["0", "1"]) || text !== "0"; },
      bin: (text) => { if (/^-?\d{1,15}$/.test(text)) state.bin = Number(text); else refuse("bin", text); },
      text: (text) => { if (/^\d{1,15}$/.test(text)) state.text = text; else refuse("text", text); },
      theme: (text) => { if (isKnown("theme", text, ["light", "dark"])) state.theme = text; },
    };
    for (const [key, use] of Object.entries(take)) if (parts.has(key)) use(parts.get(key));
    for (const [key, text] of parts) if (!Object.hasOwn(take, key)) refuse(key, text);
    state.head = headOf(state.query, dataset);
    return { state, problems };
  }

  lens.state = { defaults, formatted, parsed, MOST_PINS };
})((globalThis.lens ??= {}));

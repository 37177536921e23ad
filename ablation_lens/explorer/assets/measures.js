"use strict";
/* What neurons are coloured, sorted and filtered by. */
(function (lens) {
  const { number, percent } = lens.text;
  /* Column, short title, what it says, how people may write it in the filter, and how its numbers are written. */
  const MEASURES = [
    { column: "peak_over_sigma", title: "|peak|/σ", says: "distance of the peak from zero, in σ", names: ["peak/σ"] },
    { column: "mean_to_peak_over_sigma", title: "|μ−peak|/σ", says: "distance of the mean from the peak, in σ", names: ["mean-peak/σ", "μ-peak/σ"] },
    { column: "std", title: "σ", says: "standard deviation", names: ["std"] },
    { column: "peaks", title: "peaks", says: "number of peaks", names: [] },
    { column: "skew", title: "|skew|", says: "skew, without sign", names: ["skew"], size: true },
    { column: "excess_kurtosis", title: "kurtosis", says: "excess kurtosis", names: ["excess kurtosis"] },
    { column: "mean", title: "|μ|", says: "mean, without sign", names: ["mean", "μ"], size: true },
    { column: "share_zero", title: "share 0", says: "share of the values that are exactly 0", names: ["zeros"] },
    { column: "epsilon_over_sigma", title: "ε/σ", says: "bin width in σ: how coarsely a neuron is resolved", names: ["eps/σ"] },
    { column: "moved_over_sigma", title: "moved/σ", says: "how far the mean moved between the two collections, in σ", names: ["moved"] },
    { column: "overlap", title: "overlap", says: "share of the two distributions that lies over each other", names: [] },
    { column: "effect_share", title: "effect share", says: "share of what ablating everything changes that ablating the neuron does", names: ["share"], format: percent },
    { column: "head_effect_share", title: "head's effect", says: "share of what ablating everything changes that ablating the neuron's head does", names: ["share"], format: percent },
    { column: "layer_effect_share", title: "layer's effect", says: "share of what ablating everything changes that ablating the neuron's layer does", names: ["share"], format: percent },
  ];
  /* Columns that only say how counts are packed. */
  const INTERNAL = ["shape", "exponent", "offset", "digits", "zero_merges"];

  const EFFECTS = MEASURES.filter(({ format }) => format === percent).map(({ column }) => column);

  /* Those that these statistics have: some take a second collection, or effects. */
  function measuresOf(dataset) {
    return MEASURES.filter(({ column }) => dataset.column[column]);
  }

  // Without a prototype: names come from links and filters, and "constructor" is not a measure.
  const BY_COLUMN = Object.assign(Object.create(null), Object.fromEntries(MEASURES.map((measure) => [measure.column, measure])));

  /* A measure's number as people read it; of shapes, too. */
  function written(measure, value, digits) {
    return (BY_COLUMN[measure]?.format ?? number)(value, digits);
  }

  /* The share of an effect, where the page was given some. */
  function effectOf(dataset) {
    return EFFECTS.find((column) => dataset.column[column]) ?? null;
  }

  /* A neuron's value in the heat map: a column, or "shape:skewed" for the share of that shape. */
  function reader(dataset, measure) {
    if (measure.startsWith("shape:")) {
      const code = dataset.shapes.indexOf(measure.slice(6));
      return (index) => (dataset.column.shape[index] === code ? 1 : 0);
    }
    const values = dataset.column[measure];
    return BY_COLUMN[measure]?.size ? (index) => Math.abs(values[index]) : (index) => values[index];
  }

  /* Layer by head, over the dims of each: the mean or the greatest; NaN (a constant neuron) is left out. */
  function byHead(dataset, measure, how) {
    const [layers, heads, dims] = dataset.shape;
    const read = reader(dataset, measure);
    const rows = [];
    for (let layer = 0; layer < layers; layer++) {
      const row = [];
      for (let head = 0; head < heads; head++) {
        const start = (layer * heads + head) * dims;
        let sum = 0, count = 0, greatest = -Infinity;
        for (let index = start; index < start + dims; index++) {
          const value = read(index);
          if (Number.isNaN(value)) continue;
          sum += value;
          count++;
          if (value > greatest) greatest = value;
        }
        row.push(count === 0 ? null : how === "max" ? greatest : sum / count);
      }
      rows.push(row);
    }
    return rows;
  }

  /* The dims of one head in rows of `columns`; null fills the last row. */
  function byDim(dataset, measure, layer, head, columns) {
    const [, heads, dims] = dataset.shape;
    const read = reader(dataset, measure);
    const start = (layer * heads + head) * dims;
    const rows = [];
    for (let from = 0; from < dims; from += columns) {
      const row = [];
      for (let dim = from; dim < from + columns; dim++) {
        const value = dim < dims ? read(start + dim) : NaN;
        row.push(Number.isNaN(value) ? null : value);
      }
      rows.push(row);
    }
    return rows;
  }

  /* A heading as it is looked up: however σ, μ and the minus are typed. */
  function normal(name) {
    const plain = name.toLowerCase().replace(/−/g, "-").replace(/_/g, " ").replace(/\bsigma\b/g, "σ").replace(/\bmu\b/g, "μ");
    return plain.replace(/\s+/g, " ").replace(/ ?([/-]) ?/g, "$1").trim();
  }

  /* Heading → column, for everything that the page shows a number of. */
  function headings(dataset) {
    const found = Object.create(null);
    const add = (heading, column) => { found[normal(heading)] ??= column; };
    // A title in bars that stand for the size is found by `byHeading`, and not here.
    for (const { column, title, names, size } of measuresOf(dataset)) for (const name of size ? names : [title, ...names]) add(name, column);
    for (const [heading, column] of Object.entries({ "mean μ": "mean", "exactly 0": "share_zero", values: "total" })) add(heading, column);
    for (const { name } of dataset.columns) if (!INTERNAL.includes(name)) add(name.replace(/^center:/, ""), name);
    return found;
  }

  /* Every heading once, as the help of the filter lists them. */
  function titles(dataset) {
    const own = dataset.columns.map(({ name }) => name).filter((name) => name.startsWith("center:")).map((name) => name.slice(7));
    const said = ["mean", "peak", "min", "max", "values", "layer", "head", "dim"];
    return [...new Set([...measuresOf(dataset).map(({ title }) => title), ...said, ...own])];
  }

  /* A column by its heading, as a function of the neuron; bars around any name take its size. Null if there is none. */
  function byHeading(dataset, name) {
    const heading = normal(name);
    const [, heads, dims] = dataset.shape;
    const places = { layer: (index) => Math.floor(index / (heads * dims)), head: (index) => Math.floor(index / dims) % heads, dim: (index) => index % dims };
    if (Object.hasOwn(places, heading)) return places[heading];
    dataset.headings ??= headings(dataset);
    const values = dataset.column[dataset.headings[heading]];
    if (values) return (index) => values[index];
    const within = dataset.column[dataset.headings[/^\|(.+)\|$/.exec(heading)?.[1]]];
    return within ? (index) => Math.abs(within[index]) : null;
  }

  /* By a column, or by place in the model; NaN last either way, equals by place. */
  function sorted(dataset, indices, by, descending) {
    const order = Uint32Array.from(indices);
    const sign = descending ? -1 : 1;
    if (by === "name") return descending ? order.reverse() : order;
    const values = dataset.column[by];
    return order.sort((a, b) => {
      const x = values[a], y = values[b];
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || a - b;
      return sign * (x - y) || a - b;
    });
  }

  lens.measures = { BY_COLUMN, INTERNAL, measuresOf, written, effectOf, titles, normal, byHeading, byHead, byDim, sorted };
})((globalThis.lens ??= {}));

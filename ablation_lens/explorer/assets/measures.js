"use strict";
/* What neurons are coloured, sorted and filtered by. */
(function (lens) {
  /* Column, short title, what it says, and how people may write it in the filter. */
  const MEASURES = [
    { column: "peak_over_sigma", title: "|peak|/σ", says: "distance of the peak from zero, in σ", names: ["peak/σ", "peak/sigma"] },
    { column: "mean_to_peak_over_sigma", title: "|μ−peak|/σ", says: "distance of the mean from the peak, in σ", names: ["mean-peak/σ", "mean-peak/sigma", "μ-peak/σ"] },
    { column: "std", title: "σ", says: "standard deviation", names: ["σ", "sigma", "std"] },
    { column: "peaks", title: "peaks", says: "number of peaks", names: ["peaks"] },
    { column: "skew", title: "skew", says: "skew, without sign", names: ["skew"], size: true },
    { column: "excess_kurtosis", title: "kurtosis", says: "excess kurtosis", names: ["kurtosis"] },
    { column: "mean", title: "|μ|", says: "mean, without sign", names: ["mean", "μ"], size: true },
    { column: "share_zero", title: "share 0", says: "share of the values that are exactly 0", names: ["zeros", "share_zero"] },
    { column: "epsilon_over_sigma", title: "ε/σ", says: "bin width in σ: how coarsely a neuron is resolved", names: ["ε/σ", "eps/sigma"] },
  ];
  // Without a prototype: names come from links and filters, and "constructor" is not a measure.
  const BY_COLUMN = Object.assign(Object.create(null), Object.fromEntries(MEASURES.map((measure) => [measure.column, measure])));

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

  const TESTS = {
    ">": (a, b) => a > b,
    "<": (a, b) => a < b,
    ">=": (a, b) => a >= b,
    "<=": (a, b) => a <= b,
    "=": (a, b) => a === b,
  };

  function termOf(dataset, word) {
    const match = /^(.+?)(>=|<=|>|<|=)([-−+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)$/i.exec(word);
    if (match) {
      const [, name, sign, text] = match;
      const bound = Number(text.replace("−", "-"));
      const holds = TESTS[sign];
      const [, heads, dims] = dataset.shape;
      const places = {
        layer: (index) => Math.floor(index / (heads * dims)),
        head: (index) => Math.floor(index / dims) % heads,
        dim: (index) => index % dims,
      };
      if (Object.hasOwn(places, name)) return (index) => holds(places[name](index), bound);
      const measure = MEASURES.find((each) => each.names.includes(name.replace("−", "-")));
      if (!measure) return null;
      const values = dataset.column[measure.column];
      return (index) => holds(values[index], bound);
    }
    const place = /^l(\d+)(?:\.h(\d+)(?:\.d(\d+))?)?\.?$/.exec(word);
    if (place) {
      const [layer, head, dim] = place.slice(1).map((part) => (part === undefined ? -1 : Number(part)));
      const [, heads, dims] = dataset.shape;
      return (index) =>
        Math.floor(index / (heads * dims)) === layer &&
        (head < 0 || Math.floor(index / dims) % heads === head) &&
        (dim < 0 || index % dims === dim);
    }
    const anyPlace = /^(?:h(\d+))?\.?(?:d(\d+))?$/.exec(word);
    if (anyPlace && word) {
      const [head, dim] = anyPlace.slice(1).map((part) => (part === undefined ? -1 : Number(part)));
      const [, heads, dims] = dataset.shape;
      return (index) => (head < 0 || Math.floor(index / dims) % heads === head) && (dim < 0 || index % dims === dim);
    }
    const codes = dataset.shapes.map((shape, code) => (shape.includes(word) ? code : -1)).filter((code) => code >= 0);
    if (codes.length) return (index) => codes.includes(dataset.column.shape[index]);
    return null;
  }

  /* Words that must all hold: L3, L3.H5, D7, a shape, or a comparison like peak/σ>2. A word that says nothing is named. */
  function filtered(dataset, query, chosen = () => true) {
    const words = query.toLowerCase().replace(/\s*(>=|<=|>|<|=)\s*/g, "$1").split(/\s+/).filter(Boolean);
    const terms = words.map((word) => termOf(dataset, word));
    const unknown = words.filter((_, i) => terms[i] === null);
    const known = terms.filter((term) => term !== null);
    const indices = [];
    for (let index = 0; index < dataset.size; index++) {
      if (chosen(index) && known.every((term) => term(index))) indices.push(index);
    }
    return { indices, unknown };
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

  lens.measures = { MEASURES, BY_COLUMN, byHead, byDim, filtered, sorted };
})((globalThis.lens ??= {}));

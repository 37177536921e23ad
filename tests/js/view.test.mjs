// Filter, sort, hash, labels: what the view computes without a browser.
import assert from "node:assert/strict";
import test from "node:test";

import { lens, opened, vectors } from "./lens.mjs";

const vector = vectors[0];

test("the filter understands places, shapes and comparisons", async () => {
  const dataset = await opened(vector);
  const [, heads, dims] = dataset.shape;
  const found = (query) => lens.measures.filtered(dataset, query).indices;
  assert.equal(found("").length, dataset.size);
  assert.deepEqual(found("L1.H0.D2"), [lens.text.neuronIndex("L1.H0.D2", dataset.shape)]);
  assert.equal(found("l1").length, heads * dims);
  assert.equal(found("L1.H1").length, dims);
  assert.equal(found("h1").length, dataset.shape[0] * dims);
  assert.equal(found("layer=0 head=1").length, dims);
  for (const index of found("peak/σ > 0.5")) assert.ok(dataset.column.peak_over_sigma[index] > 0.5);
  const shape = dataset.shapes[dataset.column.shape[0]];
  for (const index of found(shape)) assert.equal(dataset.shapes[dataset.column.shape[index]], shape);
  assert.ok(found("peak/σ>0.5").length < dataset.size);
  assert.deepEqual(lens.measures.filtered(dataset, "bananas L0 foo>3 constructor>0").unknown, ["bananas", "foo>3", "constructor>0"]);
});

test("silent neurons are found by their zeros, and by their shape's name", async () => {
  const dataset = await opened(vectors.find(({ name }) => name === "silent"));
  const found = (query) => lens.measures.filtered(dataset, query).indices;
  const silent = found("zeros>0.5");
  assert.ok(silent.length >= 8);
  // A neuron that is never above 0 is constant.
  assert.deepEqual(found("sparse"), silent.filter((index) => dataset.column.share_zero[index] < 1));
  const { exact, peak } = lens.decode.histogramAt(await dataset.neuron(silent[3]), dataset.widths[0]);
  assert.deepEqual([exact, peak], [true, 0]);
});

test("sorting puts NaN last and equals by place", async () => {
  const dataset = await opened(vector);
  dataset.column.std = Float32Array.from({ length: dataset.size }, (_, i) => (i % 3 === 0 ? NaN : i % 5));
  const all = Array.from({ length: dataset.size }, (_, i) => i);
  for (const descending of [true, false]) {
    const values = Array.from(lens.measures.sorted(dataset, all, "std", descending), (i) => dataset.column.std[i]);
    const numbers = values.filter((value) => !Number.isNaN(value));
    assert.ok(values.slice(numbers.length).every(Number.isNaN));
    assert.deepEqual(numbers, [...numbers].sort((a, b) => (descending ? b - a : a - b)));
  }
  assert.deepEqual(Array.from(lens.measures.sorted(dataset, [3, 1, 2].sort(), "name", true)), [3, 2, 1]);
});

test("the heat map averages or takes the greatest, without NaN", async () => {
  const dataset = await opened(vector);
  const dims = dataset.shape[2];
  dataset.column.std = Float32Array.from({ length: dataset.size }, (_, i) => (i % dims === 0 ? NaN : i % dims));
  const mean = lens.measures.byHead(dataset, "std", "mean");
  assert.equal(mean.length, dataset.shape[0]);
  assert.equal(mean[0][0], dims / 2);
  assert.equal(lens.measures.byHead(dataset, "std", "max")[1][1], dims - 1);
  assert.equal(lens.measures.byDim(dataset, "std", 0, 1, 4)[0][0], null);
  const shares = dataset.shapes.map((shape) => lens.measures.byHead(dataset, `shape:${shape}`, "mean")[0][0]);
  assert.ok(Math.abs(shares.reduce((a, b) => a + b, 0) - 1) < 1e-12);
});

test("the hash opens the same view, and nonsense in it is ignored", async () => {
  const dataset = await opened(vector);
  const state = {
    ...lens.state.defaults(dataset),
    neuron: 5, width: dataset.widths.at(-1), log: true, pins: [1, 7], lines: ["zero", "peak"], measure: "skew", how: "max",
    head: [1, 1], sort: "std", descending: false, query: "peak/σ>2 & #=", shape: dataset.shapes[3], overlay: false, bin: -12, theme: "dark",
  };
  assert.deepEqual(lens.state.parsed(`#${lens.state.formatted(state, dataset)}`, dataset), state);
  assert.equal(lens.state.formatted(lens.state.defaults(dataset), dataset), "");
  const wrong = "#n=L99.H0.D0&bins=77&pins=<b>&lines=nothing&map=__proto__&head=L9&sort=constructor&shape=x&bin=1e9&theme=pink&x=%";
  assert.deepEqual(lens.state.parsed(wrong, dataset), { ...lens.state.defaults(dataset), lines: [] });
});

test("names of neurons go both ways", () => {
  const shape = [3, 5, 7];
  for (let index = 0; index < 105; index++) assert.equal(lens.text.neuronIndex(lens.text.neuronName(index, shape), shape), index);
  for (const name of ["L3.H0.D0", "L0.H5.D0", "L0.H0.D7", "", "L0", "L0.H0.D0 x"]) assert.equal(lens.text.neuronIndex(name, shape), -1);
});

test("text for Plotly holds no markup", () => {
  assert.equal(lens.text.plain('<a href="x">&lt;'), '&lt;a href="x"&gt;&amp;lt;');
});

test("numbers as people read them", () => {
  assert.deepEqual([0, -0.5, 1234.56, 1e-7, NaN, Infinity].map((value) => lens.text.number(value)), ["0", "−0.5", "1235", "1.00e−7", "–", "∞"]);
});

test("labels of lines never lie over each other", () => {
  const lines = [0, 0.01, 0.02, 0.5, 0.51, 1].map((at) => ({ at, name: "peak-smooth" }));
  const labels = lens.histogram.labelRows(lines, [0, 1], 600);
  const half = ("peak-smooth".length * 3.4 + 5) / 600;
  labels.forEach((a, i) => labels.slice(i + 1).forEach((b) => {
    assert.ok(a.row !== b.row || b.middle - a.middle >= 2 * half - 1e-9);
  }));
  for (const { middle } of labels) assert.ok(middle >= half - 1e-9 && middle <= 1 - half + 1e-9);
});

test("examples of a bin, or the nearest ones", () => {
  const contexts = [{ where: "low", value: -2 }, { where: "peak", value: 0.1 }, { where: "peak", value: 0.2 }, { where: "high", value: 3 }];
  assert.deepEqual(lens.examples.chosen(contexts, null).map((group) => group.contexts.length), [1, 2, 1]);
  assert.deepEqual(lens.examples.chosen(contexts, { low: 0.2, high: 0.5 })[0].contexts, [contexts[2]]);
  const [nearest] = lens.examples.chosen(contexts, { low: 4, high: 5 });
  assert.equal(nearest.contexts[0], contexts[3]);
  assert.match(nearest.title, /none was gathered/);
});

test("the CSV has a row per bin", () => {
  const text = lens.exports.bins("L0.H0.D0", { first: -1, epsilon: 0.5, counts: [3, 4] });
  assert.equal(text, "neuron,bin_low,bin_high,approximate_count\nL0.H0.D0,-0.5,0,3\nL0.H0.D0,0,0.5,4\n");
});

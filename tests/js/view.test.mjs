// Sort, hash, labels: what the view computes without a browser.
import assert from "node:assert/strict";
import test from "node:test";

import { lens, opened, vectors } from "./lens.mjs";

const vector = vectors[0];

test("silent neurons are found by their zeros, and by their shape's name", async () => {
  const dataset = await opened(vectors.find(({ name }) => name === "silent"));
  const found = (query) => lens.filter.filtered(dataset, query).indices;
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

test("the hash opens the same view", async () => {
  const dataset = await opened(vector);
  const state = {
    ...lens.state.defaults(dataset),
    neuron: 5, width: dataset.widths.at(-1), log: true, pins: [1, 7], lines: ["zero", "peak"], measure: "skew", how: "max",
    head: [1, 1], sort: "std", descending: false, query: "peak/σ>2 L1.H1 & #=", shape: dataset.shapes[3], overlay: false, bin: -12, text: "4", theme: "dark",
  };
  assert.deepEqual(lens.state.parsed(`#${lens.state.formatted(state, dataset)}`, dataset), { state, problems: [] });
  assert.equal(lens.state.formatted(lens.state.defaults(dataset), dataset), "");
});

test("a bad link says what is wrong with it, and shows the rest", async () => {
  const dataset = await opened(vector);
  const wrong = "#n=L99.H0.D0&bins=77&pins=<b>&lines=nothing&map=__proto__&head=L9&sort=constructor&shape=x&bin=1e9&theme=pink&x=%&log=1";
  const { state, problems } = lens.state.parsed(wrong, dataset);
  assert.deepEqual(state, { ...lens.state.defaults(dataset), lines: [], log: true });
  const keys = ["n", "bins", "pins", "lines", "map", "sort", "head", "shape", "bin", "theme", "x"];
  assert.deepEqual(problems.map((problem) => problem.split("=")[0]).sort(), keys.sort());
  assert.ok(problems.includes("n=L99.H0.D0"));
  const seven = Array.from({ length: 7 }, (_, i) => `L0.H0.D${i}`).join("+");
  const many = lens.state.parsed(`#pins=${seven}`, dataset);
  assert.equal(many.state.pins.length, 6);
  assert.deepEqual(many.problems, ["pins=L0.H0.D6 (more than 6)"]);
  assert.ok(lens.state.parsed(`#n=${"x".repeat(5000)}`, dataset).problems[0].length < 100);
});

test("links of before, with a head of their own, open the same head", async () => {
  const dataset = await opened(vector);
  const { state, problems } = lens.state.parsed("#head=L2.H1&q=skewed", dataset);
  assert.deepEqual([state.head, state.query, problems], [[2, 1], "L2.H1 skewed", []]);
});

test("effects are sorted by their share, shown as per cent, and named after what they are of", async () => {
  const dataset = await opened(vectors.find(({ name }) => name === "worth"));
  const { sort, measure, descending } = lens.state.defaults(dataset);
  assert.deepEqual([sort, measure, descending], ["head_effect_share", "head_effect_share", true]);
  const order = Array.from(lens.measures.sorted(dataset, Array.from({ length: dataset.size }, (_, i) => i), sort, descending));
  // Ablating everything changes the metric by -4: what falls by 2 is worth half of it, and equals go by place.
  assert.deepEqual(order.map((index) => lens.names.neuronName(index, dataset)).slice(0, 5), ["L1.H0.D0", "L1.H0.D1", "L1.H0.D2", "L1.H0.D3", "L0.H0.D0"]);
  assert.equal(lens.measures.written(sort, dataset.column[sort][order[0]]), "50 %");
  assert.equal(lens.measures.written("std", 0.5), "0.5");
  assert.equal(lens.heatmap.titleOf(measure), "head's effect");
  assert.deepEqual(lens.measures.byHead(dataset, measure, "mean"), [[0.25, -0.125], [0.5, 0]]);
  for (const query of ["share > 40%", "head's effect > 40%", "head_effect < -1.5"]) {
    assert.deepEqual(lens.filter.filtered(dataset, query).indices, [8, 9, 10, 11], query);
  }
  const plain = await opened(vector);
  assert.equal(lens.measures.effectOf(plain), null);
  assert.ok(!lens.measures.titles(plain).some((title) => title.includes("effect")));
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

test("the CSV of the list has its order, every column, and no formula", async () => {
  const dataset = await opened(vectors.find(({ name }) => name === "compared"));
  const text = lens.exports.neurons([3, 1], [dataset, dataset], (index) => (index === 3 ? '=cmd()\n"two", lines' : ""));
  const [heads, one, two, ...rest] = text.split("\n");
  const titles = heads.split(",");
  assert.deepEqual(rest, [""]);
  for (const title of ["neuron", "shape", "std", "peak", "median", "moved_over_sigma", "overlap", "compared:median", "note"]) assert.ok(titles.includes(title), title);
  assert.ok(one.startsWith("L0.H0.D3,0,0,3,"));
  assert.ok(one.endsWith(`,"'=cmd() ""two"", lines"`), one);
  assert.ok(two.startsWith("L0.H0.D1,"));
  assert.equal(two.split(",").length, titles.length);
  assert.equal(Number(two.split(",")[titles.indexOf("std")]), Number(dataset.column.std[1].toPrecision(7)));
});

const SHADE = { ink: "#000000", quiet: "#555555", line: "#cccccc", paper: "#ffffff", bars: "#8899aa", "bars-edge": "#ffffff" };

/* The figure of a neuron of the first vector, with its curve or without. */
async function drawn(name, more = {}) {
  const dataset = await opened(vector);
  const main = lens.decode.histogramAt(await dataset.neuron(lens.names.neuronIndex(name, dataset)), dataset.widths[0]);
  const curve = { curve: vector.curves[name], title: "Δ <b>loss</b>" };
  const lines = [{ name: "mean", at: 0.25, color: "#0072B2" }];
  return lens.histogram.figure({ main, others: [], lines, ghosts: [], bin: null, log: false, pixels: 600, curve, ...more }, SHADE, "#D55E00");
}

test("a curve lies under the histogram, on its value axis", async () => {
  const { data, layout } = await drawn("L0.H0.D0");
  const below = data.filter((trace) => trace.yaxis === "y2");
  assert.ok(below.length && below.every((trace) => trace.xaxis === "x"));
  assert.ok(layout.yaxis2.domain[1] < layout.yaxis.domain[0]);
  assert.equal(layout.xaxis.anchor, "y2");
  const { value } = vector.curves["L0.H0.D0"];
  assert.ok(layout.xaxis.range[0] <= value[0] && layout.xaxis.range[1] >= value.at(-1));
  assert.equal(layout.yaxis2.title.text, "Δ &lt;b&gt;loss&lt;/b&gt;");
  // Of the centers, those that have a line above.
  assert.deepEqual(below.filter((trace) => trace.mode === "markers").map((trace) => trace.x), [[0.25]]);
});

test("a neuron without a curve has its histogram alone", async () => {
  const { data, layout } = await drawn("L0.H0.D0", { curve: null });
  assert.equal(data.length, 1);
  assert.equal(layout.yaxis2, undefined);
});

test("a minimum beyond the curve's end is said to lie there", () => {
  assert.equal(lens.curve.told(vector.curves["L0.H0.D0"]).at, "1.25 (0.5 σ)");
  assert.equal(lens.curve.told(vector.curves["L1.H0.D0"]).at, "≥ 8.25 (4 σ)");
});

test("neurons with a curve are found by the filter, and by a link", async () => {
  const dataset = await opened(vector);
  const about = { text: () => "", examples: () => false, notes: () => false, curves: (index) => index === 3 };
  assert.deepEqual(lens.filter.filtered(dataset, "curves", { about }).indices, [3]);
  assert.deepEqual(lens.state.parsed("#shape=curves", dataset).problems, []);
});

// The filter's language, and how neurons are written.
import assert from "node:assert/strict";
import test from "node:test";

import { lens, opened, vectors } from "./lens.mjs";

const named = (name) => opened(vectors.find((vector) => vector.name === name));
const NONE = { text: () => "", examples: () => false, notes: () => false };

async function tools(name = "synthetic") {
  const dataset = await named(name);
  const all = Array.from({ length: dataset.size }, (_, i) => i);
  const ask = (query, about = NONE) => lens.filter.filtered(dataset, query, { about });
  return { dataset, all, ask, found: (query, about) => ask(query, about).indices };
}

test("the filter understands places, shapes and comparisons", async () => {
  const { dataset, found } = await tools();
  const [, heads, dims] = dataset.shape;
  assert.equal(found("").length, dataset.size);
  assert.deepEqual(found("L1.H0.D2"), [lens.names.neuronIndex("L1.H0.D2", dataset)]);
  assert.equal(found("l1").length, heads * dims);
  assert.equal(found("L1.H1").length, dims);
  assert.equal(found("h1").length, dataset.shape[0] * dims);
  assert.equal(found("layer=0 head=1").length, dims);
  for (const index of found("peak/σ > 0.5")) assert.ok(dataset.column.peak_over_sigma[index] > 0.5);
  const shape = dataset.shapes[dataset.column.shape[0]];
  for (const index of found(shape)) assert.equal(dataset.shapes[dataset.column.shape[index]], shape);
  assert.ok(found("peak/σ>0.5").length < dataset.size);
});

test("every column is compared by its heading, however that is typed", async () => {
  const { dataset, found, ask, all } = await tools("compared");
  const columns = {
    "|peak|/σ": "peak_over_sigma", "peak/sigma": "peak_over_sigma", "|μ−peak|/σ": "mean_to_peak_over_sigma", "mean-peak/σ": "mean_to_peak_over_sigma",
    "σ": "std", "mean μ": "mean", "excess kurtosis": "excess_kurtosis", kurtosis: "excess_kurtosis", peaks: "peaks", '"share 0"': "share_zero",
    "moved/σ": "moved_over_sigma", overlap: "overlap", median: "center:median", min: "min", peak: "peak", peak_over_sigma: "peak_over_sigma",
  };
  for (const [heading, column] of Object.entries(columns)) {
    const middle = Array.from(dataset.column[column]).sort((a, b) => a - b)[8];
    assert.deepEqual(found(`${heading} > ${middle}`), all.filter((index) => dataset.column[column][index] > middle), heading);
    assert.deepEqual(found(`${heading}<=${String(middle).replace("-", "−")}`), all.filter((index) => dataset.column[column][index] <= middle), heading);
  }
  assert.deepEqual(found("|mean|>0.1"), all.filter((index) => Math.abs(dataset.column.mean[index]) > 0.1));
  for (const title of lens.measures.titles(dataset)) assert.deepEqual(ask(`"${title}" > 0`).unknown, [], title);
});

test("not, either, and all", async () => {
  const { dataset, found, all } = await tools();
  const shape = dataset.shapes[dataset.column.shape[0]];
  const is = (index) => dataset.shapes[dataset.column.shape[index]] === shape;
  assert.deepEqual(found(`not ${shape}`), all.filter((index) => !is(index)));
  assert.deepEqual(found(`not not ${shape}`), all.filter(is));
  assert.deepEqual(found("not peak/σ > 0.5"), all.filter((index) => !(dataset.column.peak_over_sigma[index] > 0.5)));
  assert.deepEqual(found("L0.H0.D1, L2.H1"), found("L0.H0.D1 or L2.H1"));
  assert.equal(found("L0.H0.D1, L2.H1").length, 1 + dataset.shape[2]);
  assert.deepEqual(found(`L0, L1 ${shape}`), all.filter((index) => is(index) && index < 2 * dataset.perLayer));
  assert.deepEqual(found(`shape != ${shape} and L0`), all.filter((index) => !is(index) && index < dataset.perLayer));
});

test("quoted text is looked for in names, notes and examples", async () => {
  const { found } = await tools();
  const about = { ...NONE, text: (index) => (index === 4 ? "Said the Raven" : "") , notes: (index) => index === 7 };
  assert.deepEqual(found('"the raven"', about), [4]);
  assert.deepEqual(found("“the raven”", about), [4]);
  assert.deepEqual(found("notes", about), [7]);
  assert.deepEqual(found("examples", about), []);
});

test("what is not understood is named, and nothing is listed", async () => {
  const { ask } = await tools();
  const unknown = {
    "bananas L0": ["bananas"], "foo>3 constructor>0 __proto__ = 1": ["foo>3", "constructor>0", "__proto__ = 1"], "L0 not": ["not"], "σ >": ["σ >"],
    "σ > much": ["σ > much"], "L99": ["L99"], "L1.D": ["L1.D"], ", L0": [","], '""': ['""'], "> 3": [">", "3"], "shape > 2": ["shape > 2"], "M3": ["M3"],
  };
  for (const [query, pieces] of Object.entries(unknown)) assert.deepEqual(ask(query), { indices: [], unknown: pieces }, query);
});

test("no filter breaks, however it is written", async () => {
  const { ask } = await tools();
  const signs = ['"', "not", ",", "or", "and", ">", "<=", "L1", "σ", "0.5", "x", " ", "|", "−", "L1.H1."];
  let seed = 1;
  for (let round = 0; round < 3000; round++) {
    const parts = Array.from({ length: 1 + (round % 7) }, () => signs[(seed = (seed * 48271) % 2147483647) % signs.length]);
    const { indices, unknown } = ask(parts.join(round % 2 ? " " : ""));
    assert.ok(Array.isArray(indices) && unknown.every((piece) => piece.length), parts);
  }
});

test("a head is a word of the filter: into the map, and back", async () => {
  const { dataset } = await tools();
  const { headOf, withHead } = lens.filter;
  assert.deepEqual(headOf("skewed L2.H1 σ>1", dataset), [2, 1]);
  for (const query of ["", "L2", "not L2.H1", "L2.H1, L1.H1", "L2.H1 L1.H1", "L2.H1.D3", '"L2.H1"', "L9.H1"]) assert.equal(headOf(query, dataset), null, query);
  assert.equal(withHead("skewed", [2, 1], dataset), "L2.H1 skewed");
  assert.equal(withHead("skewed L2.H1 σ>1", [0, 1], dataset), "L0.H1 skewed σ>1");
  assert.equal(withHead("skewed L2.H1 σ>1", null, dataset), "skewed σ>1");
});

test("names of neurons go both ways, at every kind of site", () => {
  const { neuronName, neuronIndex } = lens.names;
  for (const [shape, naming, first] of [[[3, 5, 7], "LHD", "L0.H0.D0"], [[3, 1, 7], "LM", "L0.M0"], [[3, 1, 7], "LD", "L0.D0"]]) {
    const dataset = { shape, naming };
    assert.equal(neuronName(0, dataset), first);
    for (let index = 0; index < shape[0] * shape[1] * shape[2]; index++) assert.equal(neuronIndex(neuronName(index, dataset), dataset), index);
    for (const name of ["L3.H0.D0", "L0.H5.D0", "L0.H0.D7", "", "L0", "L0.H0.D0 x", "D0.L0", `L0.H0.D${"9".repeat(40)}`]) assert.equal(neuronIndex(name, dataset), -1, name);
  }
});

test("an MLP's neurons are L1.M3, and L1.H0.D3 is read", async () => {
  const { dataset, found } = await tools("mlp");
  const index = dataset.perLayer + 3;
  assert.equal(lens.names.neuronName(index, dataset), "L1.M3");
  for (const name of ["L1.M3", "L1.H0.D3", "l1.d3", "L1.H0.M3"]) assert.deepEqual(found(name), [index], name);
  assert.deepEqual(lens.filter.headOf("L1", dataset), [1, 0]);
  assert.deepEqual(lens.state.parsed("#n=L1.H0.D3&head=L1.H0", dataset).problems, []);
  assert.equal(lens.state.parsed("#n=L1.H0.D3", dataset).state.neuron, index);
  assert.match(lens.state.formatted({ ...lens.state.defaults(dataset), neuron: index }, dataset), /^n=L1\.M3$/);
});

// Against what the Python packer wrote, and what the Python histogram says.
import assert from "node:assert/strict";
import test from "node:test";

import { lens, opened, vectors } from "./lens.mjs";

for (const vector of vectors) {
  test(`${vector.name}: counts come back as packed`, async () => {
    const dataset = await opened(vector);
    for (let index = 0; index < dataset.size; index++) {
      const { counts, total } = await dataset.neuron(index);
      assert.deepEqual(Array.from(counts), vector.counts[index]);
      assert.equal(total, vector.totals[index]);
    }
  });

  test(`${vector.name}: the peak at every width is Python's, to the last bit`, async () => {
    const dataset = await opened(vector);
    assert.ok(vector.widths.length >= 1);
    for (const { width, peak, epsilon } of vector.widths) {
      for (let index = 0; index < dataset.size; index++) {
        const shown = lens.decode.histogramAt(await dataset.neuron(index), width);
        assert.equal(shown.peak, peak[index], `neuron ${index} at ${width} bins`);
        assert.equal(shown.epsilon, epsilon[index]);
        assert.ok(shown.counts.length <= width);
        assert.equal(shown.counts.reduce((a, b) => a + b, 0), vector.counts[index].reduce((a, b) => a + b, 0));
      }
    }
  });

  test(`${vector.name}: columns`, async () => {
    const { column } = await opened(vector);
    for (const [name, values] of Object.entries(vector.columns)) {
      assert.deepEqual(Array.from(column[name], (value) => (Number.isNaN(value) ? null : value)), values, name);
    }
  });
}

test("small counts are themselves, large ones keep their first digits", () => {
  const { unpacked } = lens.decode;
  assert.deepEqual([0, 1, 127].map((code) => unpacked(code, 7)), [0, 1, 127]);
  assert.deepEqual([128, 129, 191, 192, 193].map((code) => unpacked(code, 7)), [128, 130, 254, 256, 260]);
  assert.equal(unpacked(7 * 64 + 64 + 36, 7), 100 * 2 ** 7);
});

test("bins merge on the absolute grid, below zero too", () => {
  const { merged, mergeShift, fullest } = lens.decode;
  assert.deepEqual(merged([1, 2, 3, 4, 0], -3, 1), { first: -2, counts: Float64Array.of(1, 5, 4) });
  assert.equal(mergeShift(0, 4, 2), 1);
  assert.equal(mergeShift(-1, 4, 2), 2);
  assert.equal(mergeShift(2 ** 40 + 1, 3, 2), 1);
  assert.equal(fullest([2, 5, 5, 1]), 1);
});

test("only so many layers stay decoded", async () => {
  let read = 0;
  const empty = () => { read++; return "eNoDAAAAAAE="; };
  const dataset = new lens.decode.Dataset({ shape: [80, 1, 1], bins: 1, widths: [1], layers: [] }, 0, empty);
  for (let layer = 0; layer < 80; layer++) await dataset.layer(layer);
  assert.ok(dataset.inflated.size <= 32);
  await dataset.layer(79);
  assert.equal(read, 80);
  await dataset.layer(0);
  assert.equal(read, 81);
});

// Notes: kept where the browser allows it, and here alone where it does not.
import assert from "node:assert/strict";
import test from "node:test";

import { lens, opened, vectors } from "./lens.mjs";

const { Notes } = lens.notes;

function storage() {
  const held = new Map();
  return { held, getItem: (key) => held.get(key) ?? null, setItem: (key, text) => held.set(key, text), removeItem: (key) => held.delete(key) };
}

test("notes are there again, for these statistics alone", async () => {
  const dataset = await opened(vectors[0]);
  const store = storage();
  const notes = new Notes(dataset, () => store);
  notes.keep(5, "brackets");
  notes.keep(2, "=1, \"two\"\nlines");
  notes.keep(3, "gone");
  notes.keep(3, "  ");
  const again = new Notes(dataset, () => store);
  assert.deepEqual([again.of(5), again.of(3), again.has(3), again.isKept], ["brackets", "", false, true]);
  assert.equal(again.csv(), "neuron,note\nL0.H0.D2,\"'=1, \"\"two\"\" lines\"\nL0.H0.D5,brackets\n");
  assert.equal(new Notes({ ...dataset, digest: "another" }, () => store).of(5), "");
  const [one, two] = [new Notes(dataset, () => store), new Notes(dataset, () => store)]; // two tabs
  one.keep(7, "mine");
  two.keep(8, "too");
  assert.equal(new Notes(dataset, () => store).of(7), "mine");
});

test("a page that may not store keeps its notes until it is closed, and says so", async () => {
  const dataset = await opened(vectors[0]);
  const refusing = () => { throw new Error("SecurityError"); };
  const full = { ...storage(), setItem: refusing };
  for (const store of [refusing, () => undefined, () => full]) {
    const notes = new Notes(dataset, store);
    notes.keep(5, "brackets");
    notes.keep(6, "commas");
    assert.deepEqual([notes.of(5), notes.of(6), notes.isKept], ["brackets", "commas", false]);
  }
});

test("what lies in the browser's storage may be anybody's", async () => {
  const dataset = await opened(vectors[0]);
  const bad = ["{", "7", "null", '"x"', "[1]", '{"L99.H0.D0":"far","L0.H0.D1":7,"__proto__":"x","L0.H0.D2":"fine"}'];
  for (const text of bad) {
    const notes = new Notes(dataset, () => ({ getItem: () => text, setItem() {}, removeItem() {} }));
    assert.ok([...notes.texts.values()].every((note) => note === "fine"), text);
  }
});

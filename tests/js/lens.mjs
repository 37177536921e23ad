// The page's scripts in the page's order, as far as they need no document.
import { readFileSync } from "node:fs";
import vm from "node:vm";

const ASSETS = new URL("../../ablation_lens/explorer/assets/", import.meta.url);

for (const name of ["text.js", "names.js", "decode.js", "measures.js", "filter.js", "state.js", "heatmap.js", "theme.js", "curve.js", "histogram.js", "examples.js", "exports.js", "notes.js"]) {
  vm.runInThisContext(readFileSync(new URL(name, ASSETS), "utf8"), { filename: name });
}

export const lens = globalThis.lens;
export const vectors = JSON.parse(readFileSync(process.env.ABLATION_LENS_VECTORS, "utf8"));

export async function opened(vector) {
  return new lens.decode.Dataset(vector.dataset, 0, (id) => vector.blobs[id]).open();
}

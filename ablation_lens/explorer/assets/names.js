"use strict";
/* How neurons are written: L3.H5.D17 where layers have heads, L1.M509 in an MLP, L3.D17 at other sites without heads. */
(function (lens) {
  const hasHeads = ({ naming }) => naming.includes("H");

  function neuronName(index, dataset) {
    const [, heads, dims] = dataset.shape;
    const layer = Math.floor(index / (heads * dims));
    return `${headName(layer, Math.floor(index / dims) % heads, dataset)}.${dataset.naming.at(-1)}${index % dims}`;
  }

  /* A head; where there are none, its layer. */
  function headName(layer, head, dataset) {
    return hasHeads(dataset) ? `L${layer}.H${head}` : `L${layer}`;
  }

  /* Some of layer, head and dim as [layer, head, dim], -1 for what is not said; null for what this model does not have. */
  function placeOf(text, dataset) {
    const place = [-1, -1, -1];
    let last = -1;
    // A last dot is one that somebody is about to write on from; M and H0 are other ways to write a dim of an MLP.
    for (const part of String(text).trim().replace(/\.$/, "").split(".")) {
      const match = /^([lhdm])(\d{1,9})$/i.exec(part);
      if (!match) return null;
      const letter = match[1].toUpperCase();
      if (letter === "M" && dataset.naming.at(-1) !== "M") return null;
      const which = letter === "M" ? 2 : "LHD".indexOf(letter);
      if (which <= last || Number(match[2]) >= dataset.shape[which]) return null;
      place[which] = Number(match[2]);
      last = which;
    }
    return place;
  }

  /* The inverse of `neuronName`; -1 for what is not a neuron of this model. */
  function neuronIndex(text, dataset) {
    const place = placeOf(text, dataset);
    if (!place) return -1;
    if (!hasHeads(dataset)) place[1] = 0;
    const [, heads, dims] = dataset.shape;
    return place.includes(-1) ? -1 : (place[0] * heads + place[1]) * dims + place[2];
  }

  /* Whether a neuron lies at such a place. */
  function liesAt(index, [layer, head, dim], { shape: [, heads, dims] }) {
    return (layer < 0 || Math.floor(index / (heads * dims)) === layer) &&
      (head < 0 || Math.floor(index / dims) % heads === head) && (dim < 0 || index % dims === dim);
  }

  lens.names = { hasHeads, neuronName, headName, neuronIndex, placeOf, liesAt };
})((globalThis.lens ??= {}));

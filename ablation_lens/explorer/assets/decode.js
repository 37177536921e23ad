"use strict";
/* From the page's blobs to counts: the inverse of packing.py, and the same merging of bins as NeuronHistogram's. */
(function (lens) {
  const ARRAYS = { f4: Float32Array, f8: Float64Array, i2: Int16Array, u1: Uint8Array };
  const KEPT_LAYERS = 32;

  function bytesOf(base64) {
    if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
    const text = atob(base64);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    return bytes;
  }

  async function inflated(base64) {
    const stream = new Blob([bytesOf(base64)]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  async function json(base64) {
    return JSON.parse(new TextDecoder().decode(await inflated(base64)));
  }

  /* Bytes that lie plane by plane, back together; the machine is little-endian like the file (all browsers are). */
  function fromPlanes(bytes, start, count, Type) {
    const size = Type.BYTES_PER_ELEMENT;
    const together = new Uint8Array(count * size);
    for (let plane = 0; plane < size; plane++) {
      const from = start + plane * count;
      for (let i = 0; i < count; i++) together[i * size + plane] = bytes[from + i];
    }
    return new Type(together.buffer);
  }

  function columnsOf(bytes, described, count) {
    const columns = {};
    let start = 0;
    for (const { name, type } of described) {
      const Type = ARRAYS[type];
      columns[name] = fromPlanes(bytes, start, count, Type);
      start += count * Type.BYTES_PER_ELEMENT;
    }
    return columns;
  }

  /* Powers instead of shifts, which know 32 bits only. */
  function unpacked(code, digits) {
    if (code < 2 ** digits) return code;
    const half = 2 ** (digits - 1);
    const dropped = Math.floor(code / half) - 1;
    return (code - dropped * half) * 2 ** dropped;
  }

  /* One neuron's counts out of its layer's planes: there is no need to unpack the layer's other thousands. */
  function countsOf(bytes, planes, digits, place, bins) {
    const size = bytes.length / planes;
    const counts = new Float64Array(bins);
    for (let i = 0; i < bins; i++) {
      let code = 0;
      for (let plane = planes - 1; plane >= 0; plane--) code = code * 256 + bytes[plane * size + place * bins + i];
      counts[i] = unpacked(code, digits);
    }
    return counts;
  }

  function usedBins(counts) {
    let used = counts.length;
    while (used > 1 && counts[used - 1] === 0) used--;
    return used;
  }

  const halved = (cell, shift) => Math.floor(cell / 2 ** shift);

  /* How often neighbours must merge until at most `width` bins are left; depends on where the first bin lies. */
  function mergeShift(offset, used, width) {
    let shift = 0;
    while (halved(offset + used - 1, shift) - halved(offset, shift) >= width) shift++;
    return shift;
  }

  /* Bins merged on the absolute grid: `first` is the number of the first bin there. */
  function merged(counts, offset, shift) {
    const used = usedBins(counts);
    const first = halved(offset, shift);
    const result = new Float64Array(halved(offset + used - 1, shift) - first + 1);
    for (let i = 0; i < used; i++) result[halved(offset + i, shift) - first] += counts[i];
    return { first, counts: result };
  }

  /* The fullest bin, the lower of equals. */
  function fullest(counts) {
    let best = 0;
    for (let i = 1; i < counts.length; i++) if (counts[i] > counts[best]) best = i;
    return best;
  }

  /*
   * One neuron at one width: `epsilon` wide bins from `first * epsilon` on, and the peak as the paper defines it. It is
   * exact where one value repeats: in a constant neuron, or where more values are 0 than any bin has others.
   */
  function histogramAt(fine, width) {
    const shift = mergeShift(fine.offset, usedBins(fine.counts), width);
    const { first, counts } = merged(fine.counts, fine.offset, shift);
    const epsilon = 2 ** (fine.exponent + shift);
    const fullestBin = fullest(counts);
    const constant = fine.min === fine.max;
    const silent = shift < fine.zeroMerges;
    return {
      first,
      counts,
      epsilon,
      fullest: fullestBin,
      peak: constant ? fine.min : silent ? 0 : (first + fullestBin + 0.5) * epsilon,
      exact: constant || silent,
      total: fine.total,
    };
  }

  /* One collection: numbers per neuron at once, a layer's counts inflated when they are asked for. */
  class Dataset {
    constructor(described, number, blob) {
      Object.assign(this, described);
      this.number = number;
      this.blob = blob;
      this.size = this.shape[0] * this.shape[1] * this.shape[2];
      this.perLayer = this.shape[1] * this.shape[2];
      this.inflated = new Map();
    }

    async open() {
      this.column = columnsOf(await inflated(this.blob(`summary-${this.number}`)), this.columns, this.size);
      return this;
    }

    /* A layer's bytes (a promise of them). */
    layer(layer) {
      const bytes = this.inflated.get(layer) ?? inflated(this.blob(`layer-${this.number}-${layer}`));
      this.inflated.delete(layer); // the one asked for last is forgotten last
      this.inflated.set(layer, bytes);
      if (this.inflated.size > KEPT_LAYERS) this.inflated.delete(this.inflated.keys().next().value);
      return bytes;
    }

    /* A neuron's finest counts and where they lie. */
    async neuron(index) {
      const layer = Math.floor(index / this.perLayer);
      const bytes = await this.layer(layer);
      const { exponent, offset, min, max, total, digits, zero_merges: zeroMerges } = this.column;
      return {
        counts: countsOf(bytes, this.layers[layer].planes, digits[index], index - layer * this.perLayer, this.bins),
        exponent: exponent[index],
        offset: offset[index],
        min: min[index],
        max: max[index],
        total: total[index],
        zeroMerges: zeroMerges[index],
      };
    }
  }

  lens.decode = { inflated, json, columnsOf, unpacked, mergeShift, merged, fullest, histogramAt, Dataset };
})((globalThis.lens ??= {}));

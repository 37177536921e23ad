"use strict";
/* What somebody writes about neurons: kept by the browser for these statistics, or in this page alone where it refuses. */
(function (lens) {
  const { neuronIndex } = lens.names;
  const LONGEST = 10_000;

  class Notes {
    /* `store` is a function that gives the browser's storage: reading the property may already throw. */
    constructor(dataset, store = () => globalThis.localStorage) {
      Object.assign(this, { dataset, store });
      this.key = `ablation-lens notes ${dataset.digest}`;
      this.texts = new Map();
      this.isKept = true;
      this.read();
    }

    /* Another tab may have written meanwhile; what lies there may be anybody's. */
    read() {
      let stored;
      try {
        stored = this.store().getItem(this.key);
      } catch {
        this.isKept = false;
        return;
      }
      try {
        const found = Object.entries(JSON.parse(stored) ?? {})
          .map(([name, text]) => [neuronIndex(name, this.dataset), text])
          .filter(([index, text]) => index >= 0 && typeof text === "string");
        this.texts = new Map(found);
      } catch {
        // Not ours, or damaged: nothing to show.
      }
    }

    of(index) {
      return this.texts.get(index) ?? "";
    }

    has(index) {
      return this.texts.has(index);
    }

    keep(index, text) {
      if (this.isKept) this.read();
      if (text.trim()) this.texts.set(index, text.slice(0, LONGEST));
      else this.texts.delete(index);
      try {
        if (this.texts.size) this.store().setItem(this.key, JSON.stringify(this.named()));
        else this.store().removeItem(this.key);
      } catch {
        this.isKept = false;
      }
    }

    /* By the neurons' names, in their order. */
    named() {
      return Object.fromEntries([...this.texts].sort(([a], [b]) => a - b).map(([index, text]) => [lens.names.neuronName(index, this.dataset), text]));
    }

    csv() {
      const rows = Object.entries(this.named()).map(([name, text]) => `${name},${lens.exports.cell(text)}`);
      return `${["neuron,note", ...rows].join("\n")}\n`;
    }
  }

  lens.notes = { Notes };
})((globalThis.lens ??= {}));

"use strict";
/* The list of neurons: only the rows in view exist, so 49 152 neurons scroll like twenty. */
(function (lens) {
  const { element } = lens.text;
  const { neuronName } = lens.names;
  const ROW = 28;
  const SPARE = 6;

  const COLUMNS = [
    { by: "name", title: "neuron", descending: false },
    { by: "shape", title: "shape", descending: false },
    { by: "effect_share", title: "effect share", descending: true },
    { by: "head_effect_share", title: "head's effect", descending: true },
    { by: "layer_effect_share", title: "layer's effect", descending: true },
    { by: "peak_over_sigma", title: "|peak|/σ", descending: true },
    { by: "mean_to_peak_over_sigma", title: "|μ−peak|/σ", descending: true },
    { by: "std", title: "σ", descending: true },
    { by: "peaks", title: "peaks", descending: true },
    { by: "moved_over_sigma", title: "moved/σ", descending: true },
    { by: "overlap", title: "overlap", descending: false }, // the least is what moved most
  ];

  class List {
    /* `marksOf(neuron)`: [{mark: a class, says: words}] of what stands beside it. */
    constructor(dataset, { marksOf, choose, sort }) {
      Object.assign(this, { dataset, marksOf, choose, sort });
      this.box = document.getElementById("list");
      this.runway = document.getElementById("runway");
      this.rows = document.getElementById("rows");
      this.order = new Uint32Array(0);
      this.chosen = -1;
      this.box.addEventListener("scroll", () => this.draw(), { passive: true });
      new ResizeObserver(() => this.draw()).observe(this.box);
      const head = document.getElementById("columns");
      this.columns = COLUMNS.filter(({ by }) => by === "name" || dataset.column[by]);
      for (const column of this.columns) {
        const button = element("button", { type: "button", "data-by": column.by, click: () => this.sort(column) }, column.title);
        head.append(button);
      }
    }

    show(order, state) {
      this.order = order;
      this.place = new Map();
      order.forEach((neuron, place) => this.place.set(neuron, place));
      this.runway.style.height = `${order.length * ROW}px`;
      for (const button of document.querySelectorAll("#columns button")) {
        const active = button.dataset.by === state.sort;
        button.setAttribute("aria-pressed", active);
        button.dataset.direction = active ? (state.descending ? "down" : "up") : "";
      }
      this.box.scrollTop = 0;
      this.draw();
    }

    /* Where a neuron stands in the list, or -1. */
    placeOf(neuron) {
      return this.place.get(neuron) ?? -1;
    }

    mark(neuron) {
      this.chosen = neuron;
      const place = this.placeOf(neuron);
      if (place >= 0) {
        const top = place * ROW;
        const { scrollTop, clientHeight } = this.box;
        const over = Math.max(scrollTop - top, top + ROW - scrollTop - clientHeight);
        // A step of the arrow keys scrolls by a row; what was far away comes to the middle.
        if (over > 2 * ROW) this.box.scrollTop = top - (clientHeight - ROW) / 2;
        else if (top < scrollTop) this.box.scrollTop = top;
        else if (over > 0) this.box.scrollTop = top + ROW - clientHeight;
      }
      this.draw();
    }

    draw() {
      const first = Math.max(0, Math.floor(this.box.scrollTop / ROW) - SPARE);
      const last = Math.min(this.order.length, Math.ceil((this.box.scrollTop + this.box.clientHeight) / ROW) + SPARE);
      this.rows.style.transform = `translateY(${first * ROW}px)`;
      const made = [];
      for (let place = first; place < last; place++) made.push(this.row(place));
      this.rows.replaceChildren(...made);
      const chosen = this.placeOf(this.chosen);
      if (chosen >= first && chosen < last) this.box.setAttribute("aria-activedescendant", `row-${chosen}`);
      else this.box.removeAttribute("aria-activedescendant");
    }

    row(place) {
      const neuron = this.order[place];
      const { column, shapes } = this.dataset;
      const name = neuronName(neuron, this.dataset);
      const marks = this.marksOf(neuron);
      return element(
        "div",
        {
          class: "row",
          role: "option",
          id: `row-${place}`,
          "data-neuron": name,
          "aria-selected": neuron === this.chosen ? "true" : "false",
          "aria-posinset": place + 1,
          "aria-setsize": this.order.length,
          click: () => this.choose(neuron),
        },
        element("span", { class: `mono${marks.map(({ mark }) => ` ${mark}`).join("")}`, title: marks.map(({ says }) => says).join(", ") || null }, name),
        element("span", { class: "word" }, shapes[column.shape[neuron]]),
        ...this.columns.slice(2).map(({ by }) => element("span", { "data-by": by }, lens.measures.written(by, column[by][neuron], 3))),
      );
    }
  }

  lens.list = { List };
})((globalThis.lens ??= {}));

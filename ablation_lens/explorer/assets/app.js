"use strict";
/* One state; every change of it goes through `update`, which redraws what depends on it. */
(function (lens) {
  const { element, whole, number } = lens.text;
  const { neuronName, neuronIndex, headName } = lens.names;
  const $ = (id) => document.getElementById(id);
  const LIST = ["sort", "descending", "query", "shape", "notes"];
  const MAP = ["measure", "how", "head", "theme"];
  const PHONE = matchMedia("(max-width: 740px)");

  class App {
    constructor(payload, datasets) {
      this.payload = payload;
      this.datasets = datasets;
      this.dataset = datasets[0];
      // By number, as a neuron may have been written in another way.
      this.contexts = new Map(Object.entries(payload.examples?.neurons ?? {}).map(([name, contexts]) => [neuronIndex(name, this.dataset), contexts]));
      this.curves = new Map();
      this.notes = new lens.notes.Notes(this.dataset);
      this.state = this.followed();
      this.turn = 0;
    }

    async start() {
      if ($("curves")) {
        const curves = await this.decoded("curves");
        this.curves = new Map(Object.entries(curves).map(([name, curve]) => [neuronIndex(name, this.dataset), curve]));
      }
      this.describe();
      this.list = new lens.list.List(this.dataset, {
        marksOf: (neuron) => [
          ...(this.contexts.has(neuron) ? [{ mark: "has-examples", says: "has examples" }] : []),
          ...(this.notes.has(neuron) ? [{ mark: "has-note", says: "has a note" }] : []),
        ],
        choose: (neuron) => this.choose(neuron),
        sort: ({ by, descending }) => this.update({ sort: by, descending: this.state.sort === by ? !this.state.descending : descending }),
      });
      this.controls();
      addEventListener("keydown", (event) => this.key(event));
      addEventListener("hashchange", () => this.update(this.followed()));
      matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw(new Set(["theme"])));
      let sizes = "";
      new ResizeObserver(() => {
        const now = [$("histogram"), $("heatmap")].map((box) => box.clientWidth).join();
        if (sizes && sizes !== now) requestAnimationFrame(() => this.draw(new Set(["theme"])));
        sizes = now;
      }).observe(document.querySelector("main"));
      await this.draw(new Set(Object.keys(this.state)));
    }

    /* What the address asks for; what it asks for in vain is said. */
    followed() {
      const { state, problems } = lens.state.parsed(location.hash, this.dataset);
      $("bad-link").hidden = !problems.length;
      $("bad-link-parts").replaceChildren(...problems.map((problem) => element("code", {}, problem)));
      return state;
    }

    update(changes) {
      if ("query" in changes) changes = { head: lens.filter.headOf(changes.query, this.dataset), ...changes };
      // A bin's number means nothing at another width or for another neuron, nor a text's for another neuron.
      const other = (key) => key in changes && changes[key] !== this.state[key];
      if (other("width") || other("neuron")) changes = { bin: null, ...changes };
      if (other("neuron")) changes = { text: null, ...changes };
      const changed = new Set(Object.keys(changes).filter((key) => String(changes[key]) !== String(this.state[key])));
      Object.assign(this.state, changes);
      return changed.size ? this.draw(changed) : Promise.resolve();
    }

    /* From the list or the map: on a phone the figure lies elsewhere, so go there. */
    choose(neuron) {
      this.update({ neuron });
      if (PHONE.matches) $("neuron-card").scrollIntoView({ behavior: "smooth" });
    }

    // ---------------------------------------------------------------- drawing

    async draw(changed) {
      const { state } = this;
      $("said").textContent = "";
      const held = document.activeElement?.id;
      if (state.theme) document.documentElement.dataset.theme = state.theme;
      if (LIST.some((key) => changed.has(key))) this.drawList();
      if (state.neuron < 0 && this.list.order.length) {
        state.neuron = this.list.order[0];
        changed.add("neuron");
      }
      this.syncControls();
      // After sorting the top of the list is what one wants to see, wherever the neuron at hand went.
      if (changed.has("neuron")) this.list.mark(state.neuron);
      if (state.neuron >= 0) await this.drawNeuron();
      // Tables are made anew; who came by keyboard goes on where they were.
      if (held && document.activeElement === document.body) $(held)?.focus({ preventScroll: true });
      this.saveHash();
      if (MAP.some((key) => changed.has(key))) await this.drawMap();
      else if (changed.has("neuron")) await this.markMap();
      this.inflateNext();
      if (changed.has("theme")) this.drawDamage();
    }

    /* The layer that the next key press will want. */
    inflateNext() {
      const next = this.list.order[this.list.placeOf(this.state.neuron) + 1];
      if (next !== undefined) setTimeout(() => this.dataset.layer(Math.floor(next / this.dataset.perLayer)));
    }

    drawList() {
      const { state, dataset } = this;
      const code = dataset.shapes.indexOf(state.shape);
      const about = this.about();
      const chosen = about[state.shape] ?? (code >= 0 ? (index) => dataset.column.shape[index] === code : undefined);
      const { indices, unknown } = lens.filter.filtered(dataset, state.query, { about, chosen });
      this.list.show(lens.measures.sorted(dataset, indices, state.sort, state.descending), state);
      const words = indices.length === dataset.size ? `${whole(dataset.size)} neurons` : `${whole(indices.length)} of ${whole(dataset.size)} neurons`;
      const marks = unknown.flatMap((piece) => [" ", element("mark", { class: "unknown" }, piece)]);
      $("found").replaceChildren(unknown.length ? "Not understood:" : words, ...marks);
      $("filter").setAttribute("aria-invalid", unknown.length > 0);
      $("list-csv").disabled = !indices.length;
    }

    /* What the filter can ask about a neuron besides its numbers. */
    about() {
      const { dataset, notes, contexts } = this;
      const words = (context) => [...(context.text ?? []), context.id].join(" ");
      return {
        examples: (index) => contexts.has(index),
        notes: (index) => notes.has(index),
        curves: (index) => this.curves.has(index),
        text: (index) => [neuronName(index, dataset), dataset.shapes[dataset.column.shape[index]], notes.of(index), ...(contexts.get(index) ?? []).map(words)].join("\n"),
      };
    }

    async drawMap() {
      const { state, dataset } = this;
      const box = $("heatmap");
      const { data, layout, cell } = lens.heatmap.figure(dataset, state, lens.theme.colors());
      this.cell = cell;
      Object.assign(layout, { width: box.clientWidth, height: box.clientHeight });
      this.marks = layout.shapes;
      const first = !box.data;
      await globalThis.Plotly.react(box, data, layout, lens.theme.CONFIG);
      if (first) {
        box.on("plotly_click", ({ points }) => {
          const at = this.cell(...points[0].pointNumber);
          if (at.head) this.chooseHead(at.head);
          else if (at.neuron !== undefined) this.choose(at.neuron);
        });
      }
      const title = lens.heatmap.titleOf(state.measure);
      const where = state.head ? `the dims of ${headName(...state.head, dataset)}` : "layers and heads";
      box.setAttribute("aria-label", `Heat map of ${title} over ${where}; the list has the same neurons.`);
      $("crumb").textContent = state.head ? `› ${headName(...state.head, dataset)}` : "";
      $("all-heads").disabled = !state.head;
      $("all-heads").textContent = lens.names.hasHeads(dataset) ? "All heads" : "All layers";
    }

    /* Far cheaper than drawing the map anew; most key presses change nothing there. */
    async markMap() {
      const box = $("heatmap");
      const shapes = lens.heatmap.marks(this.dataset, this.state, lens.theme.colors());
      if (box.data && JSON.stringify(shapes) !== JSON.stringify(this.marks)) await globalThis.Plotly.relayout(box, { shapes });
      this.marks = shapes;
    }

    async drawNeuron() {
      const { state, dataset } = this;
      const turn = ++this.turn;
      const index = state.neuron;
      const name = neuronName(index, dataset);
      const overlay = this.datasets[1] && state.overlay ? this.datasets[1] : null;
      const pins = state.pins.filter((pin) => pin !== index);
      const [fine, second, ...pinned] = await Promise.all([
        dataset.neuron(index),
        overlay ? overlay.neuron(index) : null,
        ...pins.map((pin) => dataset.neuron(pin)),
      ]);
      if (turn !== this.turn) return; // another neuron was asked for meanwhile
      const shade = lens.theme.colors();
      const colorOf = (center) => lens.theme.method(this.payload.colors, center);
      const shownAt = dataset.widths.map((width) => ({ width, shown: lens.decode.histogramAt(fine, width) }));
      const main = shownAt.find(({ width }) => width === state.width).shown;
      const others = pins.map((pin, i) => ({
        pin,
        name: neuronName(pin, dataset),
        color: shade.pins[state.pins.indexOf(pin)],
        dash: lens.theme.PIN_DASHES[state.pins.indexOf(pin)],
        shown: lens.decode.histogramAt(pinned[i], state.width),
      }));
      if (overlay) {
        const width = Math.min(state.width, overlay.bins);
        others.unshift({ name: overlay.label, color: shade.overlay, dash: "solid", shown: lens.decode.histogramAt(second, width) });
      }
      const centers = lens.panel.centersOf(dataset, index, main.peak);
      const curve = this.curves.get(index) ?? null;
      const box = $("histogram");
      box.classList.toggle("with-curve", curve !== null);
      const figure = lens.histogram.figure({
        main,
        others,
        lines: centers.filter(({ name: center }) => state.lines.includes(center)).map((center) => ({ ...center, color: colorOf(center.name) })),
        ghosts: shownAt.map(({ shown }) => shown.peak),
        bin: state.bin,
        log: state.log,
        pixels: box.clientWidth - 80,
        curve: curve && { curve, title: this.payload.curves.title },
      }, shade, colorOf("peak"));
      Object.assign(figure.layout, { width: box.clientWidth, height: box.clientHeight });
      this.shown = { name, main, figure };
      const first = !box.data;
      await globalThis.Plotly.react(box, figure.data, figure.layout, lens.theme.CONFIG);
      if (first) {
        box.on("plotly_click", ({ points }) => {
          const point = points.find((each) => each.curveNumber === 0);
          if (point) this.update({ bin: this.shown.main.first + point.pointNumber });
        });
      }
      if (turn !== this.turn) return;
      const shape = dataset.shapes[dataset.column.shape[index]];
      $("name").textContent = name;
      $("label").textContent = shape;
      $("spoken").textContent = lens.panel.spoken(name, shape, main, dataset, index);
      box.setAttribute("aria-label", `Histogram of ${$("spoken").textContent}`);
      lens.panel.drawNumbers($("numbers"), dataset, index, main.total, curve);
      const title = overlay ? `${name} · ${dataset.label}` : name;
      lens.panel.drawLegend($("legend"), { name: title, color: shade.bars }, others, dataset, (pin) => this.togglePin(pin));
      const compared = overlay && { label: overlay.label, centers: lens.panel.centersOf(overlay, index, others[0].shown.peak) };
      lens.panel.drawCenters($("centers"), centers, { dataset, index, lines: state.lines, colorOf, toggle: (center) => this.toggleLine(center), compared });
      lens.panel.drawWidths($("widths"), shownAt, state.width, dataset.column.std[index], (width) => this.update({ width }));
      this.drawExamples(index, main);
      this.drawNote(index);
      await Promise.all([this.drawText(), this.drawOutputs()]);
      if (turn !== this.turn) return;
      document.documentElement.dataset.shown = `${name} ${state.width}`;
    }

    drawExamples(index, main) {
      const { examples, without } = this.payload;
      if (!examples && without) {
        $("examples-card").hidden = false;
        $("examples").replaceChildren(element("p", { class: "quiet" }, without));
      }
      if (!examples) return;
      const { bin } = this.state;
      $("examples-card").hidden = false;
      const contexts = this.contexts.get(index);
      const ends = bin === null ? null : { low: bin * main.epsilon, high: (bin + 1) * main.epsilon };
      $("examples-title").textContent = ends ? `Examples in ${number(ends.low)} to ${number(ends.high)}` : "Examples";
      $("all-examples").hidden = !ends || !contexts;
      if (contexts) {
        const open = $("whole-texts") && (({ document: text }) => this.openText(text));
        lens.examples.draw($("examples"), lens.examples.chosen(contexts, ends), examples.images, open);
        return;
      }
      const others = element("button", { type: "button", class: "link", click: () => this.update({ shape: "examples", query: "" }) }, `list the ${whole(this.contexts.size)} neurons that have some`);
      $("examples").replaceChildren(element("p", { class: "quiet" }, "None were gathered for this neuron; ", others, "."));
    }

    /* What a blob of JSON holds, decoded once. */
    decoded(id) {
      this.blobs ??= new Map();
      if (!this.blobs.has(id)) this.blobs.set(id, lens.decode.json($(id).textContent));
      return this.blobs.get(id);
    }

    async openText(text) {
      await this.update({ text });
      $("text-card").scrollIntoView({ block: "nearest" });
      $("text").focus({ preventScroll: true });
    }

    /* Back to where it was opened. */
    async closeText() {
      const { text } = this.state;
      await this.update({ text: null });
      document.querySelector(`#examples [data-document="${text}"]`)?.focus();
    }

    async drawText() {
      const { state, dataset } = this;
      const index = state.neuron;
      const card = $("text-card");
      if (state.text === null || !$("whole-texts")) {
        card.hidden = true;
        delete $("text").dataset.of;
        return;
      }
      const { documents, values, vocabulary } = await this.decoded("whole-texts");
      if (this.state.neuron !== index) return;
      const name = neuronName(index, dataset);
      const ids = Object.hasOwn(documents, state.text) ? documents[state.text] : null;
      const numbers = Object.hasOwn(values, name) ? values[name][state.text] : null;
      card.hidden = false;
      const known = ids && numbers;
      const context = known ? this.contexts.get(index)?.find((each) => each.document === state.text) : null;
      $("text-title").textContent = known ? `${context?.id ?? state.text}, coloured by ${name}` : `No whole text of ${name} in document ${state.text}`;
      $("text-key").hidden = $("text-read").hidden = !known;
      if (!known) {
        $("text").replaceChildren();
        return;
      }
      // Not anew, and back at its start, for every change of bins.
      const of = `${name} ${state.text}`;
      if ($("text").dataset.of === of) return;
      $("text").dataset.of = of;
      const read = (words) => { $("text-read").textContent = words; };
      const { mean, std } = dataset.column;
      lens.whole.draw($("text"), { tokens: ids.map((id) => vocabulary[id]), values: numbers, mean: mean[index], std: std[index], at: context?.position ?? 0, read });
    }

    async drawOutputs() {
      if (!$("output-tokens")) return;
      const index = this.state.neuron;
      const { neurons, vocabulary } = await this.decoded("output-tokens");
      if (this.state.neuron !== index) return;
      const name = neuronName(index, this.dataset);
      const sides = Object.hasOwn(neurons, name) ? neurons[name] : null;
      $("outputs-card").hidden = !sides;
      if (sides) ["promoted", "suppressed"].forEach((id, i) => lens.whole.drawTokens($(id), sides[i], vocabulary));
    }

    drawDamage() {
      const { damage } = this.payload;
      if (!damage) return;
      $("damage-card").hidden = false;
      const names = [...new Set(damage.map(corpusName))];
      const [picker, scores, box] = [$("corpus"), $("score"), $("damage")];
      if (!picker.options.length) {
        picker.append(...names.map((each) => element("option", { value: each }, each)));
        scores.append(...lens.damage.SCORES.map((each, i) => element("option", { value: i }, each.title)));
        for (const select of [picker, scores]) select.addEventListener("change", () => this.drawDamage());
        picker.parentElement.hidden = names.length < 2;
      }
      const lines = damage.filter((line) => corpusName(line) === picker.value);
      const score = lens.damage.SCORES[Number(scores.value)];
      const { data, layout } = lens.damage.figure(lines, score, lens.theme.colors(), this.payload.colors);
      Object.assign(layout, { width: box.clientWidth, height: box.clientHeight });
      globalThis.Plotly.react(box, data, layout, lens.theme.CONFIG);
      lens.damage.drawTable($("damage-table"), lines, this.payload.colors);
    }

    drawNote(index) {
      const box = $("note");
      // Not under somebody's fingers.
      if (box.dataset.neuron !== String(index)) Object.assign(box, { value: this.notes.of(index) });
      box.dataset.neuron = String(index);
      $("note-for").textContent = `Note on ${neuronName(index, this.dataset)}`;
      this.describeNotes();
    }

    describeNotes() {
      const { notes } = this;
      $("notes-kept").textContent = notes.isKept ? "Kept by this browser, for these statistics."
        : "This browser keeps nothing for this page: notes are gone when it is closed, so export them.";
      $("export-notes").disabled = !notes.texts.size;
      $("export-notes").textContent = notes.texts.size ? `Export ${whole(notes.texts.size)} as CSV` : "Export as CSV";
      const option = $("shape").querySelector('option[value="notes"]');
      option.textContent = `with notes (${whole(notes.texts.size)})`;
      option.hidden = !notes.texts.size && this.state.shape !== "notes";
    }

    // ---------------------------------------------------------------- controls

    describe() {
      const { dataset } = this;
      const facts = Object.fromEntries(dataset.provenance);
      const [layers, heads, dims] = dataset.shape;
      $("model").textContent = facts.model;
      const corpus = facts.corpus ? ` of ${facts.corpus.split(",")[0]}` : "";
      const places = lens.names.hasHeads(dataset) ? `${heads} heads × ${dims} dims` : `${dims} dims of ${facts.site}`;
      $("facts").textContent = `${layers} layers × ${places} = ${whole(dataset.size)} neurons · ${facts.positions} positions${corpus}`;
      const pairs = this.datasets.flatMap((each, i) => (i ? [["compared with", each.label], ...each.provenance] : each.provenance));
      $("provenance").append(...pairs.flatMap(([term, words]) => [element("dt", {}, term), element("dd", {}, words)]));
    }

    controls() {
      const { dataset, datasets } = this;
      const shapes = dataset.shapes.map((shape, code) => ({ shape, count: dataset.column.shape.reduce((sum, each) => sum + (each === code), 0) })).filter(({ count }) => count);
      const option = (value, title) => element("option", { value }, title);
      $("measure").append(
        ...lens.measures.measuresOf(dataset).map(({ column, title }) => option(column, title)),
        ...shapes.map(({ shape }) => option(`shape:${shape}`, `share ${shape}`)),
      );
      $("how").append(option("mean", "mean of dims"), option("max", "greatest dim"));
      $("shape").append(option("", "all shapes"), ...shapes.map(({ shape, count }) => option(shape, `${shape} (${whole(count)})`)));
      if (this.contexts.size) $("shape").append(option("examples", `with examples (${whole(this.contexts.size)})`));
      if (this.curves.size) $("shape").append(option("curves", `with curves (${whole(this.curves.size)})`));
      $("shape").append(option("notes", "with notes"));
      $("filter").placeholder = `Filter:  ${headName(Math.min(3, dataset.shape[0] - 1), 0, dataset)}   peak/σ>2`;
      $("syntax").append(...lens.filter.syntax(dataset).flatMap(([query, says]) => [
        element("dt", {}, element("button", { type: "button", class: "link mono", click: () => this.try(query) }, query)), element("dd", {}, says),
      ]));
      $("headings").textContent = lens.measures.titles(dataset).join("   ");
      $("overlay").hidden = datasets.length < 2;
      for (const id of ["list-card", "tables"]) $(id).classList.toggle("comparing", datasets.length > 1);
      $("list-card").classList.toggle("worth", lens.measures.effectOf(this.dataset) !== null);
      $("width").max = dataset.widths.length - 1;
      const stem = () => dataset.label.replace(/[^\w.-]+/g, "_");
      const on = (id, event, act) => $(id).addEventListener(event, act);
      for (const id of ["measure", "how", "shape"]) on(id, "change", (event) => this.update({ [id]: event.target.value }));
      on("filter", "input", (event) => this.update({ query: event.target.value }));
      on("width", "input", (event) => this.update({ width: dataset.widths[dataset.widths.length - 1 - event.target.value] }));
      on("log", "click", () => this.update({ log: !this.state.log }));
      on("overlay", "click", () => this.update({ overlay: !this.state.overlay }));
      on("pin", "click", () => this.togglePin(this.state.neuron));
      on("all-heads", "click", () => this.chooseHead(null));
      on("note", "input", (event) => {
        const had = this.notes.has(this.state.neuron);
        this.notes.keep(this.state.neuron, event.target.value);
        this.describeNotes();
        if (had !== this.notes.has(this.state.neuron)) this.list.draw();
      });
      on("export-notes", "click", () => lens.exports.save(this.notes.csv(), "text/csv", `${stem()}-notes.csv`));
      on("close-text", "click", () => this.closeText());
      on("list-csv", "click", () => lens.exports.save(lens.exports.neurons(this.list.order, this.datasets, (index) => this.notes.of(index)), "text/csv", `${stem()}-neurons.csv`));
      on("close-bad-link", "click", () => { $("bad-link").hidden = true; });
      on("all-examples", "click", () => this.update({ bin: null }));
      on("theme", "click", () => this.update({ theme: lens.theme.isDark() ? "light" : "dark" }));
      on("skip", "click", (event) => { event.preventDefault(); $("neuron-card").focus(); });
      const file = () => `${stem()}-${this.shown.name}`;
      on("csv", "click", () => lens.exports.save(lens.exports.bins(this.shown.name, this.shown.main), "text/csv", `${file()}.csv`));
      for (const format of ["png", "svg"]) {
        on(format, "click", () => lens.exports.picture(this.shown.figure, format, file(), lens.theme.colors().paper));
      }
      // A menu closes when something else is clicked.
      addEventListener("click", (event) => {
        for (const menu of document.querySelectorAll("details.menu[open]")) if (!menu.contains(event.target)) menu.open = false;
      });
    }

    syncControls() {
      const { state, dataset } = this;
      $("measure").value = state.measure;
      $("how").value = state.how;
      $("over-dims").hidden = state.head !== null;
      $("shape").value = state.shape;
      if (document.activeElement !== $("filter")) $("filter").value = state.query;
      $("width").value = dataset.widths.length - 1 - dataset.widths.indexOf(state.width);
      $("width").setAttribute("aria-valuetext", `at most ${state.width} bins`);
      $("bins").textContent = `≤ ${state.width}`;
      $("log").setAttribute("aria-pressed", state.log);
      $("overlay").setAttribute("aria-pressed", state.overlay);
      const pinned = state.pins.includes(state.neuron);
      $("pin").setAttribute("aria-pressed", pinned);
      $("pin").textContent = pinned ? "Pinned" : "Pin";
    }

    togglePin(neuron) {
      const { pins } = this.state;
      if (pins.includes(neuron)) this.update({ pins: pins.filter((pin) => pin !== neuron) });
      else if (pins.length < lens.state.MOST_PINS) this.update({ pins: [...pins, neuron] });
      else $("said").textContent = `${lens.state.MOST_PINS} neurons are pinned, the most that can be told apart: unpin one first.`;
    }

    /* Of the neuron that is shown. */
    headAtHand() {
      const [, heads, dims] = this.dataset.shape;
      return [Math.floor(this.state.neuron / (heads * dims)), Math.floor(this.state.neuron / dims) % heads];
    }

    chooseHead(head) {
      return this.update({ query: lens.filter.withHead(this.state.query, head, this.dataset) });
    }

    /* A line of the filter's help. */
    try(query) {
      $("filter").value = query;
      $("syntax-menu").open = false;
      $("filter").focus();
      this.update({ query });
    }

    toggleLine(center) {
      const { lines } = this.state;
      this.update({ lines: lines.includes(center) ? lines.filter((name) => name !== center) : [...lines, center] });
    }

    saveHash() {
      const hash = lens.state.formatted(this.state, this.dataset);
      try {
        history.replaceState(null, "", `#${hash}`);
      } catch {
        // A notebook's frame has no address of its own.
      }
    }

    // ---------------------------------------------------------------- keys

    key(event) {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const { target } = event;
      const typing = target.matches?.("input[type=search], select, textarea");
      if (event.key === "Escape") {
        this.back(typing, target);
        return;
      }
      if (typing && !(event.key === "ArrowDown" && target.id === "filter")) return;
      if (target.type === "range" && event.key.startsWith("Arrow")) return;
      const act = {
        ArrowDown: () => this.step(1),
        ArrowUp: () => this.step(-1),
        ArrowRight: () => this.neighbour(1),
        ArrowLeft: () => this.neighbour(-1),
        "/": () => $("filter").focus(),
        l: () => this.update({ log: !this.state.log }),
        h: () => this.chooseHead(this.state.head ? null : this.headAtHand()),
        p: () => this.togglePin(this.state.neuron),
        "[": () => this.widen(1),
        "]": () => this.widen(-1),
        ",": () => this.stepBin(-1),
        ".": () => this.stepBin(1),
        "?": () => { $("help").open = !$("help").open; },
      }[event.key];
      if (!act) return;
      event.preventDefault();
      if (typing) $("list").focus();
      act();
    }

    back(typing, target) {
      const open = document.querySelectorAll("details.menu[open]");
      if (open.length) open.forEach((menu) => {
        if (menu.contains(document.activeElement)) menu.querySelector("summary").focus();
        menu.open = false;
      });
      else if (typing && target.id === "filter" && this.state.query) {
        target.value = "";
        this.update({ query: "" });
      } else if (typing) target.blur();
      else if (this.state.text !== null) this.closeText();
      else if (this.state.bin !== null) this.update({ bin: null });
      else this.chooseHead(null);
    }

    step(by) {
      const place = this.list.placeOf(this.state.neuron);
      const { order } = this.list;
      if (order.length) this.update({ neuron: order[Math.min(Math.max(place + by, 0), order.length - 1)] });
    }

    neighbour(by) {
      this.update({ neuron: Math.min(Math.max(this.state.neuron + by, 0), this.dataset.size - 1) });
    }

    widen(by) {
      const { widths } = this.dataset;
      const place = widths.indexOf(this.state.width) + by;
      if (widths[place] !== undefined) this.update({ width: widths[place] });
    }

    stepBin(by) {
      if (!this.shown) return;
      const { first, counts, fullest } = this.shown.main;
      const from = this.state.bin === null ? first + fullest - by : this.state.bin;
      this.update({ bin: Math.min(Math.max(from + by, first), first + counts.length - 1) });
    }
  }

  const corpusName = ({ corpus, group }) => {
    if (!group) return corpus;
    return group.includes(corpus) ? group : `${corpus}, ${group}`;
  };

  function report(problem) {
    $("problem").textContent = `This page stopped working: ${problem?.message ?? problem}. A browser from 2023 or later is needed.`;
    $("problem").hidden = false;
  }

  async function main() {
    // Browsers report a resize that takes two frames as an error; it is none.
    addEventListener("error", (event) => { if (!event.message?.startsWith("ResizeObserver loop")) report(event.error ?? event.message); });
    addEventListener("unhandledrejection", (event) => report(event.reason));
    const payload = JSON.parse($("payload").textContent);
    const blob = (id) => $(id).textContent;
    const datasets = payload.datasets.map((each, number_) => new lens.decode.Dataset(each, number_, blob));
    await Promise.all(datasets.map((dataset) => dataset.open()));
    await new App(payload, datasets).start();
    document.documentElement.dataset.ready = "yes";
  }

  lens.app = { main };
  if (globalThis.document) main();
})((globalThis.lens ??= {}));

"use strict";
/*
 * The filter's language. Terms stand side by side, and all must hold:
 *   L3   L3.H5   L3.H5.D17   D7        a place, as neurons are written
 *   skewed                             a shape, or a part of its name
 *   |peak|/σ > 2   "share 0" >= 0.5    a column by its heading, against a number
 *   "some words"                       text in a neuron's name, note or examples
 *   examples   notes   curves          neurons that have some
 *   not TERM      TERM, TERM           the opposite; either ("or" is the same as the comma)
 */
(function (lens) {
  const { placeOf, liesAt, hasHeads, headName } = lens.names;
  const TOKEN = /"[^"]*"?|>=|<=|!=|[<>=≥≤≠]|,|(?:(?!!=)[^\s",<>=≥≤≠])+/g;
  const SIGNS = Object.assign(Object.create(null), {
    ">": (a, b) => a > b,
    "<": (a, b) => a < b,
    ">=": (a, b) => a >= b,
    "<=": (a, b) => a <= b,
    "=": (a, b) => a === b,
    "!=": (a, b) => a !== b,
    "≥": (a, b) => a >= b,
    "≤": (a, b) => a <= b,
    "≠": (a, b) => a !== b,
  });
  const MOST_WORDS = 3; // of a heading

  function tokensOf(query) {
    return Array.from(query.replace(/[“”„]/g, '"').matchAll(TOKEN), ({ 0: text, index }) => {
      const quoted = text.startsWith('"');
      const isSign = !quoted && text in SIGNS;
      return { start: index, end: index + text.length, quoted, isSign, word: !quoted && !isSign && text !== ",", text: quoted ? text.slice(1).replace(/"$/, "") : text };
    });
  }

  function numberOf(token) {
    const match = token && !token.isSign ? /^([-−+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)(%?)$/i.exec(token.text) : null;
    return match ? Number(match[1].replace("−", "-")) / (match[2] ? 100 : 1) : NaN;
  }

  /* A term without "not": {holds, used} with the number of its tokens; `holds` is null for what says nothing. */
  function termAt(tokens, at, dataset, about) {
    const has = (holds, used, place = null) => ({ holds, used, place });
    for (let words = MOST_WORDS; words >= 1; words--) {
      const sign = tokens[at + words];
      const named = tokens.slice(at, at + words);
      if (!sign?.isSign || !named.every((each) => each.word || each.quoted)) continue;
      const holds = comparison(named.map((each) => each.text).join(" "), sign.text, tokens[at + words + 1], dataset);
      if (holds) return has(holds, words + 2);
      // One word: no longer heading is left to try, so this comparison says nothing.
      if (words === 1) return has(null, tokens[at + 2] && tokens[at + 2].text !== "," ? 3 : 2);
    }
    const { text, quoted, word } = tokens[at];
    if (quoted) return has(text ? (index) => about.text(index).toLowerCase().includes(text.toLowerCase()) : null, 1);
    if (!word) return has(null, 1);
    const place = placeOf(text, dataset);
    if (place) return has((index) => liesAt(index, place, dataset), 1, place);
    const lower = text.toLowerCase();
    if (["examples", "notes", "curves"].includes(lower)) return has(about[lower], 1);
    const codes = dataset.shapes.map((shape, code) => (shape.includes(lower) ? code : -1)).filter((code) => code >= 0);
    return has(codes.length ? (index) => codes.includes(dataset.column.shape[index]) : null, 1);
  }

  function comparison(name, sign, value, dataset) {
    if (!value) return null;
    const heading = lens.measures.normal(name);
    const isEqual = sign === "=" ? true : sign === "!=" || sign === "≠" ? false : null;
    if ((heading === "shape" || heading === "neuron") && isEqual !== null) {
      const code = dataset.shapes.indexOf(value.text.toLowerCase());
      const place = placeOf(value.text, dataset);
      if (heading === "shape") return code < 0 ? null : (index) => (dataset.column.shape[index] === code) === isEqual;
      return place && ((index) => liesAt(index, place, dataset) === isEqual);
    }
    const [read, bound] = [lens.measures.byHeading(dataset, name), numberOf(value)];
    return read && !Number.isNaN(bound) ? (index) => SIGNS[sign](read(index), bound) : null;
  }

  const NOTHING = { text: () => "", examples: () => false, notes: () => false, curves: () => false };

  /*
   * The query as groups of terms: of each group one must hold. `unknown` are the pieces of the text that say nothing;
   * `head` is the one head (its place, and where it stands) that the query asks for, or null.
   */
  function parsed(query, dataset, about = NOTHING) {
    const tokens = tokensOf(query);
    const [groups, unknown, heads] = [[], [], []];
    const isWord = (at, ...texts) => tokens[at] && !tokens[at].quoted && texts.includes(tokens[at].text.toLowerCase());
    const piece = (from, to) => query.slice(tokens[from].start, tokens[Math.min(to, tokens.length) - 1].end);
    for (let at = 0; at < tokens.length;) {
      if (isWord(at, "and")) { at++; continue; }
      const [group, start] = [[], at];
      let place = null;
      do {
        const from = isWord(at, ",", "or") && group.length ? ++at : at;
        let turned = false;
        for (; isWord(at, "not"); at++) turned = !turned;
        if (at >= tokens.length) {
          unknown.push(piece(Math.min(from, tokens.length - 1), at));
          break;
        }
        const term = termAt(tokens, at, dataset, about);
        if (!term.holds) unknown.push(piece(at, at + term.used));
        else group.push(turned ? (index) => !term.holds(index) : term.holds);
        place = group.length === 1 && !turned ? term.place : null;
        at += term.used;
      } while (isWord(at, ",", "or"));
      groups.push(group);
      const isHead = place && place[0] >= 0 && place[2] < 0 && (place[1] >= 0 || !hasHeads(dataset));
      if (isHead) heads.push({ at: [place[0], Math.max(place[1], 0)], start: tokens[start].start, end: tokens[at - 1].end });
    }
    return { groups, unknown, head: heads.length === 1 ? heads[0] : null };
  }

  /* What a query leaves of the neurons. One that is not understood leaves none: to leave a word out would lie. */
  function filtered(dataset, query, { about = NOTHING, chosen = () => true } = {}) {
    const { groups, unknown } = parsed(query, dataset, about);
    const indices = [];
    if (unknown.length) return { indices, unknown };
    for (let index = 0; index < dataset.size; index++) {
      if (chosen(index) && groups.every((group) => group.some((holds) => holds(index)))) indices.push(index);
    }
    return { indices, unknown };
  }

  /* The head that a query asks for, as [layer, head], or null. */
  function headOf(query, dataset) {
    return parsed(query, dataset).head?.at ?? null;
  }

  /* The query asking for another head, or for none. */
  function withHead(query, head, dataset) {
    const old = parsed(query, dataset).head;
    const rest = old ? `${query.slice(0, old.start)} ${query.slice(old.end)}` : query;
    return `${head ? headName(...head, dataset) : ""} ${rest}`.replace(/\s+/g, " ").trim();
  }

  /* What can be written, each with a word about it; the page shows it, and a click tries it. */
  function syntax(dataset) {
    const name = lens.names.neuronName(0, dataset);
    const shape = dataset.shapes.at(-1);
    return [
      [headName(0, 0, dataset), "a layer, head, dim or neuron"],
      [`${name}, L1`, "either of two; also: or"],
      [shape, "a shape, or a part of its name"],
      ["|peak|/σ > 1", "a column by its heading: > < >= <= = !="],
      ['"share 0" < 0.5', "quotes keep words together"],
      [`not ${shape}`, "the opposite"],
      ['"text"', "text in the name, note or examples"],
      ["examples", "neurons with examples; also: notes, curves"],
      [`${headName(0, 0, dataset)} σ>0.1 not ${shape}`, "all must hold"],
    ];
  }

  lens.filter = { parsed, filtered, headOf, withHead, syntax };
})((globalThis.lens ??= {}));

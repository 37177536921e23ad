"use strict";
/* Where a neuron took its values: text with the token marked, or the image with the patch outlined. */
(function (lens) {
  const { element, number } = lens.text;
  const WHERE = { low: "lowest values", peak: "nearest to the peak", high: "highest values" };

  /* Patches are numbered row by row from 1; 0 is the CLS position, which sees the whole image. */
  function picture(context, images) {
    const frame = element("div", { class: context.position === 0 ? "picture whole" : "picture", style: { "--side": context.side } });
    const source = images[context.document];
    if (source && source.startsWith("data:image/png;base64,")) frame.append(element("img", { src: source, alt: "" }));
    if (context.position > 0) {
      const [row, column] = [Math.floor((context.position - 1) / context.side), (context.position - 1) % context.side];
      frame.append(element("span", { class: "patch", style: { "--row": row, "--column": column } }));
    }
    const words = context.position === 0 ? "CLS" : `patch ${context.position}`;
    return element("figure", {}, frame, element("figcaption", { class: "quiet" }, words));
  }

  /* Line breaks as a sign, so that a context stays one paragraph; a token of nothing but space as one, too. */
  function visible(text, isToken) {
    const lines = text.replace(/\r?\n/g, "⏎").replace(/\t/g, "⇥");
    return isToken ? lines.replace(/^ +$/, (spaces) => "␣".repeat(spaces.length)) : lines.replace(/⏎{3,}/g, "⏎⏎");
  }

  /* `open`: shows the text whole; null where the page does not have it. */
  function one(context, images, open) {
    const value = element("span", { class: "value mono" }, number(context.value));
    const shown = context.text
      ? element("p", { class: "context" }, visible(context.text[0]), element("mark", {}, visible(context.text[1], true)), visible(context.text[2]))
      : picture(context, images);
    const origin = element("span", { class: "quiet origin", title: context.id }, context.text ? `${context.id} · position ${context.position}` : context.id);
    const button = open && context.text ? element("button", { type: "button", class: "link", "aria-label": `whole text of ${context.id}`, "data-document": context.document, click: () => open(context) }, "whole text") : null;
    return element("li", {}, value, element("div", {}, shown, element("div", { class: "under" }, origin, button)));
  }

  /* Those inside [low, high); without a bin all, by kind; with an empty bin the nearest ones, and a word about it. */
  function chosen(contexts, bin) {
    if (bin === null) {
      return Object.entries(WHERE)
        .map(([where, title]) => ({ title, contexts: contexts.filter((context) => context.where === where) }))
        .filter((group) => group.contexts.length);
    }
    const inside = contexts.filter((context) => context.value >= bin.low && context.value < bin.high);
    if (inside.length) return [{ title: "", contexts: inside }];
    const away = (context) => Math.max(bin.low - context.value, context.value - bin.high, 0);
    return [{ title: "none was gathered in this bin; the nearest", contexts: [...contexts].sort((a, b) => away(a) - away(b)).slice(0, 3) }];
  }

  function draw(box, groups, images, open = null) {
    box.replaceChildren(
      ...groups.map((group) =>
        element(
          "section",
          {},
          group.title ? element("h4", {}, group.title) : null,
          element("ul", { class: group.contexts.some((context) => !context.text) ? "contexts pictures" : "contexts" },
            ...group.contexts.map((context) => one(context, images, open))),
        ),
      ),
    );
  }

  lens.examples = { chosen, draw, visible };
})((globalThis.lens ??= {}));

"use strict";
/* Numbers and outside text as people read them. Nothing here, or anywhere on the page, makes HTML from text. */
(function (lens) {
  /* Plotly understands a little HTML in its labels; text from outside must not. */
  function plain(text) {
    return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  }

  /* About four significant digits, with a real minus sign. */
  function number(value, digits = 4) {
    if (value === null || value === undefined || Number.isNaN(value)) return "–";
    if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
    if (value === 0) return "0";
    const size = Math.abs(value);
    const text = size >= 1e5 || size < 1e-4 ? value.toExponential(digits - 2) : String(Number(value.toPrecision(digits)));
    return text.replace(/-/g, "−");
  }

  /* A share as per cent. */
  function percent(value, digits = 3) {
    return Number.isFinite(value) ? `${number(100 * value, digits)} %` : number(value);
  }

  /* 49 152, as the heading counts. */
  function whole(value) {
    return String(Math.round(value)).replace(/\B(?=(\d{3})+$)/g, "\u202f");
  }

  /* An element; children are elements or text. */
  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "style") for (const [property, text] of Object.entries(value)) made.style.setProperty(property, text);
      else if (name === "click") made.addEventListener("click", value);
      else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...children.filter((child) => child !== null));
    return made;
  }

  lens.text = { plain, number, percent, whole, element };
})((globalThis.lens ??= {}));

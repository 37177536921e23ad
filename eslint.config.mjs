// The explorer's scripts are plain scripts that run one after another in a page, and their tests modules of Node.
import js from "@eslint/js";

const names = (list) => Object.fromEntries(list.split(" ").map((name) => [name, "readonly"]));

export default [
  { ignores: [".venv*/**", "build/**", "node_modules/**", "runs/**"] },
  js.configs.recommended,
  {
    files: ["ablation_lens/explorer/assets/*.js", "ablation_lens/report/*.js"],
    languageOptions: {
      sourceType: "script",
      globals: names(
        "document location history matchMedia getComputedStyle addEventListener setTimeout " +
          "requestAnimationFrame ResizeObserver Blob URL URLSearchParams Response DecompressionStream TextDecoder atob " +
          "Plotly",
      ),
    },
    rules: {
      strict: ["error", "global"],
      eqeqeq: "error",
      "no-var": "error",
      "prefer-const": "error",
      "no-implied-eval": "error",
      "no-eval": "error",
      "consistent-return": "error",
      // Outside text never becomes HTML.
      "no-restricted-properties": [
        "error",
        ...["innerHTML", "outerHTML", "insertAdjacentHTML", "write"].map((property) => ({ property })),
      ],
    },
  },
  {
    files: ["docs/_static/*.js"],
    languageOptions: {
      sourceType: "script",
      globals: names("document location IntersectionObserver Plotly DOCUMENTATION_OPTIONS"),
    },
  },
  {
    files: ["tests/js/*.mjs", "eslint.config.mjs"],
    languageOptions: { sourceType: "module", globals: names("process URL console") },
  },
];

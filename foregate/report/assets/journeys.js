"use strict";
// Menus, figure and table of one token's way through the layers (foregate/report/token_journeys.py packs the numbers).
(() => {
  const { figures, draw, say } = window.foregate;
  const ABSENT = 65535;
  const TOP = 65535;

  function numbers(text) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    return Array.from({ length: bytes.length / 2 }, (_, i) => view.getUint16(2 * i, true));
  }

  function made(tag, fields = {}, ...children) {
    const element = Object.assign(document.createElement(tag), fields);
    element.append(...children);
    return element;
  }

  /** A labelled menu. */
  function menu(text) {
    const select = made("select");
    return [made("label", { className: "menu" }, `${text} `, select), select];
  }

  function options(names, first) {
    return names.map((name, i) => made("option", { value: String(first + i), textContent: name }));
  }

  /** The tokens of a prompt: those of its prefill, then those that were written. */
  function grouped(prompt) {
    const groups = [["carried by prefill", 0, prompt.prefill], ["decoded", prompt.prefill, prompt.tokens.length]];
    return groups
      .filter(([, from, to]) => to > from)
      .map(([label, from, to]) => made("optgroup", { label }, ...options(prompt.tokens.slice(from, to), from)));
  }

  /** [layer][place] of {expert, weight} of one token. */
  function path(source, prompt, token) {
    prompt.numbers ??= { experts: numbers(prompt.experts), weights: prompt.weights && numbers(prompt.weights) };
    const { experts, weights } = prompt.numbers;
    const at = (layer, i) => (token * source.layers.length + layer) * source.k + i;
    return source.layers.map((_, layer) =>
      Array.from({ length: source.k }, (_, i) => ({
        expert: experts[at(layer, i)],
        weight: weights && (weights[at(layer, i)] / TOP) * source.top,
      })).filter((one) => one.expert !== ABSENT),
    );
  }

  function redraw(name, source, found) {
    const [points, line] = [...figures[name].data].reverse();
    const [smallest, largest] = source.sizes;
    const all = found.flatMap((experts, layer) => experts.map((one) => ({ ...one, layer: source.layers[layer] })));
    points.x = all.map((one) => one.layer);
    points.y = all.map((one) => one.expert);
    if (all.some((one) => one.weight !== null)) {
      points.marker.size = all.map((one) => smallest + ((largest - smallest) * one.weight) / source.top);
      points.customdata = all.map((one) => `, weight ${one.weight.toFixed(3)}`);
    }
    if (line) line.y = found.map((experts) => experts[0]?.expert ?? null);
    draw(name);
  }

  const written = (one) => (one.weight === null ? `${one.expert}` : `${one.expert} (${one.weight.toFixed(2)})`);

  function table(source, found) {
    const rows = found.map((experts, layer) =>
      made("tr", {}, made("th", { scope: "row", textContent: source.layers[layer] }),
        made("td", { textContent: experts.map(written).join(", ") || "none" })),
    );
    const weighted = found.flat().some((one) => one.weight !== null);
    const head = made("tr", {}, made("th", { scope: "col", textContent: "layer" }),
      made("th", { scope: "col", textContent: weighted ? "experts (gate weights)" : "experts" }));
    return made("table", { className: "facts" }, made("thead", {}, head), made("tbody", {}, ...rows));
  }

  for (const place of document.querySelectorAll("[data-script]")) {
    const name = place.dataset.script;
    const source = figures[name].script;
    const [promptLabel, promptMenu] = menu("Prompt");
    const [tokenLabel, tokenMenu] = menu("Token");
    const details = made("details", {}, made("summary", { textContent: "The same as a table" }));
    const show = () => {
      const prompt = source.prompts[Number(promptMenu.value)];
      const token = Number(tokenMenu.value);
      const found = path(source, prompt, token);
      redraw(name, source, found);
      const shown = table(source, found);
      details.replaceChildren(details.firstChild, shown);
      const layers = found.map((experts, i) => `layer ${source.layers[i]}: ${experts.map(written).join(", ") || "none"}`);
      say(name, `Prompt ${prompt.name}, token ${prompt.tokens[token]}. Experts by layer: ${layers.join("; ")}.`);
    };
    const fill = () => {
      const prompt = source.prompts[Number(promptMenu.value)];
      tokenMenu.replaceChildren(...grouped(prompt));
      tokenMenu.value = String(Math.min(source.start, prompt.tokens.length - 1));
      show();
    };
    promptMenu.replaceChildren(...options(source.prompts.map((p) => p.name), 0));
    promptMenu.addEventListener("change", fill);
    tokenMenu.addEventListener("change", show);
    place.append(promptLabel, tokenLabel);
    place.closest("figure").append(details);
    fill();
  }
})();

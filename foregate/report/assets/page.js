"use strict";
// Draws the page's figures, in the reader's theme, with their menus. Other scripts ask through window.foregate.
window.foregate = (() => {
  const { figures, looks, margin: MARGIN } = JSON.parse(document.getElementById("figures").textContent);
  const CONFIG = {
    displaylogo: false,
    displayModeBar: "hover",
    modeBarButtons: [["toImage", "zoom2d", "resetScale2d"]],
  };
  const root = document.documentElement;
  const systemDark = window.matchMedia("(prefers-color-scheme: dark)");
  const PAPER = 690; // pixels between the margins of a printed A4 or letter page
  let printing = false;

  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches);

  /** A matrix from base64 of little-endian uint16, in ten-thousandths. */
  function matrix(text) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    const side = Math.sqrt(bytes.length / 2);
    const row = (i) => Array.from({ length: side }, (_, j) => view.getUint16(2 * (i * side + j), true) / 10000);
    return Array.from({ length: side }, (_, i) => row(i));
  }

  const unpacked = (trace) => (typeof trace.z === "string" ? { ...trace, z: matrix(trace.z) } : trace);

  /** The legend goes below the figure, which grows by the lines that the legend needs. */
  function withLegend(layout, traces, width) {
    const named = traces.filter((t) => t.showlegend !== false && (t.type === "scatter" || layout.barmode));
    if (named.length < 2 || layout.showlegend === false) return { ...layout, showlegend: false };
    const longest = Math.max(...named.map((t) => t.name.length));
    const columns = Math.max(1, Math.floor((width - 40) / (longest * 7 + 50)));
    const rows = Math.ceil(named.length / columns);
    return {
      ...layout,
      height: layout.height + 20 * rows,
      margin: { ...layout.margin, b: layout.margin.b + 20 * rows + 10 },
      legend: { orientation: "h", x: 0, xanchor: "left", yref: "container", y: 0, yanchor: "bottom" },
    };
  }

  function draw(name) {
    const element = document.getElementById(name);
    const figure = figures[name];
    const margin = { ...MARGIN, ...figure.layout.margin };
    const width = printing ? PAPER : element.clientWidth;
    const layout = {
      ...withLegend({ ...figure.layout, margin }, figure.data, width),
      width,
      template: looks[isDark() && !printing ? "dark" : "light"],
    };
    element.style.minHeight = "";
    if (figure.data[0].type === "sankey") Plotly.purge(element); // else its flows fade in, and are not there on paper
    return Plotly.react(element, figure.data.map(unpacked), layout, CONFIG);
  }

  const drawAll = () => Object.keys(figures).forEach(draw);

  /** What a figure says to those who cannot see it. */
  function say(name, text) {
    document.getElementById(name).setAttribute("aria-label", `${figures[name].title}. ${text}`);
  }

  /** The view that a menu names. */
  function choose(name, label) {
    const figure = figures[name];
    figure.data = figure.views[label];
    if (figure.texts) say(name, figure.texts[label]);
  }

  const menus = [...document.querySelectorAll("select[data-figure]")];
  for (const menu of menus) {
    choose(menu.dataset.figure, menu.value); // a browser may remember another than the first
    menu.addEventListener("change", () => {
      for (const other of menus.filter((m) => m.dataset.menu === menu.dataset.menu)) {
        other.value = menu.value;
        choose(other.dataset.figure, menu.value);
        draw(other.dataset.figure);
      }
    });
  }

  const button = document.getElementById("theme");
  const nameButton = () => { button.textContent = isDark() ? "Light page" : "Dark page"; };
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    nameButton();
    drawAll();
  });
  systemDark.addEventListener("change", () => { nameButton(); drawAll(); });
  window.addEventListener("beforeprint", () => { printing = true; drawAll(); });
  window.addEventListener("afterprint", () => { printing = false; drawAll(); });
  nameButton();

  /** One figure after the other, so that the page can be read meanwhile. */
  async function drawSoon() {
    for (const name of Object.keys(figures)) {
      await draw(name);
      await new Promise((next) => setTimeout(next));
    }
  }
  drawSoon();

  // Figures are as wide as their place, also when that changes; plotly itself looks at the window only. The heading is
  // watched, for it is as wide as the page and no figure changes it.
  const heading = document.querySelector("main > header");
  let known = heading.clientWidth;
  new ResizeObserver(() => {
    if (known === heading.clientWidth || printing) return;
    known = heading.clientWidth;
    drawAll();
  }).observe(heading);

  return { figures, draw, say };
})();

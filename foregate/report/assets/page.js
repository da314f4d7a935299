"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const CONFIG = {
    responsive: true,
    displaylogo: false,
    displayModeBar: "hover",
    modeBarButtons: [["toImage", "zoom2d", "resetScale2d"]],
  };
  // Fixed: plotly's own expansion of margins goes back and forth in narrow figures, and gives up with a warning.
  const MARGIN = { l: 62, r: 12, t: 26, b: 52, autoexpand: false };
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  let printing = false;

  /** Colours of the page as a plotly template. */
  function template(isDark) {
    const ink = isDark ? "#e7eaee" : "#1b1f24";
    const line = isDark ? "#363d46" : "#d5dae0";
    const axis = { gridcolor: line, linecolor: line, zerolinecolor: line };
    return {
      layout: {
        paper_bgcolor: "rgba(0,0,0,0)",
        plot_bgcolor: "rgba(0,0,0,0)",
        font: { color: ink, family: 'system-ui, "Segoe UI", Roboto, sans-serif', size: 12 },
        xaxis: axis,
        yaxis: axis,
        hoverlabel: { bgcolor: isDark ? "#1d2127" : "#ffffff", bordercolor: line, font: { color: ink } },
        modebar: { bgcolor: "rgba(0,0,0,0)", color: isDark ? "#7d8791" : "#8a939c", activecolor: ink },
      },
    };
  }

  /** A matrix from base64 of little-endian uint16, in ten-thousandths. */
  function matrix(text) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    const side = Math.sqrt(bytes.length / 2);
    const row = (i) => Array.from({ length: side }, (_, j) => view.getUint16(2 * (i * side + j), true) / 10000);
    return Array.from({ length: side }, (_, i) => row(i));
  }

  /** The legend goes below the figure, which grows by the lines that the legend needs. */
  function withLegend(layout, traces, width) {
    const names = traces.filter((t) => t.type === "scatter" || layout.barmode);
    if (names.length < 2) return { ...layout, showlegend: false };
    const longest = Math.max(...names.map((t) => t.name.length));
    const columns = Math.max(1, Math.floor((width - 40) / (longest * 7 + 50)));
    const rows = Math.ceil(names.length / columns);
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
    const layout = {
      ...withLegend({ ...figure.layout, margin }, figure.data, element.clientWidth),
      template: template(dark.matches && !printing),
    };
    element.style.minHeight = "";
    return Plotly.react(element, figure.data, layout, CONFIG);
  }

  function choose(name, label) {
    figures[name].data[0].z = matrix(figures[name].choices[label]);
    draw(name);
  }

  const drawAll = () => Object.keys(figures).forEach(draw);

  /** Sort by the value of a column: the best first, then the other way round; empty cells stay last. */
  function sort(header) {
    const table = header.closest("table");
    const body = table.tBodies[0];
    const column = header.cellIndex;
    const other = { ascending: "descending", descending: "ascending" };
    const direction = header.ariaSort ? other[header.ariaSort] : header.dataset.first;
    const sign = direction === "ascending" ? 1 : -1;
    const value = (row) => row.cells[column].dataset.value;
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const gap = column === 0 ? x.localeCompare(y) : Number(x) - Number(y);
      return sign * gap;
    });
    for (const cell of table.tHead.rows[0].cells) cell.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", direction);
    body.append(...rows);
  }

  for (const button of document.querySelectorAll(".board thead button")) {
    button.addEventListener("click", () => sort(button.closest("th")));
  }
  for (const menu of document.querySelectorAll("select[data-figure]")) {
    menu.addEventListener("change", () => choose(menu.dataset.figure, menu.value));
    figures[menu.dataset.figure].data[0].z = matrix(figures[menu.dataset.figure].choices[menu.value]);
  }
  dark.addEventListener("change", drawAll);
  window.addEventListener("beforeprint", () => { printing = true; drawAll(); });
  window.addEventListener("afterprint", () => { printing = false; drawAll(); });
  drawAll();
})();

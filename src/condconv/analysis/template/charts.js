"use strict";
// How figures are drawn: colours, sizes, the keyboard and paper. What is drawn is for page.js to say.
const charts = (function () {
  const NARROW = matchMedia("(max-width: 640px)");
  const WIDE = matchMedia("(min-width: 920px)");
  const DARK = matchMedia("(prefers-color-scheme: dark)");
  const PAPER_WIDTH = 640; // pixels; a page of A4 with its margins has about 700
  const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  const drawn = new Map(); // element -> figure, to draw again when light and dark change
  const read = new WeakMap(); // element -> row and column of the value that the keyboard is at

  function colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  }

  function themed(figure) {
    const layout = structuredClone(figure.layout);
    const axis = { gridcolor: colour("line"), zerolinecolor: colour("line"), linecolor: colour("line"),
      automargin: true, fixedrange: true };
    layout.xaxis = { ...axis, ...layout.xaxis };
    layout.yaxis = { ...axis, ...layout.yaxis, ...(NARROW.matches ? figure.narrow : {}) };
    Object.assign(layout, {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", dragmode: false,
      font: { color: colour("text"), family: getComputedStyle(document.body).fontFamily, size: 12 },
      colorway: [colour("first"), colour("second")],
      margin: { l: 44, r: 8, t: 8, b: 40 },
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
      hoverlabel: { bgcolor: colour("text"), font: { color: colour("card") } },
    });
    if (layout.coloraxis) {
      layout.coloraxis.colorscale = [0, 1, 2, 3].map((step) => [step / 3, colour("scale-" + step)]);
      layout.coloraxis.colorbar.outlinewidth = 0;
      if (NARROW.matches) layout.coloraxis.colorbar.title.text = ""; // the heading says it
      // Beside two other charts there is room for taller rows.
      if (WIDE.matches) layout.height = Math.max(layout.height, 640);
    }
    if (printing()) layout.width = PAPER_WIDTH;
    return layout;
  }

  function printing() {
    return document.documentElement.classList.contains("printing");
  }

  function draw(place, figure) {
    drawn.set(place, figure);
    read.delete(place);
    const traces = structuredClone(figure.data);
    for (const trace of traces) if (trace.error_y) trace.error_y.color = colour("text");
    Plotly.react(place, traces, themed(figure), { displayModeBar: false, responsive: true });
    openLegend(place);
  }

  function redraw() {
    drawn.forEach((figure, place) => draw(place, figure));
  }

  // The keys of a legend, which plotly leaves to the mouse.
  function openLegend(place) {
    place.querySelectorAll(".legendtoggle").forEach((key, index) => {
      const hidden = place.data[index].visible === "legendonly";
      for (const [name, value] of [["tabindex", "0"], ["role", "button"], ["aria-label", place.data[index].name],
        ["aria-pressed", String(!hidden)]]) key.setAttribute(name, value);
      key.onkeydown = (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        Plotly.restyle(place, { visible: hidden ? true : "legendonly" }, [index]).then(() => {
          openLegend(place);
          place.querySelectorAll(".legendtoggle")[index].focus();
        });
      };
    });
  }

  // Rows of a heatmap and its columns, or else curves and their points.
  function step(place, [down, right]) {
    const isMap = place.data[0].type === "heatmap";
    const rows = isMap ? place.data[0].z : place.data.map((trace) => trace.y);
    const before = read.get(place);
    const row = before ? clamp(before.row + down, rows.length) : 0;
    const column = before ? clamp(before.column + right, rows[0].length) : 0;
    read.set(place, { row, column });
    Plotly.Fx.hover(place, [isMap ? { xval: column, yval: row } : { curveNumber: row, pointNumber: column }]);
  }

  function clamp(index, length) {
    return Math.max(0, Math.min(length - 1, index));
  }

  function shownText(place) {
    return [...place.querySelectorAll(".hovertext tspan.line, .hovertext text:not(:has(tspan))")]
      .map((each) => each.textContent).filter(Boolean).join(", ");
  }

  // The arrow keys show the values one by one, as the mouse does, and `spoken` says them.
  function listen(place, spoken) {
    place.addEventListener("keydown", (event) => {
      if (event.target !== place || !STEPS[event.key]) return;
      event.preventDefault();
      step(place, STEPS[event.key]);
      // Plotly shows at most one value in 50 milliseconds.
      setTimeout(() => { if (read.has(place)) spoken.textContent = shownText(place); }, 80);
    });
    place.addEventListener("blur", () => {
      read.delete(place);
      Plotly.Fx.unhover(place);
      spoken.textContent = "";
    });
  }

  for (const query of [NARROW, WIDE, DARK]) query.addEventListener("change", redraw);
  // Paper is light, and narrower than most screens.
  for (const [event, start] of [["beforeprint", true], ["afterprint", false]]) {
    addEventListener(event, () => {
      document.documentElement.classList.toggle("printing", start);
      redraw();
      if (!start) drawn.forEach((figure, place) => Plotly.Plots.resize(place));
    });
  }
  return { draw, listen };
})();

"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const specs = read("specs");
  const histograms = read("histograms");
  const axis = {
    labelColor: "var(--muted)", titleColor: "var(--muted)", titleFontWeight: "normal", labelFontSize: 11,
    titleFontSize: 11, gridColor: "var(--grid)", domainColor: "var(--rule)", tickColor: "var(--rule)", labelPadding: 4,
  };
  const options = {
    mode: "vega-lite", renderer: "svg", actions: false, ast: true, defaultStyle: false,
    tooltip: { theme: "custom", disableDefaultStyle: true },
    config: { background: null, font: "system-ui, sans-serif", view: { stroke: null }, axis, axisX: { grid: false } },
  };
  const number = new Intl.NumberFormat("en", { maximumSignificantDigits: 4, useGrouping: false });
  const say = (value) => (value === null ? "–" : number.format(value).replace("-", "−"));

  // A chart is as wide as its place, so that one in a closed part is drawn when that is opened.
  const views = new Map();
  const draw = async (place) => {
    if (views.has(place) || !place.checkVisibility()) return false;
    views.set(place, null);
    const { view } = await vegaEmbed(place, specs[place.dataset.chart], options);
    views.set(place, view);
    place.closest(".bars")?.querySelector("input").dispatchEvent(new Event("input"));
    return true;
  };
  const drawWithin = async (part) => {
    for (const place of part.querySelectorAll(".chart")) {
      if (!(await draw(place))) continue;
      await new Promise((next) => setTimeout(next));  // what the reader does comes first
    }
  };

  for (const details of document.querySelectorAll("details"))
    details.addEventListener("toggle", () => details.open && drawWithin(details));

  for (const choice of document.querySelectorAll(".choice"))
    choice.addEventListener("change", (event) => {
      for (const detail of choice.parentElement.querySelectorAll(":scope > .detail"))
        detail.hidden = detail.id !== event.target.value;
      drawWithin(choice.parentElement);
    });

  // Through training: the right of each pair is drawn with the chosen checkpoint.
  for (const slider of document.querySelectorAll("input.checkpoint")) {
    const part = slider.closest(".through");
    const numbers = slider.dataset.checkpoints.split(" ");
    const figures = [...part.querySelectorAll("figure")];
    for (const figure of figures) {
      const [first, second] = figure.querySelectorAll("img");
      const start = first.cloneNode();
      start.hidden = true;
      second.before(start);  // so that the slider's left end is the first checkpoint
    }
    const show = () => {
      const chosen = Number(slider.value);
      slider.setAttribute("aria-valuetext", `checkpoint ${numbers[chosen]}`);
      part.querySelector("output").textContent = `checkpoint ${numbers[chosen]} of ${numbers.at(-1)}`;
      for (const figure of figures) {
        [...figure.querySelectorAll("img")].slice(1).forEach((image, index) => (image.hidden = index !== chosen));
        const values = JSON.parse(figure.dataset.values);
        const text = figure.querySelector(".values");
        if (text && values.length) text.textContent = `${say(values[0])} → ${say(values[chosen])}`;
      }
    };
    slider.addEventListener("input", show);
    show();
  }

  for (const slider of document.querySelectorAll("input.iteration")) {
    const { start, width, iterations, counts } = histograms[slider.dataset.histogram];
    const part = slider.closest(".detail");
    const show = () => {
      const chosen = Number(slider.value);
      part.querySelector("output").textContent = `iteration ${iterations[chosen]} of ${iterations.at(-1)}`;
      slider.setAttribute("aria-valuetext", `iteration ${iterations[chosen]}`);
      const view = views.get(part.querySelector(".bars .chart"));
      if (view) {
        const bars = counts[chosen].map((count, bin) => ({ low: start + bin * width, high: start + (bin + 1) * width, count }));
        view.data("bars", bars).run();
      }
    };
    slider.addEventListener("input", show);
    show();
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    const headings = [...table.tHead.rows[0].cells];
    const collator = new Intl.Collator("en", { numeric: true });
    headings.forEach((heading, column) =>
      heading.querySelector("button").addEventListener("click", () => {
        const upward = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
        const isNumber = heading.classList.contains("n");
        const value = (row) => {
          const cell = row.cells[column];
          return isNumber ? Number(cell.dataset.value || NaN) : cell.textContent;
        };
        const rows = [...body.rows];
        rows.sort((one, other) => {
          const [left, right] = [value(one), value(other)];
          if (!isNumber) return upward * collator.compare(left, right);
          if (isNaN(left) || isNaN(right)) return isNaN(left) - isNaN(right);  // what is unknown stays last
          return upward * (left - right);
        });
        body.append(...rows);
        for (const other of headings) other.removeAttribute("aria-sort");
        heading.setAttribute("aria-sort", upward === 1 ? "ascending" : "descending");
      }));
  }

  drawWithin(document).then(() => (document.documentElement.dataset.state = "drawn"));
})();

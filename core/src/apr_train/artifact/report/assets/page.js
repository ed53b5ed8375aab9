"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const hidden = new Set();
  const figures = [...document.querySelectorAll(".panel")].map((figure) => ({
    figure, name: figure.dataset.panel, panel: data.panels[figure.dataset.panel], area: figure.querySelector(".area"), marks: [],
  }));

  const make = (parent, classes, text = "") => {
    const node = document.createElement("div");
    node.className = classes;
    node.textContent = text;
    parent.append(node);
    return node;
  };
  const number = (value) => {
    const size = Math.abs(value);
    if (value === 0) return "0";
    if (size >= 1e4) return Math.round(value).toLocaleString("en");
    return size >= 1e-3 ? String(Number(value.toPrecision(5))) : value.toExponential(3).replace("e+", "e");
  };
  const x = ({steps: [first, last]}, step) => (last > first ? (step - first) / (last - first) : 0.5);
  const y = ({values, log}, value) => {
    const scale = log ? Math.log10 : (v) => v;
    return 1 - (scale(value) - scale(values[0])) / (scale(values[1]) - scale(values[0]));
  };
  const nearest = (points, step) => {
    let low = 0, high = points.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (points[middle][0] <= step) low = middle; else high = middle;
    }
    return step - points[low][0] <= points[high][0] - step ? points[low] : points[high];
  };

  const clear = () => figures.forEach((item) => item.marks.splice(0).forEach((mark) => mark.remove()));

  const show = (step, active) => {
    clear();
    for (const item of figures) {
      const {panel, area, marks} = item;
      const line = make(area, "cursor");
      line.style.left = `${100 * x(panel, step)}%`;
      marks.push(line);
      const rows = panel.series.filter((series) => !hidden.has(series.run)).map((series) => {
        const points = series.smoothed.length ? series.smoothed : series.points;
        const dotted = nearest(points, step);
        const dot = make(area, `dot run-${series.run % 8}`);
        dot.style.left = `${100 * x(panel, dotted[0])}%`;
        dot.style.top = `${100 * y(panel, dotted[1])}%`;
        marks.push(dot);
        return [series.run, nearest(series.points, step)];
      });
      if (item === active && rows.length) marks.push(tip(item, step, rows));
    }
  };

  const tip = ({name, panel, area}, step, rows) => {
    const box = make(area, "tip");
    const title = document.createElement("b");
    title.textContent = `step ${step.toLocaleString("en")}`;
    box.append(title);
    for (const [run, [at, value]] of rows) {
      const row = make(box, "");
      const key = document.createElement("span");
      key.className = `key run-${run % 8}${run >= 8 ? " again" : ""}`;
      const text = document.createElement("span");
      const where = at === step ? "" : `at ${at.toLocaleString("en")}`;
      text.textContent = data.runs.length > 1 ? `${data.runs[run]} ${where}` : where;
      const shown = document.createElement("i");
      shown.textContent = number(value) + (name === "val_loss" && value < 20 ? `  (ppl ${number(Number(Math.exp(value).toPrecision(4)))})` : "");
      row.append(key, text, shown);
    }
    const left = x(panel, step) * area.clientWidth;
    const room = area.clientWidth - box.offsetWidth;
    box.style.left = `${Math.max(-40, left + 14 > room ? left - box.offsetWidth - 14 : left + 14)}px`;
    box.style.top = "4px";
    return box;
  };

  for (const item of figures) {
    item.area.addEventListener("pointermove", (event) => {
      const box = item.area.getBoundingClientRect();
      const [first, last] = item.panel.steps;
      const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
      show(Math.round(first + share * (last - first)), item);
    });
    item.area.addEventListener("pointerleave", clear);
  }
  for (const button of document.querySelectorAll(".legend button")) {
    button.addEventListener("click", () => {
      const run = Number(button.dataset.run);
      const off = !hidden.delete(run);
      if (off) hidden.add(run);
      button.setAttribute("aria-pressed", String(!off));
      for (const path of document.querySelectorAll(`svg [data-run="${run}"]`)) path.classList.toggle("hidden", off);
      clear();
    });
  }
})();

// Shows the values at the pointer. What comes from the report is only ever set as text.
"use strict";
const hovers = JSON.parse(document.getElementById("hovers").textContent);

// The point nearest to x; points are in the order of their x.
const nearest = (points, x) => {
  let low = 0, high = points.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < x) low = middle + 1; else high = middle;
  }
  return low > 0 && x - points[low - 1][0] < points[low][0] - x ? points[low - 1] : points[low];
};

for (const chart of document.querySelectorAll("svg.chart")) {
  const { reach, top, bottom, heads, columns } = hovers[chart.dataset.hover];
  const figure = chart.closest("figure");
  const pointer = chart.querySelector(".pointer");
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  figure.append(tip);

  const visible = name => {
    const box = figure.querySelector(".show-" + name);
    return !box || box.checked;
  };
  const show = event => {
    if (!heads.length) return;
    const box = chart.getBoundingClientRect();
    const scale = chart.viewBox.baseVal.width / box.width;
    const [x, head] = nearest(heads, (event.clientX - box.left) * scale);
    pointer.setAttribute("d", `M${x} ${top}V${bottom}`);
    tip.replaceChildren();
    tip.append(Object.assign(document.createElement("b"), { textContent: head }));
    for (const { name, class: classes, points } of columns) {
      if (!points.length || !classes.split(" ").every(visible)) continue;
      const [at, text] = nearest(points, x);
      if (Math.abs(at - x) > reach) continue;
      const row = document.createElement("div");
      row.className = classes;
      const value = document.createElement("span");
      value.textContent = text;
      row.append(document.createElement("i"), name, value);
      tip.append(row);
    }
    tip.hidden = false;
    const around = figure.getBoundingClientRect();
    const left = x / scale + box.left - around.left;
    const room = left + 20 + tip.offsetWidth < around.width;
    tip.style.left = `${Math.max(4, room ? left + 16 : left - 16 - tip.offsetWidth)}px`;
    tip.style.top = `${box.top - around.top + 10}px`;
  };
  const hide = () => { tip.hidden = true; pointer.removeAttribute("d"); };
  chart.addEventListener("pointermove", show);
  chart.addEventListener("pointerdown", show);
  chart.addEventListener("pointerleave", hide);
}

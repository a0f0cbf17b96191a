// The interactive chart of the page on performance: how many times as fast softxent is as each other library, for a task
// and a shape that the reader chooses. The numbers stand in the page, as JSON; the tables below have them, too.
document.addEventListener("DOMContentLoaded", () => {
  const chart = document.querySelector(".ratios");
  if (!chart) return;
  const measured = JSON.parse(chart.querySelector("script").textContent);

  const choice = (name, options) => {
    const label = document.createElement("label");
    const select = document.createElement("select");
    for (const option of options) select.add(new Option(option));
    select.addEventListener("change", draw);
    label.append(`${name} `, select);
    chart.append(label);
    return select;
  };
  const tasks = choice("Compute", Object.keys(measured));
  const shapes = choice("for", Object.keys(Object.values(measured)[0]));
  const bars = chart.appendChild(document.createElement("ul"));

  function draw() {
    const ratios = Object.entries(measured[tasks.value][shapes.value]).sort((a, b) => a[1] - b[1]);
    const largest = Math.max(1, ...ratios.map(([, ratio]) => ratio));
    bars.replaceChildren(
      ...ratios.map(([name, ratio]) => {
        const row = document.createElement("li");
        const bar = document.createElement("span");
        bar.className = ratio < 1 ? "bar faster" : "bar";
        bar.style.width = `${(60 * ratio) / largest}%`;
        const text = ratio < 1 ? `${ratio.toPrecision(2)}: it is faster` : `${ratio.toPrecision(2)} times as fast`;
        row.append(Object.assign(document.createElement("span"), { className: "name", textContent: name }), bar, text);
        return row;
      }),
    );
  }
  draw();
});

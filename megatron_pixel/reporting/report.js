// Values under the pointer. Without scripts the page says the same, only less closely.
for (const figure of document.querySelectorAll("figure.chart")) {
  const canvas = figure.querySelector(".canvas");
  const curves = JSON.parse(figure.querySelector("script").textContent);
  const cross = document.createElement("div");
  const tip = document.createElement("div");
  cross.className = "cross";
  tip.className = "tip";
  const nearest = (places, x) => {
    let best = 0;
    places.forEach((place, i) => { if (Math.abs(place - x) < Math.abs(places[best] - x)) best = i; });
    return best;
  };
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width;
    const longest = curves.reduce((a, b) => (b.x.length > a.x.length ? b : a));
    const at = nearest(longest.x, x);
    tip.replaceChildren();
    const head = document.createElement("b");
    head.textContent = "step " + longest.step[at].toLocaleString("en");
    tip.append(head);
    for (const curve of curves) {
      const i = nearest(curve.x, longest.x[at]);
      const line = document.createElement("div");
      const dot = document.createElement("i");
      line.className = curve.color;
      line.append(dot, curve.name + " " + curve.y[i]);
      tip.append(line);
    }
    canvas.append(cross, tip);
    cross.style.left = 100 * longest.x[at] + "%";
    const right = x > 0.55;
    tip.style.left = right ? "" : `calc(${100 * longest.x[at]}% + 8px)`;
    tip.style.right = right ? `calc(${100 * (1 - longest.x[at])}% + 8px)` : "";
  });
  canvas.addEventListener("pointerleave", () => { cross.remove(); tip.remove(); });
}

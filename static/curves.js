// Live curves by uPlot: every <figure class="curve" data-curve="URL"> asks its URL for
//   {"series": [{"label": "DPO seed 1", "arm": "dpo", "part": "train", "step": [1, 2], "seconds": [0.4, 0.9], "value": [0.69, null]}],
//    "is_live": true, "y_label": "loss"}
// (part: "train" is always solid, "dev" always dashed, in the figure and in its legend; where there is none, dashes tell series apart)
// and again every 2 s while is_live and the tab is seen. Series may have different steps (runs overlaid). The raw curve stays
// faint under the smoothed one. data-sync="name" shares the cursor with the page's other figures of that name. How curves are shown
// (?smooth=0.9&log=1&over=seconds) holds for the whole page and stands in its address, so that a link shows the same.
"use strict";

(() => {
  const REFRESH_MS = 2000;
  const HEIGHT = 240;

  const token = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const colourOf = (arm) => (arm ? token(`--arm-${arm.replaceAll("_", "-")}`) || token("--arm-other") : token("--accent"));
  const DASHES = [[], [7, 4], [2, 3], [9, 3, 2, 3]]; // series of one colour are told apart by their dashes
  const DEV_DASHES = DASHES.slice(1);

  // the library gives a curve that never moves an axis of its own choosing: 0 to 100 for a constant 0
  function rangeOf(u, low, high) {
    if (low === null) return [null, null];
    if (low !== high) return uPlot.rangeNum(low, high, 0.1, true);
    const room = Math.abs(low) / 10 || 1;
    return [low - room, high + room];
  }

  // the library's own labels end after three decimals: 0.0025 and 0.0075 would read 0.003 and 0.008
  function sayTick(value) {
    if (value === null || value === undefined) return "";
    const size = Math.abs(value);
    if (size && (size < 1e-4 || size >= 1e7)) return value.toExponential(1).replaceAll("-", "−");
    return Number(value.toPrecision(4)).toLocaleString("en-GB", { maximumSignificantDigits: 4 }).replace("-", "−");
  }

  // How the nth series of a colour and part is drawn: runs laid over another of the same method are fainter.
  function styleOf(part, nth) {
    if (!part) return { dash: DASHES[nth % DASHES.length], alpha: 1 };
    return { dash: part === "dev" ? DEV_DASHES[nth % DEV_DASHES.length] : [], alpha: Math.max(0.4, 1 - 0.3 * nth) };
  }

  // Exponential mean without the bias of its start (as in Kingma & Ba 2015, sec. 3), skipping what was not measured.
  function smooth(values, weight) {
    if (!weight) return values;
    let mean = 0;
    let power = 1;
    return values.map((value) => {
      if (value === null || value === undefined) return null;
      mean = weight * mean + (1 - weight) * value;
      power *= weight;
      return mean / (1 - power);
    });
  }

  const figures = () => [...document.querySelectorAll("figure[data-is-drawn]")].map((figure) => figure.curve).filter(Boolean);

  function readState() {
    const asked = new URLSearchParams(location.search);
    const weight = Number(asked.get("smooth"));
    return { weight: weight > 0 && weight <= 0.98 ? weight : 0, isLog: asked.get("log") === "1", x: asked.get("over") === "seconds" ? "seconds" : "step" };
  }

  function changeState(changes) {
    const { weight, isLog, x } = { ...readState(), ...changes };
    const url = new URL(location.href);
    const said = { smooth: weight || "", log: isLog ? 1 : "", over: x === "seconds" ? x : "" };
    for (const [name, value] of Object.entries(said)) {
      if (value) url.searchParams.set(name, value);
      else url.searchParams.delete(name);
      for (const input of document.querySelectorAll(`input[data-curves="${name}"]`)) input.value = value;
    }
    history.replaceState(history.state, "", url);
    for (const curve of figures()) curve.show();
  }

  class Curve {
    constructor(figure) {
      this.figure = figure;
      this.state = readState();
      this.data = null;
      this.plot = null;
      this.makeControls();
      this.canvas = figure.appendChild(document.createElement("div"));
      this.canvas.className = "canvas";
      this.note = figure.appendChild(document.createElement("p"));
      this.note.className = "quiet small";
      new ResizeObserver(() => this.plot?.setSize({ width: this.canvas.clientWidth, height: HEIGHT })).observe(this.canvas);
      matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
      this.load();
    }

    makeControls() {
      const row = document.createElement("div");
      row.className = "controls";
      row.innerHTML = `<label>Smooth <input type="range" min="0" max="0.98" step="0.02" value="0"></label>
        <label><input type="checkbox"> log</label>
        <label>over <select><option value="step">steps</option><option value="seconds">time</option></select></label>
        <a href="#" download>CSV</a>`;
      const [range, box] = row.querySelectorAll("input");
      range.addEventListener("input", () => changeState({ weight: Number(range.value) }));
      box.addEventListener("change", () => changeState({ isLog: box.checked }));
      const over = row.querySelector("select");
      over.addEventListener("change", () => changeState({ x: over.value }));
      this.setControls = () => { range.value = this.state.weight; box.checked = this.state.isLog; over.value = this.state.x; };
      this.setControls();
      const link = row.querySelector("a");
      link.download = (this.figure.querySelector("figcaption")?.textContent.trim() || "curve").replace(/[^\w.-]+/g, "-") + ".csv";
      link.addEventListener("click", () => { link.href = URL.createObjectURL(new Blob([this.csv()], { type: "text/csv" })); });
      this.figure.append(row);
    }

    show() {
      this.state = readState();
      this.setControls();
      this.draw();
    }

    async load() {
      if (!this.figure.isConnected) return; // swapped away
      let isLive = true;
      if (!document.hidden) {
        try {
          const response = await fetch(this.figure.dataset.curve, { headers: { Accept: "application/json" } });
          if (!response.ok) throw new Error(`the server answered ${response.status}`);
          this.data = await response.json();
          isLive = Boolean(this.data.is_live);
          this.draw();
        } catch (error) {
          this.note.textContent = `No curve: ${error.message}.`;
        }
      }
      if (isLive) setTimeout(() => this.load(), REFRESH_MS);
    }

    // One table [x, raw…, smoothed…] joined over all series' own x values.
    table() {
      const { weight, isLog, x } = this.state;
      const clean = (v) => (v === null || !Number.isFinite(v) || (isLog && v <= 0) ? null : v);
      const tables = this.data.series.map((s) => {
        const raw = s.value.map(clean);
        return weight ? [s[x], raw, smooth(raw, weight)] : [s[x], raw];
      });
      return uPlot.join(tables);
    }

    draw() {
      if (!this.data) return;
      const drawn = this.data.series.filter((s) => s.value.length);
      this.note.textContent = drawn.length ? "" : "Nothing measured yet.";
      this.plot?.destroy();
      this.plot = null;
      if (!drawn.length) return;
      const axis = { stroke: token("--soft"), grid: { stroke: token("--line"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
      const number = (u, v) => (v === null || v === undefined ? "–" : Number(v.toPrecision(4)).toString());
      const series = [{ label: this.state.x === "step" ? "step" : "seconds" }];
      const nth = {};
      for (const s of this.data.series) {
        const stroke = colourOf(s.arm);
        const key = `${stroke} ${s.part ?? ""}`;
        nth[key] = (nth[key] ?? -1) + 1;
        const line = { label: s.label, stroke, ...styleOf(s.part, nth[key]), width: 1.75, spanGaps: true, points: { show: s.value.length < 12, size: 5, fill: stroke }, value: number };
        if (this.state.weight) series.push({ ...line, label: `${s.label} (raw)`, class: "raw", dash: [], width: 1, alpha: 0.35, points: { show: false } }, line);
        else series.push(line);
      }
      const options = {
        width: this.canvas.clientWidth, height: HEIGHT, series,
        axes: [{ ...axis, size: 32 }, { ...axis, size: 58, values: (u, splits) => splits.map(sayTick) }],
        scales: { x: { time: false }, y: this.state.isLog ? { distr: 3 } : { distr: 1, range: rangeOf } },
        legend: { markers: { width: 2, dash: (u, i) => (u.series[i].dash?.length ? "dashed" : "solid") } },
        cursor: this.figure.dataset.sync ? { sync: { key: this.figure.dataset.sync } } : {},
      };
      this.plot = new uPlot(options, this.table(), this.canvas);
    }

    csv() {
      const quote = (text) => `"${String(text).replaceAll('"', '""')}"`;
      const rows = (this.data?.series ?? []).flatMap((s) => s.step.map((step, i) => [quote(s.label), step, s.seconds[i], s.value[i] ?? ""].join(",")));
      return ["series,step,seconds,value", ...rows].join("\n") + "\n";
    }
  }

  window.startCurves = () => {
    for (const figure of document.querySelectorAll("figure[data-curve]:not([data-is-drawn])")) {
      figure.dataset.isDrawn = "";
      figure.curve = new Curve(figure);
    }
  };
})();

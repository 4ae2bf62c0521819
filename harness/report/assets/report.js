/* Draws the charts from the page's data block, sorts the table, shows explanations. Decides nothing about the numbers. */
(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const cellOf = new Map(data.cells.map((c) => [c.id, c]));

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const colour = (cell) => css(cell.hue === null ? "--native" : `--m${cell.hue}`);
  const escape = (s) => String(s).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
  const wrap = (s, width = 72) => {
    const lines = [""];
    for (const word of String(s).split(" ")) {
      if ((lines[lines.length - 1] + word).length > width) lines.push("");
      lines[lines.length - 1] += `${word} `;
    }
    return lines.map((l) => escape(l.trim())).join("<br>");
  };
  const narrow = () => window.innerWidth < 760;
  const config = { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]], toImageButtonOptions: { format: "svg", filename: "quant-harness" } };

  /* ---- layout shared by all charts */
  function axis(column, extra = {}) {
    const unit = column.unit ? ` (${column.unit})` : "";
    const arrow = column.better === "lower" ? " · lower is better" : column.better === "higher" ? " · higher is better" : "";
    return {
      title: { text: escape(column.title) + escape(unit) + `<span style="color:${css("--soft")}">${narrow() ? "" : arrow}</span>`, standoff: 12, font: { size: 13 } },
      gridcolor: css("--grid"), linecolor: css("--line"), zeroline: false, ticks: "outside", tickcolor: css("--line"), automargin: true, ...extra,
    };
  }
  function layout(extra) {
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { family: css("--sans"), size: 12.5, color: css("--ink") },
      margin: { l: 64, r: 24, t: 24, b: 56 }, hovermode: "closest", dragmode: "pan",
      hoverlabel: { bgcolor: css("--panel"), bordercolor: css("--line"), font: { family: css("--sans"), size: 12.5, color: css("--ink") }, align: "left" },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--soft"), activecolor: css("--ink"), orientation: "v" },
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, xanchor: "left", font: { size: 12.5 }, itemsizing: "constant" }, ...extra,
    };
  }
  /* A logarithmic axis has no zero: exact zeros (a baseline's divergence from itself) are drawn below the smallest number and say so. */
  function logScale(column, values, wide = false) {
    const positive = values.filter((v) => v > 0);
    const spread = wide && positive.length === values.length && Math.max(...positive) / Math.min(...positive) > 4;
    if (!(column.log || spread) || !positive.length || values.some((v) => v < 0)) return { log: false, at: (v) => v, floor: null };
    const low = Math.min(...positive), high = Math.max(...positive), zero = values.some((v) => v === 0);
    if (!zero && high / low < 3) return { log: false, at: (v) => v, floor: null };
    const floor = zero ? low / Math.max(2, Math.pow(high / low, 0.12)) : null;
    return { log: true, at: (v) => (v === 0 ? floor : v), floor };
  }
  function logTicks(scale, values, unitless) {
    if (!scale.log) return {};
    const shown = values.map(scale.at), low = Math.min(...shown), high = Math.max(...shown);
    const ticks = { type: "log" };
    const decades = Math.log10(high / low), steps = decades > 2.2 ? [1] : decades > 1.1 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 7];
    const vals = [];
    for (let e = Math.floor(Math.log10(low)) - 1; e <= Math.ceil(Math.log10(high)); e++)
      for (const s of steps) { const v = s * Math.pow(10, e); if (v >= low * 0.8 && v <= high * 1.25 && (scale.floor === null || v > scale.floor * 1.2)) vals.push(v); }
    ticks.tickvals = vals; ticks.ticktext = vals.map((v) => String(Number(v.toPrecision(2))));
    if (scale.floor !== null) { ticks.tickvals.push(scale.floor); ticks.ticktext.push("0"); }
    return ticks;
  }
  function bars(cells, index, scale, color) {
    /* on a logarithmic axis a bar cannot reach zero: it ends at a fiftieth of its value */
    const sides = cells.map((c) => c.v[index]).map(([v, low, high]) => ({ plus: high === null ? 0 : Math.max(0, high - v), minus: low === null ? 0 : Math.max(0, v - (scale.log ? Math.max(low, v / 50) : low)) }));
    return { type: "data", symmetric: false, array: sides.map((s) => s.plus), arrayminus: sides.map((s) => s.minus), color, thickness: 1.1, width: 0, visible: sides.some((s) => s.plus || s.minus) };
  }

  /* ---- quality against cost */
  function pareto() {
    const plot = byId("pareto-plot");
    if (!plot) return;
    const q = Number(byId("pareto-quality").value), c = Number(byId("pareto-cost").value);
    const model = byId("pareto-model") ? Number(byId("pareto-model").value) : 0;
    const standing = data.standing[`${model},${c},${q}`] || {};
    const cells = data.cells.filter((cell) => cell.model === model && cell.v[q] && cell.v[c]);
    const quality = data.columns[q], cost = data.columns[c];
    const sx = logScale(cost, cells.map((x) => x.v[c][0]), true), sy = logScale(quality, cells.map((x) => x.v[q][0]));
    const ranges = byId("pareto-range").value === "near" ? near(cells, c, q, sx, sy) : [{}, {}];
    const front = cells.filter((x) => (standing[x.id] || [])[0] === "frontier").sort((a, b) => a.v[c][0] - b.v[c][0]);
    const step = cost.better === "lower" ? "hv" : "vh";
    const traces = [{
      type: "scatter", mode: "lines", x: front.map((x) => sx.at(x.v[c][0])), y: front.map((x) => sy.at(x.v[q][0])), line: { shape: step, color: css("--front"), width: 1.3, dash: "dot" },
      hoverinfo: "skip", showlegend: front.length > 1, name: "frontier",
    }];
    const methods = [...new Set(cells.map((x) => (x.hue === null ? "" : x.method)))];
    for (const method of methods) {
      const mine = cells.filter((x) => (x.hue === null ? "" : x.method) === method);
      const color = colour(mine[0]);
      const group = method || "unquantized";
      traces.push({ type: "scatter", mode: "markers", name: escape(group), legendgroup: group, x: [null], y: [null], hoverinfo: "skip", marker: { color, size: 10, symbol: "circle" } });
      traces.push({
        type: "scatter", mode: "markers", legendgroup: group, showlegend: false, x: mine.map((x) => sx.at(x.v[c][0])), y: mine.map((x) => sy.at(x.v[q][0])),
        error_x: bars(mine, c, sx, color), error_y: bars(mine, q, sy, color),
        marker: {
          color, size: mine.map((x) => ((standing[x.id] || [])[0] === "frontier" ? 12.5 : 9.5) * (x.symbol === "triangle-up" ? 1.15 : 1)), symbol: mine.map((x) => x.symbol + (x.simulated ? "-open" : "")),
          opacity: mine.map((x) => ((standing[x.id] || [])[0] === "dominated" ? 0.62 : 1)), line: { width: mine.map((x) => (x.simulated ? 2 : 1)), color: mine.map((x) => (x.simulated ? color : css("--panel"))) },
        },
        hovertext: mine.map((x) => hover(x, standing[x.id], [q, c])), hovertemplate: "%{hovertext}<extra></extra>",
      });
    }
    Plotly.react(plot, traces, layout({
      xaxis: axis(cost, { ...logTicks(sx, cells.map((x) => x.v[c][0])), ...ranges[0] }), yaxis: axis(quality, { ...logTicks(sy, cells.map((x) => x.v[q][0])), ...ranges[1] }),
      showlegend: true,
    }), config).then(() => {
      const place = (x) => [sx.log ? Math.log10(sx.at(x.v[c][0])) : x.v[c][0], sy.log ? Math.log10(sy.at(x.v[q][0])) : x.v[q][0]];
      return Plotly.relayout(plot, { annotations: labels(plot, front, cells, place) });
    });
    const missing = data.cells.filter((cell) => cell.model === model && !(cell.v[q] && cell.v[c]));
    const left = missing.map((m) => `${m.label} (${m.v[q] ? m.t[c] : m.t[q]})`);
    const tied = cells.filter((x) => (standing[x.id] || [])[0] === "tied").map((x) => x.label);
    byId("pareto-note").textContent = [
      `Frontier: ${front.map((x) => x.label).join(", ") || "none"}.`,
      tied.length ? `Tied with it within the noise: ${tied.join(", ")}.` : "",
      left.length ? `Not drawn, having no number here: ${left.join(", ")}.` : "",
    ].join(" ");
  }
  /* Axis ranges that hold the cells whose quality is within an eighth of the largest distance from the baseline's. */
  function near(cells, c, q, sx, sy) {
    const scaled = (s, v) => (s.log ? Math.log10(s.at(v)) : v);
    const base = cells.find((x) => x.baseline);
    if (!base) return [{}, {}];
    const from = (x) => Math.abs(scaled(sy, x.v[q][0]) - scaled(sy, base.v[q][0]));
    const limit = Math.max(...cells.map(from)) / 8, close = cells.filter((x) => from(x) <= limit);
    const span = (s, i) => {
      const all = close.flatMap((x) => (s.log ? [x.v[i][0]] : x.v[i].filter((v) => v !== null))).map((v) => scaled(s, v));
      const low = Math.min(...all), high = Math.max(...all), pad = (high - low || Math.abs(high) || 1) * 0.09;
      return { range: [low - pad, high + pad] };
    };
    return [span(sx, c), span(sy, q)];
  }
  /* Names beside frontier points, each on the first of four sides where it covers neither a point nor another name. */
  function labels(plot, front, cells, place) {
    const full = plot._fullLayout, xa = full.xaxis, ya = full.yaxis;
    const pixel = (x) => { const [a, b] = place(x); return [xa.l2p(a), ya.l2p(b)]; };
    const taken = cells.map((x) => { const [a, b] = pixel(x); return [a - 6, b - 6, a + 6, b + 6]; });
    const found = [];
    for (const cell of front) {
      const [px, py] = pixel(cell), [ax, ay] = place(cell), w = cell.label.length * 6.4, h = 15;
      const sides = [["left", "bottom", 8, 6, [px + 8, py - 6 - h, px + 8 + w, py - 6]], ["left", "top", 8, -6, [px + 8, py + 6, px + 8 + w, py + 6 + h]], ["left", "middle", 11, 0, [px + 11, py - h / 2, px + 11 + w, py + h / 2]], ["right", "bottom", -8, 6, [px - 8 - w, py - 6 - h, px - 8, py - 6]], ["right", "top", -8, -6, [px - 8 - w, py + 6, px - 8, py + 6 + h]], ["right", "middle", -11, 0, [px - 11 - w, py - h / 2, px - 11, py + h / 2]]];
      const free = sides.find((s) => s[4][0] > 0 && s[4][2] < xa._length && s[4][1] > 0 && s[4][3] < ya._length && !taken.some((t) => t[0] < s[4][2] && s[4][0] < t[2] && t[1] < s[4][3] && s[4][1] < t[3]));
      if (!free) continue;
      taken.push(free[4]);
      found.push({ x: ax, y: ay, text: escape(cell.label), showarrow: false, xanchor: free[0], yanchor: free[1], xshift: free[2], yshift: free[3], borderpad: 0, font: { size: 11.5, color: css("--soft") } });
    }
    return found;
  }
  function hover(cell, standing, first) {
    const lines = [`<b>${escape(cell.label)}</b>${cell.baseline ? " · baseline" : ""}${cell.simulated ? " · simulated" : ""}`];
    const order = [...first, ...data.quality.slice(0, 4), ...data.cost.slice(0, 6)].filter((v, i, all) => all.indexOf(v) === i);
    for (const index of order) if (cell.v[index]) lines.push(`${escape(data.columns[index].title)}: ${first.includes(index) ? "<b>" : ""}${escape(cell.t[index])}${first.includes(index) ? "</b>" : ""}`);
    if (standing) {
      const names = (ids) => ids.map((i) => cellOf.get(i).label).join(", ");
      const share = `${Math.round(standing[1] * 100)} % of resamples`;
      const words = { frontier: `on the frontier (${share})`, tied: `tied with the frontier (${share} on it)`, dominated: `beaten on both axes (on the frontier in ${share})` }[standing[0]];
      lines.push(wrap(words + (standing[2].length ? `, by ${names(standing[2])}` : "") + (standing[3].length ? `; no better beyond the noise than ${names(standing[3])}` : "")));
    }
    return lines.join("<br>");
  }

  /* ---- fidelity by bits */
  function ladder(id, menu) {
    const plot = byId(`${id}-plot`);
    if (!plot) return;
    const index = Number(byId(menu).value), model = byId("ladder-model") ? Number(byId("ladder-model").value) : 0;
    const column = data.columns[index];
    const cells = data.cells.filter((x) => x.model === model && x.v[index]);
    const quantized = cells.filter((x) => x.hue !== null), base = cells.find((x) => x.baseline);
    const all = [...quantized.map((x) => x.v[index][0]), ...(base && !(column.log && base.v[index][0] === 0) ? [base.v[index][0]] : [])];
    const scale = logScale(column, all);
    const widths = [...new Set(quantized.map((x) => x.bits))].sort((a, b) => b - a);
    const names = [...new Set(quantized.map((x) => x.series))];
    const traces = names.map((name, k) => {
      const mine = quantized.filter((x) => x.series === name).sort((a, b) => b.bits - a.bits), color = colour(mine[0]);
      const nudge = names.length > 1 ? (k / (names.length - 1) - 0.5) * 0.22 : 0;
      const label = mine[0].label.replace(/\s*\d+(\.\d+)?-bit/, "");
      return {
        type: "scatter", mode: "lines+markers", name: escape(label), x: mine.map((x) => widths.indexOf(x.bits) + nudge), y: mine.map((x) => scale.at(x.v[index][0])),
        error_y: bars(mine, index, scale, color), line: { color, width: 1.6 }, marker: { color, size: 8.5, symbol: mine.map((x) => x.symbol + (x.simulated ? "-open" : "")) },
        hovertext: mine.map((x) => `<b>${escape(x.label)}</b><br>${escape(column.title)}: ${escape(x.t[index])}`), hovertemplate: "%{hovertext}<extra></extra>",
      };
    });
    const shapes = [];
    if (base && base.v[index][0] > (scale.log ? 0 : -Infinity)) shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, y0: base.v[index][0], y1: base.v[index][0], line: { color: css("--native"), width: 1.2, dash: "dash" } });
    Plotly.react(plot, traces, layout({
      xaxis: { ...axis({ title: "Nominal bits", unit: "", better: "neither" }), tickvals: widths.map((_, i) => i), ticktext: widths.map((b) => String(b)), range: [-0.4, widths.length - 0.6] },
      yaxis: axis(column, logTicks(scale, all)), shapes, showlegend: true, margin: { l: 60, r: 16, t: 16, b: 52 },
    }), { ...config, displayModeBar: false });
  }

  /* ---- the table */
  function sortable(table) {
    const body = table.tBodies[0], original = [...body.rows];
    table.tHead.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      const th = button.closest("th"), column = th.cellIndex, numeric = th.dataset.kind === "number";
      const next = { none: "ascending", ascending: "descending", descending: "none" }[th.getAttribute("aria-sort") || "none"];
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      if (next === "none") { body.append(...original); return; }
      th.setAttribute("aria-sort", next);
      const sign = next === "ascending" ? 1 : -1;
      const key = (row) => { const s = row.cells[column].dataset.sort; return s === undefined ? null : numeric ? Number(s) : s; };
      const rows = original.map((row, i) => [key(row), i, row]);
      rows.sort((a, b) => {
        if (a[0] === null || b[0] === null) return (a[0] === null) - (b[0] === null) || a[1] - b[1]; /* no number: always last */
        const order = numeric ? a[0] - b[0] : a[0].localeCompare(b[0], "en", { numeric: true });
        return sign * order || a[1] - b[1];
      });
      body.append(...rows.map((r) => r[2]));
    });
  }
  const table = byId("cells");
  if (table) {
    sortable(table);
    /* one group of columns at a time; a rule of its own, because the groups are whatever probes there are */
    const rule = document.head.appendChild(document.createElement("style")), group = byId("table-group");
    const show = () => { rule.textContent = group.value === "all" ? "" : `#cells [class*="g-"]:not(.g-${CSS.escape(group.value)}) { display: none; }`; };
    group.addEventListener("change", show);
    show();
  }

  /* ---- explanations on hover and on keyboard focus */
  const tip = byId("tip");
  let owner = null;
  function showTip(target) {
    owner = target;
    tip.textContent = target.dataset.tip;
    tip.hidden = false;
    placeTip(target);
  }
  function placeTip(target) {
    const box = target.getBoundingClientRect(), own = tip.getBoundingClientRect();
    const above = box.top > own.height + 12;
    tip.style.left = `${Math.max(8, Math.min(box.left, window.innerWidth - own.width - 8))}px`;
    tip.style.top = `${above ? box.top - own.height - 6 : box.bottom + 6}px`;
  }
  function hideTip() { owner = null; tip.hidden = true; }
  for (const kind of ["mouseover", "focusin"]) document.addEventListener(kind, (e) => { const t = e.target.closest && e.target.closest("[data-tip]"); if (t && t !== owner) showTip(t); else if (!t && kind === "mouseover") hideTip(); });
  document.addEventListener("focusout", hideTip);
  document.addEventListener("keydown", (e) => { if (e.key === "Escape") hideTip(); });
  /* focusing an element scrolls to it: its explanation follows; one that the pointer called for goes */
  window.addEventListener("scroll", () => { if (owner && owner === document.activeElement) placeTip(owner); else hideTip(); }, { passive: true, capture: true });

  /* ---- start */
  function draw() { pareto(); ladder("ladder-a", "ladder-left"); ladder("ladder-b", "ladder-right"); }
  for (const id of ["pareto-quality", "pareto-cost", "pareto-model", "pareto-range"]) if (byId(id)) byId(id).addEventListener("change", pareto);
  for (const id of ["ladder-left", "ladder-right", "ladder-model"]) if (byId(id)) byId(id).addEventListener("change", draw);
  const right = byId("ladder-right");
  if (right) {
    const divergence = data.ladder.find((i) => data.columns[i].key.startsWith("kl_mean|"));
    right.value = String(divergence === undefined ? data.ladder[Math.min(1, data.ladder.length - 1)] : divergence);
  }
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  let width = window.innerWidth;
  window.addEventListener("resize", () => { if ((width < 760) !== narrow()) { width = window.innerWidth; draw(); } });
  draw();
  const links = new Map([...document.querySelectorAll("nav .links a")].map((a) => [a.getAttribute("href").slice(1), a]));
  const seen = new IntersectionObserver((entries) => {
    for (const e of entries) if (e.isIntersecting) { for (const a of links.values()) a.removeAttribute("aria-current"); const a = links.get(e.target.id); if (a) a.setAttribute("aria-current", "true"); }
  }, { rootMargin: "-20% 0px -70% 0px" });
  document.querySelectorAll("main > section").forEach((s) => seen.observe(s));
  document.documentElement.dataset.ready = "true";
})();

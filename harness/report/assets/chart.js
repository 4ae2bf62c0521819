/* What the charts of the page share: the data block, colours, scales, axes, labels that do not collide. Decides nothing about the
   numbers. What is read is hostile: it goes to the page as text, or through `escape` where Plotly takes markup. */
const QuantChart = await (async () => {
  const byId = (id) => document.getElementById(id);
  async function unpack(id) {
    const packed = atob(byId(id).textContent), bytes = new Uint8Array(packed.length);
    for (let i = 0; i < packed.length; i++) bytes[i] = packed.charCodeAt(i);
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  }
  const data = JSON.parse(await unpack("data")), offer = JSON.parse(await unpack("offer"));
  const cellOf = new Map(data.cells.map((c) => [c.id, c]));
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const colour = (cell) => css(cell.hue === null ? "--native" : `--m${cell.hue}`);
  const escape = (s) => String(s).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
  const narrow = () => window.innerWidth < 760;
  const short = (s, most = 30) => ([...s].length > most ? `${[...s].slice(0, most - 1).join("")}…` : s);
  const wrap = (s, width = 72) => {
    const lines = [""];
    for (const word of String(s).split(" ")) {
      if ((lines[lines.length - 1] + word).length > width) lines.push("");
      lines[lines.length - 1] += `${word} `;
    }
    return lines.map((l) => escape(l.trim())).join("<br>");
  };
  /* plotly.js, unpacked: the policy of the page lets it run only if it is what was packed. */
  const plotly = (async () => {
    if (window.Plotly) return window.Plotly;  /* a site's pages share one file */
    const script = document.createElement("script");
    script.textContent = await unpack("plotly");
    document.head.append(script);
    return window.Plotly;
  })();
  plotly.catch(() => { for (const plot of document.querySelectorAll(".plot")) plot.textContent = "The charts could not be unpacked; every number is in the tables."; });

  /* Nothing of a chart takes a finger that scrolls the page; with a mouse, a drag zooms in and a double click goes back. */
  const config = () => ({ responsive: true, displaylogo: false, displayModeBar: false, scrollZoom: false, doubleClick: "reset" });

  function axis(column, extra = {}) {
    const unit = column.unit ? ` (${column.unit})` : "";
    const arrow = column.better === "lower" ? " · lower is better" : column.better === "higher" ? " · higher is better" : "";
    return {
      title: { text: escape(short(column.title, narrow() ? 34 : 80)) + escape(unit) + `<span style="color:${css("--soft")}">${narrow() ? "" : arrow}</span>`, standoff: 12, font: { size: 13 } },
      gridcolor: css("--grid"), linecolor: css("--line"), zeroline: false, ticks: "outside", tickcolor: css("--line"), automargin: true, fixedrange: coarse(), ...extra,
    };
  }
  const coarse = () => narrow() || window.matchMedia("(pointer: coarse)").matches;
  function layout(extra) {
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { family: css("--sans"), size: 12.5, color: css("--ink") },
      margin: { l: narrow() ? 48 : 64, r: narrow() ? 12 : 24, t: 24, b: 56 }, hovermode: "closest", dragmode: coarse() ? false : "zoom",
      hoverlabel: { bgcolor: css("--panel"), bordercolor: css("--line"), font: { family: css("--sans"), size: 12.5, color: css("--ink") }, align: "left" },
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, xanchor: "left", font: { size: 12.5 }, itemsizing: "constant", itemclick: false, itemdoubleclick: false }, ...extra,
    };
  }

  /* ---- scales. A logarithmic axis has no zero: exact zeros (a baseline's divergence from itself, a score of 100 %) are drawn
     beyond the smallest number and say so. `error` is logarithmic in what is missing from 100 %, and grows downwards. */
  function scaleFor(column, values, wide = false) {
    const linear = { kind: "linear", at: (v) => v, axis: (v) => v, zero: null };
    if (!values.length) return linear;
    if (column.scale === "error") {
      const missing = values.map((v) => 100 - v), positive = missing.filter((e) => e > 0);
      if (missing.some((e) => e < 0) || !positive.length || Math.max(...positive) / Math.min(...positive) < 3) return linear;
      return logScale("error", missing, (v) => 100 - v);
    }
    const positive = values.filter((v) => v > 0);
    const spread = wide && positive.length === values.length && Math.max(...positive) / Math.min(...positive) > 4;
    if (!(column.scale === "log" || spread) || !positive.length || values.some((v) => v < 0)) return linear;
    if (positive.length === values.length && Math.max(...positive) / Math.min(...positive) < 3) return linear;
    return logScale("log", values, (v) => v);
  }
  function logScale(kind, sizes, sizeOf) {
    const positive = sizes.filter((e) => e > 0), low = Math.min(...positive), high = Math.max(...positive);
    const zero = sizes.some((e) => e === 0) ? low / Math.max(2, Math.pow(high / low, 0.12)) : null;
    const at = (v) => { const e = sizeOf(v); return e > 0 ? e : zero === null ? low / 2 : zero; };
    return { kind, at, axis: (v) => Math.log10(at(v)), zero };
  }
  /* Type, range and ticks of an axis that holds these values: bars do not stretch it, so one wide interval cannot flatten the rest. */
  function spanFor(scale, values, pad = 0.07) {
    const placed = values.map(scale.axis), low = Math.min(...placed), high = Math.max(...placed);
    const more = (high - low || Math.abs(high) * 0.1 || 1) * pad;
    const range = [low - more, high + more];
    if (scale.kind === "linear") return { range };
    return { type: "log", range: scale.kind === "error" ? range.reverse() : range, ...ticksFor(scale, Math.pow(10, low), Math.pow(10, high)) };
  }
  function ticksFor(scale, low, high) {
    const decades = Math.log10(high / low), steps = decades > 2.2 ? [1] : decades > 1.1 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 7];
    const tickvals = [];
    for (let e = Math.floor(Math.log10(low)) - 1; e <= Math.ceil(Math.log10(high)); e++)
      for (const s of steps) { const v = s * Math.pow(10, e); if (v >= low * 0.8 && v <= high * 1.25 && (scale.zero === null || v > scale.zero * 1.2)) tickvals.push(v); }
    const ticktext = tickvals.map((v) => String(Number((scale.kind === "error" ? 100 - v : v).toPrecision(scale.kind === "error" ? 6 : 2))));
    if (scale.zero !== null) { tickvals.push(scale.zero); ticktext.push(scale.kind === "error" ? "100" : "0"); }
    return { tickvals, ticktext };
  }
  /* Ends of the intervals of some cells on a scale. A bar that would reach zero on a logarithmic axis ends at a fiftieth. */
  function bars(cells, index, scale, color) {
    const array = [], arrayminus = [];
    for (const cell of cells) {
      const [v, low = null, high = null] = cell.v[index], here = scale.at(v);
      let ends = [low === null ? v : low, high === null ? v : high].map((x) => (scale.kind === "linear" ? x : Math.max(scale.at(x), here / 50)));
      if (scale.kind === "error") ends = ends.reverse();
      array.push(Math.max(0, ends[1] - here));
      arrayminus.push(Math.max(0, here - ends[0]));
    }
    return { type: "data", symmetric: false, array, arrayminus, color, thickness: 1.1, width: 0, visible: array.some((s, i) => s || arrayminus[i]) };
  }

  /* Names beside points, each on the first of six sides where it covers neither a point nor another name; else none.
     `wanted`: [cell, text]; `place`: a cell's position on the axes, in their own units. */
  function labels(plot, wanted, cells, place, names = ["xaxis", "yaxis"]) {
    const full = plot._fullLayout, xa = full[names[0]], ya = full[names[1]];
    const pixel = (x) => { const [a, b] = place(x); return [xa.l2p(a), ya.l2p(b)]; };
    const taken = cells.map((x) => { const [a, b] = pixel(x); return [a - 6, b - 6, a + 6, b + 6]; });
    const found = [];
    for (const [cell, text] of wanted) {
      const [px, py] = pixel(cell), [ax, ay] = place(cell), w = text.length * 6.6, h = 15;
      const sides = [["left", "bottom", 8, 6, [px + 8, py - 6 - h, px + 8 + w, py - 6]], ["left", "top", 8, -6, [px + 8, py + 6, px + 8 + w, py + 6 + h]], ["left", "middle", 11, 0, [px + 11, py - h / 2, px + 11 + w, py + h / 2]], ["right", "bottom", -8, 6, [px - 8 - w, py - 6 - h, px - 8, py - 6]], ["right", "top", -8, -6, [px - 8 - w, py + 6, px - 8, py + 6 + h]], ["right", "middle", -11, 0, [px - 11 - w, py - h / 2, px - 11, py + h / 2]]];
      const free = sides.find((s) => s[4][0] > 0 && s[4][2] < xa._length && s[4][1] > 0 && s[4][3] < ya._length && !taken.some((t) => t[0] < s[4][2] && s[4][0] < t[2] && t[1] < s[4][3] && s[4][1] < t[3]));
      if (!free) continue;
      taken.push(free[4]);
      found.push({ x: ax, y: ay, xref: names[0].replace("axis", ""), yref: names[1].replace("axis", ""), text: escape(text), showarrow: false, xanchor: free[0], yanchor: free[1], xshift: free[2], yshift: free[3], borderpad: 0, font: { size: 11.5, color: css("--ink") } });
    }
    return found;
  }

  /* ---- standings of a selection: the rules of harness/frontier.py, on tables that say who beats whom beyond the noise */
  const tables = new Map(), places = new Map();
  data.models.forEach((_, m) => data.cells.filter((c) => c.model === m).forEach((c, i, all) => places.set(c.id, [i, all.length])));
  function beyond(model, column) {
    const key = `${model},${column}`;
    if (!tables.has(key)) tables.set(key, Uint8Array.from(atob(data.beats[key] || ""), (c) => c.charCodeAt(0)));
    const bits = tables.get(key);
    return (a, b) => { const [i, n] = places.get(a.id), at = i * n + places.get(b.id)[0]; return ((bits[at >> 3] || 0) >> (7 - (at & 7)) & 1) === 1; };
  }
  function standings(cells, x, y) {
    const found = new Map(), having = cells.filter((c) => c.v[x] && c.v[y]);
    if (!having.length) return found;
    const model = having[0].model, byX = beyond(model, x), byY = beyond(model, y);
    const sx = data.columns[x].better === "higher" ? -1 : 1, sy = data.columns[y].better === "higher" ? -1 : 1;
    const px = (c) => sx * c.v[x][0], py = (c) => sy * c.v[y][0];
    const above = (a, b) => px(a) <= px(b) && py(a) <= py(b) && (px(a) < px(b) || py(a) < py(b));
    const on = new Set(having.filter((c) => !having.some((other) => above(other, c))));
    const order = (a, b) => px(a) - px(b) || py(a) - py(b) || (a.id < b.id ? -1 : 1);
    for (const cell of having) {
      if (on.has(cell)) {
        const ties = [...on].filter((o) => px(o) < px(cell) && !byY(cell, o)).sort((a, b) => py(a) - py(b) || (a.id < b.id ? -1 : 1));
        found.set(cell.id, { status: "frontier", rivals: [], ties });
        continue;
      }
      const better = having.filter((o) => above(o, cell)), clear = better.filter((o) => byX(o, cell) || byY(o, cell));
      const chosen = clear.length ? clear : better, best = chosen.filter((o) => on.has(o));
      found.set(cell.id, { status: clear.length ? "dominated" : "tied", rivals: (best.length ? best : chosen).sort(order), ties: [] });
    }
    return found;
  }
  /* Percent of resamples in which a cell is on the frontier of all cells of its model; null where the page does not hold it. */
  function share(cell, x, y) {
    const told = data.shares[`${cell.model},${x},${y}`], percent = told ? told[places.get(cell.id)[0]] : -1;
    return percent < 0 ? null : percent;
  }

  return { data, offer, plotly, byId, cellOf, css, colour, escape, narrow, coarse, short, wrap, config, axis, layout, scaleFor, spanFor, bars, labels, standings, share, beyond };
})();
window.QuantChart = QuantChart; /* for whoever looks into the page with the browser's tools */

/* The reader's limits: from controls and address to recommendation, chart, panel and table of decision. The rules are those of
   decide.js; probabilities, intervals and who beats whom came with the page. Texts go to the page as text, never as markup. */
const QuantExplore = (() => {
  "use strict";
  const { data, offer, plotly, byId, cellOf, css, colour, escape, narrow, short, wrap, config, axis, layout, scaleFor, spanFor, bars, labels, standings, share, beyond } = QuantChart;
  if (!byId("limits")) return { draw: () => {} };
  const GB = 1e9; // as all tables of the page write bytes
  /* A cell whose loss is estimated at more than this many times what is allowed is folded away in the table. */
  const FAR = 3;
  /* Models whose answers stand open on the first screen. */
  const MOST = 3;

  /* ---- the state, and where it is shown and kept */
  const NUMBERS = { "max-memory": ["max_memory", GB], context: ["context", 1], batch: ["batch", 1], "max-size": ["max_size", GB], "max-tpot": ["max_tpot", 1e-3], "max-ttft": ["max_ttft", 1e-3], "max-loss": ["max_loss", 1] };
  const MENUS = ["loss", "confidence", "prefer", "pareto-quality", "pareto-cost", "pareto-model", "pareto-range"].filter(byId);
  const COLUMN_MENUS = { "pareto-quality": data.quality, "pareto-cost": data.cost };
  const nameOf = (index) => [data.columns[index].metric, data.columns[index].subject].filter(Boolean).join("/");
  const boxes = (name) => [...document.querySelectorAll(`#filter-${name} input`)];
  for (const [id, [key, factor]] of Object.entries(NUMBERS)) if (offer.limits[key] !== null) byId(id).value = String(offer.limits[key] / factor);
  const initial = {};
  for (const id of [...Object.keys(NUMBERS), ...MENUS]) initial[id] = byId(id).value;
  let chosen = null;

  function limits() {
    const asked = { ...QuantDecide.NO_LIMITS, loss: byId("loss").value, confidence: Number(byId("confidence").value), prefer: byId("prefer").value, binary: false };
    for (const [id, [key, factor]] of Object.entries(NUMBERS)) {
      const box = byId(id), number = Number(box.value), whole = key === "context" || key === "batch";
      const good = box.value.trim() !== "" && Number.isFinite(number) && number >= 0 && (!whole || (Number.isInteger(number) && number > 0));
      box.setAttribute("aria-invalid", String(!good && (box.value.trim() !== "" || box.validity.badInput)));
      if (good) asked[key] = number * factor;
    }
    for (const [name, key] of [["method", "methods"], ["bits", "bits"]]) {
      const all = boxes(name);
      if (all.some((b) => !b.checked)) asked[key] = all.filter((b) => b.checked).map((b) => (name === "bits" ? Number(b.value) : b.value));
    }
    return asked;
  }
  function address() {
    const told = new URLSearchParams();
    for (const id of [...Object.keys(NUMBERS), ...MENUS]) {
      const value = byId(id).value;
      if (value !== initial[id]) told.set(id, COLUMN_MENUS[id] ? nameOf(Number(value)) : value === "" ? "any" : value);
    }
    for (const name of ["method", "bits"]) for (const b of boxes(name)) if (!b.checked) told.append(`without-${name}`, b.value);
    if (chosen) told.set("cell", chosen.id);
    return told.toString();
  }
  /* Everything that an address says is looked up among what there is, or is a number; the rest is left out. */
  function restore() {
    const told = new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");
    for (const id of Object.keys(NUMBERS)) {
      const value = told.get(id);
      byId(id).value = value === null ? initial[id] : /^\d{0,12}(\.\d{0,9})?(e-?\d{1,2})?$/.test(value) && value !== "" ? value : value === "any" ? "" : initial[id];
    }
    for (const id of MENUS) {
      const value = told.get(id), columns = COLUMN_MENUS[id];
      const wanted = value === null ? initial[id] : columns ? String(columns.find((i) => nameOf(i) === value) ?? initial[id]) : value;
      byId(id).value = [...byId(id).options].some((o) => o.value === wanted) ? wanted : initial[id];
    }
    for (const name of ["method", "bits"]) { const out = told.getAll(`without-${name}`); for (const b of boxes(name)) b.checked = !out.includes(b.value); }
    chosen = cellOf.get(told.get("cell")) || null;
  }
  let writing = 0, written = null;
  function remember() {
    clearTimeout(writing);
    writing = setTimeout(() => {
      written = address();
      history.replaceState(null, "", written ? `#${written}` : location.hash.includes("=") ? "#pareto" : location.hash || "#");
    }, 150);
  }

  /* ---- small pieces of the page */
  function el(name, attributes, ...children) {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
    node.append(...children.filter((c) => c !== null && c !== undefined && c !== ""));
    return node;
  }
  const SVG = "http://www.w3.org/2000/svg";
  function markOf(cell) {
    const svg = document.createElementNS(SVG, "svg"), use = document.createElementNS(SVG, "use");
    svg.setAttribute("aria-hidden", "true");
    svg.setAttribute("class", `mark ${cell.hue === null ? "native" : `m${cell.hue}`}${cell.simulated ? " hollow" : ""}`);
    use.setAttribute("href", `#shape-${cell.symbol}`);
    svg.append(use);
    return svg;
  }

  /* ---- the answer in words: as harness/report/answer.py says it */
  /* A limit is rounded up, as the sentences round it: 0.974 is no more than 0.98, and more than 0.97. */
  function atMost(value, digits) {
    return (Math.ceil(value * 10 ** digits) / 10 ** digits).toFixed(digits);
  }

  function times(ratio) {
    const digits = ratio >= 10 ? 0 : ratio >= 1 ? 1 : 2, scale = Math.pow(10, digits);
    return `${(Math.floor(ratio * scale + 0.5) / scale).toFixed(digits)}x`;
  }
  function besideBaseline(given) {
    const base = offer.candidates.find((c) => c.model === given.model && c.baseline);
    if (!base || given.pick === null || given.pick === base.id) return "";
    const verdict = (id) => given.verdicts.find((v) => v.id === id), own = verdict(given.pick), other = verdict(base.id), parts = [];
    if (own.tpot && other.tpot) parts.push(`decodes ${times(other.tpot / own.tpot)} as fast`);
    if (own.memory && other.memory) parts.push(`${times(own.memory / other.memory)} the memory`);
    if (own.size && other.size) parts.push(`${times(own.size / other.size)} the size`);
    return parts.length ? `Next to the baseline: ${parts.join(", ")}.` : "";
  }
  function line(title, ...sentences) {
    const said = sentences.filter(Boolean).join(" ");
    if (!said && title !== "What would change it") return null;
    return el("p", null, title ? el("b", null, `${title}: `) : null, said || "nothing that was measured here.");
  }
  function answer(decision, asked) {
    const place = byId("answer");
    const open = place.querySelector("details")?.open, said = decision.recommendations.map((given) => {
      const words = QuantDecide.say(offer.candidates, asked, given);
      const changes = words.changes.length ? [...words.changes.slice(0, 2), ...words.settle.slice(0, 1)] : words.settle.slice(0, 2);
      const facts = given.pick === null ? null : offer.facts[given.pick];
      return el("div", { class: "answer" },
        decision.recommendations.length > 1 ? el("p", { class: "of" }, given.model) : null,
        el("p", { class: "pick" }, given.pick === null ? "Nothing qualifies" : cellOf.get(given.pick).label),
        line("", words.pick, besideBaseline(given)),
        line("What would change it", ...changes),
        facts && line(facts.reading, facts.calibrated), facts && line("Artifact", facts.loaded));
    });
    const rest = said.slice(MOST);
    place.replaceChildren(...said.slice(0, MOST), ...(rest.length ? [el("details", { class: "fold", open }, el("summary", null, `${rest.length} more ${rest.length === 1 ? "model" : "models"}`), ...rest)] : []));
  }

  /* ---- what is drawn for one model: its cells, those that fit, standings, the pick */
  const kept = (o) => o.limit === "loss";
  function scene(model, decision, asked) {
    const q = Number(byId("pareto-quality").value), c = Number(byId("pareto-cost").value);
    const given = decision.recommendations.find((r) => r.model === data.models[model]);
    const verdicts = new Map(given ? given.verdicts.map((v) => [v.id, v]) : []);
    const cells = data.cells.filter((x) => x.model === model && (asked.methods === null || asked.methods.includes(x.method)) && (asked.bits === null || asked.bits.includes(x.bits)));
    const fits = (x) => { const v = verdicts.get(x.id); return !v || v.obstacles.every(kept); };
    const fit = cells.filter(fits), stands = standings(fit, c, q);
    const front = fit.filter((x) => (stands.get(x.id) || {}).status === "frontier").sort((a, b) => a.v[c][0] - b.v[c][0] || (a.id < b.id ? -1 : 1));
    /* from the cheapest up: who does not beat all kept before him beyond the noise is merged into the best of those he ties with */
    const line = [], merged = new Map(), cheap = data.columns[c].better === "higher" ? front.slice().reverse() : front;
    for (const x of cheap) {
      const ties = line.filter((k) => stands.get(x.id).ties.includes(k));
      if (ties.length) merged.get(ties[ties.length - 1].id).push(x);
      else { line.push(x); merged.set(x.id, []); }
    }
    return { model, q, c, given, verdicts, cells, fit, stands, front, line: front.filter((x) => line.includes(x)), merged, drawn: cells.filter((x) => x.v[q] && x.v[c]), pick: given && given.pick !== null ? cellOf.get(given.pick) : null };
  }

  /* ---- the chart */
  let walk = [], at = -1, shownScenes = [], latest = 0;
  function chart(scenes, asked, mine) {
    const plot = byId("pareto-plot"), several = scenes.length > 1;
    const across = several ? Math.max(1, Math.min(scenes.length, Math.floor((plot.clientWidth || 900) / 330))) : 1, down = Math.ceil(scenes.length / across);
    plot.style.height = several ? `${Math.max(1, down) * 300 + 60}px` : "";
    const traces = [], shapes = [], annotations = [], axes = {}, all = scenes.flatMap((s) => s.drawn), { q, c } = scenes[0];
    const sx = scaleFor(data.columns[c], all.map((x) => x.v[c][0]), true), sy = scaleFor(data.columns[q], [...all.map((x) => x.v[q][0]), ...floors(scenes)]);
    const named = new Map();
    scenes.forEach((s, k) => {
      const n = k ? String(k + 1) : "", xa = `x${n}`, ya = `y${n}`;
      points(s, sx, sy, xa, ya, traces, named);
      if (s.drawn.length) limitsOf(s, asked, sx, sy, xa, ya, shapes, annotations, several);
      const inView = byId("pareto-range").value === "near" ? nearest(s) : s.drawn;
      const column = k % across, row = Math.floor(k / across), gap = several ? 0.07 : 0, gapY = several ? 70 / (down * 300 + 60) : 0, w = (1 - gap * (across - 1)) / across, h = (1 - gapY * (down - 1)) / down;
      const bottom = row === down - 1 || k + across >= scenes.length;
      const domain = several ? [{ domain: [column * (w + gap), column * (w + gap) + w] }, { domain: [Math.max(0, 1 - row * (h + gapY) - h), 1 - row * (h + gapY)] }] : [{}, {}];
      const span = (scale, i) => (inView.length ? spanFor(scale, [...inView.map((x) => x.v[i][0]), ...(i === q ? floors([s]) : [])]) : {});
      axes[`xaxis${n}`] = { ...axis(data.columns[c], span(sx, c)), ...domain[0], anchor: ya };
      axes[`yaxis${n}`] = { ...axis(data.columns[q], span(sy, q)), ...domain[1], anchor: xa };
      if (several) {
        if (!bottom) axes[`xaxis${n}`].title = { text: "" };
        if (column) axes[`yaxis${n}`].title = { text: "" };
        for (const a of ["xaxis", "yaxis"]) if (axes[a + n].title.text) axes[a + n].title = { text: escape(short(data.columns[a === "xaxis" ? c : q].name, 30)), font: { size: 11.5 } };
        annotations.push({ text: `<b>${escape(short(data.models[s.model], 34))}</b>`, xref: `${xa} domain`, yref: `${ya} domain`, x: 0, y: 1, yanchor: "bottom", xanchor: "left", showarrow: false, font: { size: 12, color: css("--ink") } });
      }
    });
    if (several) for (const key of Object.keys(axes)) axes[key].showgrid = true;
    const place = (x) => [sx.axis(x.v[c][0]), sy.axis(x.v[q][0])];
    const whole = layout({ ...axes, shapes, annotations, showlegend: false });
    legend(named);
    shownScenes = scenes;
    walk = all.slice().sort((a, b) => a.model - b.model || a.v[c][0] - b.v[c][0]);
    at = -1;
    return plotly.then((Plotly) => (mine === latest ? Plotly.react(plot, traces, whole, config()) : null)).then((drawn) => {
      if (!drawn) return null;
      wire(plot);
      byId("pareto-pictures").hidden = false;
      if (several || !all.length) return null;
      const s = scenes[0], wanted = [...new Set([...(s.pick && s.pick.v[q] && s.pick.v[c] ? [s.pick] : []), ...s.front])].map((x) => [x, short(x.label)]);
      return Plotly.relayout(plot, { annotations: [...annotations, ...labels(plot, wanted, s.drawn, place)] });
    });
  }
  const floors = (scenes) => scenes.filter((s) => s.drawn.length).map((s) => data.columns[s.q].floor[String(s.model)]).filter((f) => f !== undefined);
  function points(s, sx, sy, xa, ya, traces, named) {
    const { q, c, line, stands } = s, on = new Set(line);
    traces.push({
      type: "scatter", mode: "lines", xaxis: xa, yaxis: ya, x: line.map((x) => sx.at(x.v[c][0])), y: line.map((x) => sy.at(x.v[q][0])),
      line: { shape: data.columns[c].better === "higher" ? "vh" : "hv", color: css("--front"), width: 1.3, dash: "dot" }, hoverinfo: "skip",
    });
    if (line.length > 1) named.set("frontier", null);
    const groups = [...new Set(s.drawn.map((x) => x.hue))].sort((a, b) => (a === null ? 99 : a) - (b === null ? 99 : b));
    for (const hue of groups) {
      const mine = s.drawn.filter((x) => x.hue === hue), color = colour(mine[0]), name = hue === null ? "unquantized" : data.families[hue];
      named.set(name, mine[0]);
      for (const front of [false, true]) {
        const some = mine.filter((x) => on.has(x) === front);
        if (!some.length) continue;
        const level = (x) => (front || x.baseline ? 1 : !stands.has(x.id) ? 0.16 : stands.get(x.id).status === "dominated" ? 0.34 : 0.62);
        traces.push({
          type: "scatter", mode: "markers", showlegend: false, xaxis: xa, yaxis: ya, x: some.map((x) => sx.at(x.v[c][0])), y: some.map((x) => sy.at(x.v[q][0])), customdata: some.map((x) => x.id),
          ...(front || s.drawn.length <= 60 ? { error_x: bars(some, c, sx, front ? color : fade(color)), error_y: bars(some, q, sy, front ? color : fade(color)) } : {}),
          marker: { color, size: some.map((x) => (front ? 12.5 : 9) * (x.symbol === "triangle-up" ? 1.15 : 1)), symbol: some.map((x) => x.symbol + (x.simulated ? "-open" : "")), opacity: some.map(level), line: { width: some.map((x) => (x.simulated ? 2 : 1)), color: some.map((x) => (x.simulated ? color : css("--panel"))) } },
          hovertext: some.map((x) => hover(x, s)), hovertemplate: "%{hovertext}<extra></extra>",
        });
      }
    }
    if (s.pick && s.pick.v[q] && s.pick.v[c]) traces.push({ type: "scatter", mode: "markers", xaxis: xa, yaxis: ya, x: [sx.at(s.pick.v[c][0])], y: [sy.at(s.pick.v[q][0])], hoverinfo: "skip", marker: { symbol: "circle-open", size: 22, color: css("--accent"), line: { width: 2.4 } } });
    if (s.pick) named.set("recommended", null);
  }
  function legend(named) {
    const families = [...data.families, "unquantized"].filter((name) => named.has(name));
    const entry = (sign, text) => el("span", null, sign, text), sign = (cls) => el("i", { class: cls, "aria-hidden": "true" });
    byId("pareto-legend").replaceChildren(
      ...families.map((name) => entry(sign(`fam ${named.get(name).hue === null ? "native" : `m${named.get(name).hue}`}`), name)),
      ...(named.has("frontier") ? [entry(sign("fam-line"), "frontier, ties merged")] : []), ...(named.has("recommended") ? [entry(sign("fam ring"), "recommended")] : []));
  }
  const fade = (color) => (/^#[0-9a-f]{6}$/i.test(color) ? `${color}55` : color);
  /* Lines of the limits and of the baseline, and the band of the noise floor. */
  function limitsOf(s, asked, sx, sy, xa, ya, shapes, annotations, several) {
    const x = data.columns[s.c], y = data.columns[s.q], base = s.cells.find((b) => b.baseline);
    const across = (value, text, style) => edge({ xref: `${xa} domain`, x0: 0, x1: 1, yref: ya, y0: value, y1: value }, text, style, { xref: `${xa} domain`, x: 1, xanchor: "right", yref: ya, y: sy.axis(value), yanchor: "bottom" });
    const upright = (value, text, style) => edge({ yref: `${ya} domain`, y0: 0, y1: 1, xref: xa, x0: value, x1: value }, text, style, { yref: `${ya} domain`, y: 1, yanchor: "top", xref: xa, x: sx.axis(value), xanchor: "left" });
    function edge(where, text, style, label) {
      const made = { type: "line", layer: "below", ...where, line: style };
      for (const [k, scale] of [["x0", sx], ["x1", sx], ["y0", sy], ["y1", sy]]) if (!String(where[`${k[0]}ref`]).includes("domain")) made[k] = scale.at(where[k]);
      shapes.push(made);
      if (text && !several) annotations.push({ ...label, text: escape(text), showarrow: false, font: { size: 11, color: style.color }, borderpad: 2 });
    }
    const faint = { color: css("--native"), width: 1, dash: "dash" }, hard = { color: css("--alarm"), width: 1.5 };
    if (base && base.v[s.q] && !(sy.kind !== "linear" && sy.zero !== null && base.v[s.q][0] === 0)) across(base.v[s.q][0], "", faint);
    if (base && base.v[s.c]) upright(base.v[s.c][0], "", faint);
    const floor = y.floor[String(s.model)];
    if (floor !== undefined) {
      const bottom = sy.kind === "linear" ? 0 : floor / 1e6;
      shapes.push({ type: "rect", layer: "below", xref: `${xa} domain`, x0: 0, x1: 1, yref: ya, y0: bottom, y1: floor, fillcolor: css("--native"), opacity: 0.13, line: { width: 0 } });
      if (!several) annotations.push({ xref: `${xa} domain`, x: 0, xanchor: "left", yref: ya, y: sy.axis(floor), yanchor: "top", text: "noise floor", showarrow: false, font: { size: 11, color: css("--soft") } });
    }
    const as_measured = asked.context === null && asked.batch === null;
    const cost = { file_bytes: asked.max_size, peak_host_bytes: as_measured ? asked.max_memory : null, peak_device_bytes: as_measured ? asked.max_memory : null, tpot: asked.max_tpot, ttft: asked.max_ttft }[x.metric];
    if (cost !== null && cost !== undefined) upright(cost * x.factor, "limit", hard);
    if (asked.max_loss === null) return;
    if (y.metric === "mean_accuracy" && asked.loss === "pp" && base && base.v[s.q]) across(base.v[s.q][0] - asked.max_loss, "loss allowed", hard);
    if (y.metric === "mean_recovery" && asked.loss === "recovery") across(100 - asked.max_loss, "loss allowed", hard);
    if (y.metric === "kl_mean" && asked.loss === "kl") across(asked.max_loss * y.factor, "loss allowed", hard);
  }
  /* The cells whose quality is within an eighth of the largest distance from the baseline's. */
  function nearest(s) {
    const base = s.drawn.find((x) => x.baseline);
    if (!base) return s.drawn;
    const far = (x) => Math.abs(x.v[s.q][0] - base.v[s.q][0]), limit = Math.max(...s.drawn.map(far)) / 8;
    return s.drawn.filter((x) => far(x) <= limit);
  }
  function standingWords(cell, s) {
    const stand = s.stands.get(cell.id), percent = share(cell, s.c, s.q), names = (some) => some.slice(0, 3).map((x) => x.label).join(", ");
    if (!stand) return cell.v[s.q] && cell.v[s.c] ? "Left out of the frontier: it does not fit the limits." : "Has no number on one of these axes.";
    const said = {
      frontier: `On the frontier${stand.ties.length ? `; costs more than ${names(stand.ties)}, and is not better beyond the noise` : ""}`,
      tied: `Tied with the frontier; worse only within the noise than ${names(stand.rivals)}`, dominated: `Beaten beyond the noise by ${names(stand.rivals)}`,
    }[stand.status];
    return `${said}${percent === null ? "" : `; on the frontier of all cells of its model in ${percent}\u202f% of resamples`}.`;
  }
  function hover(cell, s) {
    const lines = [`<b>${escape(short(cell.label, 60))}</b>${cell.baseline ? " · baseline" : ""}${cell.simulated ? " · simulated" : ""}`];
    for (const index of [...new Set([s.q, s.c, ...data.quality.slice(0, 3), ...data.cost.slice(0, 6)])]) if (cell.v[index]) lines.push(`${escape(short(data.columns[index].title, 60))}: ${index === s.q || index === s.c ? "<b>" : ""}${escape(cell.t[index])}${index === s.q || index === s.c ? "</b>" : ""}`);
    lines.push(wrap(standingWords(cell, s)));
    return lines.join("<br>");
  }

  /* ---- the chart as a picture, as it stands: a file of the reader's own, with the legend that the page has beside it */
  const SIZE = { width: 1100, height: 640 };
  function picture(format) {
    const plot = byId("pareto-plot"), named = new Map(), s = shownScenes[0], box = shownScenes.length > 1 ? { width: plot.clientWidth, height: plot.clientHeight + 60 } : SIZE;
    for (const x of shownScenes.flatMap((each) => each.drawn)) named.set(x.hue === null ? "unquantized" : data.families[x.hue], colour(x));
    const entries = [...named].map(([name, color]) => ({ type: "scatter", mode: "markers", x: [null], y: [null], name: escape(name), marker: { color, size: 10 }, showlegend: true }));
    const whole = {
      ...plot.layout, ...box, paper_bgcolor: css("--page"), plot_bgcolor: css("--panel"), showlegend: true, legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 }, margin: { ...plot.layout.margin, t: 84 },
      title: { text: escape(shownScenes.length > 1 ? data.run : `${data.models[s.model]} \u00b7 ${data.run}`), font: { size: 15 }, x: 0.01, xanchor: "left", y: 0.985, yanchor: "top" },
    };
    const drawn = plot.data.map((trace) => ({ ...trace, showlegend: false }));
    return plotly.then((Plotly) => Plotly.toImage({ data: [...drawn, ...entries], layout: whole, config: config() }, { format, ...box, scale: format === "png" ? 2 : 1 }));
  }
  byId("pareto-pictures").addEventListener("click", (event) => {
    const button = event.target.closest("button"), format = button && button.dataset.picture;
    if (!format || !shownScenes.length) return;
    button.disabled = true;
    picture(format).then((address) => {
      const link = el("a", { href: address, download: `${data.run.replace(/[^A-Za-z0-9._-]+/g, "-")}.${format}` });
      document.body.append(link);
      link.click();
      link.remove();
    }).finally(() => { button.disabled = false; });
  });

  /* ---- pointer and keyboard: one tab stop, arrows walk, Enter tells all */
  let wired = false;
  function wire(plot) {
    if (wired || !plot.on) return;
    wired = true;
    plot.on("plotly_click", (event) => { const point = event.points.find((p) => p.customdata); if (point) open(cellOf.get(point.customdata), true); });
  }
  const frame = byId("pareto-frame");
  frame.addEventListener("keydown", (event) => {
    const { q } = shownScenes[0] || {}, next = { ArrowRight: 1, ArrowLeft: -1 }[event.key], up = { ArrowUp: 1, ArrowDown: -1 }[event.key];
    if (!walk.length) return;
    if (next) at = at < 0 ? (next > 0 ? 0 : walk.length - 1) : (at + next + walk.length) % walk.length;
    else if (up) { /* by quality, better upwards */
      const sign = data.columns[q].better === "lower" ? -1 : 1, byQuality = walk.slice().sort((a, b) => a.model - b.model || sign * (a.v[q][0] - b.v[q][0]));
      const here = at < 0 ? (up > 0 ? -1 : 0) : byQuality.indexOf(walk[at]);
      at = walk.indexOf(byQuality[(here + up + walk.length) % walk.length]);
    } else if (event.key === "Home" || event.key === "End") at = event.key === "Home" ? 0 : walk.length - 1;
    else if (event.key === "Enter" || event.key === " ") { if (at >= 0) open(walk[at], true); }
    else if (event.key === "Escape") { at = -1; Plotly.Fx.unhover(byId("pareto-plot")); }
    else return;
    event.preventDefault();
    if (at >= 0 && event.key !== "Enter" && event.key !== " ") tell(walk[at]);
  });
  frame.addEventListener("blur", () => { at = -1; if (byId("pareto-plot")._fullLayout) Plotly.Fx.unhover(byId("pareto-plot")); });
  function tell(cell) {
    const plot = byId("pareto-plot"), s = shownScenes.find((x) => x.model === cell.model);
    plot.data.some((trace, curveNumber) => {
      const pointNumber = (trace.customdata || []).indexOf(cell.id);
      if (pointNumber < 0) return false;
      const sub = `${trace.xaxis || "x"}${trace.yaxis || "y"}`;
      Plotly.Fx.hover(plot, [{ curveNumber, pointNumber }], [sub]);
      return true;
    });
    byId("live").textContent = `${cell.label}${s && s.pick === cell ? ", recommended" : ""}: ${data.columns[s.q].title} ${cell.t[s.q]}, ${data.columns[s.c].title} ${cell.t[s.c]}. ${standingWords(cell, s)} ${walk.indexOf(cell) + 1} of ${walk.length}.`;
  }

  /* ---- all of one cell */
  function open(cell, focus) {
    chosen = cell;
    panel();
    remember();
    if (focus && cell) byId("panel").focus({ preventScroll: !narrow() });
  }
  function panel() {
    const place = byId("panel"), cell = chosen;
    place.hidden = !cell;
    if (!cell) { place.replaceChildren(); return; }
    const asked = limits(), decision = QuantDecide.decide(offer.candidates, asked), s = scene(cell.model, decision, asked);
    const given = s.given, words = given ? QuantDecide.say(offer.candidates, asked, given) : null, facts = offer.facts[cell.id];
    const close = el("button", { type: "button", class: "plain-button" }, "Close");
    close.addEventListener("click", () => { open(null); frame.focus(); });
    const why = given && given.pick === cell.id ? "Recommended under these limits." : words && Object.hasOwn(words.fails, cell.id) ? `Not recommended: ${words.fails[cell.id]}` : given && given.order.includes(cell.id) ? "Qualifies; another one comes first." : "";
    const shown = new Map();
    data.columns.forEach((column, i) => {
      if (!cell.v[i] && cell.t[i] === "–") return;
      const reason = cell.why[String(i)] === undefined ? "" : data.reasons[cell.why[String(i)]];
      const row = el("tr", null, el("th", { scope: "row" }, column.title), el("td", null, cell.t[i], reason && !cell.v[i] ? el("small", null, reason) : null));
      if (!shown.has(column.group)) shown.set(column.group, []);
      shown.get(column.group).push(row);
    });
    const run = data.commands[data.commands.length - 1] || "";
    const commands = [["Rebuild and go on", run], ["Ask every question again", run && `${run} --fresh`], ["Replay exactly this cell", facts.replay]].filter((c) => c[1]);
    place.replaceChildren(
      el("div", { class: "panel-head" }, el("h3", null, markOf(cell), " ", cell.label, data.models.length > 1 ? ` · ${data.models[cell.model]}` : ""), close),
      el("p", null, [why, standingWords(cell, s)].filter(Boolean).join(" ")),
      ...[[facts.reading, facts.calibrated], ["Artifact", facts.loaded]].map(([t, v]) => line(t, v)).filter(Boolean),
      el("dl", { class: "commands" }, ...commands.flatMap(([name, command]) => [el("dt", null, name), el("dd", null, el("code", null, command))])),
      el("details", { open: !narrow() }, el("summary", null, "Every number"), el("div", { class: "numbers" }, ...[...shown.values()].map((rows) => el("table", { class: "facts" }, el("tbody", null, ...rows))))),
    );
  }

  /* ---- the table of decision */
  const LOSS = { pp: ["points", 2], recovery: ["%", 2], kl: ["nats", 4] };
  function decisionTable(s, asked, words) {
    const place = byId("decision"), base = s.cells.find((x) => x.baseline), candidates = new Map(offer.candidates.map((c) => [c.id, c]));
    const far = (x) => { const v = s.verdicts.get(x.id); return !x.baseline && asked.max_loss !== null && v && v.loss !== null && v.loss > FAR * asked.max_loss; };
    const cells = [...new Set([...(base ? [base] : []), ...(s.pick ? [s.pick] : []), ...s.line])];
    const rows = cells.filter((x) => !far(x) || x === s.pick).sort((a, b) => order(a, b, s));
    const folded = s.cells.filter((x) => far(x) && x !== s.pick), others = s.cells.filter((x) => !rows.includes(x) && !folded.includes(x));
    const quality = data.columns[s.q], [unit, digits] = LOSS[asked.loss], b = base && s.verdicts.get(base.id);
    const dearer = (x) => { const some = (s.merged.get(x.id) || []).filter((o) => !rows.includes(o)); return some.length ? `Costs more and is not better beyond the noise: ${some.map((o) => o.label).join(", ")}.` : ""; };
    const head = ["Cell", `${quality.name}${quality.unit ? `, ${quality.unit}` : ""}`, `Loss, ${unit} (at most)`, "Size", "Memory", "Speed", "In words"];
    place.querySelector("table").replaceChildren(el("thead", null, el("tr", null, ...head.map((h, i) => el("th", { scope: "col", class: i && i < 6 ? "num" : null }, h)))),
      el("tbody", null, ...rows.map((x) => {
        const v = s.verdicts.get(x.id) || {}, tags = [x.baseline && "baseline", x === s.pick && "recommended", s.line.includes(x) && "frontier", x.simulated && "simulated"].filter(Boolean);
        const multiple = (own, other, inverse) => (own && other ? times(inverse ? other / own : own / other) : "–");
        const loss = x.baseline ? "–" : v.loss === null || v.loss === undefined ? "not known" : v.loss.toFixed(digits).replace("-", "−"), high = v.loss_high === null || v.loss_high === undefined || x.baseline ? null : `≤ ${atMost(v.loss_high, digits).replace("-", "−")}`;
        return el("tr", { "data-cell": x.id, class: x === s.pick ? "picked" : null },
          el("th", { scope: "row" }, el("button", { type: "button", class: "cell-button" }, markOf(x), el("span", { class: "label" }, x.label)), el("span", { class: "tags" }, ...tags.map((t) => el("span", { class: "tag" }, t)))),
          el("td", { class: "num", "data-title": head[1] }, x.v[s.q] ? x.t[s.q].split(" (")[0].replace(` ${quality.unit}`, "") : "–"),
          el("td", { class: "num", "data-title": head[2] }, loss, high ? el("small", null, high) : null),
          el("td", { class: "num", "data-title": head[3] }, b ? multiple(v.size, b.size) : "–", candidates.get(x.id) && v.size ? el("small", null, QuantDecide.amount(v.size, true)) : null),
          el("td", { class: "num", "data-title": head[4] }, b ? multiple(v.memory, b.memory) : "–", v.memory ? el("small", null, `${QuantDecide.amount(v.memory, true)}${v.derived ? ", derived" : ""}`) : null),
          el("td", { class: "num", "data-title": head[5] }, b ? multiple(v.tpot, b.tpot, true) : "–", v.tpot ? el("small", null, `${QuantDecide.duration(v.tpot)} / token`) : null),
          el("td", { class: "words" }, [x === s.pick ? "Recommended under these limits." : words && Object.hasOwn(words.fails, x.id) ? words.fails[x.id] : "Qualifies.", dearer(x)].filter(Boolean).join(" ")));
      })));
    const list = (some, title) => (some.length ? el("details", { class: "fold" }, el("summary", null, title), el("ul", null, ...some.map((x) => el("li", null, el("b", null, x.label), `: ${words && Object.hasOwn(words.fails, x.id) ? words.fails[x.id] : standingWords(x, s)}`)))) : null);
    const noun = (n) => `${n} ${n === 1 ? "cell" : "cells"}`, more = byId("decision-more") || el("div", { id: "decision-more" });
    if (!more.isConnected) byId("decision-note").after(more);
    more.replaceChildren(...[list(folded, `${noun(folded.length)} folded away: the estimated loss is more than ${FAR} times what is allowed`), list(others, `${noun(others.length)} beside these, and why`)].filter(Boolean));
    byId("decision-note").textContent = rowsInWords(rows, s);
  }
  function order(a, b, s) {
    const key = (x) => { const v = s.verdicts.get(x.id); return x.v[s.c] ? (data.columns[s.c].better === "higher" ? 1 : -1) * x.v[s.c][0] : v && v.size !== null ? -v.size : Infinity; };
    return (b.baseline - a.baseline) || key(a) - key(b) || (a.id < b.id ? -1 : 1);
  }
  /* What may be said of the rows that stand there: of those on the frontier, dearest first, who beats the next. */
  function rowsInWords(rows, s) {
    const quality = data.columns[s.q], cost = data.columns[s.c], on = rows.filter((x) => s.front.includes(x));
    const dear = cost.better === "higher" ? (a, b) => a.v[s.c][0] - b.v[s.c][0] : (a, b) => b.v[s.c][0] - a.v[s.c][0];
    on.sort((a, b) => dear(a, b) || (a.id < b.id ? -1 : 1));
    const said = [], named = /^[A-Z][a-z]/.test(quality.title) ? quality.title[0].toLowerCase() + quality.title.slice(1) : quality.title;
    if (!on.length) said.push("No cell of the frontier stands here: none fits the limits, loses little enough and has a number on both axes.");
    else if (on.length === 1) said.push(`Of the frontier only ${on[0].label} stands here: there is nothing to choose between.`);
    else {
      const byQuality = beyond(s.model, s.q), pairs = on.slice(1).map((x, i) => [on[i], x]), equal = pairs.filter(([a, b]) => !byQuality(a, b)).map(([a]) => a.label);
      if (!equal.length) said.push(`Of those on the frontier, each dearer one is better than the next in ${named}, beyond the noise.`);
      else if (equal.length === pairs.length) said.push(`Of those on the frontier, none is better than the next in ${named} beyond the noise: choose by cost.`);
      else said.push(`Not better in ${named} than the next cheaper one on the frontier, beyond the noise: ${equal.join(", ")}. Between those, choose by cost.`);
    }
    if (s.pick && !s.front.includes(s.pick)) said.push(`${s.pick.label} is recommended, and is not on the frontier of these two axes.`);
    else if (s.pick && !s.line.includes(s.pick)) said.push(`${s.pick.label} is recommended, and ties with a cheaper cell of the frontier.`);
    return said.join(" ");
  }

  /* After the next painting; at once where nothing is painted, in a tab that is not shown. */
  const painted = () => new Promise((done) => (document.hidden ? done() : requestAnimationFrame(() => setTimeout(done, 0))));

  /* ---- everything from the state */
  function draw() {
    const started = performance.now(), asked = limits(), decision = QuantDecide.decide(offer.candidates, asked);
    answer(decision, asked);
    const menu = byId("pareto-model"), one = !menu || menu.value !== "all";
    const scenes = one ? [scene(menu ? Number(menu.value) : 0, decision, asked)] : data.models.map((_, m) => scene(m, decision, asked));
    const words = scenes.map((s) => (s.given ? QuantDecide.say(offer.candidates, asked, s.given) : null));
    byId("decision-title").hidden = byId("decision").hidden = byId("decision-note").hidden = !one;
    if (one) decisionTable(scenes[0], asked, words[0]);
    else if (byId("decision-more")) byId("decision-more").replaceChildren();
    const s = scenes[0], left = s.cells.filter((x) => !(x.v[s.q] && x.v[s.c]));
    byId("pareto-note").textContent = one
      ? `Frontier of the ${s.fit.length} of ${data.cells.filter((x) => x.model === s.model).length} cells that are chosen and fit the limits on memory, size and time: ${s.front.map((x) => x.label).join(", ") || "none"}.${left.length ? ` Not drawn, having no number here: ${left.map((x) => `${x.label} (${x.v[s.q] ? x.t[s.c] : x.t[s.q]})`).join(", ")}.` : ""}`
      : "Each model with its own frontier, of the cells that are chosen and fit the limits on memory, size and time.";
    const band = one && words[0] ? words[0].alike : "";
    byId("alike").hidden = !band;
    byId("alike").textContent = band;
    panel();
    const told = document.documentElement.dataset, mine = ++latest;
    told.decided = (performance.now() - started).toFixed(1);
    told.drawing = "true";
    /* charts take longer than a reader waits for an answer: that one is painted first, and only the newest chart is drawn */
    return painted().then(() => {
      told.painted = (performance.now() - started).toFixed(1);
      return mine === latest ? chart(scenes, asked, mine) : null;
    }).then(() => {
      told.draws = String(Number(told.draws || 0) + 1);
      if (mine === latest) delete told.drawing;
    });
  }
  const form = byId("limits");
  for (const kind of ["input", "change"]) form.addEventListener(kind, () => { remember(); draw(); });
  for (const id of MENUS) if (!form.contains(byId(id))) byId(id).addEventListener("change", () => { remember(); draw(); });
  byId("reset").addEventListener("click", () => {
    for (const id of [...Object.keys(NUMBERS), ...MENUS]) byId(id).value = initial[id];
    for (const name of ["method", "bits"]) for (const b of boxes(name)) b.checked = true;
    chosen = null;
    remember();
    draw();
  });
  byId("decision").addEventListener("click", (event) => { const row = event.target.closest("[data-cell]"); if (row && event.target.closest("button")) open(cellOf.get(row.dataset.cell), true); });
  window.addEventListener("hashchange", () => { if (location.hash.includes("=") && location.hash.slice(1) !== written) { restore(); draw(); } });
  restore();
  return { draw, picture };
})();

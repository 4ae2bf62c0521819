/* What is left of the page: the charts by bits, tables that sort, explanations, the keyboard in tables, the navigation. */
(() => {
  "use strict";
  const { data, plotly, byId, cellOf, css, colour, escape, narrow, config, axis, layout, scaleFor, spanFor, bars } = QuantChart;

  /* ---- fidelity by bits */
  function ladder(id, menu) {
    const plot = byId(`${id}-plot`);
    if (!plot) return;
    const index = data.columns.findIndex((c) => c.key === byId(menu).value), model = byId("ladder-model") ? Number(byId("ladder-model").value) : 0;
    const column = data.columns[index];
    const cells = data.cells.filter((x) => x.model === model && x.v[index]);
    const quantized = cells.filter((x) => x.hue !== null), base = cells.find((x) => x.baseline);
    const all = [...quantized.map((x) => x.v[index][0]), ...(base && !(column.scale === "log" && base.v[index][0] === 0) ? [base.v[index][0]] : [])];
    const scale = scaleFor(column, all);
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
    if (base && !(scale.kind === "log" && base.v[index][0] <= 0)) shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, y0: scale.at(base.v[index][0]), y1: scale.at(base.v[index][0]), line: { color: css("--native"), width: 1.2, dash: "dash" } });
    const whole = layout({
      xaxis: { ...axis({ title: "Nominal bits", unit: "", better: "neither" }), tickvals: widths.map((_, i) => i), ticktext: widths.map((b) => String(b)), range: [-0.4, widths.length - 0.6] },
      yaxis: axis(column, all.length ? spanFor(scale, all) : {}), shapes, showlegend: true, margin: { l: 60, r: 16, t: 16, b: 52 },
    });
    return plotly.then((Plotly) => Plotly.react(plot, traces, whole, config()));
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
    const group = byId("table-group"), rule = document.head.appendChild(document.createElement("style"));
    group.addEventListener("change", () => columns(table, group.value, rule));
    columns(table, group.value, rule);
  }
  /* One group of columns at a time: the headline's stand in the page, the others are made of the data. */
  function columns(table, group, rule) {
    for (const made of table.querySelectorAll("[data-made]")) made.remove();
    for (const th of table.tHead.rows[0].cells) th.removeAttribute("aria-sort");
    rule.textContent = group === "all" ? "" : `#cells [class*="g-"]:not(.g-${CSS.escape(group)}) { display: none; }`;
    if (group === "headline") return;
    const all = data.columns.map((column, i) => [column, i]).filter(([column]) => (group === "all" || column.group === group));
    rule.textContent += group === "all" ? " #cells .g-headline.num { display: none; }" : "";
    const append = (row, name, attributes, ...children) => {
      const node = document.createElement(name);
      for (const [k, v] of Object.entries({ ...attributes, "data-made": "" })) if (v !== null) node.setAttribute(k, v);
      node.append(...children);
      row.append(node);
      return node;
    };
    const small = (text) => { const node = document.createElement("small"); node.textContent = text; return node; };
    for (const [column] of all) {
      const button = document.createElement("button"), title = document.createElement("span"), unit = [column.subject, column.unit].filter(Boolean).join(" · ");
      button.type = "button";
      button.dataset.tip = column.definition;
      title.textContent = column.name;
      button.append(title, ...(unit ? [small(unit)] : []));
      append(table.tHead.rows[0], "th", { scope: "col", class: "num", "data-kind": "number" }, button);
    }
    for (const row of table.tBodies[0].rows) {
      const cell = cellOf.get(row.dataset.cell);
      for (const [column, i] of all) {
        const v = cell.v[i], why = cell.why[String(i)], [text, between] = cell.t[i].split(" (");
        if (!v) append(row, "td", { class: "num", "data-tip": why === undefined ? null : data.reasons[why] }, text);
        else append(row, "td", { class: "num", "data-sort": String(v[0]), "data-tip": v[3] ? `n = ${v[3]}` : null }, unitless(text, column.unit), ...(between ? [small(between.split(")")[0])] : []));
      }
    }
  }
  const unitless = (text, unit) => (unit && text.endsWith(unit) ? text.slice(0, -unit.length).trim() : text);

  /* ---- tables that are wider than their frame: a shadow says so, and for the table of all cells a button shows the rest */
  const further = byId("table-further");
  function beyond(region) {
    const left = region.scrollLeft > 1, right = region.scrollLeft + region.clientWidth < region.scrollWidth - 1, more = [left && "left", right && "right"].filter(Boolean).join(" ");
    if (more) region.dataset.more = more; else delete region.dataset.more;
    if (further && table && region.contains(table)) {
      further.hidden = !more;
      further.textContent = right ? "More columns \u2192" : "\u2190 First columns";
    }
  }
  const sized = new ResizeObserver((entries) => { for (const e of entries) beyond(e.target.closest(".scroll")); });
  document.querySelectorAll("main .scroll").forEach((region) => {
    region.addEventListener("scroll", () => beyond(region), { passive: true });
    for (const node of [region, region.querySelector("table")]) if (node) sized.observe(node);
  });
  if (further && table) {
    further.addEventListener("click", () => {
      const region = table.closest(".scroll"), fixed = table.querySelector("tbody th"), step = region.clientWidth - (fixed ? fixed.offsetWidth : 0);
      region.scrollTo({ left: region.dataset.more.includes("right") ? region.scrollLeft + step : 0 });
    });
  }

  /* ---- the keyboard in tables: one tab stop each, arrow keys walk what explains itself or does something */
  function one(region) { for (const node of region.querySelectorAll("table [data-tip], table button")) node.tabIndex = -1; }
  document.querySelectorAll("main .scroll").forEach((region) => { one(region); new MutationObserver(() => one(region)).observe(region, { childList: true, subtree: true }); });
  document.addEventListener("keydown", (event) => {
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key], region = event.target.closest && event.target.closest(".scroll");
    if (!step || !region || event.target.matches("input, select")) return;
    const table = region.querySelector("table"), here = event.target.closest("td, th");
    if (!table) return;
    const rows = [...table.rows], seen = (row) => [...row.cells].filter((c) => c.offsetParent !== null);
    let r = here ? rows.indexOf(here.parentElement) : -1, c = here ? seen(here.parentElement).indexOf(here) : 0;
    r = here ? r + step[0] : 0;
    c = here ? c + step[1] : 0;
    const next = rows[r] && seen(rows[r])[c];
    if (!next) return;
    event.preventDefault();
    const inner = next.querySelector("button, a") || next.querySelector("[data-tip]") || next;
    if (inner === next || inner.tabIndex < 0) inner.tabIndex = -1;
    inner.focus();
  });

  /* ---- explanations on hover and on keyboard focus */
  const tip = byId("tip");
  let owner = null;
  function showTip(target) {
    owner = target;
    tip.textContent = target.dataset.tip || target.getAttribute("aria-label") || "";
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
  const ladders = () => Promise.all([ladder("ladder-a", "ladder-left"), ladder("ladder-b", "ladder-right")]);
  const draw = () => Promise.all([QuantExplore.draw(), ladders()]);
  for (const id of ["ladder-left", "ladder-right", "ladder-model"]) if (byId(id)) byId(id).addEventListener("change", ladders);
  const right = byId("ladder-right");
  if (right) {
    const divergence = data.ladder.find((i) => data.columns[i].metric === "kl_mean");
    right.value = data.columns[divergence === undefined ? data.ladder[Math.min(1, data.ladder.length - 1)] : divergence].key;
  }
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  /* paper is narrower than the window */
  const plots = () => [...document.querySelectorAll(".plot")].filter((plot) => plot._fullLayout);
  window.addEventListener("beforeprint", () => { for (const plot of plots()) Plotly.relayout(plot, { autosize: false, width: plot.closest(".pair") ? 330 : 680, height: plot.closest(".pair") ? 300 : 460 }); });
  window.addEventListener("afterprint", () => { for (const plot of plots()) Plotly.relayout(plot, { autosize: true, width: null, height: null }); draw(); });
  let width = window.innerWidth;
  window.addEventListener("resize", () => { if ((width < 760) !== narrow()) { width = window.innerWidth; draw(); } });
  const drawn = draw();
  /* A link within the page moves to its section and leaves the address, which holds the reader's limits. */
  document.addEventListener("click", (event) => {
    const link = event.target.closest('a[href^="#"]'), target = link && byId(link.getAttribute("href").slice(1));
    if (!target || !location.hash.includes("=")) return;
    event.preventDefault();
    target.scrollIntoView();
    target.tabIndex = -1;
    target.focus({ preventScroll: true });
  });
  const links = new Map([...document.querySelectorAll("nav .links a")].map((a) => [a.getAttribute("href").slice(1), a]));
  const seen = new IntersectionObserver((entries) => {
    for (const e of entries) if (e.isIntersecting) { for (const a of links.values()) a.removeAttribute("aria-current"); const a = links.get(e.target.id); if (a) a.setAttribute("aria-current", "true"); }
  }, { rootMargin: "-20% 0px -70% 0px" });
  document.querySelectorAll("main > section").forEach((s) => seen.observe(s));
  document.documentElement.dataset.interactive = performance.now().toFixed(0);
  drawn.then(() => { document.documentElement.dataset.charts = performance.now().toFixed(0); document.documentElement.dataset.ready = "true"; });
})();

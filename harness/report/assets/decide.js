/* Which cell to deploy, under a reader's limits: docs/recommend.md, as in harness/decide (rules.py, numbers.py, words.py), over the
   same JSON. Pure: it reads what it is given, touches no page and keeps no state. What is read may be hostile: sentences are
   plain text, to be shown as text. */
const QuantDecide = (() => {
  "use strict";
  const CONFIDENCES = [0.8, 0.9, 0.95, 0.99];
  const POWER = 0.8416212335729143;
  const NO_LIMITS = {
    max_memory: null, context: null, batch: null, max_size: null, max_tpot: null, max_ttft: null, loss: "pp", max_loss: null,
    confidence: 0.95, prefer: "size", models: null, methods: null, bits: null, binary: false,
  };
  const NOT_MEASURED = { value: null, low: null, high: null, reason: "not measured" };
  const NO_LOSS = { value: null, limits: [null, null, null, null], critical: [0, 0, 0, 0], n: 0, unit: "items", reason: "not measured" };
  const own = (table, name) => (table && Object.hasOwn(table, name) ? table[name] : undefined);
  const known = (value) => (value === null ? Infinity : value);
  const before = (a, b) => {
    for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return a[i] < b[i] ? -1 : 1;
    return 0;
  };

  /* ------------------------------------------------------------------ rules */

  function decide(candidates, asked) {
    const limits = { ...NO_LIMITS, ...asked };
    if (!CONFIDENCES.includes(limits.confidence)) throw new RangeError(`a loss is limited at a confidence of ${CONFIDENCES.join(", ")}, not ${limits.confidence}`);
    const models = new Map();
    for (const c of candidates) {
      if (limits.models !== null && !limits.models.includes(c.model)) continue;
      if (!models.has(c.model)) models.set(c.model, []);
      models.get(c.model).push(c);
    }
    return { recommendations: [...models].map(([model, cells]) => recommend(model, cells, limits)) };
  }

  function memoryAt(candidate, context, batch) {
    const memory = candidate.memory;
    if (memory.measured === null) return [null, false, memory.reason];
    const tokens = context === null ? memory.context : context, rows = batch === null ? memory.batch : batch;
    if (tokens === memory.context && rows === memory.batch) return [memory.measured, false, ""];
    if (memory.derivable) return [null, true, memory.derivable];
    let cache = 0;
    for (const part of memory.cache) cache += part.bytes_per_token * (part.window === null ? tokens : Math.min(tokens, part.window));
    return [Math.max(memory.load, memory.fixed + cache * rows), true, ""];
  }

  function speedAt(candidate, limits) {
    const speeds = candidate.speeds;
    if (!speeds.length) return [null, "no latency was measured"];
    const batch = limits.batch === null ? speeds[0].batch : limits.batch;
    const shapes = speeds.filter((s) => s.batch === batch);
    if (!shapes.length) {
      const measured = [...new Set(speeds.map((s) => s.batch))].sort((a, b) => a - b);
      return [null, `no latency was measured at batch ${batch} (measured: ${measured.join(", ")})`];
    }
    let chosen = shapes[0];
    if (limits.context !== null) {
      for (const shape of shapes.slice(1)) {
        const far = Math.abs(shape.prompt + shape.new - limits.context), nearest = Math.abs(chosen.prompt + chosen.new - limits.context);
        if (far < nearest || (far === nearest && shape.prompt + shape.new > chosen.prompt + chosen.new)) chosen = shape;
      }
    }
    return [chosen, ""];
  }

  function recommend(model, candidates, limits) {
    const rows = candidates.map((c, place) => row(c, limits, place));
    const order = ordered(rows.filter((r) => r.verdict.qualifies), limits);
    const pick = order.length ? order[0] : null, near = pick === null ? new Set() : pick.alike;
    return {
      model,
      pick: pick === null ? null : pick.candidate.id,
      runner_up: order.length > 1 ? order[1].candidate.id : null,
      order: order.map((r) => r.candidate.id),
      verdicts: rows.map((r) => r.verdict),
      alike: candidates.filter((c) => near.has(c.id) && c.id !== pick.candidate.id).map((c) => c.id),
      changes: changes(rows, order, limits),
      settle: settle(rows, order, limits),
    };
  }

  function row(candidate, limits, place) {
    let [memory, derived, whyMemory] = memoryAt(candidate, limits.context, limits.batch);
    const [speed, whySpeed] = speedAt(candidate, limits);
    let tpot = speed ? speed.tpot : { value: null, low: null, high: null, reason: whySpeed };
    let ttft = speed ? speed.ttft : { value: null, low: null, high: null, reason: whySpeed };
    if (candidate.simulated) { memory = null; derived = false; tpot = ttft = NOT_MEASURED; }
    const loss = own(candidate.losses, limits.loss) || NO_LOSS, high = loss.limits[CONFIDENCES.indexOf(limits.confidence)];
    const obstacles = leftOut(candidate, limits);
    above(obstacles, "size", limits.max_size, candidate.size, false);
    above(obstacles, "memory", limits.max_memory, { value: memory, reason: whyMemory }, candidate.simulated);
    above(obstacles, "tpot", limits.max_tpot, tpot, candidate.simulated);
    above(obstacles, "ttft", limits.max_ttft, ttft, candidate.simulated);
    if (!candidate.baseline) lossWithin(obstacles, limits.max_loss, loss, high);
    const verdict = {
      id: candidate.id, qualifies: !obstacles.length, size: candidate.size.value, memory, derived, tpot: tpot.value, ttft: ttft.value,
      prompt: speed ? speed.prompt : null, new: speed ? speed.new : null, batch: speed ? speed.batch : null,
      loss: loss.value, loss_high: high, obstacles,
    };
    const cost = [known(verdict.size), known(verdict.memory), known(verdict.tpot), known(verdict.loss), place];
    return { candidate, verdict, tpot, place, cost, alike: new Set(own(candidate.alike, limits.loss) || []) };
  }

  const obstacle = (limit, state, allowed = null, needed = null, reason = "") => ({ limit, state, allowed, needed, reason });

  function leftOut(candidate, limits) {
    const out = [];
    if (limits.methods !== null && !limits.methods.includes(candidate.method)) out.push(obstacle("method", "left out"));
    if (limits.bits !== null && !limits.bits.includes(candidate.bits)) out.push(obstacle("bits", "left out"));
    return out;
  }

  function above(obstacles, limit, allowed, number, simulated) {
    if (allowed === null) return;
    if (simulated) obstacles.push(obstacle(limit, "simulated", allowed));
    else if (number.value === null) obstacles.push(obstacle(limit, "missing", allowed, null, number.reason));
    else if (number.value > allowed) obstacles.push(obstacle(limit, "over", allowed, number.value));
  }

  function lossWithin(obstacles, allowed, loss, high) {
    if (allowed === null) return;
    if (loss.value === null) obstacles.push(obstacle("loss", "missing", allowed, null, loss.reason));
    else if (high === null) obstacles.push(obstacle("loss", "missing", allowed, null, `${loss.n} ${loss.unit} are too few for a limit`));
    else if (!(high < allowed)) obstacles.push(obstacle("loss", "not shown", allowed, high));
  }

  const valueOf = (limits) => (limits.prefer === "speed" ? (r) => r.verdict.tpot : (r) => r.verdict.loss);

  function ordered(rows, limits) {
    const best = bestOf(rows, limits);
    if (best === null) return [...rows].sort((a, b) => before(a.cost, b.cost));
    const value = valueOf(limits);
    const key = new Map(rows.map((r) => [r, level(r, best, limits) ? [0, 0, ...r.cost] : [1, known(value(r)), ...r.cost]]));
    return [...rows].sort((a, b) => before(key.get(a), key.get(b)));
  }

  function bestOf(rows, limits) {
    if (limits.prefer === "size") return null;
    const value = valueOf(limits);
    let best = null;
    for (const r of rows) if (value(r) !== null && (best === null || ahead(r, best, value))) best = r;
    return best;
  }
  const ahead = (a, b, value) => value(a) < value(b) || (value(a) === value(b) && before(a.cost, b.cost) < 0);

  function level(r, best, limits) {
    if (r === best) return true;
    if (valueOf(limits)(r) === null) return false;
    if (limits.prefer === "quality") return best.alike.has(r.candidate.id);
    const low = r.tpot.low === null ? r.tpot.value : r.tpot.low, high = best.tpot.high === null ? best.tpot.value : best.tpot.high;
    return low <= high;
  }

  /* A function that says whether a row would come first if it qualified too. */
  function challenger(order, limits) {
    const best = bestOf(order, limits), value = valueOf(limits);
    return (r) => {
      if (best === null) return !order.length || (limits.prefer !== "size" && value(r) !== null) || before(r.cost, order[0].cost) < 0;
      if (value(r) === null) return false;
      if (ahead(r, best, value)) return order.every((o) => !level(o, r, limits) || before(r.cost, o.cost) < 0);
      return level(r, best, limits) && before(r.cost, order[0].cost) < 0;
    };
  }

  function changes(rows, order, limits) {
    const found = [], wins = challenger(order, limits), near = order.length ? order[0].alike : new Set();
    for (const r of rows) {
      const obstacles = r.verdict.obstacles;
      if (!obstacles.length || obstacles.some((o) => o.needed === null) || (order.length && obstacles.length > 1)) continue;
      const gain = gainOf(r, order, wins, near);
      if (gain !== null) found.push([[obstacles.length, Math.max(...obstacles.map(give)), r.place], { id: r.candidate.id, gain, obstacles }]);
    }
    return found.sort((a, b) => before(a[0], b[0])).map((pair) => pair[1]);
  }

  function gainOf(r, order, wins, near) {
    if (wins(r)) return "pick";
    const mine = r.verdict.loss, its = order[0].verdict.loss;
    return mine !== null && its !== null && mine < its && !near.has(r.candidate.id) ? "quality" : null;
  }

  const give = (o) => (o.allowed > 0 ? o.needed / o.allowed : Infinity);

  function settle(rows, order, limits) {
    const found = [], wins = challenger(order, limits);
    for (const r of rows) {
      const obstacles = r.verdict.obstacles;
      if (obstacles.length !== 1 || obstacles[0].state !== "not shown" || !wins(r)) continue;
      const loss = own(r.candidate.losses, limits.loss), more = moreItems(loss, limits);
      if (more !== null) found.push([[more, r.place], { id: r.candidate.id, more, n: loss.n, unit: loss.unit }]);
    }
    return found.sort((a, b) => before(a[0], b[0])).map((pair) => pair[1]);
  }

  function moreItems(loss, limits) {
    const place = CONFIDENCES.indexOf(limits.confidence), high = loss.limits[place], critical = loss.critical[place];
    if (limits.max_loss === null || loss.value === null || high === null || critical <= 0 || loss.n < 1) return null;
    const room = limits.max_loss - loss.value;
    if (room <= 0) return null;
    const ratio = ((high - loss.value) * (1 + POWER / critical)) / room;
    return Math.max(1, Math.ceil(loss.n * ratio * ratio) - loss.n);
  }

  /* ------------------------------------------------------------------ numbers */

  const THIN = "\u202f", POWERS = [1, 10, 100, 1e3, 1e4, 1e5, 1e6];
  const DECIMAL = [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]], BINARY = [["GiB", 1073741824], ["MiB", 1048576], ["KiB", 1024]];

  function fixed(value, digits, { up = false, above = false } = {}) {
    const scaled = Math.abs(value) * POWERS[digits];
    const whole = above ? Math.floor(scaled) + 1 : up ? Math.ceil(scaled) : Math.floor(scaled + 0.5);
    const written = BigInt(whole).toString().padStart(digits + 1, "0"), cut = written.length - digits;
    return grouped(written.slice(0, cut)) + (digits ? `.${written.slice(cut)}` : "");
  }
  function grouped(digits) {
    const first = digits.length % 3, groups = first ? [digits.slice(0, first)] : [];
    for (let i = first; i < digits.length; i += 3) groups.push(digits.slice(i, i + 3));
    return groups.join(THIN);
  }
  function significant(value, up = false) {
    const size = Math.abs(value);
    let digits = 0;
    while (digits < 6 && size * POWERS[digits] < 100) digits++;
    return trimmed(fixed(value, digits, { up }));
  }
  const trimmed = (written) => (written.includes(".") ? written.replace(/0+$/, "").replace(/\.$/, "") : written);
  function amount(value, binary, up = false) {
    for (const [name, size] of binary ? BINARY : DECIMAL) if (Math.abs(value) >= size) return `${significant(value / size, up)} ${name}`;
    return `${fixed(value, 0, { up })} B`;
  }
  const duration = (value, up = false) => (Math.abs(value) >= 1 ? `${significant(value, up)} s` : `${significant(value * 1000, up)} ms`);
  function roundedUp(count) {
    let step = 1;
    while (count > 100 * step) step *= 10;
    return Math.ceil(count / step) * step;
  }
  const integer = (value) => grouped(BigInt(value).toString());

  /* ------------------------------------------------------------------ words */

  const FEW = 3, NAMED = 6;
  const capital = (text) => text.slice(0, 1).toUpperCase() + text.slice(1);

  function lossWords(value, limits, { up = false, above = false } = {}) {
    if (limits.loss === "kl") return `${above ? trimmed(fixed(value, 6, { above })) : significant(value, up)} nats`;
    const written = trimmed(fixed(value, 2, { up, above }));
    return limits.loss === "recovery" ? `${written}${THIN}%` : `${written} ${written === "1" ? "point" : "points"}`;
  }

  function say(candidates, asked, answer) {
    const limits = { ...NO_LIMITS, ...asked };
    const mine = candidates.filter((c) => c.model === answer.model);
    const byId = new Map(mine.map((c) => [c.id, c])), verdicts = new Map(answer.verdicts.map((v) => [v.id, v]));
    const baseline = mine.find((c) => c.baseline) || null;
    const sure = `${Math.floor(limits.confidence * 100 + 0.5)}${THIN}%`;
    const bytes = (value, up = false) => amount(value, limits.binary, up);

    function pick() {
      if (answer.pick === null) {
        const cells = answer.verdicts.length;
        return `Nothing qualifies: none of the ${cells} ${cells === 1 ? "cell" : "cells"} of ${answer.model} keeps every limit.`;
      }
      const cell = byId.get(answer.pick), verdict = verdicts.get(answer.pick);
      const verb = cell.baseline ? `Keep the baseline, ${cell.label}` : `Deploy ${cell.label}`;
      const alone = answer.order.length === 1 ? ", the only cell that qualifies" : "";
      return `${verb}${alone}: ${[...costs(verdict, baseline), loses(verdict)].join("; ")}.`;
    }
    function costs(verdict, other) {
      const parts = [];
      if (verdict.size !== null) parts.push(`${bytes(verdict.size)} on disk${against(verdict, other)}`);
      if (verdict.memory !== null) parts.push(`${bytes(verdict.memory)} of memory${where(verdict)}`);
      if (verdict.tpot !== null && verdict.prompt !== null) parts.push(`${duration(verdict.tpot)} per token after ${integer(verdict.prompt)} tokens at batch ${verdict.batch}`);
      return parts;
    }
    function against(verdict, other) {
      if (other === null || other.id === verdict.id || other.size.value === null || verdict.size === null) return "";
      const name = other.baseline ? "the baseline" : other.label, more = verdict.size - other.size.value;
      return more === 0 ? `, as many as ${name}` : `, ${bytes(Math.abs(more))} ${more > 0 ? "more" : "less"} than ${name}`;
    }
    function where(verdict) {
      const memory = byId.get(verdict.id).memory;
      const context = limits.context === null ? memory.context : limits.context, batch = limits.batch === null ? memory.batch : limits.batch;
      const told = ` at ${integer(context)} tokens x ${batch}`;
      return verdict.derived ? `${told}, derived from what was measured at ${integer(memory.context)} x ${memory.batch}` : told;
    }
    function loses(verdict) {
      if (byId.get(verdict.id).baseline) return "what losses are measured against";
      if (verdict.loss === null) return "its loss is not known";
      const what = { pp: " of mean accuracy", recovery: " of the baseline's accuracy", kl: " of divergence" }[limits.loss];
      return `${verdict.loss < 0 ? "gains" : "loses"} ${lossWords(verdict.loss, limits)}${what}${atMost(verdict.loss_high)}`;
    }
    function atMost(high) {
      if (high === null) return ", with no limit from this data";
      if (high <= 0) return ` (and no loss, with ${sure} confidence)`;
      return ` (a loss of at most ${lossWords(high, limits, { up: true })}, with ${sure} confidence)`;
    }
    function runnerUp() {
      if (answer.runner_up === null || answer.pick === null) return "";
      const cell = byId.get(answer.runner_up), verdict = verdicts.get(answer.runner_up);
      const name = cell.baseline ? `the baseline, ${cell.label}` : cell.label;
      return `Runner-up: ${name}: ${[...costs(verdict, byId.get(answer.pick)), loses(verdict)].join("; ")}.`;
    }
    function alikeWords() {
      if (answer.pick === null || !answer.alike.length) return "";
      const labels = answer.alike.map((id) => byId.get(id).label);
      const named = labels.slice(0, NAMED).join(", ") + (labels.length > NAMED ? ` and ${labels.length - NAMED} more` : "");
      return `This data cannot tell the loss of ${byId.get(answer.pick).label} from that of ${named}: choose by cost.`;
    }
    function change(one) {
      const gave = one.obstacles.map(given).join(" and ");
      const would = answer.pick === null ? "would qualify" : one.gain === "pick" ? "would be the pick" : "would fit, and loses less";
      return `${capital(gave)}, ${byId.get(one.id).label} ${would}.`;
    }
    function given(o) {
      const allowed = o.allowed || 0, needed = o.needed || 0;
      if (o.limit === "loss") return `with a loss of ${lossWords(needed, limits, { above: true })} allowed instead of ${lossWords(allowed, limits)}`;
      if (o.limit === "tpot" || o.limit === "ttft") {
        const what = o.limit === "tpot" ? "per token" : "to the first token";
        return `at ${duration(needed, true)} ${what} instead of ${duration(allowed)}`;
      }
      return `at ${bytes(needed, true)} ${o.limit === "memory" ? "of memory" : "on disk"} instead of ${bytes(allowed)}`;
    }
    function settleWords(one) {
      const more = integer(roundedUp(one.more)), now = integer(one.n), allowed = lossWords(limits.max_loss || 0, limits);
      return `With ${more} more ${one.unit} than the ${now} there are, ${byId.get(one.id).label} could be shown to lose less than ${allowed}`
        + ` (it would be, with a probability of 80${THIN}%, if it loses what is estimated).`;
    }
    function fails(verdict) {
      return `${capital(verdict.obstacles.map((o) => obstacleWords(o, verdict)).join("; "))}.`;
    }
    function obstacleWords(o, verdict) {
      if (o.state === "left out") return `left out by the choice of ${o.limit === "method" ? "methods" : "bits"}`;
      const name = { size: "size", memory: "memory", tpot: "time per token", ttft: "time to the first token", loss: "loss" }[o.limit];
      if (o.state === "simulated") return `its ${name} is not shown, because its weights are simulated`;
      if (o.state === "missing") return `its ${name} is not known${o.reason ? ` (${o.reason})` : ""}`;
      if (o.limit === "loss") return lossFails(o, verdict);
      const needed = o.needed || 0, allowed = o.allowed || 0;
      if (o.limit === "tpot" || o.limit === "ttft") {
        const what = o.limit === "tpot" ? "per token" : "to the first token";
        return `takes ${duration(needed)} ${what}, ${duration(needed - allowed, true)} above the limit of ${duration(allowed)}`;
      }
      const what = o.limit === "memory" ? `of memory${where(verdict)}` : "on disk";
      return `takes ${bytes(needed)} ${what}, ${bytes(needed - allowed, true)} above the limit of ${bytes(allowed)}`;
    }
    function lossFails(o, verdict) {
      const allowed = lossWords(o.allowed || 0, limits), loss = verdict.loss || 0;
      const known = `${loss < 0 ? "gains" : "loses"} ${lossWords(loss, limits)}${atMost(o.needed)}`;
      return loss >= (o.allowed || 0) ? `${known}, not below the limit of ${allowed}` : `a loss below ${allowed} is not shown: ${known}`;
    }
    return {
      pick: pick(), runner_up: runnerUp(), alike: alikeWords(),
      changes: answer.changes.slice(0, FEW).map(change), settle: answer.settle.slice(0, FEW).map(settleWords),
      fails: Object.fromEntries(answer.verdicts.filter((v) => !v.qualifies).map((v) => [v.id, fails(v)])),
    };
  }

  return { CONFIDENCES, NO_LIMITS, decide, say, memoryAt: (c, context = null, batch = null) => memoryAt(c, context, batch), speedAt, amount, duration, lossWords };
})();

/* Every visible text of the page with its contrast against what is behind it (WCAG 2.2, 1.4.3): [seen, those below 4.5]. */
(() => {
  const ink = document.createElement('canvas').getContext('2d', { willReadFrequently: true }), known = new Map();
  const parse = (c) => { if (!known.has(c)) { ink.clearRect(0, 0, 1, 1); ink.fillStyle = c; ink.fillRect(0, 0, 1, 1); const p = ink.getImageData(0, 0, 1, 1).data; known.set(c, [p[0], p[1], p[2], p[3] / 255]); } return known.get(c); };
  const over = (a, b) => [0, 1, 2].map((i) => a[i] * a[3] + b[i] * (1 - a[3])).concat(1);
  const light = (c) => { const l = c.slice(0, 3).map((v) => { v /= 255; return v <= 0.03928 ? v / 12.92 : Math.pow((v + 0.055) / 1.055, 2.4); }); return 0.2126 * l[0] + 0.7152 * l[1] + 0.0722 * l[2]; };
  const behind = (n) => { const stack = []; for (let e = n; e; e = e.parentElement) stack.unshift(parse(getComputedStyle(e).backgroundColor)); return stack.reduce((b, a) => over(a, b), [255, 255, 255, 1]); };
  const bad = new Map();
  let seen = 0;
  const walker = document.createTreeWalker(document.querySelector('body'), NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode, n = text.parentElement;
    if (!text.data.trim() || n.closest('script, style, svg, noscript, [hidden], .hidden, .skip, option') || n.getClientRects().length === 0) continue;
    let faded = 1; for (let e = n; e; e = e.parentElement) faded *= Number(getComputedStyle(e).opacity);
    const back = behind(n), own = parse(getComputedStyle(n).color), front = over([...own.slice(0, 3), own[3] * faded], back), [a, b] = [light(front), light(back)].sort((p, q) => q - p), ratio = (a + 0.05) / (b + 0.05);
    seen++;
    if (ratio < 4.5) bad.set(`${n.tagName}.${n.className}`, [text.data.trim().slice(0, 40), Math.round(ratio * 100) / 100]);
  }
  for (const text of document.querySelectorAll('#pareto-plot text')) {
    const front = parse(getComputedStyle(text).fill), back = behind(document.getElementById('pareto-plot')), [a, b] = [light(front), light(back)].sort((p, q) => q - p), ratio = (a + 0.05) / (b + 0.05);
    if (text.textContent.trim() && ratio < 4.5) bad.set(`chart ${text.textContent.trim().slice(0, 30)}`, ratio);
  }
  return [seen, [...bad]];
})()

"use strict";
// "Copy as Markdown" under every table: what is shown of it, rows and columns that a filter hides left out. Nothing is sent
// anywhere; without this script the page lacks these buttons and nothing else.
(() => {
  const shown = (node) => node.offsetParent !== null || node.getClientRects().length > 0;

  function text(cell) {
    const parts = [];
    const walk = (node) => {
      if (node.nodeType === Node.TEXT_NODE) parts.push(node.data);
      else if (node.nodeType === Node.ELEMENT_NODE && node.tagName !== "svg" && !node.hidden) {
        const apart = node !== cell && ["SMALL", "P", "LI", "DETAILS", "DIV"].includes(node.tagName);
        if (apart || node.classList.contains("block") || node.classList.contains("tag")) parts.push(" ");
        const folded = node.tagName === "DETAILS" && !node.open;
        node.childNodes.forEach((child) => { if (!folded || child.tagName === "SUMMARY") walk(child); });
      }
    };
    walk(cell);
    const plain = parts.join("").replace(/\s+/g, " ").trim();
    return plain.replace(/[\\|`*_[\]<>&#~]/g, "\\$&");
  }

  function markdown(table) {
    const rows = [...table.rows].filter(shown).map((row) => [...row.cells].filter(shown));
    if (!rows.length) return "";
    const head = table.tHead && shown(table.tHead.rows[0]) ? rows.shift() : rows[0].map(() => null);
    const line = (cells) => `| ${cells.join(" | ")} |`;
    const sides = head.map((cell) => (cell && cell.classList.contains("num") ? "---:" : "---"));
    const lines = [line(head.map((cell) => (cell ? text(cell) : ""))), line(sides)];
    for (const row of rows) lines.push(line(row.map(text)));
    return lines.join("\n") + "\n";
  }

  async function copy(button, table) {
    const said = button.textContent;
    let done = true;
    try {
      await navigator.clipboard.writeText(markdown(table));
    } catch {
      const area = document.createElement("textarea");
      area.value = markdown(table);
      document.body.append(area);
      area.select();
      done = document.execCommand("copy");
      area.remove();
      button.focus();
    }
    button.textContent = done ? "Copied" : "Could not copy";
    setTimeout(() => { button.textContent = said; }, 1500);
  }

  for (const table of document.querySelectorAll("main table")) {
    const frame = table.closest(".scroll") || table;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy as Markdown";
    button.setAttribute("aria-label", `Copy as Markdown: ${frame.getAttribute("aria-label") || table.closest("div")?.querySelector("h3")?.textContent || "table"}`);
    button.addEventListener("click", () => copy(button, table));
    frame.after(button);
  }
  window.quantHarnessMarkdown = markdown;
})();

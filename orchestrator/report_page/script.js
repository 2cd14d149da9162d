"use strict";

// Tables: a click on a column's name sorts by it, up, down, and then as it was.

const EMPTY = new Set(["", "—"]);

function numberIn(text) {
  const match = /^[^\d]*?([-−+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?)/i.exec(text.trim());
  return match ? Number(match[1].replace(/,/g, "").replace("−", "-")) : NaN;
}

function compareCells(left, right, isNumeric) {
  if (isNumeric) {
    return numberIn(left) - numberIn(right);
  }
  return left.localeCompare(right, undefined, { numeric: true });
}

function makeSortable(table) {
  const body = table.tBodies[0];
  const headers = [...table.tHead.rows[0].cells];

  // A row whose first cell is indented belongs to the row above, and moves with it.
  const groups = [];
  for (const row of body.rows) {
    const isChild = row.cells[0].textContent.startsWith("  ") && groups.length > 0;
    if (isChild) {
      groups.at(-1).push(row);
    } else {
      groups.push([row]);
    }
  }

  headers.forEach((header, column) => {
    const textOf = (group) => group[0].cells[column].textContent.trim();
    const texts = groups.map(textOf).filter((text) => !EMPTY.has(text));
    const isNumeric = texts.length > 0 && texts.every((text) => /^[-−+]?\d/.test(text));

    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);

    button.addEventListener("click", () => {
      // Numbers begin with the largest, names with the first.
      const steps = isNumeric ? ["descending", "ascending", "none"] : ["ascending", "descending", "none"];
      const next = steps[(steps.indexOf(header.getAttribute("aria-sort") ?? "none") + 1) % steps.length];
      headers.forEach((other) => other.removeAttribute("aria-sort"));

      const ordered = [...groups];
      if (next !== "none") {
        header.setAttribute("aria-sort", next);
        const sign = next === "ascending" ? 1 : -1;
        ordered.sort((left, right) => {
          const [a, b] = [textOf(left), textOf(right)];
          // Cells without a value come last in both directions.
          if (EMPTY.has(a) || EMPTY.has(b)) {
            return EMPTY.has(a) - EMPTY.has(b);
          }
          return sign * compareCells(a, b, isNumeric);
        });
      }
      body.append(...ordered.flat());
    });
  });
}

document.querySelectorAll("table").forEach(makeSortable);

// Charts: the trial below the pointer is marked in the charts and the leaderboard of its study.

const REACH = 30; // pixels from a line at which it counts as pointed at
const tooltip = document.createElement("div");
tooltip.className = "tooltip";
tooltip.hidden = true;
document.body.append(tooltip);

function mark(study, trial) {
  for (const element of study.querySelectorAll("[data-trial]")) {
    element.classList.toggle("marked", element.dataset.trial === trial);
  }
  study.classList.toggle("has-marked", trial !== null);
}

function showTooltip(text, x, y) {
  tooltip.textContent = text;
  tooltip.hidden = false;
  const width = tooltip.offsetWidth;
  const left = Math.max(4, Math.min(x + 14, document.documentElement.clientWidth - width - 4));
  tooltip.style.left = `${left}px`;
  tooltip.style.top = `${y + 18}px`;
}

function distanceToSegment(p, a, b) {
  const length = (b.x - a.x) ** 2 + (b.y - a.y) ** 2;
  const along = length === 0 ? 0 : ((p.x - a.x) * (b.x - a.x) + (p.y - a.y) * (b.y - a.y)) / length;
  const t = Math.max(0, Math.min(1, along));
  return Math.hypot(p.x - a.x - t * (b.x - a.x), p.y - a.y - t * (b.y - a.y));
}

// Returns the line nearest to a point of the screen, and of its points the one nearest in x.
function nearestLine(chart, pointer) {
  let best = null;
  for (const line of chart.querySelectorAll("[data-trial] polyline")) {
    const matrix = line.getScreenCTM();
    const points = [...line.points].map((point) => point.matrixTransform(matrix));
    for (let index = 0; index + 1 < points.length; index += 1) {
      const distance = distanceToSegment(pointer, points[index], points[index + 1]);
      // Lines that are drawn later lie on top.
      if (distance <= REACH && (best === null || distance <= best.distance)) {
        const isFirst = Math.abs(points[index].x - pointer.x) < Math.abs(points[index + 1].x - pointer.x);
        best = { line, distance, point: line.points[isFirst ? index : index + 1] };
      }
    }
  }
  return best;
}

for (const chart of document.querySelectorAll(".chart svg")) {
  const study = chart.closest(".study");
  const isCurve = chart.closest(".curves") !== null;

  // The browser's own tooltips would lie over ours.
  for (const title of chart.querySelectorAll("title")) {
    title.parentNode.dataset.text = title.textContent;
    title.remove();
  }

  const onPointer = (event) => {
    const nearest = nearestLine(chart, { x: event.clientX, y: event.clientY });
    if (nearest === null) {
      tooltip.hidden = true;
      mark(study, null);
      return;
    }
    const { text, trial } = nearest.line.parentNode.dataset;
    const { x, y } = nearest.point;
    const value = isCurve ? `${chart.dataset.name} ${Number(y.toPrecision(4))} at epoch ${x}\n` : "";
    mark(study, trial);
    showTooltip(value + text, event.clientX, event.clientY);
  };
  chart.addEventListener("pointermove", onPointer);
  chart.addEventListener("pointerdown", onPointer);
  chart.addEventListener("pointerleave", () => {
    tooltip.hidden = true;
    mark(study, null);
  });
}

for (const row of document.querySelectorAll(".leaderboard tbody tr")) {
  const study = row.closest(".study");
  row.dataset.trial = row.cells[0].textContent;
  row.addEventListener("pointerenter", () => mark(study, row.dataset.trial));
  row.addEventListener("pointerleave", () => mark(study, null));
}

// Paper has no folds.

window.addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details:not([open])")) {
    details.open = true;
    details.dataset.reopened = "";
  }
});
window.addEventListener("afterprint", () => {
  for (const details of document.querySelectorAll("details[data-reopened]")) {
    details.open = false;
    delete details.dataset.reopened;
  }
});

// A page that loads itself again keeps its place and its folds.

if (document.querySelector("meta[http-equiv=refresh]") !== null) {
  const key = `sptune ${document.title}`;
  try {
    const kept = JSON.parse(sessionStorage.getItem(key) ?? "null");
    if (kept !== null) {
      document.querySelectorAll("details").forEach((details, index) => {
        details.open = kept.open[index] ?? details.open;
      });
      window.scrollTo(0, kept.scroll);
    }
    window.addEventListener("pagehide", () => {
      const open = [...document.querySelectorAll("details")].map((details) => details.open);
      sessionStorage.setItem(key, JSON.stringify({ open, scroll: window.scrollY }));
    });
  } catch {
    // Some browsers keep nothing for files.
  }
}

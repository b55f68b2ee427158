"""The style sheet and the script of every page; the script only shows values under the pointer."""

CSS = """
:root {
  color-scheme: light dark;
  --page: #fafaf8; --card: #ffffff; --ink: #1d2430; --soft: #667085; --rule: #e4e5e0; --grid: #eef0ec;
  --a: #2563eb; --b: #ea580c; --c: #0f766e; --d: #9333ea; --good: #0f766e; --bad: #b42318;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12151a; --card: #1a1e25; --ink: #e6e9ee; --soft: #98a2b3; --rule: #2c323c; --grid: #252a33;
    --a: #6ea0ff; --b: #ff9a5c; --c: #4fd1c5; --d: #c084fc; --good: #4fd1c5; --bad: #ff8a80;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2.2rem 1.4rem 4rem; max-width: 1180px; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
h1 {
  font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.01em; overflow-wrap: anywhere;
}
h2 { font-size: 1.2rem; margin: 2.6rem 0 .3rem; }
p { margin: .3rem 0 .9rem; max-width: 75ch; }
.verdict { font-size: 1.15rem; }
.note, .none { color: var(--soft); font-size: .92rem; }
.warn { border-left: 3px solid var(--bad); padding-left: .8rem; }
.tiles {
  display: grid; gap: .8rem; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); margin: 1.2rem 0;
}
.tile, figure, details {
  background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: .8rem 1rem; margin: 0;
}
.tile b { display: block; font-size: 1.45rem; font-weight: 600; line-height: 1.25; }
.tile span { color: var(--soft); font-size: .85rem; }
.wide { display: grid; gap: .9rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); }
.three { display: grid; gap: .9rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); }
.wide + .three { margin-top: .9rem; } .wide, .three { align-items: start; }
figcaption {
  font-size: .92rem; font-weight: 600; margin-bottom: .4rem; display: flex; gap: 1rem; flex-wrap: wrap;
}
.legend { margin-left: auto; font-weight: 400; color: var(--soft); display: flex; gap: .9rem; }
.key::before {
  content: ""; display: inline-block; width: 16px; height: 3px; border-radius: 2px; margin-right: 6px;
  vertical-align: middle; background: currentColor;
}
.key.a::before { background: var(--a); } .key.b::before { background: var(--b); }
.key.c::before { background: var(--c); } .key.d::before { background: var(--d); }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg.scale { width: 360px; max-width: 100%; margin: .2rem 0 .9rem; }
svg text { font: 11.5px system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; fill: var(--soft); }
.end { text-anchor: end; } .mid { text-anchor: middle; }
.grid { stroke: var(--grid); } .axis { stroke: var(--soft); stroke-opacity: .6; }
.mark { stroke: var(--ink); stroke-opacity: .55; stroke-dasharray: 5 4; }
.line {
  fill: none; stroke-width: 2; stroke-linejoin: round; } .faint { stroke-opacity: .3; stroke-width: 1.2;
}
.line.a { stroke: var(--a); } .line.b { stroke: var(--b); } .line.c { stroke: var(--c); }
.line.d { stroke: var(--d); }
.dot.a { fill: var(--a); } .dot.b { fill: var(--b); } .dot.c { fill: var(--c); }
.dot.d { fill: var(--d); }
.cross { stroke: var(--soft); stroke-dasharray: 2 3; visibility: hidden; }
.heat { image-rendering: pixelated; } .frame { fill: none; stroke: var(--rule); }
.below { fill: rgb(37, 99, 235); } .above { fill: rgb(234, 88, 12); }
svg .cell { text-anchor: middle; fill: var(--ink); } svg .cell.strong { fill: #fff; }
pre {
  margin: .5rem 0 0; white-space: pre-wrap; overflow-wrap: anywhere; tab-size: 4;
  font: 13.5px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
.prompt { color: var(--soft); }
details { margin-top: .7rem; } summary { cursor: pointer; font-weight: 600; font-size: .95rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; margin-top: .6rem; width: 100%; }
th { text-align: left; color: var(--soft); font-weight: 500; }
th, td { padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
td { overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.figures td { overflow-wrap: normal; white-space: nowrap; }
td.mono { font: 12.5px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
#tip {
  position: fixed; display: none; pointer-events: none; white-space: pre; z-index: 2; padding: .35rem .6rem;
  font-size: .82rem; background: var(--ink); color: var(--page); border-radius: 6px;
}
"""

SCRIPT = """
const tip = document.getElementById('tip');
function show(event, text) {
  tip.textContent = text;
  tip.style.display = 'block';
  const flip = event.clientX > innerWidth - 240;
  tip.style.left = (event.clientX + (flip ? -tip.offsetWidth - 14 : 14)) + 'px';
  tip.style.top = (event.clientY + 14) + 'px';
}
function hide() { tip.style.display = 'none'; }
function nearest(list, x) {
  let best = 0;
  list.forEach((value, i) => { if (Math.abs(value - x) < Math.abs(list[best] - x)) best = i; });
  return best;
}
for (const svg of document.querySelectorAll('svg[data-chart]')) {
  const chart = JSON.parse(svg.dataset.chart), cross = svg.querySelector('.cross');
  svg.addEventListener('pointermove', event => {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * chart.width;
    const rows = chart.lines.map(line => {
      const i = nearest(line.px, x);
      return [line.px[i], line.name + ' ' + line.value[i] + '  (' + chart.x + ' ' + line.step[i] + ')'];
    });
    cross.setAttribute('x1', rows[0][0]);
    cross.setAttribute('x2', rows[0][0]);
    cross.style.visibility = 'visible';
    show(event, rows.map(row => row[1]).join('\\n'));
  });
  svg.addEventListener('pointerleave', () => { cross.style.visibility = 'hidden'; hide(); });
}
for (const svg of document.querySelectorAll('svg[data-strip]')) {
  const cells = JSON.parse(svg.dataset.strip), image = svg.querySelector('image');
  svg.addEventListener('pointermove', event => {
    const box = image.getBoundingClientRect();
    const row = Math.floor((event.clientY - box.top) / box.height * cells.percent.length);
    const column = Math.floor((event.clientX - box.left) / box.width * cells.step.length);
    const percent = (cells.percent[row] || [])[column];
    if (percent === undefined) { hide(); return; }
    show(event, 'step ' + cells.step[column] + '\\nexpert ' + row + ': ' + percent + '% of the tokens');
  });
  svg.addEventListener('pointerleave', hide);
}
"""

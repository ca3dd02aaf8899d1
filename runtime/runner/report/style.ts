/** The look of the report page: one style sheet, light and dark. */
export const STYLE = `
:root { color-scheme: light dark;
  --ground: #f6f7f9; --card: #fff; --ink: #1c2330; --soft: #667085; --rule: #e3e7ee;
  --a: #3366d6; --b: #d9730d; --c: #12855f; --good: #3aa37a; --bad: #d64545; --goodback: #e5f5ee; --badback: #fdeaea; }
@media (prefers-color-scheme: dark) { :root {
  --ground: #12151b; --card: #1a1f28; --ink: #e6e9ef; --soft: #95a0b3; --rule: #2b3340;
  --a: #7aa5ff; --b: #f0a04b; --c: #4cc79b; --good: #3f9d78; --bad: #f07171; --goodback: #16352a; --badback: #3b1d20; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Noto Sans", "Noto Sans TC", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 64px; }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: 6px 14px; margin-bottom: 4px; }
h1 { font-size: 26px; margin: 0; letter-spacing: -0.01em; }
h2 { font-size: 17px; margin: 36px 0 10px; }
h3 { font-size: 14px; margin: 18px 0 6px; color: var(--soft); font-weight: 600; }
p { margin: 4px 0; } .soft { color: var(--soft); }
.badge { font-size: 13px; font-weight: 600; padding: 2px 10px; border-radius: 99px; }
.badge.good { background: var(--goodback); color: var(--c); } .badge.bad { background: var(--badback); color: var(--bad); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 12px; margin: 20px 0; }
.card, figure, .box { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; }
.card { padding: 12px 16px; } .card b { display: block; font-size: 19px; font-weight: 650; letter-spacing: -0.01em; } .card span { color: var(--soft); font-size: 13px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 12px; } .charts .wide { grid-column: 1 / -1; }
figure { margin: 0; padding: 12px 14px; } figcaption { font-size: 13px; font-weight: 600; margin-bottom: 6px; }
svg { display: block; width: 100%; height: auto; } svg text { fill: var(--soft); font-size: 12px; font-family: inherit; }
.grid { stroke: var(--rule); } .line { fill: none; stroke-width: 1.8; stroke-linejoin: round; } .line.thin { stroke-width: 1; stroke-dasharray: 4 3; }
.line.a { stroke: var(--a); } .line.b { stroke: var(--b); } .line.c { stroke: var(--c); }
.dot.a { fill: var(--a); } .dot.b { fill: var(--b); } .dot.c { fill: var(--c); }
rect.good { fill: var(--good); } rect.bad { fill: var(--bad); } .bound { stroke: var(--bad); stroke-width: 1.5; stroke-dasharray: 4 3; }
.key { font-weight: 400; color: var(--soft); margin-left: 10px; } .key::before { content: ""; display: inline-block; width: 10px; height: 3px; border-radius: 2px; margin-right: 5px; vertical-align: middle; background: currentColor; }
.key.a::before { background: var(--a); } .key.b::before { background: var(--b); } .key.c::before { background: var(--c); } .key.bad::before { background: var(--bad); }
.box { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: left; padding: 7px 14px; border-bottom: 1px solid var(--rule); vertical-align: top; } tr:last-child td { border-bottom: 0; }
th { font-size: 12px; color: var(--soft); font-weight: 600; } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
code, .mono { font: 12.5px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; } td.answer { white-space: pre-wrap; min-width: 180px; }
.error { border-left: 4px solid var(--bad); background: var(--badback); padding: 10px 14px; border-radius: 6px; margin: 8px 0; overflow-wrap: anywhere; }
.bar { display: flex; height: 26px; border-radius: 6px; overflow: hidden; background: var(--rule); } .bar i { display: block; min-width: 1px; }
.swatches { display: flex; flex-wrap: wrap; gap: 4px 16px; margin-top: 8px; font-size: 13px; } .swatches i { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 6px; }
details summary { cursor: pointer; padding: 10px 14px; font-weight: 600; } footer { margin-top: 40px; color: var(--soft); font-size: 13px; }
@media print { body { background: #fff; } details { display: block; } }
`;

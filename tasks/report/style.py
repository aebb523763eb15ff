"""The report's own style sheet, on top of the one that all pages share; readable dark and light."""

STYLE = """
:root { --good: #1a7f37; --bad: #cf222e; --wait: #9a6700; --dim: #59636e; --c0: #0969da; --c1: #d95f02;
  --goodground: #dafbe1; --badground: #ffebe9; --waitground: #fff8c5; }
@media (prefers-color-scheme: dark) {
  :root { --good: #3fb950; --bad: #f85149; --wait: #d29922; --dim: #9198a1; --c0: #58a6ff; --c1: #f0883e;
    --goodground: #12261e; --badground: #301216; --waitground: #2b2111; }
}
:root { color-scheme: light dark; }
body { max-width: 76rem; margin-top: 1.25rem; }
h1, h2, h3, h4 { line-height: 1.25; }
h3 { margin: 1.6em 0 .3em; }
h3 small, .hint, .over { color: var(--dim); font-weight: normal; }
.hint { font-size: .9em; margin: .4em 0; }
.over { margin: 0 0 .5rem; }
a { color: var(--c0); }
.verdict { border: 1px solid var(--line); border-left: 8px solid; border-radius: 6px; padding: .75rem 1rem; }
.verdict h1 { margin: 0; font-size: 1.7rem; }
.verdict p, .verdict ul { margin: .35rem 0 0; }
.verdict.good { border-left-color: var(--good); background: var(--goodground); }
.verdict.bad { border-left-color: var(--bad); background: var(--badground); }
.verdict.wait { border-left-color: var(--wait); background: var(--waitground); }
.verdict.good h1, .better, .pass .state { color: var(--good); }
.verdict.bad h1, .worse, .fail .state { color: var(--bad); }
.verdict.wait h1 { color: var(--wait); }
header h2 { margin-top: 1.2rem; }
header ul { padding-left: 1.2rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; margin: 1rem 0; }
.tile { min-width: 0; border: 1px solid var(--line); border-radius: 6px; padding: .6rem .8rem; background: var(--inset); }
.tile .name { font-weight: 600; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.tile .value { font-size: 1.7rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.tile .hint { margin: 0; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: 1.2rem 0 0; padding: .5rem 0;
  border-top: 1px solid var(--line); border-bottom: 1px solid var(--line); }
.warn { border-left: 4px solid var(--wait); padding: .25rem .7rem; background: var(--waitground); margin: .5em 0; }
.scroll { overflow-x: auto; margin: .8em 0; }
.scroll table { display: table; margin: 0; max-width: none; font-size: .93em; }
thead th { background: var(--inset); vertical-align: bottom; }
tbody th { font-weight: normal; text-align: left; }
td.n { text-align: right; white-space: nowrap; }
.scroll > table > tbody > tr > th:first-child, .scroll > table > thead > tr > th:first-child {
  position: sticky; left: 0; background: var(--ground); z-index: 1; min-width: 9rem; max-width: 20rem;
  overflow-wrap: break-word; }
.scroll > .gate > tbody > tr > th:first-child { min-width: 15rem; }
.scroll > table > thead > tr > th:first-child { background: var(--inset); }
.diff { display: inline-flex; align-items: center; justify-content: flex-end; gap: .5em; color: var(--ink); }
.diff b { min-width: 4.2em; text-align: right; }
.diff small { color: var(--dim); min-width: 10.5em; text-align: left; white-space: nowrap; }
.diff.same { color: var(--dim); }
.diff.better b, .diff.better .mark { color: var(--good); }
.diff.worse b, .diff.worse .mark { color: var(--bad); }
.mark { font-size: .85em; min-width: 3.2em; text-align: left; }
.bar { width: 96px; height: 14px; flex: none; }
.bar .zero { stroke: var(--dim); stroke-dasharray: 2 2; }
.bar .span { stroke: var(--dim); stroke-width: 3; fill: none; }
.bar circle { fill: var(--ink); }
.better .bar .span { stroke: var(--good); } .better .bar circle { fill: var(--good); }
.worse .bar .span { stroke: var(--bad); } .worse .bar circle { fill: var(--bad); }
.heat .slicing { text-align: left; color: var(--dim); background: var(--inset) !important; font-weight: 600; }
.heat .slicing span { position: sticky; left: .6em; }
.heat .whole th, .heat .whole td { border-bottom: 2px solid var(--dim); }
.heat .few { color: var(--wait); }
.gate .inner th { padding-left: 1.8em; color: var(--dim); }
.gate .state { white-space: nowrap; font-weight: 600; }
.gate .why { min-width: 18rem; overflow-wrap: anywhere; }
.gate tr.fail > th { box-shadow: inset 4px 0 var(--bad); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1rem; }
figure { margin: 0; border: 1px solid var(--line); border-radius: 6px; padding: .6rem; }
figure svg { display: block; width: 100%; height: auto; }
figure text { font: 12px system-ui, sans-serif; fill: var(--dim); }
figure .grid { stroke: var(--line); }
.curve { fill: none; stroke-width: 2; stroke-linejoin: round; }
.curve.c0 { stroke: var(--c0); } .curve.c1 { stroke: var(--c1); stroke-dasharray: 6 3; }
.dot.c0 { fill: var(--c0); } .dot.c1 { fill: var(--c1); }
.key { white-space: nowrap; margin-left: .6em; font-size: .9em; }
.key i { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .3em; }
.key i.c0 { background: var(--c0); } .key i.c1 { background: var(--c1); }
.key i.gain { background: rgba(0,114,178,.55); } .key i.loss { background: rgba(213,94,0,.55); }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 0 2rem; }
.facts { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: .2rem 1rem; }
.facts dt { color: var(--dim); }
.facts dd { margin: 0; overflow-wrap: anywhere; }
.row { border: 1px solid var(--line); border-radius: 6px; margin: .8rem 0; padding: .6rem .8rem; }
.row h4 { margin: 0 0 .4rem; font-weight: 600; overflow-wrap: anywhere; }
.row h4 .diff { margin-left: .5em; }
.row h4 .diff b { min-width: 0; }
.side { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr)); gap: .6rem; margin-top: .6rem; }
.answer { min-width: 0; }
.answer.adapter .passage { border-left: 3px solid var(--c0); }
.who { font-size: .85em; color: var(--dim); }
.score { font-variant-numeric: tabular-nums; }
.passage { background: var(--inset); border-radius: 4px; padding: .5rem .6rem; white-space: pre-wrap;
  overflow-wrap: anywhere; unicode-bidi: isolate; font: 13px/1.5 ui-monospace, monospace; max-height: 40rem; overflow-y: auto; }
.passage.empty { color: var(--dim); font-style: italic; }
.prompt .passage { max-height: 12rem; }
mark { background: none; color: inherit; box-shadow: inset 0 -2px var(--good); }
.long:has(details[open]) > .preview { display: none; }
summary { cursor: pointer; color: var(--c0); padding: .2rem 0; }
@media (max-width: 40rem) {
  .verdict h1 { font-size: 1.35rem; }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .5rem; }
  .tile .value { font-size: 1.35rem; }
  .facts { grid-template-columns: 1fr; }
  .facts dd { margin-bottom: .4rem; }
  .scroll > table > tbody > tr > th:first-child, .scroll > table > thead > tr > th:first-child,
  .scroll > .gate > tbody > tr > th:first-child { min-width: 7rem; max-width: 8.5rem; overflow-wrap: anywhere; }
}
@media print { .passage { max-height: none; } nav { display: none; } }
"""

"""A run as one page: `<run>/report/index.html`, which needs no other file and no network, and its figures beside it."""

import base64
import html
import json
import re
import shlex
from pathlib import Path
from typing import Any

from lm_human_preferences.figures import Chart, Record, charts_of, points_of_reference, read_run, write_charts
from lm_human_preferences.files import atomic_folder

_CSS = """
:root{color-scheme:light}*{box-sizing:border-box}body{margin:0;background:#f5f6f8;color:#1d232b;font:16px/1.5 system-ui,sans-serif}
main{max-width:1120px;margin:0 auto;padding:2rem 1.2rem 4rem}h1{margin:0;font-size:1.9rem;line-height:1.2;overflow-wrap:anywhere}
h2{margin:2.4rem 0 .8rem;font-size:1.25rem}p.facts,.note,figcaption{color:#56606d}p.facts{margin:.3rem 0 0}.note{font-size:.92rem;margin:.4rem 0}
.card,figure,details,.scroll{background:#fff;border:1px solid #dfe3e8;border-radius:8px}.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.45rem .9rem;text-align:left;border-top:1px solid #e8ebef}
tr:first-child>*{border-top:0}thead th{color:#56606d;font-weight:600;font-size:.88rem}td.n,th.n{text-align:right;white-space:nowrap}
tr.own>*{background:#e8f1f8;font-weight:700}tbody th{font-weight:500;min-width:9rem}
small{color:#56606d;font-weight:400}.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,430px),1fr));gap:1rem}
figure{margin:0;padding:.8rem}figure img{display:block;width:100%;height:auto}figcaption{font-size:.88rem;padding:.4rem .3rem 0}
.card{padding:.9rem 1.1rem;margin:0 0 .8rem;break-inside:avoid}.card p{margin:0;white-space:pre-wrap;overflow-wrap:anywhere}
.query{color:#56606d;border-left:3px solid #c3cad3;padding-left:.7rem}
.card>.query{margin-bottom:.5rem}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:1.2rem;margin-top:.7rem}
.pair b{font-size:.85rem}.tag{display:inline-block;margin-left:.4rem;padding:0 .45rem;border-radius:9px;background:#eef0f3;font-size:.8rem}
details{margin:0 0 .8rem;padding:.7rem 1rem}summary{cursor:pointer;font-weight:600}
summary+.card{margin-top:.6rem}details table{margin-top:.6rem;font-size:.9rem}
details th.group{padding-top:1rem;color:#0072b2}td,code{overflow-wrap:anywhere}code,pre{font:.88rem/1.45 ui-monospace,monospace}
pre.card{white-space:pre-wrap;overflow-wrap:anywhere}
@media(max-width:640px){main{padding:1.2rem .8rem 3rem}.pair{grid-template-columns:1fr;gap:.6rem}table{font-size:.88rem}th,td{padding:.4rem .45rem}
tbody th{min-width:6.5rem}td.n{white-space:normal}}
@media print{body{background:#fff;font-size:10pt}main{padding:0;max-width:none}figure{break-inside:avoid}h2{break-after:avoid}
.figures{grid-template-columns:1fr 1fr}details::details-content{content-visibility:visible;display:block}}
"""
_TITLES = {"score": "score (mean of the reward model)", "judge": "independent judge (95% interval)",
           "kl": "KL to the initial model (nats per response)", "valid": "responses with a valid end", "distinct_2": "distinct pairs of tokens",
           "valid_loss": "validation loss (nats per token)", "valid_perplexity": "validation perplexity"}
_SHARES = ("valid", "accuracy", "standard_error", "chance", "clipfrac")
_CSP = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report(run_folder: Path) -> Path:
    """Draw the run's figures and write its page into `<run>/report/`, which is replaced as a whole; returns index.html's path.

    Raises UserError if the folder is no run or nothing was logged yet.
    """
    record, folder = read_run(run_folder), Path(run_folder) / "report"
    charts = charts_of(record)
    with atomic_folder(folder) as temporary:
        figures = write_charts(record, charts, temporary)
        (temporary / "index.html").write_text(_page(record, charts, figures), encoding="utf-8")
    return folder / "index.html"


def _page(record: Record, charts: list[Chart], figures: dict[str, Path]) -> str:
    config, title = record.config, _text(record.config.get("experiment") or "run")
    command = [str(word) for word in config.get("command") or []]
    versions = {**(config.get("versions") or {}), "commit": config.get("commit") or "not from a git checkout"}
    parts = [f"<h1>{title}</h1><p class=facts>{_facts(record)}</p>", *_headline(record, charts), "<h2>Figures</h2>",
             "<p class=note>Where a line is noisy, pale is each step and dark a moving mean over a twentieth of the run.</p>",
             f"<div class=figures>{''.join(_figure(name, path, charts) for name, path in figures.items())}</div>",
             *_samples(record), "<h2>Run</h2>"]
    if command:
        parts.append(f"<pre class=card>{_text(shlex.join((['python'] if command[0].endswith('.py') else []) + command))}</pre>")
    parts += [_details("Parameters", config.get("parameters") or {}), _details("Versions", versions)]
    return ("<!doctype html>\n<html lang=en><head><meta charset=utf-8><meta name=viewport content='width=device-width,initial-scale=1'>"
            f'<meta http-equiv=Content-Security-Policy content="{_CSP}"><link rel=icon href="data:,"><title>{title}</title><style>{_CSS}</style>'
            f"</head>\n<body><main>\n{chr(10).join(parts)}\n</main></body></html>\n")


def _text(value: Any) -> str:
    """Anything as text that HTML shows and never interprets; control characters become a replacement mark."""
    return html.escape(re.sub(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", "\ufffd", str(value)))


def _title(key: str) -> str:
    return _text(_TITLES.get(key, key.replace("_", " ")))


def _number(value: Any, key: str = "", sign: str = "") -> str:
    """A number in four figures or percent, a mean with its interval {"mean", "low", "high"}, a dash for nothing."""
    if isinstance(value, dict):
        ends = f"<br><small>{_number(value['low'], key)} to {_number(value['high'], key)}</small>" if "low" in value and "high" in value else ""
        return _number(value.get("mean"), key, sign) + ends
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return "\u2013" if value is None else _text(value)
    if key.rpartition("/")[2] in _SHARES or key.startswith("distinct"):
        return f"{100 * value:+.1f} points" if sign else f"{value:.1%}"
    if isinstance(value, int):
        return f"{value:{sign},}"
    return f"{round(value, 3) + 0.0:{sign},.3f}" if 0.01 <= abs(value) < 1e5 or abs(value) < 1e-6 else f"{value:{sign}.3g}"


def _table(head: list[str], rows: list[list[str]], own: int = -1) -> str:
    """A table of ready HTML; the first column names the row, the others hold numbers."""
    cells = "".join(f"<th class=n>{name}</th>" for name in head[1:])
    body = "".join(f"<tr{' class=own' if i == own else ''}><th>{row[0]}</th>{''.join(f'<td class=n>{cell}</td>' for cell in row[1:])}</tr>"
                   for i, row in enumerate(rows))
    return f"<div class=scroll><table><thead><tr><th>{head[0]}</th>{cells}</tr></thead><tbody>{body}</tbody></table></div>"


def _facts(record: Record) -> str:
    steps = max((int(found[-1]) for found, _ in record.series.values() if len(found) > 1), default=0) + 1  # a closing row is no step
    facts = [record.stage, f"task {record.config.get('task')}", f"{steps:,} steps"]
    if "elapsed/time" in record.series:
        facts.append(f"{record.series['elapsed/time'][1][-1] / 60:,.1f} minutes")
    return " \u00b7 ".join(_text(fact) for fact in facts)


def _headline(record: Record, charts: list[Chart]) -> list[str]:
    """The result as a table: before and after, accuracies, or single numbers; without a result where the run stands."""
    result, before, after = record.result, record.result.get("before"), record.result.get("after")
    if isinstance(before, dict) and isinstance(after, dict):
        where = f" on {_number(result['queries'])} held-out queries" if "queries" in result else " on held-out queries"
        rows = [[_title(key), _number(before.get(key), key), _number(after.get(key), key),
                 _number(_difference(before.get(key), after.get(key)), key, "+")]
                for key in dict.fromkeys([*_TITLES, *before, *after]) if before.get(key) is not None or after.get(key) is not None]
        return [f"<h2>Before and after{where}</h2>", _table(["", "before", "after", "change"], rows)]
    if points := points_of_reference(record):
        rows = [[_text(name), f"{accuracy:.1%}", f"\u00b1 {error:.1%}" if error else ""] for name, accuracy, error, _ in reversed(points)]
        table = _table(["", "accuracy", "standard error"], rows, own=[own for *_, own in reversed(points)].index(True))
        return [f"<h2>Accuracy on {_number(result['choices']) + ' ' if 'choices' in result else ''}held-out choices</h2>", table]
    if single := {key: value for key, value in result.items() if isinstance(value, (int, float))}:
        rows = [[_title(key), _number(value, key)] for key, value in single.items()]
        return ["<h2>Result</h2>", _table(["", "value"], rows)]
    rows = []
    for metric, label in [item for chart in charts[:2] for panel in chart.panels for item in panel.series.items()]:
        values, tenth = record.series[metric][1], max(1, len(record.series[metric][1]) // 10)
        ends = [_number(float(end.mean()), metric) for end in (values[:tenth], values[-tenth:])]
        rows.append([f"{_text(label)} <small>{_text(metric)}</small>", *ends])
    return ["<h2>So far</h2><p class=note>This run has no result yet: means of the first and last tenth of its steps.</p>",
            _table(["", "first", "last"], rows)]


def _difference(before: Any, after: Any) -> float | None:
    before, after = (value.get("mean") if isinstance(value, dict) else value for value in (before, after))
    return after - before if isinstance(before, (int, float)) and isinstance(after, (int, float)) else None


def _figure(name: str, path: Path, charts: list[Chart]) -> str:
    title, caption = next(((chart.title, chart.caption) for chart in charts if chart.name == name),
                          ("Held-out choices predicted", "Grey: other ways to choose on the same choices."))
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<figure><img alt="{_text(title)}" src="data:image/png;base64,{data}"><figcaption>{_text(caption)}</figcaption></figure>'


def _samples(record: Record) -> list[str]:
    """Pairs of before and after from the result, and what was sampled at the start, middle and end of training."""
    parts = []
    if pairs := record.result.get("samples"):
        parts += ["<h2>Samples before and after</h2>", *(_pair(pair) for pair in pairs)]
    steps = sorted({row.get("step", 0) for row in record.samples})
    if steps:
        shown = dict.fromkeys((steps[0], steps[len(steps) // 2], steps[-1]))
        parts.append("<h2>Samples during training</h2>")
    for step in shown if steps else ():
        rows = [row for row in record.samples if row.get("step", 0) == step][:4]
        cards = "".join(f"<div class=card><p class=query>{_text(row.get('query', ''))}</p>"
                        f"<p>{_text(str(row.get('response', '')).strip())}</p>{_tags(row)}</div>" for row in rows)
        parts.append(f"<details><summary>Step {_number(step)}</summary>{cards}</details>")
    return parts


def _pair(pair: dict) -> str:
    tags = {side: _tags({key: pair.get(f"{key}_{side}") for key in ("score", "judge", "kl")}) for side in ("before", "after")}
    sides = "".join(f"<div><b>{side}</b>{tags[side]}<p>{_text(str(pair.get(side, '')).strip())}</p></div>" for side in tags)
    return f"<div class=card><p class=query>{_text(pair.get('query', ''))}</p><div class=pair>{sides}</div></div>"


def _tags(row: dict) -> str:
    return "".join(f"<span class=tag>{name.replace('kl', 'KL')} {round(row[name], 2) + 0.0:.2f}</span>" for name in ("score", "judge", "kl", "total")
                   if isinstance(row.get(name), (int, float)))


def _details(title: str, values: dict) -> str:
    """Nested values as one collapsible table, a heading for each group."""
    def rows(group: dict, prefix: str) -> str:
        shown = {name: value if isinstance(value, str) else json.dumps(value) for name, value in group.items() if not isinstance(value, dict)}
        plain = "".join(f"<tr><td><code>{_text(prefix + name)}</code></td><td>{_text(value)}</td></tr>" for name, value in shown.items())
        heading = f"<tr><th class=group colspan=2>{_text(prefix[:-1])}</th></tr>" if prefix and plain else ""
        return heading + plain + "".join(rows(value, f"{prefix}{name}.") for name, value in group.items() if isinstance(value, dict))
    return f"<details><summary>{title}</summary><table>{rows(values, '')}</table></details>"

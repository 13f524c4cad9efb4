"""One HTML page that needs no other file and no network: its style, its few lines of script, and the pieces it is made
of.

Whatever comes from a run goes through `text`. Besides, the page's policy lets no script run but ours, which it names by
its digest.
"""

import base64
import hashlib
import html
import json
import re
from pathlib import Path
from typing import Any

PRINTED = 12  # samples that go to paper
_CSS = """
:root{color-scheme:light dark;--page:#f5f6f8;--card:#fff;--ink:#1d232b;--soft:#56606d;--line:#dfe3e8;--tag:#eef0f3;--own:#e8f1f8;--mark:#0072b2;
--p1:#fbe3cf;--p2:#f5bd8d;--p3:#e98a3f;--p4:#c85a00;--n1:#d9e9f5;--n2:#a9cfea;--n3:#5ba7d8;--n4:#0072b2;--bad:#b3261e;--warn:#8a5a00}
@media(prefers-color-scheme:dark){:root{--page:#121314;--card:#1d1d1d;--ink:#e3e7ec;--soft:#a0aab6;--line:#343b45;--tag:#2b313a;--own:#1f3547;--mark:#6bb6e8;
--p1:#4a3423;--p2:#7d4e24;--p3:#bd6c20;--p4:#ff9440;--n1:#22384a;--n2:#285878;--n3:#3484b8;--n4:#63b8f2;--bad:#ff8a80;--warn:#f0c060}
figure img{filter:invert(.885) hue-rotate(180deg)}}
*{box-sizing:border-box}body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:1120px;margin:0 auto;padding:2rem 1.2rem 4rem}h1{margin:0;font-size:1.9rem;line-height:1.2;overflow-wrap:anywhere}
h2{margin:2.4rem 0 .8rem;font-size:1.25rem}h3{margin:1.2rem 0 .5rem;font-size:1rem}
p.facts,.note,figcaption,small{color:var(--soft)}p.facts{margin:.3rem 0 0}.note{font-size:.92rem;margin:.4rem 0 .8rem}
.card,figure,details,.scroll,.tools{background:var(--card);border:1px solid var(--line);border-radius:8px}.scroll{overflow-x:auto;margin:0 0 .8rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.45rem .9rem;text-align:left;border-top:1px solid var(--line)}
tr:first-child>*{border-top:0}thead th{color:var(--soft);font-weight:600;font-size:.88rem}td.n,th.n{text-align:right;white-space:nowrap}
tr.own>*{background:var(--own);font-weight:700}tbody th{font-weight:500;min-width:9rem}
small{font-weight:400}td.n small{white-space:nowrap}
nav{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;margin:.8rem 0 0;font-size:.92rem}a{color:var(--mark)}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,430px),1fr));gap:1rem;align-items:start}
figure{margin:0;padding:.8rem}figure img{display:block;width:100%;height:auto}figcaption{font-size:.88rem;padding:.4rem .3rem 0}
.card{padding:.9rem 1.1rem;margin:0 0 .8rem;break-inside:avoid}.card p{margin:0;white-space:pre-wrap;overflow-wrap:anywhere}
.query{color:var(--soft);border-left:3px solid var(--line);padding-left:.7rem}.card>.query{margin-bottom:.5rem}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,17rem),1fr));gap:.8rem 1.2rem;margin-top:.7rem}.pair>div{min-width:0}
.pair.many{grid-template-columns:repeat(auto-fit,minmax(min(100%,12rem),1fr))}
.pair b{font-size:.85rem}.pair p{margin-top:.25rem}
.tag{display:inline-block;margin-left:.4rem;padding:0 .45rem;border-radius:9px;background:var(--tag);font-size:.8rem;white-space:nowrap}
.tools{display:flex;flex-wrap:wrap;gap:.6rem 1rem;align-items:center;padding:.7rem 1rem;margin:0 0 .8rem}.tools[hidden],.printed{display:none}
.tools label{display:flex;gap:.4rem;align-items:center;min-width:0;white-space:nowrap}.tools input[type=search]{flex:1;min-width:0;width:15rem}
.tools select{min-width:0;max-width:100%}.tools input,.tools select{font:inherit;padding:.25rem .4rem}#count{margin-left:auto;color:var(--soft);font-size:.9rem}
i[class]{font-style:normal;border-bottom:.22em solid transparent;-webkit-print-color-adjust:exact;print-color-adjust:exact}
i.p1{border-color:var(--p1)}i.p2{border-color:var(--p2)}i.p3{border-color:var(--p3)}i.p4{border-color:var(--p4)}
i.n1{border-color:var(--n1)}i.n2{border-color:var(--n2)}i.n3{border-color:var(--n3)}i.n4{border-color:var(--n4)}
.legend i{margin:0 .15rem;padding:0 .3rem}
.finding{border-left:4px solid var(--warn)}.finding.severe{border-left-color:var(--bad)}.finding h3{margin:0 0 .3rem}.finding dl{margin:0}
.finding dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem .8rem}
.finding dt{color:var(--soft)}.finding dd{margin:0;overflow-wrap:anywhere}.finding code{white-space:nowrap}
details{margin:0 0 .8rem;padding:.7rem 1rem;overflow-x:auto}summary{cursor:pointer;font-weight:600}
summary+.card{margin-top:.6rem}details table{margin-top:.6rem;font-size:.9rem}
details th.group{padding-top:1rem;color:var(--mark)}td,code{overflow-wrap:anywhere}code,pre{font:.88rem/1.45 ui-monospace,monospace}
pre.card{white-space:pre-wrap;overflow-wrap:anywhere}
@media(max-width:640px){main{padding:1.2rem .8rem 3rem}h1{font-size:1.5rem}
table{font-size:.84rem}th,td{padding:.4rem .35rem}td small{font-size:.72rem}.card{padding:.8rem}
tbody th{min-width:5.5rem}td.n{white-space:normal;overflow-wrap:normal}.tools label{width:100%}.tools label.short{width:auto}}
@media print{:root{color-scheme:light;--page:#fff;--card:#fff;--ink:#000;--soft:#444;--line:#ccc;--tag:#eee;--own:#e8f1f8;--mark:#0072b2;
--p1:#fbe3cf;--p2:#f5bd8d;--p3:#e98a3f;--p4:#c85a00;--n1:#d9e9f5;--n2:#a9cfea;--n3:#5ba7d8;--n4:#0072b2}figure img{filter:none}.printed{display:block}
body{font-size:10pt}main{padding:0;max-width:none}figure,.finding,tr{break-inside:avoid}h2,h3{break-after:avoid}.tools,nav{display:none}
.figures{grid-template-columns:1fr 1fr}details::details-content{content-visibility:visible;display:block}.scroll{overflow:visible}
th,td{padding:.2rem .4rem}tbody th{min-width:0}td.n{white-space:normal;overflow-wrap:normal}#samples>.card:nth-child(n+BEYOND of :not([hidden])){display:none}}
""".replace("BEYOND", str(PRINTED + 1))
# Sorts and filters the cards of #samples: data-v of a card holds its numbers in the order of the options of #by.
_SCRIPT = """
const box=document.getElementById('samples'),cards=[...box.children],values=cards.map(card=>JSON.parse(card.dataset.v));
const words=cards.map(card=>[...card.querySelectorAll('p')].map(p=>p.textContent).join('\\n').toLowerCase());
const [tools,find,by,up,count]=['tools','find','by','up','count'].map(id=>document.getElementById(id));
function show(){
  const wanted=find.value.trim().toLowerCase(),key=Number(by.value),sign=up.checked?1:-1,order=cards.map((_,i)=>i);
  const value=i=>values[i][key]??sign*Infinity;  // what has no number comes last
  if(key>=0)order.sort((a,b)=>value(a)===value(b)?a-b:sign*(value(a)-value(b)));
  for(const i of order){cards[i].hidden=!words[i].includes(wanted);box.append(cards[i])}
  count.textContent=cards.filter(card=>!card.hidden).length+' of '+cards.length;
}
for(const input of [find,by,up])input.addEventListener('input',show);
tools.hidden=false;show();
"""


def write_page(path: Path, title: str, facts: list[str], parts: list[str], script: bool) -> None:
    """The page with ready HTML `parts`; `script`: whether it has samples to sort."""
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'" + (
        f"; script-src 'sha256-{digest}'" if script else ""
    )
    body, headings = "\n".join(parts), re.findall(r"<h2>(.*?)</h2>", "".join(parts))
    for place, heading in enumerate(headings):
        body = body.replace(f"<h2>{heading}</h2>", f"<h2 id=part{place}>{heading}</h2>", 1)
    links = "".join(f"<a href='#part{place}'>{heading}</a>" for place, heading in enumerate(headings))
    body = (
        f"<h1>{text(title)}</h1><p class=facts>{' · '.join(text(fact) for fact in facts)}</p><nav>{links}</nav>\n{body}"
    )
    content = (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8><meta name=viewport content='width=device-width,initial-scale=1'>"
        f'<meta http-equiv=Content-Security-Policy content="{policy}"><link rel=icon href="data:,"><title>{text(title)}</title>'
        f"<style>{_CSS}</style></head>\n<body><main>\n{body}\n</main>{f'<script>{_SCRIPT}</script>' if script else ''}</body></html>\n"
    )
    path.write_text(content, encoding="utf-8")


def text(value: Any) -> str:
    """Anything as text that HTML shows and never interprets; control characters become a replacement mark."""
    return html.escape(re.sub(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", "\ufffd", str(value)))


def number_table(head: list[str], rows: list[list[str]], own: int = -1) -> str:
    """A table of ready HTML; the first column names the row, the others hold numbers. Without any name in `head` it has
    no head.
    """
    cells = "".join(f"<th class=n>{name}</th>" for name in head[1:])
    header = f"<thead><tr><th>{head[0]}</th>{cells}</tr></thead>" if any(head) else ""
    body = "".join(
        f"<tr{' class=own' if i == own else ''}><th>{row[0]}</th>{''.join(f'<td class=n>{cell}</td>' for cell in row[1:])}</tr>"
        for i, row in enumerate(rows)
    ).replace("± ", "±&nbsp;")  # no line ends there
    return f"<div class=scroll><table>{header}<tbody>{body}</tbody></table></div>"


def picture(path: Path, title: str, caption: str) -> str:
    """A PNG within the page."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<figure><img alt="{text(title)}" src="data:image/png;base64,{data}"><figcaption>{text(caption)}</figcaption></figure>'


def tag(name: str, value: Any) -> str:
    """A number in a pill, nothing for what is no number."""
    shown = isinstance(value, (int, float)) and not isinstance(value, bool)
    return f"<span class=tag>{text(name)} {round(value, 2) + 0.0:.2f}</span>" if shown else ""


def folded(title: str, values: dict) -> str:
    """Nested values as one collapsible table, a heading for each group."""

    def rows(group: dict, prefix: str) -> str:
        shown = {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in group.items()
            if not isinstance(value, dict)
        }
        plain = "".join(
            f"<tr><td><code>{text(prefix + name)}</code></td><td>{text(value)}</td></tr>"
            for name, value in shown.items()
        )
        heading = f"<tr><th class=group colspan=2>{text(prefix[:-1])}</th></tr>" if prefix and plain else ""
        return (
            heading
            + plain
            + "".join(rows(value, f"{prefix}{name}.") for name, value in group.items() if isinstance(value, dict))
        )

    return f"<details><summary>{title}</summary><table>{rows(values, '')}</table></details>"

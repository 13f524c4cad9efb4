"""A run as figures and one page: `<run>/report/index.html`, which needs no other file and no network, and its PNGs beside it."""

import base64
import html
import json
import math
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lm_human_preferences.errors import UserError
from lm_human_preferences.files import atomic_file, atomic_folder, make_folder, read_json
from lm_human_preferences.tracking import read_jsonl


class Panel(NamedTuple):
    """One pair of axes. `bottom`: the lowest value worth showing, where a few outliers would flatten everything else."""

    label: str
    series: dict[str, str]  # metric -> its name in the legend
    scale: str = "linear"  # linear, log or share (shown in percent)
    bottom: float | None = None


class Chart(NamedTuple):
    """One figure: panels above each other over the same steps."""

    name: str
    title: str
    caption: str
    panels: list[Panel]


_PACE = Chart("pace", "Learning rate and speed", "Dips in speed are validation, checkpoints or other work on the machine.", [
    Panel("learning rate", {"lr": "learning rate", "train/lr": "learning rate"}),
    Panel("{}\nper second", {"elapsed/fps": "response tokens", "tokens_per_second": "tokens", "labels_per_second": "labels"})])

CHARTS = {
    "train_policy": [
        Chart("score", "Score", "What the reward model thinks of the responses, and what is left of it after the price of the KL.", [
            Panel("mean per response\n(reward model's units)", {"objective/score": "score", "objective/score_total": "score less KL penalty"})]),
        Chart("kl", "Distance from the initial model", "Should rise and settle; a score that is bought with ever more KL is suspect.", [
            Panel("KL (nats\nper response)", {"objective/kl": "KL to the initial model"}),
            Panel("coefficient\n(score per nat)", {"objective/kl_coef": "KL coefficient"})]),
        Chart("entropy", "Entropy", "Should fall slowly; a collapse to zero means that every response is the same.", [
            Panel("nats per response", {"objective/entropy": "of the sampled responses"}),
            Panel("nats per token", {"ppo/policy/entropy": "of the policy's distribution"})]),
        Chart("losses", "Losses", "The policy's loss hovers about zero; the value loss should fall.", [
            Panel("policy", {"ppo/loss/policy": "policy", "ppo/loss/total": "total"}), Panel("value", {"ppo/loss/value": "value"})]),
        Chart("clipping", "Size of an update", "Shares far above 20% mean steps that are too large: lower ppo.lr.", [
            Panel("clipped tokens", {"ppo/policy/clipfrac": "policy", "ppo/val/clipfrac": "value"}, "share"),
            Panel("approximate KL\n(nats per token)", {"ppo/policy/approxkl": "old to new policy"})]),
        Chart("value", "Value function", "Explained variance: 1 is perfect, 0 is no better than a constant.", [
            Panel("explained\nvariance", {"ppo/val/var_explained": "explained variance"}, bottom=-1.0),
            Panel("mean", {"ppo/returns/mean": "returns", "ppo/val/vpred": "values after update", "ppo/val/mean": "values before"})]),
        Chart("value_errors", "Value errors", "The squared error should stay below the variance of the returns.", [
            Panel("squared\nreward units", {"ppo/returns/var": "variance of returns", "ppo/val/error": "squared error",
                                             "ppo/val/var": "variance of values"}, "log")]),
        Chart("checks", "Checks", "Ratio: its deviation before an update's first step, which is rounding. Valid: ends as the task wants.", [
            Panel("ratio's deviation", {"ppo/ratio/std_before": "new to old, before update"}, "log"),
            Panel("valid responses", {"objective/valid": "with a valid end"}, "share")]),
        _PACE],
    "train_reward": [
        Chart("loss", "Loss", "On labels that the model has not seen before: one pass over all.", [
            Panel("nats per choice", {"train/loss": "training", "validation/loss": "held out"})]),
        Chart("accuracy", "Accuracy", "How often the response that people preferred gets the highest reward.", [
            Panel("share of choices", {"train/accuracy": "training", "validation/accuracy": "held out"}, "share")]),
        Chart("scale", "Reward scale", "Gain and bias that turn the head's output into rewards.", [
            Panel("gain", {"train/gain": "gain"}), Panel("bias", {"train/bias": "bias"})]),
        _PACE],
    "train_sft": [
        Chart("loss", "Loss", "Validation that rises is over-fitting. A sampled vocabulary makes the training loss lower than it is.", [
            Panel("nats per token", {"train/loss": "training", "valid/loss": "validation"})]),
        Chart("perplexity", "Validation perplexity", "Over the whole vocabulary; lower is better.", [
            Panel("perplexity", {"valid/perplexity": "validation"})]),
        _PACE]}

_NOT_DRAWN = {"elapsed/time", "elapsed/updates", "elapsed/episodes", "elapsed/steps/serial", "elapsed/steps/total",
             "train/error", "validation/error"}  # that only count, and the loss under its other name
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito: told apart by colour-blind people too
_STYLE = {"font.family": "DejaVu Sans", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#8a929c",
          "axes.grid": True, "grid.color": "#e3e6ea", "axes.axisbelow": True, "axes.labelcolor": "#333a44", "xtick.color": "#555d68",
          "ytick.color": "#555d68", "legend.frameon": False, "legend.fontsize": 9}
_MANY = 30  # points from which on a noisy series gets a smooth line over it

# --- what a run folder holds ---


@dataclass(frozen=True)
class Record:
    """A run as its files tell it."""

    config: dict
    series: dict[str, tuple[np.ndarray, np.ndarray]]  # metric -> steps [n], values [n]
    samples: list[dict]
    result: dict

    @property
    def stage(self) -> str:
        return str(self.config.get("stage", ""))

    def parameter(self, dotted: str) -> Any:
        """A resolved parameter by its dotted name, None if the run has no such one."""
        value: Any = self.config.get("parameters")
        for name in dotted.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return value


def read_run(folder: Path) -> Record:
    """The run in `folder`. UserError if it is none or nothing was logged yet."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no run folder {folder}")
    config, path = read_json(folder / "config.json"), folder / "metrics.jsonl"
    rows = read_jsonl(path) if path.exists() else []
    points: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step" and isinstance(value, (int, float)) and math.isfinite(value):
                points.setdefault(name, []).append((row.get("step", 0), float(value)))
    if not points or not isinstance(config, dict):
        raise UserError(f"{folder} has no metrics yet; train first, then report")
    series = {name: (np.array([step for step, _ in found]), np.array([value for _, value in found])) for name, found in points.items()}
    samples = read_jsonl(folder / "samples.jsonl") if (folder / "samples.jsonl").exists() else []
    result = read_json(folder / "result.json") if (folder / "result.json").exists() else {}
    return Record(config, series, samples, result if isinstance(result, dict) else {})


# --- figures ---


def write_figures(run_folder: Path, out_folder: Path) -> dict[str, Path]:
    """One PNG in `out_folder` for each chart that the run has metrics for; name -> path, in the order to show them."""
    record = read_run(run_folder)
    return _write_charts(record, _charts(record), Path(out_folder))


def _write_charts(record: Record, charts: list[Chart], folder: Path) -> dict[str, Path]:
    try:
        import matplotlib
    except ImportError:
        raise UserError("figures need a package that is missing: pip install matplotlib") from None
    make_folder(folder)
    paths = {}
    with matplotlib.rc_context(_STYLE):
        figures = {chart.name: _draw(record, chart) for chart in charts}
        if len(_points_of_reference(record)) > 1:
            figures = {"accuracy_compared": _draw_accuracies(record), **figures}
        for name, figure in figures.items():
            paths[name] = folder / f"{name}.png"
            with atomic_file(paths[name]) as temporary:
                figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})
    return paths


def _charts(record: Record) -> list[Chart]:
    """The stage's charts without what the run has no numbers for, then one for each other group of metrics."""
    charts, left = [], {name for name, (steps, _) in record.series.items() if len(steps) > 1} - _NOT_DRAWN
    for chart in CHARTS.get(record.stage, []):
        panels = []
        for panel in chart.panels:
            series = {metric: label for metric, label in panel.series.items() if metric in record.series}
            if any(len(record.series[metric][0]) > 1 for metric in series):
                panels.append(panel._replace(series=series, label=panel.label.format(next(iter(series.values())))))
            left -= series.keys()
        if panels:
            charts.append(chart._replace(panels=panels))
    if record.stage == "train_reward" and not str(record.parameter("labels.type") or "best_of").startswith("best_of"):
        charts = [c._replace(panels=[c.panels[0]._replace(label="squared error")]) if c.name == "loss" else c for c in charts]
    groups: dict[str, list[str]] = {}
    for name in (name for name in record.series if name in left):  # in the order of the file
        groups.setdefault(name.rpartition("/")[0] or "other", []).append(name)
    for prefix, names in groups.items():
        for start in range(0, len(names), 3):
            part = "" if len(names) <= 3 else f" ({start // 3 + 1})"
            panels = [Panel(name.rpartition("/")[2].replace("_", " "), {name: name}) for name in names[start:start + 3]]
            charts.append(Chart(re.sub(r"\W+", "_", f"other_{prefix}{part}").strip("_"), f"Other metrics: {prefix}{part}", "", panels))
    return charts


def _draw(record: Record, chart: Chart):
    """The chart as a matplotlib figure."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    n = len(chart.panels)
    figure = Figure(figsize=(6.4, 4.0 if n < 3 else 1.75 * n), layout="constrained")
    axes = figure.subplots(n, 1, sharex=True, squeeze=False)[:, 0]
    figure.suptitle(chart.title, fontsize=12, fontweight="bold", x=0.01, ha="left")
    for axis, panel in zip(axes, chart.panels, strict=True):
        _draw_panel(axis, record, panel)
        axis.label_outer()
    figure.align_ylabels(axes)
    axes[-1].set_xlabel(_step_label(record))
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _draw_panel(axis, record: Record, panel: Panel) -> None:
    from matplotlib.ticker import PercentFormatter, ScalarFormatter

    shown = [record.series[metric] for metric in panel.series]
    for (metric, label), colour in zip(panel.series.items(), _COLOURS):
        steps, values = record.series[metric]
        if len(values) > _MANY and _noisy(values):
            axis.plot(steps, values, color=colour, alpha=0.28, linewidth=0.8)
            axis.plot(steps, smooth(values), color=colour, linewidth=1.9, label=label)
        else:
            marker = {"marker": "o", "markersize": 7 if len(values) == 1 else 3.5} if len(values) <= _MANY else {}
            axis.plot(steps, values, color=colour, linewidth=1.7, label=label, **marker)
        for value, name in _reference_lines(record, metric):
            axis.axhline(value, color="#333a44", linewidth=1, linestyle=(0, (4, 3)), label=name)
    axis.set_ylabel(panel.label)
    axis.margins(x=0.02)
    if panel.scale == "share":
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
        axis.set_ylim(bottom=0)
    elif panel.scale == "log" and all((values > 0).all() for _, values in shown):
        axis.set_yscale("log")
        decades = math.log10(max(values.max() for _, values in shown) / min(values.min() for _, values in shown))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if decades < 2 and f"{value:e}"[0] in "25" else "")
    elif isinstance(axis.yaxis.get_major_formatter(), ScalarFormatter):
        axis.ticklabel_format(axis="y", scilimits=(-3, 5), useMathText=True, useOffset=False)
    if panel.bottom is not None and min(values.min() for _, values in shown) < panel.bottom:
        axis.set_ylim(bottom=panel.bottom)
        axis.text(0.99, 0.03, f"values below {panel.bottom:g} not shown", transform=axis.transAxes, ha="right", fontsize=8, color="#555d68")
    if len(axis.get_legend_handles_labels()[1]) > 1:
        # above the axes, where it can hide no data
        axis.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.1, ncols=4, handlelength=1.6, columnspacing=1.2)


def smooth(values: np.ndarray) -> np.ndarray:
    """Centred moving mean over a twentieth of the series [n] (at least 5 points); at the ends down to a third as wide, to lag less."""
    n, full = len(values), max(5, len(values) // 20) // 2
    at = np.arange(n)
    half = np.clip(np.minimum(at, n - 1 - at), math.ceil(full / 3), full)
    start, end = np.maximum(at - half, 0), np.minimum(at + half + 1, n)
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    return (sums[end] - sums[start]) / (end - start)


def _noisy(values: np.ndarray) -> bool:
    """Whether the series goes up and down far more than from its lowest to its highest value."""
    return bool(np.abs(np.diff(values)).sum() > 3 * (values.max() - values.min()))


def _reference_lines(record: Record, metric: str) -> list[tuple[float, str]]:
    """What a metric is to be compared with: (value, name) of each line across its panel."""
    chance = record.result.get("chance")
    target = record.parameter("rewards.adaptive_kl.target")
    lines = {"objective/kl": [(target, "target")] if isinstance(target, (int, float)) else [], "ppo/ratio/std_before": [(0.01, "limit")]}
    if record.stage == "train_reward" and isinstance(chance, (int, float)) and 0 < chance < 1:
        lines |= {"train/accuracy": [(chance, "chance")], "train/loss": [(-math.log(chance), "chance")]}
    return lines.get(metric, [])


def _step_label(record: Record) -> str:
    sizes = {"train_policy": ("ppo.batch_size", "episodes"), "train_reward": ("batch_size", "labels"),
             "train_sft": ("optimizer.batch_size", "rows")}
    name, unit = sizes.get(record.stage, ("", ""))
    size = record.parameter(name) if name else None
    return f"step (of {size} {unit})" if size else "step"


_POINT_NAMES = {"lexicon": "VADER lexicon", "tfidf_ridge": "tf-idf + ridge", "one_rater": "one person"}


def _points_of_reference(record: Record) -> list[tuple[str, float, float, bool]]:
    """(name, accuracy, standard error, whether it is this run) of everything measured on the held-out choices, worst first."""
    if "accuracy" not in record.result:
        return []
    found = {name: point for name, point in (record.result.get("reference_points") or {}).items()
             if isinstance(point, dict) and "accuracy" in point}
    if "chance" in record.result:
        found["chance"] = {"accuracy": record.result["chance"]}
    points = [(_POINT_NAMES.get(name, name.replace("_", " ")), point["accuracy"], point.get("standard_error") or 0.0, False)
              for name, point in found.items()]
    points.append(("this reward model", record.result["accuracy"], record.result.get("standard_error") or 0.0, True))
    return sorted(points, key=lambda point: point[1])


def _draw_accuracies(record: Record):
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    points = _points_of_reference(record)
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axis = figure.subplots()
    figure.suptitle("Held-out choices predicted", fontsize=12, fontweight="bold", x=0.01, ha="left")
    for place, (_, accuracy, error, own) in enumerate(points):
        axis.barh(place, accuracy, height=0.62, color=_COLOURS[0] if own else "#b4bcc6")
        if error:
            axis.errorbar(accuracy, place, xerr=1.96 * error, color="#333a44", capsize=3, linewidth=1.2)
        axis.text(accuracy + 1.96 * error + 0.012, place, f"{accuracy:.1%}", va="center", fontweight="bold" if own else "normal")
    axis.set_yticks(range(len(points)), [name for name, *_ in points])
    axis.grid(axis="y", visible=False)
    axis.set_xlim(0, min(1.15, max(accuracy + 1.96 * error for _, accuracy, error, _ in points) + 0.12))
    axis.set_xlabel("accuracy, with its 95% interval" + (f" ({record.result['choices']:,} choices)" if "choices" in record.result else ""))
    axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    return figure


# --- the page ---

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
    charts = _charts(record)
    with atomic_folder(folder) as temporary:
        figures = _write_charts(record, charts, temporary)
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
    return f"{value:{sign},.3f}" if 0.01 <= abs(value) < 1e5 or value == 0 else f"{value:{sign}.3g}"


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
    if points := _points_of_reference(record):
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
    return "".join(f"<span class=tag>{name.replace('kl', 'KL')} {row[name]:.2f}</span>" for name in ("score", "judge", "kl", "total")
                   if isinstance(row.get(name), (int, float)))


def _details(title: str, values: dict) -> str:
    """Nested values as one collapsible table, a heading for each group."""
    def rows(group: dict, prefix: str) -> str:
        shown = {name: value if isinstance(value, str) else json.dumps(value) for name, value in group.items() if not isinstance(value, dict)}
        plain = "".join(f"<tr><td><code>{_text(prefix + name)}</code></td><td>{_text(value)}</td></tr>" for name, value in shown.items())
        heading = f"<tr><th class=group colspan=2>{_text(prefix[:-1])}</th></tr>" if prefix and plain else ""
        return heading + plain + "".join(rows(value, f"{prefix}{name}.") for name, value in group.items() if isinstance(value, dict))
    return f"<details><summary>{title}</summary><table>{rows(values, '')}</table></details>"

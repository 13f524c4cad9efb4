"""The human feedback of "Learning to summarize from human feedback" (Stiennon et al. 2020): comparisons of two
summaries, and ratings of one along several axes. Source: github.com/openai/summarize-from-feedback.

`worker`, `batch` and `split` keep their names; `extra.confidence` becomes `confidence`, `policy` and `note` of each
summary become lists, and what `info` says of the text stays in `info`.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lm_human_preferences.data.exchange.reading import Label, Reading, is_blank, names_of, number_of, short, text_of
from lm_human_preferences.foundation.errors import UserError

ABOUT = '"info", with "summaries" and "choice" or a "summary" with "axes"'
_TEXTS = ("post", "article")  # what is summarised: a post on Reddit, an article of news
_KEPT = ("worker", "batch", "split")


def fits(record: Mapping[str, Any]) -> bool:
    return isinstance(record.get("info"), Mapping) and ("summaries" in record or "summary" in record)


def read(record: Mapping[str, Any], where: str, reading: Reading, typed: bool = False) -> Iterator[Label]:
    """The label of one comparison or rating. UserError for a record of another form."""
    info = record.get("info")
    if not isinstance(info, Mapping):
        raise UserError(f"{where}: expected {ABOUT}; it has {names_of(record)}")
    own = reading.columns.get("query") or next((name for name in _TEXTS if not is_blank(info.get(name))), None)
    query = reading.query(info, own, where)
    one = record.get("summary")
    summaries = [one] if one is not None else record.get("summaries")
    if not isinstance(summaries, list) or not all(isinstance(part, Mapping) for part in summaries):
        raise UserError(f"{where}: expected {ABOUT}; it has {names_of(record)}")
    texts = [text_of(part, "text", where) for part in summaries]
    answer = _choice(record, len(texts), where) if one is None else _score(one, reading.axis, where)
    if answer is None:
        reading.leave_out(f"they have no rating of {reading.axis!r}")
        return
    extra = record.get("extra")
    more = {name: record[name] for name in _KEPT if not is_blank(record.get(name))}
    if isinstance(extra, Mapping) and not is_blank(extra.get("confidence")):
        more["confidence"] = extra["confidence"]
    for name, plural in (("policy", "policies"), ("note", "notes")):
        if any(not is_blank(part.get(name)) for part in summaries):
            more[plural] = [part.get(name) for part in summaries]
    if one is not None:
        more["axes"] = dict(one["axes"])
    rest = {name: value for name, value in info.items() if value is not None and not (name == own and value == query)}
    yield reading.label(query, texts, answer, {**more, "info": rest}, typed)


def _choice(record: Mapping[str, Any], n: int, where: str) -> Label:
    choice = record.get("choice")
    if type(choice) is not int or not 0 <= choice < n:
        raise UserError(f"{where}: 'choice' is {short(choice)}; expected a whole number from 0 to {n - 1}")
    return {"best": choice}


def _score(summary: Mapping[str, Any], axis: str, where: str) -> Label | None:
    axes = summary.get("axes")
    if not isinstance(axes, Mapping) or axis not in axes:
        has = names_of(axes) if isinstance(axes, Mapping) else "none"
        raise UserError(f"{where}: the summary has no axis {axis!r} (--axis names another); it has {has}")
    return None if axes[axis] is None else {"score": number_of(axes[axis], where, axis)}


def write(labels: Iterable[Label], reading: Reading) -> Iterator[dict[str, Any]]:
    """Comparisons or rated summaries as the paper's files have them. UserError for labels that are neither."""
    for number, label in enumerate(labels):
        more = dict(label)
        texts, info = more.pop("responses"), dict(more.pop("info", {}))
        text = next((name for name in _TEXTS if name not in info), "post") if not info.get("site") else "article"
        info.setdefault(text, label["query"])
        names = (more.pop("policies", [None] * len(texts)), more.pop("notes", [None] * len(texts)))
        parts = [
            {"text": text, "policy": policy, "note": note} for text, policy, note in zip(texts, *names, strict=True)
        ]
        kept = {name: more[name] for name in _KEPT if name in more}
        if "best" in label and len(texts) == 2:
            yield {
                "info": info,
                "summaries": parts,
                "choice": label["best"],
                **kept,
                "extra": {"confidence": more.get("confidence")},
            }
        elif "score" in label:
            axes = more.get("axes") or {reading.axis: label["score"]}
            yield {"info": info, "summary": {**parts[0], "axes": axes}, **kept}
        else:
            raise UserError(f"label {number}: this form has choices between two summaries and ratings of one alone")

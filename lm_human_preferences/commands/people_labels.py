"""What people answered in a study: `python launch.py labels export|quality|inspect EXPERIMENT`."""

from dataclasses import dataclass
from pathlib import Path

from lm_human_preferences.commands.command import nearest
from lm_human_preferences.foundation.configuration import param
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.root import find_path
from lm_human_preferences.people.export import write_export
from lm_human_preferences.people.merging import MERGES
from lm_human_preferences.people.quality import describe, quality
from lm_human_preferences.people.queue import study_of
from lm_human_preferences.people.store import FILE, Store


@dataclass
class StudyLabelsParams:
    """How a study's answers are read."""

    merge: str | None = param(
        None,
        f"several answers to one question: {', '.join(MERGES)}; none is majority, or each where people gave an order",
    )
    output: str | None = param(None, "folder of the export; none is `export` in the study's folder", "path")
    examples: int = param(5, "answers to show")
    save_dir: str = param("saved_models", "folder that holds the study's folder", "path")


def find_study(name: str, save_dir: str) -> Path | None:
    """The folder of a study given by name or path, None if there is none."""
    return next((folder for folder in (Path(save_dir) / name, find_path(name)) if (folder / FILE).is_file()), None)


def open_study(name: str, save_dir: str) -> Store:
    """UserError if there is no such study."""
    folder = find_study(name, save_dir)
    if folder is None:
        studies = [path.parent.name for path in Path(save_dir).glob(f"*/{FILE}")]
        raise UserError(f"there is no study {name!r} in {save_dir}{nearest(name, studies, 0.5)}")
    return Store(folder)


def export(name: str, params: StudyLabelsParams) -> str:
    """Write a study's files; returns what to tell."""
    store = open_study(name, params.save_dir)
    how = params.merge or ("each" if study_of(store).mode == "rank" else "majority")
    folder = Path(params.output) if params.output else store.path.parent / "export"
    lines = write_export(store, folder, how)
    told = [f"{folder / file}: {count:,} lines" for file, count in lines.items()]
    return "\n".join([*told, f"{folder / 'datasheet.md'}"])


def study_quality(name: str, params: StudyLabelsParams) -> str:
    """How far a study's answers can be trusted."""
    store = open_study(name, params.save_dir)
    return describe(quality({question.id: question for question in store.questions()}, store.judgements()))


def inspect_study(name: str, params: StudyLabelsParams) -> str:
    """What a study's store holds: counts and the newest answers."""
    store = open_study(name, params.save_dir)
    questions = {question.id: question for question in store.questions()}
    judgements = store.judgements()
    kinds = store.rows("SELECT kind, COUNT(*) FROM questions GROUP BY kind ORDER BY kind")
    replaced = store.number("SELECT COUNT(*) FROM answers WHERE replaces IS NOT NULL")
    lines = [
        f"{store.path}: task {(store.settings() or {}).get('task')}",
        f"questions  {', '.join(f'{count:,} {kind}' for kind, count in kinds) or '0'}; {store.count_open():,} open",
        f"answers    {len(judgements):,} that hold, {replaced:,} replaced, of {len(store.labellers()):,} labellers",
        f"labels     {store.count_labelled():,} plain questions with an answer to learn from",
    ]
    for one in judgements[-params.examples :] if params.examples > 0 else []:
        question = questions[one.showing.question]
        lines += ["", f"answer {one.id} of {one.showing.labeller} to question {question.id}: {question.query!r}"]
        for place, number in enumerate(one.showing.places):
            mark = "->" if number in one.answer.value[:1] and one.answer.kind != "alike" else "  "
            lines.append(f"  {mark} {place + 1}: {question.responses[number].text!r}")
        lines.append(f"  {one.answer.kind}{'' if one.note is None else f', flagged: {one.note!r}'}")
    return "\n".join(lines)

r"""Queries of your own from a column of a table: the prompts that people asked, or that a policy shall answer.

    python datasets/prompts.py --input answers.csv
    python datasets/prompts.py --input answers.csv --column question --name mine
    python datasets/prompts.py --input posts.jsonl --template "{title}\n\n{text}\n\nAnswer:" --reference answer

The file is CSV (commas, semicolons or tabs), JSON lines, a JSON list or parquet. A query is one field, or a template
with fields in braces; what the task puts around every query for the policy (--task.query_prefix, --task.query_suffix)
does not belong here. Each query is written once. With --reference a column is what people wrote in answer, which
train_sft learns to write, and each different pair is written once. What is written (S is each of train, valid, test, by
a hash of the query):

    S.bin, S.idx.npy              token file: the queries
    references_S.bin, .idx.npy    token file: the answers, query by query (with --reference)
    meta.json                     source, counts and digests
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lm_human_preferences.data.documents import Document, SplitRule
from lm_human_preferences.data.exchange.files import read_file
from lm_human_preferences.data.exchange.pairs import PROMPTS
from lm_human_preferences.data.exchange.reading import filled, find_field, is_blank, names_of, text_of, with_line_breaks
from lm_human_preferences.data.preparation import Recipe, add_arguments, check_arguments, prepare_dataset
from lm_human_preferences.data.queries import datasets_folder
from lm_human_preferences.data.sources import fingerprint
from lm_human_preferences.foundation.errors import UserError, exit_on_user_error

NAME, SPLIT = "own", "10,10"


def queries(path: Path, template: str, reference: str | None, limit: int | None) -> Iterator[tuple[str, str | None]]:
    """(query, answer) of each record, each once; what is left out is counted and said at the end. UserError, naming
    file and record, for a field that is missing or no text.
    """
    seen: set[tuple[str, str | None]] = set()
    counts: Counter[str] = Counter()
    for where, record in islice(read_file(path), limit):
        if not isinstance(record, dict):
            raise UserError(f"{where}: expected an object with a field for the query")
        query = _query(record, template, where)
        answer = None if reference is None else text_of(record, reference, where)
        if not query.strip() or (answer is not None and not answer.strip()):
            counts["records are left out: their query or answer is empty"] += 1
        elif (query, answer) in seen:
            counts["records repeat an earlier query"] += 1
        else:
            seen.add((query, answer))
            counts["queries end in white space: responses will begin without one"] += query[-1:].isspace()
            yield query, _after(query, answer)
    for what, count in counts.items():
        if count:
            print(f"{count:,} {what}")


def _query(record: dict[str, object], template: str, where: str) -> str:
    """The record's query. UserError where it has no field that is known to be one."""
    if template:
        return filled(template, record, where)
    name = find_field(record, PROMPTS)
    if name is None:
        raise UserError(f"{where}: which column is the query? It has {names_of(record)}; --column names one")
    return "" if is_blank(record[name]) else text_of(record, name, where)


def _after(query: str, answer: str | None) -> str | None:
    """An answer as it follows the query: with the space that parts them, which GPT-2's tokens contain."""
    if answer is None or answer[0].isspace() or query[-1].isspace():
        return answer
    return f" {answer}"


def documents(
    path: Path, template: str, reference: str | None, rule: SplitRule, limit: int | None
) -> Iterator[Document]:
    for query, answer in queries(path, template, reference, limit):
        yield Document(rule.of(query, "train"), query, answer)


@exit_on_user_error
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, metavar="FILE", help="table of the queries")
    parser.add_argument(
        "--column", help=f"the query's column (default: the first of {', '.join(PROMPTS)} that there is)"
    )
    parser.add_argument("--template", help="the query as a text with columns in braces, \\n for a line break")
    parser.add_argument("--reference", metavar="COLUMN", help="the column of what people wrote in answer")
    parser.add_argument("--name", default=NAME, help=f"the data set's name: datasets/NAME (default: {NAME})")
    add_arguments(parser, "NAME", SPLIT)
    parser.set_defaults(output=None)
    arguments = parser.parse_args()
    arguments.output = arguments.output or datasets_folder() / arguments.name
    rule = check_arguments(arguments)
    if not rule.valid or not rule.test:
        raise UserError(f"--split {arguments.split}: expected percentages above 0 for valid and test, like {SPLIT}")
    if arguments.column and arguments.template:
        raise UserError("--column and --template exclude each other; a template may name several columns")
    if not arguments.input.is_file():
        raise UserError(f"--input {arguments.input} is not a file")
    template = f"{{{arguments.column}}}" if arguments.column else with_line_breaks(arguments.template or "")
    prepare_dataset(
        Recipe(1, "your own", ("train", "valid", "test"), references=arguments.reference is not None),
        arguments,
        {arguments.input.name: fingerprint(arguments.input)},
        lambda: documents(arguments.input, template, arguments.reference, rule, arguments.limit),
        template=template,
        reference=arguments.reference,
    )


if __name__ == "__main__":
    main()

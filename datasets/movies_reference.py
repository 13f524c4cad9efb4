"""What a choice among four film-review sentences is worth: chance, a lexicon, a linear model, a person; and an
independent judge.

    python datasets/movies_reference.py [--data FOLDER] [--json FILE] [--compare REWARD_RUN]

prints the share of labels_test on which each picks the sentence that people rated highest, and how well the judge's
ratings agree with people's. `reference_points` gives the same numbers elsewhere; the judge is
lm_human_preferences/judging/ratings.py.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from lm_human_preferences.data.queries import datasets_folder
from lm_human_preferences.foundation.errors import UserError, exit_on_user_error
from lm_human_preferences.foundation.files import read_json_object, write_json
from lm_human_preferences.judging.rated_choices import choice_accuracy, load_choices, point, rater_credit
from lm_human_preferences.judging.ratings import (
    ALPHAS,
    FOLDS,
    HeldOutJudge,
    lexicon_scores,
    linear_model,
    load_sentences,
)
from lm_human_preferences.reports.expected import ranges_beside

# ---- the references


def tfidf_ridge(folder: Path) -> Callable[[list[str]], np.ndarray]:
    """Texts -> ratings, fitted on the sentences of `train`; the penalty is the one with the least squared error on
    those of `valid`.
    """
    train, valid = load_sentences(folder, ["train"]), load_sentences(folder, ["valid"])
    fitted = [linear_model(alpha, characters=False).fit(train.texts, train.ratings) for alpha in ALPHAS]
    best = min(fitted, key=lambda model: ((model.predict(valid.texts) - valid.ratings) ** 2).mean())
    predict: Callable[[list[str]], np.ndarray] = best.predict
    return predict


def reference_points(folder: Path) -> dict[str, Any]:
    """Accuracy and standard error on labels_test of four ways to choose.

    Returns {"choices": n, "chance": {"accuracy", "standard_error"}, "lexicon": .., "tfidf_ridge": .., "one_rater": ..}.
    """
    test = load_choices(folder, "test")
    return {
        "choices": len(test),
        "chance": point(np.full(len(test), 0.25)),
        "lexicon": point(choice_accuracy(lexicon_scores, test)),
        "tfidf_ridge": point(choice_accuracy(tfidf_ridge(folder), test)),
        "one_rater": point(
            np.array([rater_credit(ratings, int(best)) for ratings, best in zip(test.ratings, test.best, strict=True)])
        ),
    }


NAMES = {
    "chance": "chance",
    "lexicon": "VADER lexicon",
    "tfidf_ridge": "tf-idf + ridge regression",
    "one_rater": "one person",
}


def finished_reward_run(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.json and result.json. UserError where there are none, or no accuracy on held-out choices."""
    config, result = read_json_object(folder / "config.json"), read_json_object(folder / "result.json")
    if not all(isinstance(result.get(name), float) for name in ("accuracy", "standard_error")):
        raise UserError(
            f"--compare {folder}: its result.json has no accuracy; expected a finished train_reward run on choices, "
            "such as saved_models/demo_reward"
        )
    return config, result


@exit_on_user_error
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", default=datasets_folder() / "movies", help="the prepared data set"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to FILE as well")
    parser.add_argument(
        "--compare",
        type=Path,
        metavar="REWARD_RUN",
        help="print a reward run's accuracy beside these and keep them in its result.json",
    )
    arguments = parser.parse_args()
    config, result = finished_reward_run(arguments.compare) if arguments.compare else ({}, {})
    points = reference_points(arguments.data)
    if arguments.compare:
        write_json(
            arguments.compare / "result.json", result | {"reference_points": {name: points[name] for name in NAMES}}
        )
        expected = ranges_beside(config)
        range_ = expected.ranges.get("accuracy") if expected else None
        beside = f"; expected {range_.text('{:.1%}')} over seeds" if range_ else ""
        print(f"  {'reward model':<28}{100 * result['accuracy']:5.1f}% +- {100 * result['standard_error']:.1f}{beside}")
    judge = HeldOutJudge.fit(arguments.data).cross_validation()
    print(f"choice of the best among four, {points['choices']:,} choices of held-out sentences")
    for name, title in NAMES.items():
        error = "" if name == "chance" else f" +- {100 * points[name]['standard_error']:.1f}"
        print(f"  {title:<28}{100 * points[name]['accuracy']:5.1f}%{error}")
    print(
        f"judge fitted on {judge['sentences']:,} held-out sentences, {FOLDS}-fold cross-validation: "
        f"Pearson {judge['pearson']:.3f}, R^2 {judge['r2']:.3f}, alpha {judge['alpha']:g}"
    )
    if arguments.json:
        write_json(arguments.json, {**points, "judge": judge})


if __name__ == "__main__":
    main()

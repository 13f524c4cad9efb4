"""A reward model's own quality: `python launch.py reward_quality EXPERIMENT`. docs/reward_quality.md explains every
number.

From top to bottom: the reward model and held-out choices -> its rewards -> accuracy, calibration, length, agreement
with people -> a learning curve of reward models trained on fewer labels -> a table, and the folder of the results.
"""

import copy
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from lm_human_preferences.compute.distributed import World
from lm_human_preferences.compute.precision import Precision, choose_precision
from lm_human_preferences.data.label_files import is_address, load_labels, load_labels_if_any, readable_label
from lm_human_preferences.data.labels import LabelBatch, label_type
from lm_human_preferences.foundation.configuration import find_paths, from_dict, named_paths, param, to_dict
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import atomic_folder, read_json, write_json
from lm_human_preferences.foundation.root import find_path
from lm_human_preferences.judging import calibration
from lm_human_preferences.judging.bootstrap import Bootstrap
from lm_human_preferences.judging.calibration import Estimate
from lm_human_preferences.judging.ratings import rated_rows
from lm_human_preferences.language.encoding import Encoding, describe_encoding, get_encoding
from lm_human_preferences.language.model_folders import is_model_folder
from lm_human_preferences.learning.reward_model import RewardModel, rewards_of
from lm_human_preferences.reports.quality_report import quality_table, write_quality_figures
from lm_human_preferences.runs.description import check_same_configuration, describe_run
from lm_human_preferences.runs.folder import free_result_folder
from lm_human_preferences.train_reward import RewardTrainer, RewardTrainingParams, check

TABLES = "sentences.jsonl"  # of a data set: every sentence with every person's rating


@dataclass
class RewardQualityParams:
    """What to measure a reward model on, and which others to train for its learning curve."""

    task: str | None = param(
        None, "the task of a reward-model folder: its labels and settings; a run of train_reward has its own"
    )
    labels: str | None = param(
        None, "file of choices to measure on; none takes those that the run or task holds out", "path"
    )
    ratings: str | None = param(
        None, f"folder of a data set whose {TABLES} has every rating; none takes the labels' folder if it has one"
    )
    bins: int = param(10, "parts of 0..1 in the table of reliability")
    equal_length: float = param(1.25, "responses count as equally long up to this ratio of their tokens")
    curve: str | None = param(
        None, "N,N,...: also train a reward model with the same settings on each of these numbers of labels"
    )
    models: str | None = param(None, "NAME=FOLDER,...: train such a curve on each of these language models too")
    experiment: str | None = param(None, "folder of the results in save_dir; none is quality_EXPERIMENT")
    seed: int = param(1, "seed of the resamples that give standard errors")
    save_dir: str = param("saved_models", "folder that holds the run folders, those of the curve too", "path")
    overwrite: bool = param(
        False, "replace results of the same name; finished runs of the curve are kept and used in any case"
    )
    device: str = param("auto", "auto, cpu, cuda or cuda:N")
    precision: str = param("auto", "auto (bfloat16 where the hardware multiplies it fast), float32 or bfloat16")
    micro_batch: int = param(64, "responses in memory at once; changes nothing but memory and rounding")
    threads: int = param(0, "CPU threads; 0 leaves the choice to PyTorch")


class Subject(NamedTuple):
    """The reward model under examination and how it came about."""

    name: str
    task: str
    folder: Path  # its model folder
    settings: RewardTrainingParams
    trained: bool  # a run whose settings these are, so that it is a point of its own learning curve


class CurveRun(NamedTuple):
    """One reward model of a learning curve."""

    model: str | None  # name in --models, None for the subject's own language model
    labels: int
    name: str  # of its run
    settings: RewardTrainingParams


@dataclass(frozen=True)
class Choices:
    """Held-out choices with everything that is known about them; n choices among N responses."""

    batch: LabelBatch
    texts: list[dict[str, Any]]  # query, responses, best
    lengths: np.ndarray  # int64 [n, N], tokens of each response
    source: str
    sentences: list[list[dict[str, Any]]] | None  # [n][N] rows of sentences.jsonl; None where the data set has none

    @property
    def best(self) -> np.ndarray:
        return self.batch.best.numpy()


def reward_quality(experiment: str, params: RewardQualityParams, settings: RewardTrainingParams | None) -> Path:
    """Measure, train what the curve lacks, print the table, write the folder of the results, which is returned.

    settings: of --task. UserError before anything is written if it cannot work.
    """
    if params.bins < 1 or params.micro_batch < 1 or params.equal_length < 1:
        raise UserError("--bins, --micro_batch and --equal_length must be at least 1")
    precision = choose_precision(params.device, params.precision)
    if params.threads:
        torch.set_num_threads(params.threads)
    subject = find_subject(experiment, params, settings)
    name = f"quality_{subject.name}" if params.experiment is None else params.experiment
    folder = free_result_folder(params.save_dir, name, "reward_quality", params.overwrite)
    model = RewardModel.load(subject.folder)
    encoding = get_encoding(model.transformer.config)
    choices = held_out_choices(subject, params, encoding)
    curve = plan_curve(subject, params)
    count = f"{len(choices.best):,} held-out choices"
    print(f"reward_quality {subject.name}: {count} of {choices.source}, {precision.describe()}")
    rewards = score(model, choices, precision, params.micro_batch)
    result = {
        "task": subject.task,
        "model": str(subject.folder),
        "labels": choices.source,
        "choices": len(choices.best),
        "seed": params.seed,
        **quality(rewards, choices, params),
    }
    if curve:
        points = [curve_point(run, subject.task, choices, encoding, precision, params) for run in curve]
        if subject.trained:
            points.append(point_of_curve(None, subject.settings.labels.num_train, subject.name, rewards, choices))
        result["curve"] = sorted(points, key=lambda row: (row["model"] or "", row["labels"]))
    write_quality(
        folder, describe_run("reward_quality", subject.task, folder.name, to_dict(params)), result, rewards, choices
    )
    print(quality_table(result))
    print(f"\nresults and figures in {folder}; python launch.py report {folder.name} makes a page of them")
    return folder


# --- what is measured ---


def find_subject(experiment: str, params: RewardQualityParams, settings: RewardTrainingParams | None) -> Subject:
    """A run of train_reward by name or path, or a reward-model folder with --task. UserError if it is neither or not
    finished.
    """
    for folder in (Path(params.save_dir) / experiment, find_path(experiment)):
        config = read_json(folder / "config.json") if (folder / "config.json").is_file() else None
        if isinstance(config, dict) and config.get("stage") == "train_reward":
            if settings is not None:
                raise UserError(f"{folder} is a run with settings of its own; leave --task out")
            if members := sorted(folder.glob("member_*/reward_model")):
                raise UserError(
                    f"{folder} is an ensemble of {len(members)}: name a member, {experiment}/{members[0].parent.name}"
                )
            if not (folder / "reward_model").is_dir():
                raise UserError(f"{folder} has no reward_model/ yet; its training has not finished")
            settings = find_paths(from_dict(RewardTrainingParams, config.get("parameters")))
            return Subject(
                folder.resolve().name, str(config.get("task")), folder / "reward_model", settings, trained=True
            )
        if is_model_folder(folder):
            if settings is None:
                raise UserError(f"{folder} is a model folder: say with --task TASK whose labels to measure it on")
            name = folder.resolve().parent.name if folder.resolve().name == "reward_model" else folder.resolve().name
            return Subject(name, str(params.task), folder, settings, trained=False)
        if config is not None:
            raise UserError(f"{folder} is neither a run of train_reward nor a reward-model folder")
    raise UserError(f"there is no run or reward-model folder {experiment!r} in {params.save_dir}")


def held_out_choices(subject: Subject, params: RewardQualityParams, encoding: Encoding) -> Choices:
    """The choices to measure on. UserError for labels that are not choices, or if nothing was held out."""
    labels, kind, task = subject.settings.labels, label_type(subject.settings.labels.type), subject.settings.task
    if not kind.is_choice:
        raise UserError(f"reward_quality needs choices, best_of_N; the labels of {subject.name} are {kind.name}")
    skip, source, limit = 0, params.labels or labels.valid_source, None if params.labels else labels.num_valid
    if source is None:
        source, skip = labels.source, labels.num_train
    load, reading = (load_labels, None) if params.labels else (load_labels_if_any, labels)
    batch = load(source, kind, task, encoding, limit, skip, reading=reading) if source and limit != 0 else None
    if batch is None:
        raise UserError(f"{subject.name} holds no labels out; give a file of choices with --labels")
    batch = replace(batch, target=batch.best)  # of a distribution over the responses the most probable one
    texts = [readable_label(batch, i, kind, encoding) for i in range(len(batch))]
    return Choices(
        batch,
        texts,
        (batch.responses != encoding.padding_token).sum(2).numpy(),
        source,
        rated_responses(source, skip, batch, params.ratings),
    )


def rated_responses(source: str, skip: int, batch: LabelBatch, given: str | None) -> list[list[dict[str, Any]]] | None:
    """Each response's row of sentences.jsonl, found by the `ids` of the readable label file beside the token lists.
    None if there are none.

    UserError where a folder was given and has nothing about these labels.
    """
    folder = Path(given) if given else Path(source).parent
    if not given and (is_address(source) or not (folder / TABLES).is_file()):
        return None
    readable = folder / f"{Path(source).stem}.jsonl"
    if not given and not readable.is_file():
        return None
    rows, by_id = (
        rated_rows(readable)[skip : skip + len(batch)],
        {row.get("id"): row for row in rated_rows(folder / TABLES)},
    )
    try:
        found = [[by_id[number] for number in row["ids"]] for row in rows]
        fits = [row["best"] for row in rows] == batch.best.tolist() and all(
            len(row) == batch.responses.shape[1] for row in found
        )
        if fits and all(sentence["ratings"] for row in found for sentence in row):
            return found
    except (KeyError, TypeError):
        pass
    if given:
        raise UserError(
            f"{readable} and {folder / TABLES} do not rate the choices of {source}: expected the same labels with ids, "
            "each rated"
        )
    return None


def score(model: RewardModel, choices: Choices, precision: Precision, micro_batch: int) -> np.ndarray:
    """Rewards float64 [n, N] of the responses."""
    return rewards_of(model.to(precision.device), choices.batch, precision, micro_batch).double().numpy()


def point(rewards: np.ndarray, best: np.ndarray) -> dict[str, Estimate]:
    """Accuracy, mean log-likelihood of the choices in nats, and the temperature that would calibrate the rewards."""
    return {
        "temperature": calibration.best_temperature(rewards, best),
        "accuracy": calibration.mean(rewards.argmax(1) == best),
        "log_likelihood": calibration.mean(calibration.log_probabilities(rewards)[np.arange(len(best)), best]),
    }


def quality(rewards: np.ndarray, choices: Choices, params: RewardQualityParams) -> dict[str, Any]:
    """Everything about one reward model: accuracy, calibration, length, people."""
    n, n_responses = rewards.shape
    bootstrap = Bootstrap(n, params.seed)
    found = {**point(rewards, choices.best), "chance": 1 / n_responses}
    temperature = found.pop("temperature")
    members = [[(text["query"], response) for response in text["responses"]] for text in choices.texts]
    found["accuracy_overlapping"] = calibration.mean_of_overlapping(rewards.argmax(1) == choices.best, members)
    found["calibration"] = calibration_of(rewards, choices.best, temperature, params.bins, bootstrap)
    found["length"] = length_of(rewards, choices, params.equal_length, bootstrap)
    if choices.sentences:
        found["people"] = people_of(rewards, choices.sentences, params.seed)
    return found


def calibration_of(
    rewards: np.ndarray, best: np.ndarray, temperature: Estimate, bins: int, bootstrap: Bootstrap
) -> dict[str, Any]:
    """How far the choice probabilities hold, as they are and at the temperature that would calibrate them."""
    logs, right = calibration.log_probabilities(rewards), rewards.argmax(1) == best
    confidence = np.exp(logs.max(1))
    found = {
        "confidence": calibration.mean(confidence),
        "error": calibration.calibration_error(confidence, right, bins, bootstrap),
        "temperature": temperature,
        "uniform_log_likelihood": -float(np.log(rewards.shape[1])),
        "reliability": calibration.reliability(confidence, right, bins),
    }
    if temperature["value"] is not None:
        cooled = calibration.log_probabilities(rewards, temperature["value"])
        found["log_likelihood_at_temperature"] = calibration.mean(cooled[np.arange(len(best)), best])
        found["error_at_temperature"] = calibration.calibration_error(np.exp(cooled.max(1)), right, bins, bootstrap)
    return found


def length_of(rewards: np.ndarray, choices: Choices, equal: float, bootstrap: Bootstrap) -> dict[str, Any]:
    """How far score and people's choice go with the number of tokens. Responses whose lengths differ by a factor of at
    most `equal` count as equally long.
    """
    lengths, best = choices.lengths.astype(np.float64), choices.best
    return {
        **length_correlations(rewards, lengths, bootstrap),
        **longest_preferred(rewards, lengths, best),
        "equal_length": equal,
        **accuracy_of_equal_length(rewards, lengths, best, equal),
        **accuracy_of_pairs(rewards, lengths, best, equal, bootstrap),
        "by_length": by_length(rewards.ravel(), lengths.ravel()),
    }


def length_correlations(rewards: np.ndarray, lengths: np.ndarray, bootstrap: Bootstrap) -> dict[str, Estimate]:
    """Of reward and length over all responses, and of what both are above their mean within a choice."""
    n, n_responses = rewards.shape
    choice = np.repeat(np.arange(n), n_responses)  # of each response
    above = [values - values.mean(1, keepdims=True) for values in (rewards, lengths)]
    return {
        "correlation": calibration.correlation(rewards.ravel(), lengths.ravel(), choice, bootstrap),
        "correlation_within": calibration.correlation(above[0].ravel(), above[1].ravel(), choice, bootstrap),
    }


def longest_preferred(rewards: np.ndarray, lengths: np.ndarray, best: np.ndarray) -> dict[str, Estimate]:
    """How often people and the model choose the longest response, several longest ones sharing it."""
    share, row = calibration.top_shares(lengths), np.arange(len(best))
    return {
        "people_longest": calibration.mean(share[row, best]),
        "model_longest": calibration.mean(share[row, rewards.argmax(1)]),
    }


def accuracy_of_equal_length(
    rewards: np.ndarray, lengths: np.ndarray, best: np.ndarray, equal: float
) -> dict[str, Any]:
    """Over the choices all of whose responses are equally long."""
    alike = lengths.max(1) <= equal * lengths.min(1)
    right = rewards.argmax(1) == best
    return {"equal_choices": int(alike.sum()), "equal_accuracy": calibration.mean(right[alike])}


def accuracy_of_pairs(
    rewards: np.ndarray, lengths: np.ndarray, best: np.ndarray, equal: float, bootstrap: Bootstrap
) -> dict[str, Any]:
    """Over the pairs of the best response and another: how often the best has the higher reward, ties half; of all
    pairs, and of those equally long.
    """
    row = np.arange(len(best))
    other = np.arange(rewards.shape[1]) != best[:, None]  # bool [n, N]
    length, reward = lengths[row, best, None], rewards[row, best, None]  # of the best, [n, 1]
    wins = (reward > rewards) + 0.5 * (reward == rewards)
    close = other & (np.maximum(lengths, length) <= equal * np.minimum(lengths, length))
    return {
        "pairs": int(other.sum()),
        "pairs_accuracy": calibration.ratio((wins * other).sum(1), other.sum(1), bootstrap),
        "equal_pairs": int(close.sum()),
        "equal_pairs_accuracy": calibration.ratio((wins * close).sum(1), close.sum(1), bootstrap),
    }


def by_length(rewards: np.ndarray, lengths: np.ndarray, groups: int = 8) -> list[dict[str, Any]]:
    """Mean reward of groups of about equally many responses [m] of similar length, for the figure."""
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, groups + 1)[1:-1]))
    place, rows = np.searchsorted(edges, lengths, side="left"), []
    for group in np.unique(place):
        inside = place == group
        rows.append(
            {
                "length": float(lengths[inside].mean()),
                "responses": int(inside.sum()),
                "reward": calibration.mean(rewards[inside]),
            }
        )
    return rows


def people_of(rewards: np.ndarray, sentences: list[list[dict[str, Any]]], seed: int) -> dict[str, Any]:
    """Against single persons' ratings and their means: correlations over sentences, agreement over choices."""
    scores, ratings = rated_sentences(rewards, sentences)
    bootstrap = Bootstrap(len(ratings), seed)
    return {
        "sentences": len(ratings),
        "ratings": sum(len(given) for given in ratings),
        "reliability": calibration.rating_reliability(ratings),
        **correlations_with_means(scores, ratings, bootstrap),
        **correlations_with_persons(scores, ratings, bootstrap),
        **agreement_with_persons(rewards, sentences),
    }


def rated_sentences(rewards: np.ndarray, sentences: list[list[dict[str, Any]]]) -> tuple[np.ndarray, list[list[float]]]:
    """The model's reward float64 [s] and all ratings of each of the s different sentences; one that stands in several
    choices counts once, with its mean reward.
    """
    rows = [row for choice in sentences for row in choice]
    ratings = {row["id"]: row["ratings"] for row in rows}
    place = {number: i for i, number in enumerate(ratings)}
    places = np.array([place[row["id"]] for row in rows])
    return np.bincount(places, rewards.ravel()) / np.bincount(places), list(ratings.values())


def correlations_with_means(
    scores: np.ndarray, ratings: list[list[float]], bootstrap: Bootstrap
) -> dict[str, Estimate]:
    """Of the model's scores [s] with the mean ratings."""
    means, sentence = np.array([np.mean(given) for given in ratings]), np.arange(len(ratings))
    ranks = calibration.ranks(scores), calibration.ranks(means)
    return {
        "mean_correlation": calibration.correlation(scores, means, sentence, bootstrap),
        "mean_rank_correlation": calibration.correlation(*ranks, sentence, bootstrap),
    }


def correlations_with_persons(
    scores: np.ndarray, ratings: list[list[float]], bootstrap: Bootstrap
) -> dict[str, Estimate]:
    """Of single ratings with the model's scores [s], and with the mean of the sentence's other ratings."""
    counts = [len(given) for given in ratings]
    sentence = np.repeat(np.arange(len(ratings)), counts)  # of each single rating
    single = np.concatenate([np.asarray(given, dtype=np.float64) for given in ratings])
    others = np.concatenate([(np.sum(given) - np.asarray(given)) / max(1, len(given) - 1) for given in ratings])
    several = np.array([count > 1 for count in counts])[sentence]  # there are others
    found = {"single_correlation": calibration.correlation(scores[sentence], single, sentence, bootstrap)}
    if several.any():
        found["single_with_others_correlation"] = calibration.correlation(
            single[several], others[several], sentence[several], bootstrap
        )
    return found


def agreement_with_persons(rewards: np.ndarray, sentences: list[list[dict[str, Any]]]) -> dict[str, Estimate]:
    """How often the model, another person and the mean of the others choose the response that one person would."""
    agreement = [
        calibration.rater_agreement([row["ratings"] for row in choice], int(pick))
        for choice, pick in zip(sentences, rewards.argmax(1), strict=True)
    ]
    return {
        f"agreement_{name}": calibration.mean(np.array([row[name] for row in agreement if name in row]))
        for name in ("model", "people", "rest")
    }


# --- the learning curve ---


def plan_curve(subject: Subject, params: RewardQualityParams) -> list[CurveRun]:
    """The runs of --curve, for the subject's language model and each of --models. UserError if one could not be
    trained.
    """
    if params.curve is None:
        if params.models is not None:
            raise UserError("--models compares learning curves: say with --curve N,N,... how many labels to train on")
        return []
    counts = [part.strip() for part in params.curve.split(",")]
    if not all(part.isdigit() for part in counts):
        raise UserError(
            f"--curve {params.curve}: expected numbers of labels with commas between them, as in 64,256,1024"
        )
    runs = []
    for model, path in [(None, None), *named_paths(params.models or "", "--models").items()]:
        for labels in sorted({int(part) for part in counts}):
            settings = copy.deepcopy(subject.settings)
            settings.labels.num_train = labels
            if path is not None:
                settings.task.policy.initial_model = str(find_path(path))
            settings.run.save_dir, settings.run.device, settings.run.precision = (
                params.save_dir,
                params.device,
                params.precision,
            )
            settings.run.overwrite, settings.run.threads = False, params.threads
            settings.tracking.tensorboard = settings.tracking.wandb = False
            name = "_".join(filter(None, [subject.name, model, f"labels_{labels}"]))
            if labels == subject.settings.labels.num_train and model is None and subject.trained:
                continue  # the subject itself
            if not subject.settings.labels.valid_source and labels > subject.settings.labels.num_train:
                raise UserError(
                    f"--curve {labels}: after the first {subject.settings.labels.num_train} labels those begin that "
                    "are held out"
                )
            if labels < 1 or labels % settings.batch_size:
                raise UserError(
                    f"--curve {labels}: numbers of labels must divide by the batch size, {settings.batch_size}"
                )
            if not Path(settings.task.policy.initial_model).is_dir():
                raise UserError(
                    f"the curve needs the language model {settings.task.policy.initial_model}, which is not here"
                )
            settings.run.resume = _begun(Path(params.save_dir) / name, subject.task, settings)
            check(settings)
            runs.append(CurveRun(model, labels, name, settings))
    return runs


def _begun(folder: Path, task: str, settings: RewardTrainingParams) -> bool:
    """Whether this very run was begun already. UserError if something else has its name."""
    if not folder.exists():
        return False
    stored = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    try:
        now = {"stage": "train_reward", "task": task, "parameters": to_dict(settings)}
        check_same_configuration(stored, now, str(folder))
    except (UserError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{folder} exists and is not such a run of this curve (its settings differ); move it away or measure in "
            "another --save_dir"
        ) from None
    return True


def curve_point(
    run: CurveRun, task: str, choices: Choices, encoding: Encoding, precision: Precision, params: RewardQualityParams
) -> dict[str, Any]:
    """The run's reward model, trained now unless it is there, on the same held-out choices. UserError if it has another
    encoding.
    """
    folder = Path(params.save_dir) / run.name
    if not ((folder / "reward_model").is_dir() and (folder / "result.json").is_file()):
        RewardTrainer.prepare(run.settings, precision, World()).run(task, run.name)
    model = RewardModel.load(folder / "reward_model")
    if get_encoding(own := model.transformer.config) != encoding:
        raise UserError(
            f"{run.model} has the encoding {describe_encoding(own)}, these choices have {describe_encoding(encoding)}"
        )
    rewards = score(model, choices, precision, params.micro_batch)
    return point_of_curve(run.model, run.labels, run.name, rewards, choices)


def point_of_curve(model: str | None, labels: int, run: str, rewards: np.ndarray, choices: Choices) -> dict[str, Any]:
    return {"model": model, "labels": labels, "run": run, **point(rewards, choices.best)}


# --- what is written ---


def write_quality(
    folder: Path, description: dict[str, Any], result: dict[str, Any], rewards: np.ndarray, choices: Choices
) -> None:
    """config.json, result.json, choices.jsonl (a line a choice) and the figures in `folder`, which is replaced as a
    whole.
    """
    lines = [
        json.dumps(
            text | {"rewards": [round(float(value), 6) for value in row], "lengths": lengths.tolist()},
            ensure_ascii=False,
        )
        + "\n"
        for text, row, lengths in zip(choices.texts, rewards, choices.lengths, strict=True)
    ]
    with atomic_folder(folder) as temporary:
        write_json(temporary / "config.json", description)
        write_json(temporary / "result.json", result)
        (temporary / "choices.jsonl").write_text("".join(lines), encoding="utf-8", errors="backslashreplace")
        write_quality_figures(result, temporary)

"""Policies side by side: `python launch.py evaluate TASK --policies NAME=PATH,NAME=PATH`. docs/evaluation.md explains
every number.

From top to bottom: judges, policies and held-out queries -> each policy answers the same queries at the same uniforms
-> figures of each policy and win rates of each pair, with intervals over queries -> a table, and the run's folder.
"""

import itertools
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from lm_human_preferences.compute import distributed
from lm_human_preferences.compute.distributed import World, generator_for
from lm_human_preferences.compute.hardware import describe_computing
from lm_human_preferences.compute.precision import Precision, choose_precision
from lm_human_preferences.data.label_files import load_texts
from lm_human_preferences.data.queries import TokenFile, dataset_split, query_stream
from lm_human_preferences.data.tasks import QueryFormatter, TaskParams, check_task, readable, response_ends
from lm_human_preferences.foundation.configuration import named_paths, param, to_dict
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import atomic_file, atomic_folder, write_json
from lm_human_preferences.judging import text_metrics
from lm_human_preferences.judging.bootstrap import Bootstrap, Interval
from lm_human_preferences.judging.evaluation import (
    Responses,
    given_logprobs,
    per_token_kl,
    sample_and_score,
    uniforms_of,
    unpadded,
)
from lm_human_preferences.judging.judges import SPECS, Judge, PeoplesChoices, load_judge, sheet_row
from lm_human_preferences.language.encoding import Encoding, describe_encoding, get_encoding, same_encoding
from lm_human_preferences.language.gpt2 import GPT2Config
from lm_human_preferences.language.model_folders import load_config
from lm_human_preferences.learning import steered_policy
from lm_human_preferences.learning.policy import Policy
from lm_human_preferences.reports.evaluation_report import evaluation_table
from lm_human_preferences.reports.expected import ranges_beside
from lm_human_preferences.reports.samples import samples_of_evaluation, samples_text
from lm_human_preferences.runs.description import describe_run
from lm_human_preferences.runs.folder import free_result_folder, model_and_task


@dataclass
class EvaluateParams:
    """What to compare, on what, and by whom it is judged."""

    task: TaskParams = param(TaskParams, "")
    policies: str = param(
        "",
        "NAME=PATH,NAME=PATH,...: the policies, each a run (by name or path) or a model folder; PATH#BETA steers a "
        "policy of train_ilql with another strength than its own",
    )
    reference: str | None = param(
        None,
        "NAME of one of them, or another run or model folder: KL and perplexity are against it; none takes the first",
    )
    judges: str | None = param(None, f"SPEC,SPEC,... or NAME=SPEC,...: {SPECS}")
    samples: int = param(1000, "held-out queries")
    split: str = param("test", "split of the query data set that they come from")
    texts: str | None = param(
        None, "file of responses whose perplexity under each policy is measured: JSONL of query and response, or labels"
    )
    people_sheet: str | None = param(
        None, "write a sheet here (.jsonl or .json) for people to choose between responses; then --judges choices:FILE"
    )
    experiment: str | None = param(None, "folder of the results in save_dir; none is evaluate_TASK")
    shown: int = param(3, "queries to print with every policy's response")
    seed: int = param(1, "seed of queries, uniforms and intervals")
    save_dir: str = param("saved_models", "folder that holds the run folders", "path")
    overwrite: bool = param(False, "replace results of the same name")
    device: str = param("auto", "auto, cpu, cuda or cuda:N")
    precision: str = param("auto", "auto (bfloat16 where the hardware multiplies it fast), float32 or bfloat16")
    micro_batch: int = param(64, "responses in memory at once; changes nothing but memory and rounding")
    timeout: float = param(
        distributed.WAIT, "with torchrun: seconds that a rank waits for the others before it takes them for lost"
    )


class Answers(NamedTuple):
    """A policy's responses to the n queries with all that is known of each."""

    measured: Responses
    plain_logprobs: torch.Tensor  # float32 [n, R], under the reference at temperature 1, up to the truncation
    texts: list[str]
    lengths: np.ndarray  # float64 [n], tokens up to the truncation, the end itself included
    scores: dict[str, np.ndarray]  # judge -> float64 [n]
    rouge: dict[str, np.ndarray]  # rouge_1 ... -> float64 [n]; empty without references


class HeldOut(NamedTuple):
    """The queries, and where the data set has them, their documents' reference texts."""

    tokens: torch.Tensor  # int64 [n, Q]
    texts: list[str]
    documents: list[int]
    references: list[str] | None


@dataclass
class Comparison:
    """Everything that is loaded before the first policy answers, so that what is wrong with it shows at once."""

    params: EvaluateParams
    precision: Precision
    world: World
    judges: list[Judge]
    people: list[PeoplesChoices]
    policies: dict[str, Policy]
    reference: Policy
    encoding: Encoding
    held_out: HeldOut
    texts: tuple[torch.Tensor, torch.Tensor] | None  # queries and responses whose perplexity is measured

    @classmethod
    def load(
        cls, paths: dict[str, str], folder: Path, params: EvaluateParams, precision: Precision, world: World
    ) -> "Comparison":
        """UserError if something cannot be had or does not fit."""
        judges, people = load_judges(params.judges, precision.device)
        check_sheets(params, folder, people, len(paths))
        policies, reference, encoding = load_policies(paths, params)
        held_out = held_out_queries(params.task, encoding, params.samples, params.split, params.seed)
        texts = load_texts(params.texts, params.task, encoding) if params.texts else None
        for policy in (reference, *policies.values()):
            policy.to(precision.device)
        return cls(params, precision, world, judges, people, policies, reference, encoding, held_out, texts)

    def answers_of(self, policy: Policy) -> Answers:
        """The policy's responses to the queries with all that is measured of them; all ranks together."""
        params, queries = self.params, self.held_out.tokens
        responses = sample_and_score(
            policy,
            self.reference,
            [judge.on_tokens(self.encoding) for judge in self.judges],
            response_ends(params.task, self.encoding),
            queries,
            uniforms_of(params.task, params.samples, params.seed),
            self.precision,
            params.micro_batch,
            self.world,
        )
        plain_logprobs = self.logprobs_of(self.reference, queries, responses.tokens)
        return collect_answers(responses, plain_logprobs, self.judges, self.held_out, self.encoding)

    def text_perplexity_of(self, policy: Policy) -> Interval:
        """The policy's perplexity of the given texts; all ranks together."""
        assert self.texts is not None
        logprobs = self.logprobs_of(policy, *self.texts).double().sum(1).numpy()
        tokens = (self.texts[1] != self.encoding.padding_token).sum(1).numpy()
        return Bootstrap(len(tokens), self.params.seed).ratio(-logprobs, tokens, np.exp)

    def logprobs_of(self, policy: Policy, queries: torch.Tensor, responses: torch.Tensor) -> torch.Tensor:
        """Log-probabilities at temperature 1, float32 [n, R], of responses int64 [n, R] to queries int64 [n, Q]."""
        padding, size = self.encoding.padding_token, self.params.micro_batch
        return given_logprobs(policy, queries, responses, padding, self.precision, size, self.world)


def evaluate(params: EvaluateParams, task: str) -> Path:
    """Compare, print the table and write the folder of the results, which is returned. UserError before anything is
    written if it cannot work.
    """
    if params.samples < 1 or params.micro_batch < 1 or params.shown < 0:
        raise UserError("--samples and --micro_batch must be at least 1, --shown not negative")
    distributed.check_wait(params.timeout, "--timeout")
    precision = choose_precision(params.device, params.precision)
    name = f"evaluate_{task}" if params.experiment is None else params.experiment
    if not (paths := named_paths(params.policies, "--policies")):
        raise UserError("nothing to evaluate: give --policies NAME=PATH,NAME=PATH")
    folder = free_result_folder(params.save_dir, name, "evaluate", params.overwrite)
    with distributed.world(precision.device.type, params.timeout, "--timeout") as world:
        comparison = Comparison.load(paths, folder, params, precision, world)
        if world.is_main:
            names = ", ".join(comparison.policies)
            queries = f"{params.samples:,} queries of {params.split}"
            print(f"evaluate {task}: {names} on {queries}, {precision.describe()}")
        answers = {name: comparison.answers_of(policy) for name, policy in comparison.policies.items()}
        text_perplexities = {
            name: comparison.text_perplexity_of(policy)
            for name, policy in comparison.policies.items()
            if comparison.texts is not None
        }
        if world.is_main:
            result = {
                "task": task,
                "split": params.split,
                "queries": params.samples,
                "seed": params.seed,
                "reference": reference_of(params, paths),
                **figures_of(answers, comparison.held_out, comparison.people, comparison.encoding, params.seed),
            }
            for name, perplexity in text_perplexities.items():
                result["policies"][name]["text_perplexity"] = perplexity
            description = describe_run("evaluate", task, folder.name, to_dict(params))
            description["computed"] = describe_computing(precision)
            report_evaluation(folder, description, result, answers, comparison)
        return folder


# --- what is compared ---


def load_judges(text: str | None, device: torch.device) -> tuple[list[Judge], list[PeoplesChoices]]:
    """The judges that score responses, and those that hold people's choices. UserError if one cannot be had or two have
    one name.
    """
    loaded = [load_judge(spec, device) for spec in filter(None, (text or "").split(","))]
    names = [judge.name for judge in loaded]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"--judges has the name {twice} twice; give one another with NAME=SPEC")
    return [judge for judge in loaded if isinstance(judge, Judge)], [
        judge for judge in loaded if isinstance(judge, PeoplesChoices)
    ]


def check_sheets(params: EvaluateParams, folder: Path, people: list[PeoplesChoices], policies: int) -> None:
    """UserError where people's work would be overwritten, or has nothing to compare."""
    if people or params.people_sheet:
        if policies < 2:
            raise UserError("people choose between two policies' responses: give at least two with --policies")
    for path in [Path(judge.path) for judge in people] + ([Path(params.people_sheet)] if params.people_sheet else []):
        if folder.resolve() in path.resolve().parents:
            raise UserError(f"{path} lies in {folder}, which is replaced as a whole; keep sheets elsewhere")
    if params.people_sheet and Path(params.people_sheet).exists():
        raise UserError(
            f"--people_sheet {params.people_sheet} exists already and may hold people's choices; give another name"
        )
    if params.people_sheet and Path(params.people_sheet).suffix not in (".jsonl", ".json"):
        raise UserError(f"--people_sheet {params.people_sheet}: its name must end in .jsonl or .json")


def reference_of(params: EvaluateParams, policies: Iterable[str]) -> str:
    """The reference's name among the policies, or the path of another model."""
    return next(iter(policies)) if params.reference is None else params.reference


def load_policies(paths: dict[str, str], params: EvaluateParams) -> tuple[dict[str, Policy], Policy, Encoding]:
    """The policies by name, the reference (one of them or another), and their encoding. UserError if one does not fit
    the task or the others.
    """
    reference = reference_of(params, paths)
    policies: dict[str, Policy] = {}
    theirs: GPT2Config | None = None
    for name, path in ({reference: reference} | paths).items():  # the reference first: the others must fit it
        path, beta = path_and_beta(path)
        folder = model_and_task(path, params.save_dir)[0]
        own = load_config(folder)
        theirs = theirs or own
        if not same_encoding(own, theirs):
            raise UserError(
                f"{name} ({path}) has the encoding {describe_encoding(own)}, the reference {reference} has "
                f"{describe_encoding(theirs)}; only policies of one encoding can answer the same queries"
            )
        policies[name] = load_policy(folder, params.task, beta)
    encoding = get_encoding(policies[reference].transformer.config)
    return {name: policies[name] for name in paths}, policies[reference], encoding


def path_and_beta(path: str) -> tuple[str, float | None]:
    """PATH#BETA as path and strength of steering; None for a path alone. UserError for a strength that is none."""
    before, mark, number = path.rpartition("#")
    if not mark or "/" in number:
        return path, None
    try:
        beta = float(number)
    except ValueError:
        beta = math.nan
    if not 0 <= beta < math.inf:
        raise UserError(f"--policies {path}: what follows # is the strength of steering, a number that is not negative")
    return before, beta


def load_policy(folder: Path, task: TaskParams, beta: float | None = None) -> Policy:
    """The policy in a model folder, ready to answer the task's queries. UserError if it cannot do it.

    beta: the strength of steering, for a policy of train_ilql; None takes its own.
    """
    policy = steered_policy.load_policy(folder, QueryFormatter([], []), task.policy.temperature, beta)
    encoding = get_encoding(policy.transformer.config)
    check_task(task, encoding, policy.transformer.config.n_ctx)
    return policy.for_task(task, encoding).requires_grad_(False)


def held_out_queries(task: TaskParams, encoding: Encoding, samples: int, split: str, seed: int) -> HeldOut:
    """The queries in their random order, no document twice. UserError if the split has too few, or references that do
    not match it.
    """
    stream = query_stream(task, encoding, seed, "evaluation", split)
    tokens, documents = stream.batch_with_documents(samples)
    folder, name = dataset_split(task, split)
    if (found := len(set(documents))) < samples:
        raise UserError(
            f"--samples {samples}: {folder / name}.bin has only {found} documents with a query; take at most {found}"
        )
    references = None
    if (folder / f"references_{name}.bin").exists():
        file = TokenFile(folder, f"references_{name}")
        file.check_encoding(encoding)
        if len(file) != len(stream.documents):
            raise UserError(
                f"{folder}/references_{name}.bin has {len(file)} documents, "
                f"{name}.bin has {len(stream.documents)}: prepare the data set again"
            )
        references = [readable(encoding, torch.from_numpy(file[i].astype(np.int64))) for i in documents]
    return HeldOut(tokens, [readable(encoding, row) for row in tokens], documents, references)


# --- what is measured ---


def collect_answers(
    measured: Responses, plain_logprobs: torch.Tensor, judges: list[Judge], held_out: HeldOut, encoding: Encoding
) -> Answers:
    """The tensors of `sample_and_score` with the responses' texts and what is measured on these."""
    texts = [readable(encoding, row) for row in measured.tokens]
    lengths = (measured.tokens != encoding.padding_token).sum(1).double().numpy()
    scores = {judge.name: measured.scores[:, i].double().numpy() for i, judge in enumerate(judges)}
    return Answers(
        measured,
        plain_logprobs,
        texts,
        lengths,
        scores,
        text_metrics.rouge(held_out.references, texts) if held_out.references else {},
    )


def figures_of(
    answers: dict[str, Answers], held_out: HeldOut, people: list[PeoplesChoices], encoding: Encoding, seed: int
) -> dict[str, Any]:
    """`policies`: figures of each; `wins`: of each pair under each judge; `baselines`: lead-3, where there are
    references.
    """
    bootstrap = Bootstrap(len(held_out.texts), seed)
    result: dict[str, Any] = {
        "policies": {name: policy_figures(side, held_out, bootstrap, encoding) for name, side in answers.items()},
        "wins": win_rates(answers, held_out, people, bootstrap),
    }
    if held_out.references:
        scores = text_metrics.rouge(held_out.references, [text_metrics.lead(query) for query in held_out.texts])
        result["baselines"] = {"lead_3": {name: bootstrap.mean(values) for name, values in scores.items()}}
    return result


def policy_figures(side: Answers, held_out: HeldOut, bootstrap: Bootstrap, encoding: Encoding) -> dict[str, Any]:
    """Every figure of one policy with its interval."""
    m, lengths = side.measured, side.lengths
    seen = torch.arange(m.kl.shape[1]) < torch.from_numpy(lengths)[:, None]  # bool [n, R]: places up to the truncation

    def summed(values: torch.Tensor) -> np.ndarray:
        return torch.where(seen, values.double(), 0.0).sum(1).numpy()

    rows = unpadded(m.tokens, encoding.padding_token)
    figures: dict[str, Any] = {
        "scores": {judge: bootstrap.mean(scores) for judge, scores in side.scores.items()},
        "kl": bootstrap.mean(m.kl.double().sum(1).numpy()),
        "kl_per_token": bootstrap.ratio(summed(m.kl), lengths),
        "entropy": bootstrap.ratio(summed(m.entropies), lengths),
        "length": bootstrap.mean(lengths),
        "no_valid_end": bootstrap.mean((~m.valid).double().numpy()),
        "distinct_1": bootstrap.jackknife_interval(*text_metrics.distinct(rows, 1)),
        "distinct_2": bootstrap.jackknife_interval(*text_metrics.distinct(rows, 2)),
        "perplexity": bootstrap.ratio(-side.plain_logprobs.double().sum(1).numpy(), lengths, np.exp),
    }
    if held_out.references:
        figures |= {name: bootstrap.mean(values) for name, values in side.rouge.items()}
        figures |= copying_figures(held_out.texts, side.texts, bootstrap)
    return figures


def copying_figures(queries: list[str], responses: list[str], bootstrap: Bootstrap) -> dict[str, Any]:
    """What responses copy from their queries, and from where: shares over all sentences, n-grams, responses."""
    pairs = list(zip(queries, responses, strict=True))
    counts: dict[str, list[Any]] = {"copied_sentences": [text_metrics.copied_sentences(*pair) for pair in pairs]}
    counts |= {
        f"copied_{n}_grams": [text_metrics.copied_ngrams(*pair, n) for pair in pairs]
        for n in text_metrics.COPIED_NGRAMS
    }
    figures: dict[str, Any] = {name: bootstrap.ratio(*np.array(rows).T) for name, rows in counts.items()}
    figures["copied_responses"] = bootstrap.mean(np.array([float(text_metrics.is_copied(*pair)) for pair in pairs]))
    figures["copied_lead_3"] = bootstrap.mean(
        np.array([float(text_metrics.is_copied(text_metrics.lead(query), text)) for query, text in pairs])
    )
    places = [text_metrics.copy_places(*pair) for pair in pairs]
    figures["copied_from"] = bootstrap.ratio(
        np.array([sum(row) for row in places]), np.array([len(row) for row in places])
    )
    flat = [int(10 * place) for row in places for place in row]
    figures["copied_from_tenths"] = [flat.count(tenth) / len(flat) if flat else 0.0 for tenth in range(10)]
    return figures


def win_rates(
    answers: dict[str, Answers], held_out: HeldOut, people: list[PeoplesChoices], bootstrap: Bootstrap
) -> list[dict[str, Any]]:
    """For each judge and pair the share of queries on which the first policy's response is the better one, ties split.

    Raises UserError for people's choices of which none is about these responses.
    """
    pairs = _pairs(answers)
    rows: list[dict[str, Any]] = []

    def add(judge: str, pair: tuple[str, str], wins: np.ndarray) -> None:
        rows.append(
            {
                "judge": judge,
                "policy": pair[0],
                "against": pair[1],
                "share": bootstrap.mean(wins),
                "queries": int((~np.isnan(wins)).sum()),
            }
        )

    for judge in next(iter(answers.values())).scores:
        for a, b in pairs:
            one, other = answers[a].scores[judge], answers[b].scores[judge]
            add(judge, (a, b), (one > other) + 0.5 * (one == other))
    for asked in people:
        shares = {
            pair: asked.wins(held_out.texts, pair, (answers[pair[0]].texts, answers[pair[1]].texts)) for pair in pairs
        }
        if all(np.isnan(wins).all() for wins in shares.values()):
            raise UserError(
                f"{asked.path} has no choice about these responses: evaluate the same policies, under the same names, "
                "with the --seed, --samples and --split that the sheet was written with"
            )
        for pair, wins in shares.items():
            add(asked.name, pair, wins)
    return rows


def _pairs(names: Iterable[str]) -> list[tuple[str, str]]:
    """Each policy with each that was named before it: after against before."""
    return [(later, earlier) for earlier, later in itertools.combinations(names, 2)]


# --- what is written ---


def report_evaluation(
    folder: Path, description: dict[str, Any], result: dict[str, Any], answers: dict[str, Answers], loaded: Comparison
) -> None:
    """Write the folder of the results and the sheet for people, print the table and the first samples."""
    params, rows = loaded.params, evaluation_rows(answers, loaded.held_out, loaded.encoding)
    write_evaluation(folder, description, result, rows)
    if params.people_sheet:
        write_sheet(Path(params.people_sheet), answers, loaded.held_out, params.seed)
    print(evaluation_table(result, ranges_beside(description)))
    print(samples_text(samples_of_evaluation(rows[: params.shown])))
    print(f"\nresults in {folder}" + (f"; sheet to fill in: {params.people_sheet}" if params.people_sheet else ""))


def evaluation_rows(answers: dict[str, Answers], held_out: HeldOut, encoding: Encoding) -> list[dict[str, Any]]:
    """The rows of evaluation.jsonl: a query, with every policy's response and what was measured of it."""
    rows = []
    for i, query in enumerate(held_out.texts):
        row: dict[str, Any] = {"query": query, "document": held_out.documents[i]}
        if held_out.references:
            row["reference"] = held_out.references[i]
        row["policies"] = {
            name: {
                "response": side.texts[i],
                "scores": {judge: float(scores[i]) for judge, scores in side.scores.items()},
                "kl": float(side.measured.kl[i].sum()),
                "length": int(side.lengths[i]),
                "valid": bool(side.measured.valid[i]),
                **per_token_kl(side.measured.tokens[i], side.measured.kl[i], encoding),
                **{metric: float(values[i]) for metric, values in side.rouge.items()},
            }
            for name, side in answers.items()
        }
        rows.append(row)
    return rows


def write_evaluation(
    folder: Path, description: dict[str, Any], result: dict[str, Any], rows: list[dict[str, Any]]
) -> None:
    """config.json, result.json and evaluation.jsonl in `folder`, which is replaced as a whole."""
    with atomic_folder(folder) as temporary:
        write_json(temporary / "config.json", description)
        write_json(temporary / "result.json", result)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (temporary / "evaluation.jsonl").write_text(lines, encoding="utf-8")


def write_sheet(path: Path, answers: dict[str, Answers], held_out: HeldOut, seed: int) -> None:
    """A row for each query and pair of policies, for people to choose; which response comes first is drawn."""
    pairs = _pairs(answers)
    swapped = torch.rand(len(held_out.texts), len(pairs), generator=generator_for(seed, "evaluation/sheet")) < 0.5
    rows = [
        sheet_row(query, (a, b), (answers[a].texts[i], answers[b].texts[i]), bool(swapped[i, j]))
        for i, query in enumerate(held_out.texts)
        for j, (a, b) in enumerate(pairs)
    ]
    if path.suffix == ".json":
        write_json(path, rows)
        return
    with atomic_file(path) as temporary:
        temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")

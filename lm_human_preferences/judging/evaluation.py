"""Policies on the same held-out queries and the same uniforms: what they write and how it scores; before against after
a training run.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lm_human_preferences.compute.distributed import World, generator_for
from lm_human_preferences.compute.precision import Precision
from lm_human_preferences.data.queries import query_stream
from lm_human_preferences.data.tasks import TaskParams, readable, responses_are_valid, truncate_responses
from lm_human_preferences.foundation.configuration import param
from lm_human_preferences.foundation.files import atomic_file, write_json
from lm_human_preferences.judging.text_metrics import distinct
from lm_human_preferences.language.encoding import Encoding
from lm_human_preferences.language.ends import Ends
from lm_human_preferences.learning.policy import Policy
from lm_human_preferences.learning.ppo import Rollout
from lm_human_preferences.learning.scoring import Rewards, Scorer


@dataclass
class EvaluationParams:
    """The comparison that ends a policy-training run."""

    samples: int = param(
        256, "held-out queries on which the initial and the tuned policy are compared; 0 does not compare"
    )
    split: str = param("valid", "split of the query data set that they come from")
    shown: int = param(10, "pairs to print")


class Responses(NamedTuple):
    """What a policy wrote to n queries, and what was measured of it; on the CPU."""

    tokens: torch.Tensor  # int64 [n, R], truncated
    valid: torch.Tensor  # bool [n]
    kl: torch.Tensor  # float32 [n, R], nats: log-probability of the raw response less that under the reference
    entropies: torch.Tensor  # float32 [n, R], nats, of the policy at each place of the raw response
    scores: torch.Tensor  # float32 [n, K], of the truncated response: a column for each of the `rewards`, no penalty


@torch.no_grad()
def sample_and_score(
    policy: Policy,
    reference: Policy,
    rewards: Sequence[Rewards],
    ends: Ends,
    queries: torch.Tensor,
    uniforms: torch.Tensor,
    precision: Precision,
    micro_batch: int,
    world: World = World(),
) -> Responses:
    """Responses of `policy` to queries int64 [n, Q] at uniforms float32 [n, R], measured against `reference` and
    scored; ends: of the responses.

    Each rank does its share of the rows, then all have everything. Both policies' log-probabilities come from the same
    computation, so a policy's KL to itself is exactly 0, unless it draws with top-k or top-p: the KL is that of the
    distribution drawn from to the reference's whole one. Where the policy stops at an end, nothing after it counts.
    """
    n, parts, padding = len(queries), list[Responses](), policy.transformer.config.padding_token
    for rows in torch.split(world.share_of(torch.arange(n)), micro_batch):
        q, u = queries[rows].to(precision.device), uniforms[rows].to(precision.device)
        with precision.autocast():
            drawn, support = (sampled := policy.respond(q, u)).tokens, sampled.support
            own = policy.analyze(q, drawn, support=support)
            same = policy is reference and support is None
            theirs = own.logprobs if same else reference.analyze(q, drawn, entropies=False).logprobs
            truncated = truncate_responses(drawn, ends, padding)
            scores = (
                torch.stack([reward(q, truncated) for reward in rewards], dim=1) if rewards else own.logprobs[:, :0]
            )
        kl, entropies = own.logprobs - theirs, own.entropies
        if policy.stops.tokens:
            over = policy.stops.follows(drawn)
            kl, entropies = kl.masked_fill(over, 0), entropies.masked_fill(over, 0)
        parts.append(Responses(truncated, responses_are_valid(truncated, ends), kl, entropies, scores))
    return Responses(*(world.gather(torch.cat(column))[:n].cpu() for column in zip(*parts, strict=True)))


@torch.no_grad()
def given_logprobs(
    policy: Policy,
    queries: torch.Tensor,
    responses: torch.Tensor,
    padding_token: int,
    precision: Precision,
    micro_batch: int,
    world: World = World(),
) -> torch.Tensor:
    """Log-probabilities at temperature 1 of responses int64 [n, R], padded on the right, to queries int64 [n, Q]:
    float32 [n, R], 0 at padding.

    Rows of similar length share a micro-batch, so that little is computed for padding.
    """
    lengths = (responses != padding_token).sum(1)
    order, parts = lengths.argsort(stable=True), []
    for rows in torch.split(world.share_of(order), micro_batch):
        longest = max(1, int(lengths[rows].max()))
        r = responses[rows, :longest]
        filled = torch.where(r == padding_token, 0, r)  # what stands after a response changes nothing in it
        with precision.autocast():
            logprobs = policy.analyze(
                queries[rows].to(precision.device), filled.to(precision.device), entropies=False, temperature=1
            ).logprobs
        parts.append(torch.nn.functional.pad(logprobs, (0, responses.shape[1] - longest)))
    found = world.gather(torch.cat(parts))[: len(order)].cpu()
    return torch.where(responses == padding_token, 0.0, found[order.argsort()])


def uniforms_of(task: TaskParams, samples: int, seed: int) -> torch.Tensor:
    """The numbers in [0, 1) that decide the responses to an evaluation's queries, float32 [samples, R]."""
    return torch.rand(samples, task.response_length, generator=generator_for(seed, "evaluation/uniforms"))


# --- before against after a training run ---


def evaluation_queries(params: EvaluationParams, task: TaskParams, encoding: Encoding, seed: int) -> torch.Tensor:
    """The held-out queries of the comparison, int64 [samples, Q]. Raises UserError where the split does not exist."""
    return query_stream(task, encoding, seed, "evaluation", params.split).batch(params.samples)


def compare_policies(
    before: Policy,
    after: Policy,
    scorer: Scorer,
    queries: torch.Tensor,
    uniforms: torch.Tensor,
    precision: Precision,
    micro_batch: int,
    world: World = World(),
) -> dict[str, Responses]:
    """{"before", "after"}: both policies' responses to queries int64 [n, Q] at uniforms float32 [n, R], with the KL to
    `before`; all ranks together, and all have everything.

    `scores` float32 [n, 1] are those of training: the scorer's, with the penalty where a response has no valid end.
    """
    sides = {}
    for name, policy in (("before", before), ("after", after)):
        found = sample_and_score(
            policy, before, [scorer.rewards], scorer.ends, queries, uniforms, precision, micro_batch, world
        )
        scores = scorer.scores(found.scores[:, 0], found.valid)
        sides[name] = found._replace(scores=scores[:, None])
    return sides


def compared_means(sides: dict[str, Responses], padding_token: int) -> dict[str, Any]:
    """Of each side the means over its queries, and their number: what result.json says of the comparison."""
    means: dict[str, Any] = {
        name: {
            "score": float(side.scores[:, 0].mean()),
            "kl": float(side.kl.sum(1).mean()),
            "valid": float(side.valid.float().mean()),
            "distinct_2": distinct(unpadded(side.tokens, padding_token), 2).share,
        }
        for name, side in sides.items()
    }
    return means | {"queries": len(sides["before"].tokens)}


def compared_pairs(queries: torch.Tensor, sides: dict[str, Responses], encoding: Encoding) -> list[dict[str, Any]]:
    """For each query both responses as texts, with score and KL, and where in the response the KL lies: the lines of
    evaluation.jsonl.
    """
    pairs = []
    for i, query in enumerate(queries):
        pair: dict[str, Any] = {"query": readable(encoding, query)}
        for name, side in sides.items():
            pair |= {
                name: readable(encoding, side.tokens[i]),
                f"score_{name}": float(side.scores[i, 0]),
                f"kl_{name}": float(side.kl[i].sum()),
            }
            per_token = per_token_kl(side.tokens[i], side.kl[i], encoding)
            pair |= {f"{key}_{name}": values for key, values in per_token.items()}
        pairs.append(pair)
    return pairs


def write_comparison(
    folder: Path, queries: torch.Tensor, sides: dict[str, Responses], encoding: Encoding, params: EvaluationParams
) -> None:
    """`result.json` and, with all pairs, `evaluation.jsonl` in a run's folder; a table and the first pairs on the
    terminal. For one rank.
    """
    means, pairs = compared_means(sides, encoding.padding_token), compared_pairs(queries, sides, encoding)
    with atomic_file(folder / "evaluation.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs), encoding="utf-8")
    write_json(folder / "result.json", means | {"samples": pairs[: max(20, params.shown)]})
    print(comparison_table(means, len(queries), params.split))
    for pair in pairs[: params.shown]:
        print(
            f"\n  {pair['query']} ...\n    before [{pair['score_before']:+.2f}] {pair['before'].strip()}\n"
            f"    after  [{pair['score_after']:+.2f}] {pair['after'].strip()}"
        )


def per_token_kl(
    tokens: torch.Tensor, kl: torch.Tensor, encoding: Encoding, marks: bool = False
) -> dict[str, list[float]]:
    """Where in a response the KL lies: tokens int64 [R], padding at the end; kl float32 [R], nats -> `token_kl`,
    `token_ends`; empty if all is 0.

    `token_kl`: of each token, to three decimals; `token_ends`: how many characters of the response's text are complete
    with it. An end-of-text token has no text unless `marks`.
    """
    row = [token for token in tokens.tolist() if token != encoding.padding_token]
    values = [round(value, 3) + 0.0 for value in kl[: len(row)].tolist()]
    if not any(values):
        return {}

    def text(count: int) -> str:
        return encoding.decode([token for token in row[:count] if marks or token != encoding.end_of_text])

    whole, ends = text(len(row)), list[float]()
    for count in range(1, len(row) + 1):
        begun = text(count)
        while not whole.startswith(begun):
            begun = begun[:-1]  # the last character is not whole yet: its bytes are spread over several tokens
        ends.append(len(begun))
    return {"token_kl": values, "token_ends": ends}


def sample_rows(rollout: Rollout, kl_coef: float, encoding: Encoding, count: int = 4) -> list[dict[str, Any]]:
    """The first episodes of a rollout as lines of samples.jsonl: texts, score, KL in nats, and where the KL lies."""
    token_kl = (rollout.logprobs - rollout.ref_logprobs).float().cpu()
    responses = rollout.responses if rollout.counted is None else rollout.truncated
    rows: list[dict[str, Any]] = []
    for i, kl in enumerate(token_kl.sum(1).tolist()[:count]):
        score = float(rollout.scores[i])
        rows.append(
            {
                "query": encoding.decode(rollout.queries[i].tolist()),
                "response": encoding.decode(responses[i].tolist()),
                "score": score,
                "kl": kl,
                "total": score - kl_coef * kl,
                **per_token_kl(responses[i], token_kl[i], encoding, marks=True),
            }
        )
    return rows


def comparison_table(result: dict[str, Any], count: int, split: str) -> str:
    """The comparison as a table for people."""
    rows = [
        ("score (mean of the reward model)", "score", "{:.3f}"),
        ("KL to the initial model, nats per response", "kl", "{:.2f}"),
        ("responses with a valid end", "valid", "{:.1%}"),
        ("distinct pairs of tokens", "distinct_2", "{:.1%}"),
    ]
    lines = [f"\non {count} held-out queries ({split}):", f"  {'':44}{'before':>10}{'after':>10}"]
    lines += [
        f"  {title:44}{form.format(result['before'][key]):>10}{form.format(result['after'][key]):>10}"
        for title, key, form in rows
    ]
    return "\n".join(lines)


def unpadded(tokens: torch.Tensor, padding_token: int) -> list[list[int]]:
    """Rows int64 [n, R] without their padding."""
    return [[token for token in row if token != padding_token] for row in tokens.tolist()]

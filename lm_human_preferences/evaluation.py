"""Before against after: the initial and the tuned policy on the same held-out queries and the same uniforms."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from lm_human_preferences.configuration import param
from lm_human_preferences.distributed import World, generator_for
from lm_human_preferences.files import atomic_file, write_json
from lm_human_preferences.language.encoding import Encoding
from lm_human_preferences.policy import Policy
from lm_human_preferences.precision import Precision
from lm_human_preferences.queries import query_stream
from lm_human_preferences.scoring import Scorer
from lm_human_preferences.tasks import TaskParams


@dataclass
class EvaluationParams:
    """The comparison that ends a policy-training run."""

    samples: int = param(256, "held-out queries on which the initial and the tuned policy are compared; 0 does not compare")
    split: str = param("valid", "split of the query data set that they come from")
    shown: int = param(10, "pairs to print")


@torch.no_grad()
def sample_and_score(policy: Policy, reference: Policy, scorer: Scorer, queries: torch.Tensor, uniforms: torch.Tensor, precision: Precision,
                     micro_batch: int, world: World = World()) -> dict[str, torch.Tensor]:
    """Responses of `policy`, on the CPU: tokens [B, R] truncated, score [B], kl [B] (nats, of the raw response), valid [B].

    Each rank does its share of the rows, then all have everything; their number must divide by the number of ranks.
    """
    parts, mine = [], world.share(len(queries), "queries")
    for q, u in zip(queries[mine].split(micro_batch), uniforms[mine].split(micro_batch), strict=True):
        q, u = q.to(precision.device), u.to(precision.device)
        with precision.autocast():
            drawn = policy.respond(q, u)
            kl = (drawn.logprobs - reference.analyze(q, drawn.tokens, entropies=False).logprobs).sum(1)
            scores, valid, truncated = scorer(q, drawn.tokens)
        parts.append((truncated, scores, kl, valid))
    columns = (world.gather(torch.cat(column)).cpu() for column in zip(*parts, strict=True))
    return dict(zip(("tokens", "score", "kl", "valid"), columns, strict=True))


def compare_policies(folder: Path, before: Policy, after: Policy, scorer: Scorer, task: TaskParams, encoding: Encoding, params: EvaluationParams,
                     precision: Precision, seed: int, micro_batch: int, world: World = World()) -> dict:
    """Compare on held-out queries, all ranks together; print a table and pairs, write `result.json` and all pairs to `evaluation.jsonl`."""
    rounded_up = math.ceil(params.samples / world.size) * world.size
    queries = query_stream(task, encoding, seed, "evaluation", params.split).batch(rounded_up)
    uniforms = torch.rand(params.samples, task.response_length, generator=generator_for(seed, "evaluation/uniforms"))
    uniforms = torch.cat([uniforms, uniforms.new_zeros(rounded_up - params.samples, task.response_length)])
    sides = {name: {key: column[:params.samples] for key, column in
                    sample_and_score(policy, before, scorer, queries, uniforms, precision, micro_batch, world).items()}
             for name, policy in (("before", before), ("after", after))}
    pairs = []
    for i in range(params.samples):
        pair = {"query": readable(encoding, queries[i])}
        for name, side in sides.items():
            pair |= {name: readable(encoding, side["tokens"][i]), f"score_{name}": float(side["score"][i]), f"kl_{name}": float(side["kl"][i])}
        pairs.append(pair)
    result = {name: {"score": float(side["score"].mean()), "kl": float(side["kl"].mean()), "valid": float(side["valid"].float().mean()),
                     "distinct_2": distinct_ratio(side["tokens"], 2, encoding.padding_token)} for name, side in sides.items()}
    result["queries"] = params.samples
    if not world.is_main:
        return result
    with atomic_file(folder / "evaluation.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs), encoding="utf-8")
    write_json(folder / "result.json", result | {"samples": pairs[:max(20, params.shown)]})
    print(comparison_table(result, params.samples, params.split))
    for pair in pairs[:params.shown]:
        print(f"\n  {pair['query']} ...\n    before [{pair['score_before']:+.2f}] {pair['before'].strip()}\n"
              f"    after  [{pair['score_after']:+.2f}] {pair['after'].strip()}")
    return result


def comparison_table(result: dict, count: int, split: str) -> str:
    """The comparison as a table for people."""
    rows = [("score (mean of the reward model)", "score", "{:.3f}"), ("KL to the initial model, nats per response", "kl", "{:.2f}"),
            ("responses with a valid end", "valid", "{:.1%}"), ("distinct pairs of tokens", "distinct_2", "{:.1%}")]
    lines = [f"\non {count} held-out queries ({split}):", f"  {'':44}{'before':>10}{'after':>10}"]
    lines += [f"  {title:44}{form.format(result['before'][key]):>10}{form.format(result['after'][key]):>10}" for title, key, form in rows]
    return "\n".join(lines)


def readable(encoding: Encoding, tokens: torch.Tensor) -> str:
    """Text without padding and without the end-of-text mark."""
    return encoding.decode([t for t in tokens.tolist() if t != encoding.end_of_text])


def distinct_ratio(tokens: torch.Tensor, n: int, padding_token: int) -> float:
    """Different n-grams over all n-grams in responses int64 [B, R], padding left out."""
    seen, total = set(), 0
    for row in tokens.tolist():
        row = [token for token in row if token != padding_token]
        grams = [tuple(row[i:i + n]) for i in range(len(row) - n + 1)]
        seen.update(grams)
        total += len(grams)
    return len(seen) / total if total else 0.0

"""Policy training: PPO against a reward model under a KL penalty (section 2.2 of the paper; original: train_policy.py).

A step reads from top to bottom: queries -> sample responses -> compare with the reference policy -> score -> rewards ->
update -> log.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from lm_human_preferences import train_reward
from lm_human_preferences.compute import distributed
from lm_human_preferences.compute.distributed import World, generator_for
from lm_human_preferences.compute.optim import TensorFlowAdam, allocate_state, linear_decay, optimizer_tensors
from lm_human_preferences.compute.parallel import Parallel, gathered, place_frozen
from lm_human_preferences.compute.precision import Precision
from lm_human_preferences.data.queries import QueryStream, query_stream
from lm_human_preferences.data.tasks import QueryFormatter, TaskParams, check_task, padding_share
from lm_human_preferences.foundation.configuration import param, to_dict
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.judging.evaluation import EvaluationParams, compare_policies, per_token_kl
from lm_human_preferences.judging.judges import FunctionJudge, load_function, load_judge
from lm_human_preferences.language.captured import Captured, CUDAGraphs
from lm_human_preferences.language.encoding import Encoding, get_encoding
from lm_human_preferences.language.gpt2 import GPT2Config
from lm_human_preferences.language.model_folders import load_model
from lm_human_preferences.learning.policy import Policy
from lm_human_preferences.learning.ppo import (
    AdaptiveKLController,
    AdaptiveKLParams,
    FixedKLController,
    Losses,
    PPOParams,
    check_ppo,
    compute_rewards,
    minibatch_stats,
    minibatch_targets,
    ppo_losses,
)
from lm_human_preferences.learning.reward_model import RewardModel
from lm_human_preferences.learning.scoring import Rewards, Scorer
from lm_human_preferences.runs.checkpoints import check_finite
from lm_human_preferences.runs.description import describe_run
from lm_human_preferences.runs.folder import Run, go_on_after_restart
from lm_human_preferences.runs.micro_batches import (
    choose_micro_batches,
    micro_batches_of_checkpoint,
    peak_memory,
    policy_training_memory,
    try_micro_batches,
)
from lm_human_preferences.runs.params import RunParams, check_run_params, start_computing
from lm_human_preferences.runs.stopping import StopRequest
from lm_human_preferences.runs.tracking import NullTracker, Tracker, TrackingParams, check_tracking
from lm_human_preferences.train_reward import RewardTrainingParams
from lm_human_preferences.watching.doctor import open_watched


@dataclass
class RewardsParams:
    """Where rewards come from."""

    kl_coef: float = param(0.15, "price of a nat of KL to the reference policy (the adaptive controller's first value)")
    adaptive_kl: AdaptiveKLParams | None = param(None, "on: steer the coefficient to a target KL; off: keep it fixed")
    trained_model: str | None = param(
        None,
        "reward-model folder, or hf:PATH[#label], a sequence classifier of Hugging Face, whose score is not "
        "normalised; none trains a new one first",
        "path",
    )
    function: str | None = param(
        None, "module:function of (query texts, response texts) that gives a score each, not normalised; no model then"
    )
    train_new_model: RewardTrainingParams | None = param(
        None, "how to train a new reward model first; off with trained_model or function"
    )


@dataclass
class PolicyTrainingParams:
    """Everything a policy-training run can be told; defaults are the original's."""

    task: TaskParams = param(TaskParams, "")
    rewards: RewardsParams = param(RewardsParams, "")
    ppo: PPOParams = param(PPOParams, "")
    evaluation: EvaluationParams = param(EvaluationParams, "")
    run: RunParams = param(RunParams, "")
    tracking: TrackingParams = param(TrackingParams, "")


class Rollout(NamedTuple):
    """A step's episodes, the whole global batch, equal on every rank."""

    queries: torch.Tensor  # int64 [B, Q]
    responses: torch.Tensor  # int64 [B, R], raw
    logprobs: torch.Tensor  # float32 [B, R], of the sampled tokens
    values: torch.Tensor  # float32 [B, R]
    ref_logprobs: torch.Tensor  # float32 [B, R]
    scores: torch.Tensor  # float32 [B], of the truncated responses, with the penalty
    valid: torch.Tensor  # bool [B]
    truncated: torch.Tensor  # int64 [B, R], the responses as the score sees them


def check(params: PolicyTrainingParams) -> None:
    """Raises UserError, naming the flag and the numbers, for parameters that cannot work; settles where the reward
    model comes from.
    """
    check_run_params(params.run, rollouts=True)
    check_tracking(params.tracking)
    check_ppo(params.ppo)
    r = params.rewards
    if r.kl_coef < 0:
        raise UserError(f"--rewards.kl_coef {r.kl_coef}: must not be negative")
    if r.adaptive_kl is not None and (r.adaptive_kl.target <= 0 or r.adaptive_kl.horizon <= 0):
        raise UserError("--rewards.adaptive_kl.target and --rewards.adaptive_kl.horizon must be positive")
    if r.trained_model is not None and r.function is not None:
        raise UserError("--rewards.trained_model and --rewards.function exclude each other; give one of them")
    if r.trained_model is None and r.function is None and r.train_new_model is None:
        raise UserError(
            "no reward model: give a folder with --rewards.trained_model PATH, or --rewards.train_new_model on"
        )
    if r.trained_model is not None or r.function is not None:
        r.train_new_model = None
    else:
        r.train_new_model.task = params.task
        train_reward.check(r.train_new_model)


def train(params: PolicyTrainingParams, task: str, experiment: str) -> Path:
    """Run the stage, after reward training if asked; returns the `policy/` folder. UserError before anything is written
    if it cannot work.
    """
    check(params)
    precision = start_computing(params.run)
    with distributed.world(precision.device.type, params.run.timeout) as world:
        train_reward_model_first(params, precision, world, task, experiment)
        go_on_after_restart(params.run, Path(params.run.save_dir) / experiment, world)
        return PPOTrainer.prepare(params, precision, world).run(task, experiment)


def train_reward_model_first(
    params: PolicyTrainingParams, precision: Precision, world: World, task: str, experiment: str
) -> None:
    """Where that is asked for, reward training as a run of its own, `<experiment>_reward`, whose model `params` names
    from then on.

    A finished one is taken as it is when the run is resumed.
    """
    if params.rewards.train_new_model is None:
        return
    nested, name = params.rewards.train_new_model, f"{experiment}_reward"
    for field in (
        "seed",
        "save_dir",
        "device",
        "precision",
        "overwrite",
        "resume",
        "sharding",
        "micro_batch",
        "micro_batch_rollout",
        "micro_batch_scoring",
        "recompute_activations",
        "threads",
        "deterministic",
        "timeout",
    ):
        setattr(nested.run, field, getattr(params.run, field))
    nested.tracking = params.tracking
    own, folder = Path(params.run.save_dir) / experiment, Path(params.run.save_dir) / name
    go_on_after_restart(params.run, own, world)
    go_on_after_restart(nested.run, folder, world)
    Run(own, params.run, world).check_free()
    begun, reward_begun, finished = world.from_main(
        [path.exists() for path in (own / "config.json", folder / "config.json", folder / "reward_model")]
    )
    if not (nested.run.resume and finished):
        nested.run.resume = nested.run.resume and reward_begun
        train_reward.RewardTrainer.prepare(nested, precision, world).run(task, name)
    params.run.resume = params.run.resume and (
        begun or not reward_begun
    )  # else it stopped before the policy's run began
    params.rewards.trained_model, params.rewards.train_new_model = str(folder / "reward_model"), None


def load_rewards(params: RewardsParams, policy: GPT2Config, task: TaskParams, device: torch.device) -> Rewards:
    """The trained reward model, classifier or function as a function of token tensors. UserError if it cannot be had or
    does not fit.
    """
    source = params.function or params.trained_model
    if params.function is not None:
        return FunctionJudge(source, load_function(source)).on_tokens(get_encoding(policy.encoding))
    if source.startswith("hf:"):
        return load_judge(source, device).on_tokens(get_encoding(policy.encoding))
    reward_model = RewardModel.load(Path(source))
    _check_reward_model(reward_model.transformer.config, policy, task)
    return reward_model


def _check_reward_model(reward: GPT2Config, policy: GPT2Config, task: TaskParams) -> None:
    """Raises UserError if the reward model cannot read what the policy writes."""
    if (reward.encoding, reward.n_vocab) != (policy.encoding, policy.n_vocab):
        raise UserError(
            f"the reward model's encoding ({reward.encoding}, {reward.n_vocab} tokens) is not the policy's "
            f"({policy.encoding}, {policy.n_vocab} tokens); train both from models of one encoding"
        )
    if task.query_length + task.response_length > reward.n_ctx:
        raise UserError(
            f"query ({task.query_length}) and response ({task.response_length}) are longer than the reward model's context of "
            f"{reward.n_ctx}; shorten --task.query_length or --task.response_length"
        )


def _decoding_graphs(precision: Precision, sharding: str) -> Captured:
    """For rollouts of a policy whose weights stay where they are. UserError where there are no such graphs."""
    if precision.device.type != "cuda":
        raise UserError(
            f"--run.captured_decoding on: a CUDA graph needs a CUDA device, this run computes on {precision.device.type}; leave it off"
        )
    if sharding != "ddp":
        raise UserError(
            f"--run.captured_decoding on: with --run.sharding {sharding} the weights lie elsewhere at each rollout; leave one of them off"
        )
    return Captured(CUDAGraphs())


class PPOTrainer:
    """Holds what the stage works on; `run` and `step` read from top to bottom."""

    def __init__(
        self,
        policy: Policy,
        reference: Policy,
        rewards: Rewards,
        queries: QueryStream,
        params: PolicyTrainingParams,
        precision: Precision,
        encoding: Encoding | None = None,
        world: World = World(),
    ):
        self.queries, self.params, self.precision, self.encoding, self.world = (
            queries,
            params,
            precision,
            encoding,
            world,
        )
        self.seed, ppo, kl = params.run.seed, params.ppo, params.rewards
        memory = policy_training_memory(
            params,
            policy.transformer.config,
            precision,
            world.size,
            policy.formatter.length,
            rewards.transformer.config if isinstance(rewards, RewardModel) else None,
        )
        self.sizes = choose_micro_batches(params.run, memory, precision, world)
        policy.transformer.recompute_activations(self.sizes.recompute)
        if params.run.captured_decoding:
            policy.captured = _decoding_graphs(precision, params.run.sharding)
        self.policy, self.trained = (
            policy,
            Parallel(policy, world, precision, params.run.sharding, methods=("analyze", "respond")),
        )
        self.reference = place_frozen(reference, world, precision, params.run.sharding, methods=("analyze", "respond"))
        if isinstance(rewards, RewardModel):
            place_frozen(rewards, world, precision, params.run.sharding)
        self.scorer = Scorer(rewards, params.task, policy.transformer.config.padding_token)
        self.optimizer = TensorFlowAdam(self.trained.parameter_groups())
        self.kl_controller = (
            AdaptiveKLController(kl.kl_coef, kl.adaptive_kl) if kl.adaptive_kl else FixedKLController(kl.kl_coef)
        )
        self.recompute = ppo.old_logprobs == "recomputed" or ppo.old_logprobs == "auto" and precision.bfloat16
        self.total_steps = math.ceil(ppo.total_episodes / ppo.batch_size)
        world.share(ppo.batch_size // ppo.nminibatches, "--ppo.batch_size / --ppo.nminibatches")

    @classmethod
    def prepare(cls, params: PolicyTrainingParams, precision: Precision, world: World) -> "PPOTrainer":
        """Read models and queries; UserError if one of them does not fit."""
        folder, task = Path(params.task.policy.initial_model), params.task
        transformer = load_model(folder)
        encoding = get_encoding(transformer.config.encoding)
        check_task(task, encoding, transformer.config.n_ctx)
        rewards = load_rewards(params.rewards, transformer.config, task, precision.device)
        formatter, temperature = QueryFormatter.of(task, encoding), task.policy.temperature
        return cls(
            Policy(transformer, formatter, temperature),
            Policy(load_model(folder), formatter, temperature),
            rewards,
            query_stream(task, encoding, params.run.seed, "policy"),
            params,
            precision,
            encoding,
            world,
        )

    def run(self, task: str, experiment: str) -> Path:
        """The stage from its first step, or where it stopped, to its result; returns the `policy/` folder."""
        run = Run(Path(self.params.run.save_dir) / experiment, self.params.run, self.world)
        run.open(describe_run("train_policy", task, experiment, to_dict(self.params)))
        with run.explained():
            return self._run(run, task, experiment)

    def _run(self, run: Run, task: str, experiment: str) -> Path:
        p, main = self.params, self.world.is_main
        first = self._resume(run) if p.run.resume else 0
        if self.precision.device.type == "cuda" and not self.trained.sharded:
            self.sizes = try_micro_batches(self.sizes, p.run, self.attempts(), self.optimizer, self.world)
        if main:
            print(
                f"{experiment}: {self.total_steps:,} steps of {p.ppo.batch_size} episodes, KL coefficient {self.kl_controller.value}"
                f"{f' steered to {p.rewards.adaptive_kl.target} nats' if p.rewards.adaptive_kl else ''}, {self.precision.describe()}, "
                f"{self.sizes.describe()}"
            )
        tracker = open_watched(run.folder, p, "train_policy", experiment, first) if main else NullTracker()
        started = time.perf_counter()
        with (
            tracker,
            StopRequest(self.world) as stop,
            tqdm(total=self.total_steps, initial=first, desc=experiment, unit="step", disable=not main) as bar,
        ):
            for step in range(first, self.total_steps):
                step_started = time.perf_counter()
                metrics, rollout = self.step(step)
                seconds = time.perf_counter() - step_started
                metrics |= {
                    "elapsed/fps": self.params.ppo.batch_size * p.task.response_length / seconds,
                    "elapsed/time": time.perf_counter() - started,
                    "memory/peak": peak_memory(self.precision.device),
                }
                tracker.log(step, metrics)
                if not all(math.isfinite(value) for value in metrics.values()):
                    bad = next(name for name, value in metrics.items() if not math.isfinite(value))
                    raise UserError(
                        f"step {step}: {bad} is {metrics[bad]}; if that comes again, start anew with a lower --ppo.lr than {p.ppo.lr}"
                    )
                self._show(tracker, bar, step, metrics, rollout)
                if step + 1 == self.total_steps:
                    break
                asked = stop.agreed()
                if asked or p.run.save_interval and (step + 1) % p.run.save_interval == 0:
                    tracker.flush()
                    self._save_checkpoint(run, step + 1)
                if asked:
                    raise stop.interrupted(step + 1, self.total_steps)
        folder = run.folder / "policy"
        check_finite(dict(self.policy.named_parameters()), "policy", self.world)
        self.policy.save(
            folder, note={"stage": "train_policy", "task": task, "steps": self.total_steps}, world=self.world
        )
        if p.evaluation.samples:
            with gathered(self.reference, self.policy):
                compare_policies(
                    run.folder,
                    self.reference,
                    self.policy,
                    self.scorer,
                    p.task,
                    self.encoding,
                    p.evaluation,
                    self.precision,
                    self.seed,
                    self.sizes.rollout,
                    self.world,
                )
        run.checkpoints.drop()
        if main:
            print(f"policy in {folder}")
        self.world.barrier()
        return folder

    # --- one step ---

    def step(self, step: int) -> tuple[dict[str, float], Rollout]:
        """One PPO step: rollout, rewards, noptepochs x nminibatches updates, statistics, KL controller."""
        kl_coef = self.kl_controller.value
        rollout = self.sample(step)
        rewards, non_score = compute_rewards(rollout.scores, rollout.logprobs, rollout.ref_logprobs, kl_coef)
        lr = linear_decay(self.params.ppo.lr, step, self.total_steps)
        stats, first_ratio_std = self.update(step, rollout, rewards, lr)
        metrics = self.statistics(step, rollout, non_score, stats, kl_coef) | {
            "ppo/ratio/std_before": first_ratio_std,
            "lr": lr,
        }
        self.kl_controller.update(metrics["objective/kl"], self.params.ppo.batch_size)
        return metrics, rollout

    def uniforms(self, step: int) -> torch.Tensor:
        """The numbers in [0, 1) that decide step `step`'s tokens, float32 [B, R]: drawn for the global batch."""
        return torch.rand(
            self.params.ppo.batch_size,
            self.params.task.response_length,
            generator=generator_for(self.seed, "policy/rollout", step),
        )

    def order(self, step: int, epoch: int) -> torch.Tensor:
        """The episodes' order in an epoch, a permutation [B], the same on every rank; minibatches are its consecutive
        slices.
        """
        return torch.randperm(
            self.params.ppo.batch_size, generator=generator_for(self.seed, f"policy/order/{epoch}", step)
        )

    @torch.no_grad()
    def sample(self, step: int) -> Rollout:
        """Sample responses, compare them with the reference and score them; each rank does its share, then all have
        everything.
        """
        B = self.params.ppo.batch_size
        queries, uniforms, mine = self.queries.batch(B), self.uniforms(step), self.world.share(B, "--ppo.batch_size")
        parts = []
        with gathered(self.policy):
            for q, u in zip(
                queries[mine].split(self.sizes.rollout), uniforms[mine].split(self.sizes.rollout), strict=True
            ):
                q, u = q.to(self.precision.device), u.to(self.precision.device)
                with self.precision.autocast():
                    drawn = self.policy.respond(q, u)
                parts.append((q, *drawn))
        queries, *drawn = (torch.cat(column) for column in zip(*parts, strict=True))
        parts = [
            self.score(*(column[rows] for column in (queries, *drawn)))
            for rows in torch.arange(len(queries), device=queries.device).split(self.sizes.scoring)
        ]
        return Rollout(*(self.world.gather(torch.cat(column)) for column in zip(*parts, strict=True)))

    def score(
        self, queries: torch.Tensor, responses: torch.Tensor, logprobs: torch.Tensor, values: torch.Tensor
    ) -> Rollout:
        """A part of a step's episodes with the reference's log-probabilities and the scores added."""
        with self.precision.autocast():
            reference = self.reference.analyze(queries, responses, entropies=False)
            if self.recompute:
                logprobs, values, _ = self.policy.analyze(queries, responses, entropies=False)
            return Rollout(queries, responses, logprobs, values, reference.logprobs, *self.scorer(queries, responses))

    def update(
        self, step: int, rollout: Rollout, rewards: torch.Tensor, lr: float
    ) -> tuple[list[dict[str, float]], float]:
        """noptepochs x nminibatches optimizer steps; statistics of each, and the ratio's deviation before the first."""
        size = self.params.ppo.batch_size // self.params.ppo.nminibatches
        stats, first_ratio_std = [], 0.0
        for epoch in range(self.params.ppo.noptepochs):
            order = self.order(step, epoch).to(self.precision.device)
            for index in order.split(size):
                minibatch_stats, ratio_std = self.train_minibatch(rollout, rewards, index, lr)
                if not stats:
                    first_ratio_std = ratio_std
                stats.append(minibatch_stats)
        return stats, first_ratio_std

    def train_minibatch(
        self, rollout: Rollout, rewards: torch.Tensor, index: torch.Tensor, lr: float
    ) -> tuple[dict[str, float], float]:
        """One optimizer step on the episodes at `index`. Whitening looks at the whole minibatch, micro-batches only
        share the work.
        """
        ppo = self.params.ppo
        targets = minibatch_targets(rewards[index], rollout.logprobs[index], rollout.values[index], ppo)
        mine = torch.arange(len(index), device=index.device)[
            self.world.share(len(index), "--ppo.batch_size / --ppo.nminibatches")
        ]
        parts, micro_batches = [], mine.split(self.sizes.training)
        for number, rows in enumerate(micro_batches, 1):
            with self.trained.micro_batch(last=number == len(micro_batches)):
                with self.precision.autocast():
                    analysis = self.trained(rollout.queries[index[rows]], rollout.responses[index[rows]])
                losses = ppo_losses(analysis.logprobs, analysis.values, targets.rows(rows), ppo)
                self.trained.backward(
                    (losses.policy.sum() + ppo.vf_coef * losses.value.sum()) / targets.returns.numel()
                )
            parts.append([*(part.detach() for part in losses), analysis.values.detach(), analysis.entropies])
        self.optimizer.step(lr)
        self.optimizer.zero_grad(set_to_none=True)
        *losses, values, entropies = (self.world.gather(torch.cat(column)) for column in zip(*parts, strict=True))
        losses = Losses(*losses)
        return minibatch_stats(losses, values, entropies, targets, ppo), float(losses.ratio.std(correction=0))

    def attempts(self) -> dict[str, Callable[[int], None]]:
        """Passes over so many rows that take as much memory as any in training; they change nothing."""
        device, task = self.precision.device, self.params.task
        queries, responses = (
            torch.zeros(1, length, dtype=torch.int64, device=device)
            for length in (task.query_length, task.response_length)
        )

        def rollout(rows: int) -> None:
            with torch.no_grad(), self.precision.autocast():
                self.policy.respond(queries.expand(rows, -1), torch.zeros(rows, task.response_length, device=device))

        def scoring(rows: int) -> None:
            zeros = torch.zeros(rows, task.response_length, device=device)
            with torch.no_grad():
                self.score(queries.expand(rows, -1), responses.expand(rows, -1), zeros, zeros)

        def training(rows: int) -> None:
            with self.trained.micro_batch(last=False):
                with self.precision.autocast():
                    analysis = self.trained(queries.expand(rows, -1), responses.expand(rows, -1))
                self.trained.backward(analysis.logprobs.sum() + analysis.values.sum())

        return {"rollout": rollout, "scoring": scoring, "training": training}

    def statistics(
        self, step: int, rollout: Rollout, non_score: torch.Tensor, stats: list[dict[str, float]], kl_coef: float
    ) -> dict[str, float]:
        """The step's metrics under the original's names, besides ours; docs/metrics.md explains each."""
        kl = (rollout.logprobs - rollout.ref_logprobs).sum(1)
        B, R = rollout.responses.shape
        padding = self.policy.transformer.config.padding_token
        metrics = {
            "objective/kl": float(kl.mean()),
            "objective/kl_std": float(kl.std(correction=0)),
            "objective/kl_coef": kl_coef,
            "objective/entropy": float(-rollout.logprobs.sum(1).mean()),
            "objective/score": float(rollout.scores.mean()),
            "objective/score_std": float(rollout.scores.std(correction=0)),
            "objective/score_total": float(rollout.scores.mean() + non_score.sum(1).mean()),
            "objective/valid": float(rollout.valid.float().mean()),
            "objective/distinct": len(torch.unique(rollout.truncated, dim=0)) / B,
            "objective/query_padding": padding_share(rollout.queries, padding),
            "objective/response_padding": padding_share(rollout.truncated, padding),
        }
        metrics |= {f"ppo/{name}": sum(row[name] for row in stats) / len(stats) for name in stats[0]}
        metrics["ppo/val/var_explained"] = (
            1 - metrics["ppo/val/error"] / metrics["ppo/returns/var"] if metrics["ppo/returns/var"] > 0 else 0.0
        )
        metrics |= {
            "elapsed/updates": step + 1,
            "elapsed/steps/serial": (step + 1) * R,
            "elapsed/steps/total": (step + 1) * B * R,
            "elapsed/episodes": (step + 1) * B,
        }
        return metrics

    # --- around the steps ---

    def _show(
        self, tracker: Tracker | NullTracker, bar: tqdm, step: int, metrics: dict[str, float], rollout: Rollout
    ) -> None:
        """The progress bar each step; a printed line and samples each log interval."""
        bar.update()
        bar.set_postfix_str(f"score {metrics['objective/score']:.2f} KL {metrics['objective/kl']:.1f}")
        if not self.world.is_main or (step % self.params.run.log_interval and step + 1 != self.total_steps):
            return
        token_kl = (rollout.logprobs - rollout.ref_logprobs).float().cpu()
        kl = token_kl.sum(1)
        rows = [
            {
                "query": self.encoding.decode(rollout.queries[i].tolist()),
                "response": self.encoding.decode(rollout.responses[i].tolist()),
                "score": float(rollout.scores[i]),
                "kl": float(kl[i]),
                "total": float(rollout.scores[i]) - metrics["objective/kl_coef"] * float(kl[i]),
                **per_token_kl(rollout.responses[i], token_kl[i], self.encoding, marks=True),
            }
            for i in range(min(4, len(kl)))
        ]
        tracker.samples(step, rows)
        if step % (10 * self.params.run.log_interval) == 0 or step + 1 == self.total_steps:
            text = (rows[0]["query"] + "|" + rows[0]["response"]).replace("\n", " ")
            tqdm.write(
                f"step {step + 1}: score {metrics['objective/score']:.3f}  KL {metrics['objective/kl']:.2f}  ends {metrics['objective/valid']:.0%}  "
                f"[{rows[0]['score']:.2f}] {text[:110]}"
            )

    def _tensors(self) -> dict[str, torch.Tensor]:
        return dict(self.policy.named_parameters()) | optimizer_tensors(self.optimizer, self.policy)

    def _save_checkpoint(self, run: Run, step: int) -> None:
        run.checkpoints.save(
            step,
            self._tensors(),
            {
                "kl_coef": self.kl_controller.value,
                "queries": list(self.queries.position),
                "micro_batches": self.sizes.state(self.world),
            },
        )

    def _resume(self, run: Run) -> int:
        allocate_state(self.optimizer)
        state = run.checkpoints.load(self._tensors())
        if state is None:
            return 0
        self.sizes = micro_batches_of_checkpoint(self.sizes, self.params.run, state, self.world)
        self.policy.transformer.recompute_activations(self.sizes.recompute)
        self.kl_controller.value, self.queries.position = float(state["kl_coef"]), tuple(state["queries"])
        return state["step"]

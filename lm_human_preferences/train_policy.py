"""Policy training: PPO against a reward model under a KL penalty (section 2.2 of the paper; original: train_policy.py).

Begin with `PPOTrainer.step`. It reads like the paper: sample responses, score them and compare them with the reference
policy, make rewards, update, steer the KL coefficient. The methods that it calls follow it in the order in which they
run; what surrounds the steps (models, memory, checkpoints) stands before and after. What the stage can be told is in
policy_params.py, what comes first where there is no reward model yet in before_policy.py.
"""

import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lm_human_preferences.before_policy import begin_online, check_besides_rewards, train_reward_model_first
from lm_human_preferences.compute.distributed import World, generator_for
from lm_human_preferences.compute.optim import TensorFlowAdam, linear_decay
from lm_human_preferences.compute.parallel import gathered, place_frozen
from lm_human_preferences.compute.precision import Precision
from lm_human_preferences.data.queries import QueryStream, check_split, query_stream
from lm_human_preferences.data.tasks import (
    QueryFormatter,
    check_drawing_repeats,
    check_task,
    padding_share,
    response_ends,
)
from lm_human_preferences.judging.evaluation import (
    compare_policies,
    evaluation_queries,
    sample_and_score,
    sample_rows,
    uniforms_of,
    write_comparison,
)
from lm_human_preferences.judging.training_rewards import load_rewards
from lm_human_preferences.language.captured import decoding_graphs
from lm_human_preferences.language.encoding import Encoding, get_encoding
from lm_human_preferences.language.logprobs import slices
from lm_human_preferences.language.model_folders import load_model
from lm_human_preferences.learning.group_advantages import (
    GroupLosses,
    GroupTargets,
    advantage_stats,
    group_relative,
    group_stats,
    grpo_losses,
    leave_one_out,
    rloo_losses,
)
from lm_human_preferences.learning.policy import Analysis, Policy
from lm_human_preferences.learning.ppo import (
    AdaptiveKLController,
    FixedKLController,
    Losses,
    PolicyLosses,
    Rollout,
    Targets,
    ValueLosses,
    both_losses,
    compute_rewards,
    joined,
    minibatch_stats,
    minibatch_targets,
    of_rows,
    policy_losses,
    ppo_losses,
    rollout_stats,
    update_stats,
    value_losses,
    without_what_follows,
)
from lm_human_preferences.learning.reward_ensemble import RewardEnsemble, reward_models
from lm_human_preferences.learning.reward_scale import RewardScale
from lm_human_preferences.learning.scoring import Rewards, Scorer
from lm_human_preferences.learning.value_model import ValueModel
from lm_human_preferences.policy_params import PolicyTrainingParams, RewardsParams, check, settle
from lm_human_preferences.runs.checkpoints import check_finite
from lm_human_preferences.runs.folder import Run, go_on_after_restart, open_run
from lm_human_preferences.runs.loop import Loop
from lm_human_preferences.runs.micro_batches import captures
from lm_human_preferences.runs.params import computing
from lm_human_preferences.runs.stage_memory import policy_training_memory
from lm_human_preferences.runs.training import Probes, Training, policy_probes, train_part
from lm_human_preferences.train_online import OnlineRewards
from lm_human_preferences.watching.doctor import open_watched

__all__ = [
    "PPOTrainer",
    "PolicyTrainingParams",
    "RewardsParams",
    "check",
    "settle",
    "train",
    "train_reward_model_first",
]


def train(params: PolicyTrainingParams, task: str, experiment: str) -> Path:
    """Run the stage, after reward training where that is wanted; returns the `policy/` folder. Raises UserError before
    anything is written if it cannot work.
    """
    params = settle(params)
    check(params)
    with computing(params.run) as (precision, world):
        check_besides_rewards(params, precision, world)
        online = begin_online(params, precision, world, task, experiment)
        train_reward_model_first(params, precision, world, task, experiment)
        go_on_after_restart(params.run, Path(params.run.save_dir) / experiment, world)
        trainer = PPOTrainer.prepare(params, precision, world)
        trainer.online = online
        return trainer.run(task, experiment)


class PPOTrainer:
    """What the stage works on; `run` is the stage from start to end, `step` one step of the paper's method."""

    stage = "train_policy"  # as the run's folder names it
    has_values = True  # whether the policy's value head may be trained
    online: OnlineRewards | None = None  # where people are asked

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
        values: ValueModel | None = None,
    ):
        """encoding: None only where nothing is shown or evaluated; values: None for a head on the policy's trunk."""
        self.policy, self.queries, self.params, self.precision = policy, queries, params, precision
        self.encoding, self.world, self.seed = encoding, world, params.run.seed
        ppo, kl, config, sharding = params.ppo, params.rewards, policy.transformer.config, params.run.sharding
        self.total_steps = math.ceil(ppo.total_episodes / ppo.batch_size)
        world.share(*params.minibatch())
        if not self.has_values or ppo.estimator != "gae" or values is not None:  # DDP would wait for its gradient
            policy.value_head.requires_grad_(False)
        members = reward_models(rewards)
        reward_config = members[0].transformer.config if members else None
        prefix = policy.formatter.length
        memory = partial(
            policy_training_memory, params, config, precision, world.size, prefix, reward_config, len(members) or 1
        )
        captured = captures(params.run, memory, precision, world)
        if captured:
            policy.captured = decoding_graphs(precision.device.type, sharding)
        self.training = Training(
            policy,
            memory(captured=captured),
            lambda p: TensorFlowAdam(p.parameter_groups()),
            params.run,
            precision,
            world,
            ("analyze", "respond"),
        )
        self.parallel, self.optimizer = self.training.parallel, self.training.optimizer
        self.values = values
        if values is not None:
            self.training.beside["value"] = Training(
                values,
                memory(captured=captured),
                lambda p: TensorFlowAdam(p.parameter_groups()),
                params.run,
                precision,
                world,
            )
        self.reference = place_frozen(reference, world, precision, sharding, ("analyze", "respond"))
        for member in members:
            place_frozen(member, world, precision, sharding, ("states",))
        ends = None if encoding is None else response_ends(params.task, encoding)
        scale = RewardScale(kl.scale, kl.clip)
        self.scorer = Scorer(rewards, params.task, config.padding_token, ends, scale)
        self.kl_controller = (
            AdaptiveKLController(kl.kl_coef, kl.adaptive_kl) if kl.adaptive_kl else FixedKLController(kl.kl_coef)
        )
        self.recompute = ppo.old_logprobs == "recomputed" or ppo.old_logprobs == "auto" and precision.bfloat16

    @classmethod
    def prepare(cls, params: PolicyTrainingParams, precision: Precision, world: World) -> "PPOTrainer":
        """Read models and queries; UserError if one of them does not fit. params: settled."""
        folder, task = Path(params.task.policy.initial_model), params.task
        transformer = load_model(folder)
        encoding = get_encoding(transformer.config)
        check_task(task, encoding, transformer.config.n_ctx)
        check_drawing_repeats(task, precision.device.type)
        if params.evaluation.samples:
            check_split(task.query_dataset, params.evaluation.split, "--evaluation.split")
        source = params.rewards
        rewards = load_rewards(source, transformer.config, task, precision.device)
        policy, reference = (
            Policy(model, QueryFormatter([], []), task.policy.temperature).for_task(task, encoding)
            for model in (transformer, load_model(folder))
        )
        train_part(transformer, params.model)
        queries = query_stream(task, encoding, params.run.seed, "policy")
        values = None
        if params.value.model != "shared":
            values = ValueModel.load(params.value, folder, source.trained_model, policy.formatter)
            check_task(task, encoding, values.transformer.config.n_ctx)
        return cls(policy, reference, rewards, queries, params, precision, encoding, world, values)

    def run(self, task: str, experiment: str) -> Path:
        """The stage from its first step, or where it stopped, to its result; returns the `policy/` folder."""
        p = self.params
        with open_run(self.stage, task, experiment, p, self.inputs(), self.world) as run:
            if (finished := run.finished("policy", evaluated=bool(p.evaluation.samples))) is not None:
                return finished
            first = self.resume(run) if p.run.resume else 0
            self.training.try_micro_batches(self.memory_probes())
            self.normalise_rewards(first)
            captured = {"captured_decoding": self.policy.captured is not None}
            run.record_computed(self.training.computed() | captured)
            steered = f" steered to {p.rewards.adaptive_kl.target} nats" if p.rewards.adaptive_kl else ""
            run.say(
                f"{experiment}: {self.total_steps:,} steps of {p.ppo.batch_size} episodes, KL coefficient "
                f"{self.kl_controller.value}{steered}, {self.training.in_words()}"
            )
            remedy = f"--ppo.lr than {p.ppo.lr}"
            with (
                open_watched(run, p, self.stage, experiment, first) as tracker,
                Loop(run, tracker, self.training, self.total_steps, experiment, first, self.state, remedy) as loop,
            ):
                for step in loop:
                    asked = self.ask_people(step, loop)
                    metrics, rollout = self.step(step)
                    metrics |= asked
                    speed = p.ppo.batch_size * p.task.response_length / loop.seconds
                    metrics |= {"elapsed/fps": speed, "elapsed/time": loop.elapsed}
                    loop.log(metrics, f"score {metrics['objective/score']:.2f} KL {metrics['objective/kl']:.1f}")
                    self.show_samples(loop, metrics, rollout)
            return self.finish(run, task)

    # --- one step of the method, in the order in which it runs ---

    def step(self, step: int) -> tuple[dict[str, float], Rollout]:
        """One step of PPO (section 2.2 of the paper; original: PPOTrainer.step): the metrics and the episodes."""
        ppo, kl_coef = self.params.ppo, self.kl_controller.value
        rollout = self.sample(step)
        rewards, non_score = compute_rewards(
            rollout.scores, rollout.logprobs, rollout.ref_logprobs, kl_coef, rollout.counted
        )
        lr, size = linear_decay(ppo.lr, step, self.total_steps), ppo.batch_size // ppo.nminibatches
        indices = [index for epoch in range(ppo.noptepochs) for index in self.order(step, epoch).split(size)]
        if ppo.estimator == "gae":
            minibatches, of_groups = [self.train_minibatch(rollout, rewards, index, lr) for index in indices], {}
        else:
            before = (rollout.logprobs, rollout.ref_logprobs, rollout.counted)
            targets = GroupTargets(self.advantages(rollout, rewards), *before)
            minibatches = [self.train_group_minibatch(rollout, targets, index, lr, kl_coef) for index in indices]
            of_groups = advantage_stats(rollout.scores, targets.advantages, ppo.responses_per_query)
        metrics = self.statistics(step, rollout, non_score, kl_coef) | of_groups | update_stats(minibatches)
        metrics["lr"] = lr
        self.kl_controller.update(metrics["objective/kl"], ppo.batch_size)
        return metrics, rollout

    @torch.no_grad()
    def sample(self, step: int) -> Rollout:
        """Responses to the step's queries, then scored; each rank does its share, then all have everything.

        Several responses to a query are neighbours. With --task.after_stop ignore nothing after an end counts.
        """
        B, k = self.params.ppo.batch_size, self.params.ppo.responses_per_query
        mine, rows, device = (
            self.world.share(B, "--ppo.batch_size"),
            self.training.micro_batches,
            self.precision.device,
        )
        queries = self.queries.batch(B // k).repeat_interleave(k, dim=0)[mine]
        uniforms = self.uniforms(step)[mine]
        real, parts = queries != self.policy.transformer.config.padding_token, []
        with gathered(self.policy):
            for q, u, r in zip(*(column.split(rows.rollout) for column in (queries, uniforms, real)), strict=True):
                q, u = q.to(device, non_blocking=True), u.to(device, non_blocking=True)
                with self.precision.autocast():
                    parts.append((q, *self.policy.respond(q, u, real=r)))
        *sampled, support = joined(parts)
        columns = [*sampled, real, support]
        scored = [self.score(*of_rows(columns, part)) for part in slices(0, len(real), rows.scoring)]
        whole: list[Any] = [None if column is None else self.world.gather(column) for column in joined(scored)]
        rollout = self.on_scale(Rollout(*whole))
        return without_what_follows(rollout, self.policy.stops) if self.policy.stops.tokens else rollout

    def score(
        self,
        queries: torch.Tensor,
        responses: torch.Tensor,
        logprobs: torch.Tensor,
        values: torch.Tensor,
        real: torch.Tensor,
        support: torch.Tensor | None = None,
    ) -> Rollout:
        """A part of a step's episodes with the reference's log-probabilities and the rewards added, which are not on
        their scale yet.

        The ratio compares a training pass with these log-probabilities. Under bfloat16 sampling's are not close enough
        to it, so those of another pass of the same kind replace them. With top-k or top-p the policy's are of what each
        token was drawn among, and the reference's of the whole vocabulary: to write what the reference never would has
        its price however few tokens are left, and no probability is 0.
        """
        sampled = logprobs
        with self.precision.autocast():
            reference = self.reference.analyze(queries, responses, entropies=False, real=real)
            if self.recompute:
                logprobs, values, _ = self.policy.analyze(
                    queries, responses, entropies=False, real=real, support=support
                )
            if self.values is not None:
                values = self.values(queries, responses, real)
            rewards, valid, truncated, disagreement = self.scorer.measure(queries, responses)
        before = (logprobs, values, sampled, reference.logprobs)
        return Rollout(queries, responses, *before, rewards, valid, truncated, real, disagreement, support)

    def on_scale(self, rollout: Rollout) -> Rollout:
        """The whole step's episodes, whose `scores` are rewards so far, with scores on the scale that they set or
        find.
        """
        rewards = rollout.scores
        self.scorer.scale.observe(rewards)
        return rollout._replace(scores=self.scorer.scores(rewards, rollout.valid), rewards=rewards)

    def train_minibatch(
        self, rollout: Rollout, rewards: torch.Tensor, index: torch.Tensor, lr: float
    ) -> dict[str, torch.Tensor]:
        """One optimizer step on the episodes at `index`, int64 [b] on the host; its statistics before that step.

        Whitening looks at the whole minibatch; ranks and micro-batches only share the work. Nothing here waits for the
        device.
        """
        ppo, real = self.params.ppo, rollout.real[index.cpu()]
        index = index.to(self.precision.device, non_blocking=True)
        counted = None if rollout.counted is None else rollout.counted[index]
        targets = minibatch_targets(rewards[index], rollout.logprobs[index], rollout.values[index], ppo, counted)
        if self.values is not None:
            return self.train_apart(rollout, targets, index, real, lr)

        def losses_of(rows: slice) -> list[torch.Tensor]:
            analysis = self.analyse(rollout, index[rows], real[rows])
            losses = ppo_losses(analysis.logprobs, analysis.values, targets.rows(rows), ppo)
            loss = losses.policy.sum() + ppo.vf_coef * losses.value.sum()
            return [loss / targets.n_counted, *losses, analysis.values, analysis.entropies]

        *whole, values, entropies = self.training.update(self.parts(len(index)), lr, losses_of)
        return minibatch_stats(Losses(*whole), values, entropies, targets, ppo)

    def train_apart(
        self, rollout: Rollout, targets: Targets, index: torch.Tensor, real: torch.Tensor, lr: float
    ) -> dict[str, torch.Tensor]:
        """`train_minibatch` where the value function has a trunk and an optimizer of its own."""
        ppo, count, training = self.params.ppo, targets.n_counted, self.training.beside["value"]

        def policy_losses_of(rows: slice) -> list[torch.Tensor]:
            analysis = self.analyse(rollout, index[rows], real[rows])
            losses = policy_losses(analysis.logprobs, targets.rows(rows), ppo)
            return [losses.loss.sum() / count, *losses, analysis.entropies]

        def value_losses_of(rows: slice) -> list[torch.Tensor]:
            queries, responses = rollout.queries[index[rows]], rollout.responses[index[rows]]
            with self.precision.autocast():
                values = training.parallel(queries, responses, real[rows])
            if targets.counted is not None:
                values = torch.where(targets.counted[rows], values, 0.0)
            losses = value_losses(values, targets.rows(rows), ppo)
            return [ppo.vf_coef * losses.loss.sum() / count, *losses, values]

        own_lr = lr if self.params.value.lr is None else lr * self.params.value.lr / ppo.lr
        *policy, entropies = self.training.update(self.parts(len(index)), lr, policy_losses_of)
        *value, values = training.update(self.parts(len(index)), own_lr, value_losses_of)
        whole = both_losses(PolicyLosses(*policy), ValueLosses(*value))
        return minibatch_stats(whole, values, entropies, targets, ppo)

    def advantages(self, rollout: Rollout, rewards: torch.Tensor) -> torch.Tensor:
        """Advantages float32 [B] from the other responses to the same query: by scores for GRPO, whose KL is in the
        loss, by whole rewards for RLOO, those of the tokens [B, R] added up.
        """
        k, scale = self.params.ppo.responses_per_query, self.params.ppo.advantage_scale
        if self.params.ppo.estimator == "rloo":
            return leave_one_out(rewards.sum(1), k, scale)
        return group_relative(rollout.scores, k, scale)

    def train_group_minibatch(
        self, rollout: Rollout, targets: GroupTargets, index: torch.Tensor, lr: float, kl_coef: float
    ) -> dict[str, torch.Tensor]:
        """`train_minibatch` for RLOO and GRPO, which have no values; targets: of all the step's episodes."""
        ppo, real = self.params.ppo, rollout.real[index.cpu()]
        index = index.to(self.precision.device, non_blocking=True)

        def losses_of(rows: slice) -> list[torch.Tensor]:
            analysis, mine = self.analyse(rollout, index[rows], real[rows]), targets.rows(index[rows])
            if ppo.estimator == "rloo":
                losses = rloo_losses(analysis.logprobs, mine, ppo, mine.counted)
            else:
                losses = grpo_losses(analysis.logprobs, mine, ppo, kl_coef, mine.counted)
            return [losses.total.sum() / len(index), *losses, analysis.entropies]

        *whole, entropies = self.training.update(self.parts(len(index)), lr, losses_of)
        return group_stats(GroupLosses(*whole), entropies, targets.rows(index).counted)

    def parts(self, size: int) -> list[slice]:
        """This rank's micro-batches of a minibatch of that size, as slices of its rows."""
        mine = self.world.share(size, self.params.minibatch()[1])
        return slices(mine.start, mine.stop, self.training.micro_batches.training)

    def analyse(self, rollout: Rollout, index: torch.Tensor, real: torch.Tensor) -> Analysis:
        """A training pass over the episodes at `index`, 0 where tokens do not count; real: where their queries are no
        padding, on the host.
        """
        support = None if rollout.support is None else rollout.support[index]
        with self.precision.autocast():
            analysis: Analysis = self.parallel(rollout.queries[index], rollout.responses[index], real, support)
        if rollout.counted is None:
            return analysis
        return Analysis(*(torch.where(rollout.counted[index], numbers, 0.0) for numbers in analysis))

    def statistics(self, step: int, rollout: Rollout, non_score: torch.Tensor, kl_coef: float) -> dict[str, float]:
        """What the step's episodes are like; docs/metrics.md explains each number."""
        B, R = rollout.responses.shape
        padding = self.policy.transformer.config.padding_token
        of_rewards = {}
        if isinstance(self.scorer.rewards, RewardEnsemble) and rollout.disagreement is not None:
            of_rewards["objective/disagreement"] = float(rollout.disagreement.mean())
        if self.params.rewards.scale != "none" and rollout.rewards is not None:
            of_rewards |= {"objective/reward": float(rollout.rewards.mean())}
            of_rewards |= {"objective/reward_divisor": self.scorer.scale.divisor}
        of_rollout = rollout_stats(rollout, non_score, kl_coef, self.recompute)
        return (
            of_rollout
            | of_rewards
            | {
                "objective/query_padding": padding_share(rollout.queries, padding),
                "objective/response_padding": padding_share(rollout.truncated, padding),
                "elapsed/updates": step + 1,
                "elapsed/steps/serial": (step + 1) * R,
                "elapsed/steps/total": (step + 1) * B * R,
                "elapsed/episodes": (step + 1) * B,
            }
        )

    # --- random draws, each for the whole global batch ---

    def uniforms(self, step: int) -> torch.Tensor:
        """The numbers in [0, 1) that decide step `step`'s tokens, float32 [B, R]."""
        generator = generator_for(self.seed, "policy/rollout", step)
        return torch.rand(self.params.ppo.batch_size, self.params.task.response_length, generator=generator)

    def order(self, step: int, epoch: int) -> torch.Tensor:
        """The episodes' order in an epoch, a permutation int64 [B]; minibatches are its consecutive slices."""
        generator = generator_for(self.seed, f"policy/order/{epoch}", step)
        return torch.randperm(self.params.ppo.batch_size, generator=generator)

    # --- around the steps ---

    @torch.no_grad()
    def normalise_rewards(self, first: int) -> None:
        """Set the rewards' scale by responses of the reference to training queries, where that is wanted and no
        checkpoint has done it; `first`: the run's first step.
        """
        kind, count = self.params.rewards.scale, self.params.rewards.scale_samples
        if kind != "normalised" or first or self.encoding is None:
            return
        queries = query_stream(self.params.task, self.encoding, self.seed, "rewards/scale").batch(count)
        draw = generator_for(self.seed, "rewards/scale/uniforms")
        uniforms = torch.rand(count, self.params.task.response_length, generator=draw)
        with gathered(self.reference):
            found = sample_and_score(
                self.reference,
                self.reference,
                [self.scorer.rewards],
                self.scorer.ends,
                queries,
                uniforms,
                self.precision,
                self.training.micro_batches.rollout,
                self.world,
            )
        self.scorer.scale.normalise(found.scores[:, 0])

    def ask_people(self, step: int, loop: Loop) -> dict[str, float]:
        """Where people are asked: what has to be in before a step; the metrics of it."""
        if self.online is None or self.encoding is None:
            return {}
        rows = self.training.micro_batches.scoring
        return self.online.before(step, self.policy, self.reference, self.scorer, rows, self.encoding, loop)

    def show_samples(self, loop: Loop, metrics: dict[str, float], rollout: Rollout) -> None:
        """Some of the step's samples for people, once each sample interval; now and then one on the terminal."""
        interval, step = self.params.run.sample_interval, loop.step
        if not self.world.is_main or self.encoding is None or (step % interval and not loop.last):
            return
        rows = sample_rows(rollout, metrics["objective/kl_coef"], self.encoding)
        loop.tracker.samples(step, rows)
        if step % (10 * interval) == 0 or loop.last:
            text = (rows[0]["query"] + "|" + rows[0]["response"]).replace("\n", " ")
            tqdm.write(
                f"step {step + 1}: score {metrics['objective/score']:.3f}  KL {metrics['objective/kl']:.2f}  "
                f"ends {metrics['objective/valid']:.0%}  [{rows[0]['score']:.2f}] {text[:110]}"
            )

    def finish(self, run: Run, task: str) -> Path:
        """Write the policy, compare it with what it was, and drop the checkpoints; returns the `policy/` folder."""
        p, folder = self.params, run.folder / "policy"
        check_finite(dict(self.policy.named_parameters()), "policy", self.world)
        note = {"stage": self.stage, "task": task, "steps": self.total_steps}
        self.policy.save(folder, note=note, world=self.world)
        if p.evaluation.samples and self.encoding is not None:
            queries = evaluation_queries(p.evaluation, p.task, self.encoding, self.seed)
            uniforms = uniforms_of(p.task, p.evaluation.samples, self.seed)
            rows = self.training.micro_batches.rollout
            with gathered(self.reference, self.policy):
                sides = compare_policies(
                    self.reference, self.policy, self.scorer, queries, uniforms, self.precision, rows, self.world
                )
            if self.world.is_main:
                write_comparison(run.folder, queries, sides, self.encoding, p.evaluation)
        run.checkpoints.drop()
        run.say(f"policy in {folder}")
        self.world.barrier()
        return folder

    def inputs(self) -> dict[str, str | None]:
        """What the run reads, by flag; a resumed run must find it unchanged."""
        task, rewards = self.params.task, self.params.rewards
        return {
            "task.policy.initial_model": task.policy.initial_model,
            "task.query_dataset": task.query_dataset,
            **rewards.inputs(),
        }

    def state(self) -> dict[str, object]:
        """The loop state of a checkpoint."""
        state: dict[str, object] = {"kl_coef": self.kl_controller.value, "queries": list(self.queries.position)}
        if self.params.rewards.scale != "none":
            state["reward_scale"] = self.scorer.scale.state()
        if self.online is not None:
            state["online"] = self.online.state()
        return state

    def resume(self, run: Run) -> int:
        """Go back to the newest checkpoint; returns the step to go on at."""
        state = self.training.restore(run.checkpoints.load)
        if state is None:
            return 0
        self.kl_controller.value, self.queries.position = float(state["kl_coef"]), tuple(state["queries"])
        if self.params.rewards.scale != "none":
            self.scorer.scale.resume(state["reward_scale"])
        if self.online is not None:
            self.online.resume(state["online"], self.scorer, self.policy)
        return int(state["step"])

    def memory_probes(self) -> Probes:
        """A pass of each kind over made-up rows, see `policy_probes`."""
        members, task = reward_models(self.scorer.rewards), self.params.task
        return policy_probes(self.parallel, self.policy, self.reference, members, task, self.precision, self.recompute)

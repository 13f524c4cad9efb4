"""Expert iteration, or rejection sampling: sample several responses to each query, keep the best, learn to write it,
repeat (Anthony et al. 2017, arXiv 1705.08439; Touvron et al. 2023, arXiv 2307.09288, section 3.2.3).

Begin with `ExpertTrainer.step`. Sampling, scores, memory, checkpoints and the comparison at the end are those of policy
training (train_policy.py), of whose update this is another. The control keeps one response at random: what it gains
comes from training on one's own texts, and only what the best gain on it comes from choosing.
"""

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch

from lm_human_preferences import train_policy
from lm_human_preferences.before_policy import check_besides_rewards
from lm_human_preferences.compute.distributed import generator_for
from lm_human_preferences.compute.optim import linear_decay
from lm_human_preferences.foundation.configuration import param, to_dict
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.learning.best_responses import KEEP, kept_responses, likelihood_losses
from lm_human_preferences.learning.ppo import Rollout, compute_rewards
from lm_human_preferences.runs.folder import Run, go_on_after_restart, same_finished_run
from lm_human_preferences.runs.params import computing
from lm_human_preferences.train_policy import PolicyTrainingParams, PPOTrainer

RESULT = "policy/config.json"  # of a finished run


@dataclass
class ExpertIterationParams(PolicyTrainingParams):
    """Policy training's parameters: of ppo those of sampling and of the optimizer count (total_episodes, batch_size,
    responses_per_query, nminibatches, noptepochs, lr); rewards.kl_coef is a part of what is best.
    """

    keep: str = param("best", "best: the response with the highest reward to each query; random: any, as a control")
    control: bool = param(
        False, "train the same with one response kept at random as well, in the run EXPERIMENT_control"
    )

    def minibatch(self) -> tuple[int, str]:
        kept = self.ppo.batch_size // self.ppo.responses_per_query
        return kept // self.ppo.nminibatches, "--ppo.batch_size / --ppo.responses_per_query / --ppo.nminibatches"


def settle(params: ExpertIterationParams) -> ExpertIterationParams:
    """What a run will use, as a copy: settled as policy training's."""
    settled = train_policy.settle(params)
    assert isinstance(settled, ExpertIterationParams)
    return settled


def check(params: ExpertIterationParams) -> None:
    """Raises UserError, naming the flag and the numbers, for settled parameters that cannot work."""
    ppo = dataclasses.replace(params.ppo, whiten_rewards=False)  # nothing is whitened here
    train_policy.check(dataclasses.replace(params, ppo=ppo))
    if params.online is not None:
        raise UserError("--online is for train_policy: expert iteration asks nobody; leave it off")
    if params.keep not in KEEP:
        raise UserError(f"--keep {params.keep}: must be {' or '.join(KEEP)}")
    if params.control and params.keep != "best":
        raise UserError("--control on is for --keep best: it is the same run with --keep random")
    if ppo.estimator != "gae" or params.value.model != "shared":
        raise UserError("expert iteration has neither advantages nor values: leave --ppo.estimator and --value.model")
    if ppo.responses_per_query < 2:
        raise UserError(
            f"--ppo.responses_per_query {ppo.responses_per_query}: there is no best among fewer than 2 responses"
        )
    kept = ppo.batch_size // ppo.responses_per_query
    if kept % ppo.nminibatches:
        raise UserError(
            f"the {kept} responses that are kept of --ppo.batch_size {ppo.batch_size} do not divide by "
            f"--ppo.nminibatches {ppo.nminibatches}"
        )


def train(params: ExpertIterationParams, task: str, experiment: str) -> Path:
    """Run the stage, and its control where that is wanted; returns the `policy/` folder. Raises UserError before
    anything is written if it cannot work.
    """
    params = settle(params)
    check(params)
    with computing(params.run) as (precision, world):
        check_besides_rewards(params, precision, world)
        runs = {experiment: params}
        if params.control:
            runs[f"{experiment}_control"] = dataclasses.replace(copy.deepcopy(params), keep="random", control=False)
        for name, mine in runs.items():
            folder = Path(mine.run.save_dir) / name
            go_on_after_restart(mine.run, folder, world)
            Run(folder, mine.run, world).check_free()
        train_policy.train_reward_model_first(params, precision, world, task, experiment)
        for name, mine in runs.items():
            folder = Path(mine.run.save_dir) / name
            mine.rewards = copy.deepcopy(params.rewards)
            begun, finished = world.from_main([(folder / part).is_file() for part in ("config.json", RESULT)])
            if params.control and mine.run.resume and finished:
                same_finished_run(folder, "expert_iteration", task, to_dict(mine), world)
                continue
            mine.run.resume = mine.run.resume and (begun or name == experiment)  # the control may not have begun
            ExpertTrainer.prepare(mine, precision, world).run(task, name)
        return Path(params.run.save_dir) / experiment / "policy"


class ExpertTrainer(PPOTrainer):
    """What the stage works on; `step` is one iteration."""

    stage, has_values = "expert_iteration", False
    params: ExpertIterationParams

    def step(self, step: int) -> tuple[dict[str, float], Rollout]:
        """Sample, keep, learn: the metrics and all the episodes that were sampled."""
        ppo, kl_coef = self.params.ppo, self.kl_controller.value
        rollout = self.sample(step)
        rewards, non_score = compute_rewards(
            rollout.scores, rollout.logprobs, rollout.ref_logprobs, kl_coef, rollout.counted
        )
        draw = generator_for(self.seed, "expert/keep", step)
        kept = kept_responses(rewards.sum(1), ppo.responses_per_query, self.params.keep, draw)
        lr, size = linear_decay(ppo.lr, step, self.total_steps), len(kept) // ppo.nminibatches
        orders = [self.order(step, epoch) for epoch in range(ppo.noptepochs)]
        indices = [index for order in orders for index in order[torch.isin(order, kept)].split(size)]
        losses = [self.learn(rollout, index, lr) for index in indices]
        metrics = self.statistics(step, rollout, non_score, kl_coef)
        metrics["objective/score_kept"] = float(rollout.scores[kept.to(rollout.scores.device)].mean())
        metrics |= {"expert/loss": float(torch.stack(losses).mean()), "lr": lr}
        self.kl_controller.update(metrics["objective/kl"], ppo.batch_size)
        return metrics, rollout

    def learn(self, rollout: Rollout, index: torch.Tensor, lr: float) -> torch.Tensor:
        """One optimizer step on the episodes at `index`, int64 [b] on the host: the likelihood of each response up to
        its end; its mean loss in nats per token before that step, a scalar.
        """
        real = rollout.real[index]
        index = index.to(self.precision.device, non_blocking=True)
        counted = rollout.truncated[index] != self.policy.transformer.config.padding_token
        n_tokens = counted.sum()

        def losses_of(rows: slice) -> list[torch.Tensor]:
            analysis = self.analyse(rollout, index[rows], real[rows])
            losses = likelihood_losses(analysis.logprobs, counted[rows])
            return [losses.sum() / n_tokens, losses]

        [losses] = self.training.update(self.parts(len(index)), lr, losses_of)
        return losses.sum() / n_tokens

"""The experiments as data: one entry per stage and task, assembled from the library's parameter dataclasses.

`sentiment`, `descriptiveness`, `cnndm` and `tldr` have the values of the original's launch.py (whitening of cnndm and
tldr as it was meant there: the original binds a name that does not exist). With `_paper` they have those of the paper
where it differs: GPT-2 774M, two million episodes, larger batches. `_paper_supervised` is the paper's "supervised +
RL": the same, from the supervised baseline onward. `movies` is ours: it needs nothing but pip.

`own` is for prompts and labels of one's own (docs/your_data.md). `imdb`, `writing_prompts` and `helpful` are systems
that others built on this method; where their numbers come from, and what is ours, is in docs/other_tasks.md.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

from lm_human_preferences.data.labels import LabelParams
from lm_human_preferences.data.tasks import PolicyParams, TaskParams
from lm_human_preferences.expert_iteration import ExpertIterationParams
from lm_human_preferences.judging.evaluation import EvaluationParams
from lm_human_preferences.learning.implicit_q import ImplicitQParams
from lm_human_preferences.learning.ppo import AdaptiveKLParams, PPOParams
from lm_human_preferences.learning.value_model import ValueParams
from lm_human_preferences.runs.params import RunParams
from lm_human_preferences.runs.training import TrainedPartParams
from lm_human_preferences.train_dpo import DPOParams
from lm_human_preferences.train_ilql import ILQLParams
from lm_human_preferences.train_policy import PolicyTrainingParams, RewardsParams
from lm_human_preferences.train_reward import RewardTrainingParams
from lm_human_preferences.train_sft import DataParams, ModelParams, SFTOptimizerParams, SFTParams, ValidationParams

GPT2, GPT2_LARGE = "saved_models/124M", "saved_models/774M"
TINY = "saved_models/tiny"
GPT2_IMDB, DISTILGPT2, DLITE = "saved_models/gpt2-imdb", "saved_models/distilgpt2", "saved_models/dlite-v1-355m"
LABELS = "https://openaipublic.blob.core.windows.net/lm-human-preferences/labels"


# --- tasks ---


def books_task(model: str = GPT2) -> TaskParams:
    """Continue a passage of a book (sentiment, descriptiveness): end with a full stop after 16 tokens."""
    return TaskParams(
        query_dataset="books",
        query_length=64,
        response_length=24,
        start_text=".",
        end_text=".",
        truncate_token=13,
        truncate_after=16,
        policy=PolicyParams(initial_model=model, temperature=0.7),
    )


def cnndm_task(model: str = GPT2) -> TaskParams:
    """Summarise a news article: end with a newline after 55 tokens."""
    return TaskParams(
        query_dataset="cnndm",
        query_length=500,
        response_length=75,
        query_prefix="Article:\n\n",
        query_suffix="\n\nTL;DR:",
        end_text="\n",
        truncate_token=198,
        truncate_after=55,
        policy=PolicyParams(initial_model=model, temperature=0.5),
    )


def tldr_task(model: str = GPT2) -> TaskParams:
    """Summarise a Reddit post: end with a newline after 55 tokens."""
    return TaskParams(
        query_dataset="tldr",
        query_length=500,
        response_length=75,
        query_suffix="\n\nTL;DR:",
        truncate_token=198,
        truncate_after=55,
        policy=PolicyParams(initial_model=model, temperature=0.7),
    )


def movies_task() -> TaskParams:
    """Finish a sentence of a film review: end with <|endoftext|> within 32 tokens."""
    return TaskParams(
        query_dataset="movies:queries_",
        query_length=8,
        response_length=32,
        truncate_token=50256,
        truncate_after=3,
        policy=PolicyParams(initial_model=TINY, temperature=0.7),
    )


def own_task() -> TaskParams:
    """Answer a prompt of one's own: end with <|endoftext|> within 64 tokens."""
    return TaskParams(
        query_dataset="own",
        query_length=64,
        response_length=64,
        truncate_token=50256,
        truncate_after=1,
        policy=PolicyParams(initial_model=TINY, temperature=0.7),
    )


SUMMARY_TASKS = {"cnndm": cnndm_task, "tldr": tldr_task}


def imdb_task() -> TaskParams:
    """Go on with a film review from its first four words, for 40 tokens or to its end (trlX's ppo_sentiments)."""
    return TaskParams(
        query_dataset="imdb:queries_",
        query_length=12,
        response_length=40,
        stop_tokens="50256",
        after_stop="ignore",
        penalty_reward_value=None,
        policy=PolicyParams(initial_model=GPT2_IMDB),
    )


def writing_prompts_task() -> TaskParams:
    """Write a story of 200 tokens to a prompt of up to 100, in the words of anshradh/trl_custom."""
    return TaskParams(
        query_dataset="writing_prompts",
        query_length=100,
        response_length=200,
        query_prefix="Writing Prompt:",
        query_suffix=" Response:",
        policy=PolicyParams(initial_model=DISTILGPT2),
    )


def helpful_task(query_length: int = 40, response_length: int = 16) -> TaskParams:
    """Answer a question, in the words that DLite was tuned with, for 16 tokens or to its "### End"."""
    return TaskParams(
        query_dataset="hh",
        query_length=query_length,
        response_length=response_length,
        query_prefix="Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request.\n\n### Instruction:\n",
        query_suffix="\n\n### Response:\n",
        stop_tokens="### End",
        after_stop="ignore",
        penalty_reward_value=None,
        policy=PolicyParams(initial_model=DLITE),
    )


# --- reward training ---


def books_reward(name: str) -> RewardTrainingParams:
    """5,000 choices among four continuations."""
    return RewardTrainingParams(
        task=books_task(),
        labels=LabelParams(type="best_of_4", num_train=4992, source=f"{LABELS}/{name}/offline_5k.json"),
        batch_size=32,
        lr=5e-5,
        rollout_batch_size=512,
        normalize_samples=256,
        run=RunParams(save_interval=50),
    )


def summary_reward(name: str) -> RewardTrainingParams:
    """46,000 choices among four summaries, collected while the policies of the paper were trained."""
    return RewardTrainingParams(
        task=SUMMARY_TASKS[name](),
        labels=LabelParams(type="best_of_4", num_train=46_000, source=f"{LABELS}/{name}/online_45k.json"),
        batch_size=16,
        lr=2.5e-5,
        rollout_batch_size=128,
        normalize_samples=256,
        run=RunParams(save_interval=200),
    )


def books_reward_paper(name: str) -> RewardTrainingParams:
    """The paper's: 774M, batches of 8 (section 2.2)."""
    params = books_reward(name)
    params.task, params.batch_size, params.lr = books_task(GPT2_LARGE), 8, 1.77e-5
    return params


def summary_reward_paper(name: str, model: str = GPT2_LARGE) -> RewardTrainingParams:
    """The paper's: 774M, batches of 32 (section 2.2); the labels whose number divides by it."""
    params = summary_reward(name)
    params.task, params.batch_size, params.lr, params.labels.num_train = SUMMARY_TASKS[name](model), 32, 1.77e-5, 45_984
    return params


def movies_reward() -> RewardTrainingParams:
    """Choices among four sentences that open alike, by their mean human rating."""
    return RewardTrainingParams(
        task=movies_task(),
        labels=LabelParams(
            type="best_of_4",
            num_train=15_136,
            source="datasets/movies/labels_train.json",
            valid_source="datasets/movies/labels_test.json",
        ),
        batch_size=32,
        lr=5e-4,
        rollout_batch_size=256,
        normalize_samples=512,
        run=RunParams(save_interval=100, micro_batch=128),
    )


def imdb_reward() -> RewardTrainingParams:
    """Whether a review is for the film or against it, from its beginning: 0 or 1 as a rating."""
    return RewardTrainingParams(
        task=imdb_task(),
        labels=LabelParams(
            type="scalar_rating",
            num_train=22_400,
            source="datasets/imdb/ratings_train.jsonl",
            valid_source="datasets/imdb/ratings_test.jsonl",
        ),
        batch_size=32,
        lr=5e-5,
        run=RunParams(save_interval=100),
    )


def writing_prompts_reward() -> RewardTrainingParams:
    """Pairs of stories to one prompt, by their votes."""
    return RewardTrainingParams(
        task=writing_prompts_task(),
        labels=LabelParams(
            type="best_of_2",
            num_train=16_000,
            source="datasets/writing_prompts/pairs_train.jsonl",
            valid_source="datasets/writing_prompts/pairs_test.jsonl",
        ),
        batch_size=32,
        lr=5e-5,
        rollout_batch_size=128,
        run=RunParams(save_interval=100),
    )


def helpful_reward() -> RewardTrainingParams:
    """Pairs of last answers in a dialogue, of which people chose one."""
    return RewardTrainingParams(
        task=helpful_task(256, 128),
        labels=LabelParams(
            type="best_of_2",
            num_train=32_000,
            source="datasets/hh/labels_train.jsonl",
            valid_source="datasets/hh/labels_test.jsonl",
        ),
        batch_size=32,
        lr=2e-5,
        rollout_batch_size=64,
        run=RunParams(save_interval=100),
    )


def own_reward() -> RewardTrainingParams:
    """Labels of one's own, at the rates of the small model; several passes, as they tend to be few."""
    return RewardTrainingParams(
        task=own_task(),
        labels=LabelParams(type="best_of_2", num_train=512, source="datasets/own/labels.jsonl"),
        epochs=4,
        batch_size=32,
        lr=5e-4,
        rollout_batch_size=128,
        normalize_samples=256,
        run=RunParams(save_interval=100),
    )


# --- direct preference optimisation ---


def direct(reward: RewardTrainingParams, lr: float, beta: float = 0.1) -> DPOParams:
    """The choices of the task's reward training, learned by the policy itself. The rate is ours; beta 0.1 is that of
    Rafailov et al. 2023.
    """
    return DPOParams(
        task=reward.task, labels=reward.labels, batch_size=reward.batch_size, lr=lr, beta=beta, run=reward.run
    )


def books_dpo(name: str) -> DPOParams:
    """5,000 choices among four continuations, learned without a reward model."""
    return direct(books_reward(name), 5e-6)


def summary_dpo(name: str) -> DPOParams:
    """46,000 choices among four summaries, learned without a reward model."""
    return direct(summary_reward(name), 2e-6)


def movies_dpo() -> DPOParams:
    """Choices among four sentences that open alike, learned without a reward model. At beta 0.1 the policy goes 18 nats
    far and its sentences lose their sense; 0.4 is 3.6 nats (docs/methods.md).
    """
    return direct(movies_reward(), 1e-4, beta=0.4)


def writing_prompts_dpo() -> DPOParams:
    """Pairs of stories to one prompt, learned without a reward model."""
    return direct(writing_prompts_reward(), 5e-6)


def helpful_dpo() -> DPOParams:
    """Pairs of last answers in a dialogue, learned without a reward model."""
    return direct(helpful_reward(), 5e-6)


def own_dpo() -> DPOParams:
    """Choices of one's own, learned without a reward model."""
    return direct(own_reward(), 1e-4)


# --- implicit language Q-learning ---


def movies_ilql() -> ILQLParams:
    """Sentences with the mean of what people rated them. Rate, epochs, beta and alpha are ours and not tuned; the
    paper's and trlX's alpha are for more steps.
    """
    return ILQLParams(
        task=movies_task(),
        labels=LabelParams(
            type="scalar_rating",
            num_train=7_136,
            source="datasets/movies/ratings_train.json",
            valid_source="datasets/movies/ratings_test.json",
        ),
        ilql=ImplicitQParams(alpha=0.02),
        beta=4.0,
        epochs=1,
        batch_size=32,
        lr=3e-4,
        run=RunParams(save_interval=100),
    )


def imdb_ilql() -> ILQLParams:
    """Reviews with 0 or 1 for what they think of the film: trlX's ilql_sentiments, with its rate and batch size,
    for 875 steps where that takes 1,000.
    """
    return ILQLParams(
        task=imdb_task(),
        labels=imdb_reward().labels,
        beta=1.0,
        epochs=5,
        batch_size=128,
        lr=5e-5,
        run=RunParams(save_interval=100),
    )


def own_ilql() -> ILQLParams:
    """Answers of one's own with the ratings that people gave them, with the values of movies."""
    params = movies_ilql()
    params.task, params.labels = own_task(), dataclasses.replace(own_reward().labels, type="scalar_rating")
    return params


# --- policy training ---


def books_policy(name: str) -> PolicyTrainingParams:
    """A million episodes; the KL coefficient is steered to 6 nats."""
    return PolicyTrainingParams(
        task=books_task(),
        rewards=RewardsParams(
            kl_coef=0.15, adaptive_kl=AdaptiveKLParams(target=6.0), train_new_model=books_reward(name)
        ),
        ppo=PPOParams(total_episodes=1_000_000, batch_size=512, lr=1e-5),
    )


def summary_policy(name: str, kl_coef: float) -> PolicyTrainingParams:
    """A million episodes at a fixed KL coefficient; rewards are not whitened."""
    return PolicyTrainingParams(
        task=SUMMARY_TASKS[name](),
        rewards=RewardsParams(kl_coef=kl_coef, train_new_model=summary_reward(name)),
        ppo=PPOParams(total_episodes=1_000_000, batch_size=32, lr=2e-6, whiten_rewards=False),
    )


def books_policy_paper(name: str, target: float) -> PolicyTrainingParams:
    """The paper's: 774M, two million episodes in batches of 1,024 (section 2.2)."""
    params = books_policy(name)
    params.task, params.rewards.train_new_model = books_task(GPT2_LARGE), books_reward_paper(name)
    params.rewards.adaptive_kl = AdaptiveKLParams(target=target)
    params.ppo.total_episodes, params.ppo.batch_size, params.ppo.lr = 2_000_000, 1024, 1.41e-5
    return params


def summary_policy_paper(name: str, kl_coef: float, model: str = GPT2_LARGE) -> PolicyTrainingParams:
    """The paper's: 774M, two million episodes in batches of 512 (section 2.2)."""
    params = summary_policy(name, kl_coef)
    params.task, params.rewards.train_new_model = SUMMARY_TASKS[name](model), summary_reward_paper(name, model)
    params.ppo.total_episodes, params.ppo.batch_size, params.ppo.lr = 2_000_000, 512, 7.07e-6
    return params


def movies_policy() -> PolicyTrainingParams:
    """A demonstration's worth of episodes on a small model.

    Unlike the original's tasks: the value head, zero at first, learns little in so few steps, and less where whitening
    stretches what it has to learn; so rewards are not whitened, and lambda leans less on values (docs/log.md has the
    trials).
    """
    return PolicyTrainingParams(
        task=movies_task(),
        rewards=RewardsParams(kl_coef=0.19, train_new_model=movies_reward()),
        ppo=PPOParams(
            total_episodes=4_096,
            batch_size=64,
            lr=1e-4,
            lam=0.99,
            vf_coef=0.5,
            cliprange_value=1.0,
            whiten_rewards=False,
        ),
        evaluation=EvaluationParams(samples=128, split="test"),
        run=RunParams(save_interval=20),
    )


def imdb_policy() -> PolicyTrainingParams:
    """trlX's ppo_sentiments: a classifier's probability of POSITIVE; 100 rollouts of 128, in minibatches of 32,
    on the last two blocks.
    """
    return PolicyTrainingParams(
        task=imdb_task(),
        rewards=RewardsParams(
            kl_coef=0.001, clip=10.0, trained_model="hf:lvwerra/distilbert-imdb?truncate=own#POSITIVE:prob"
        ),
        ppo=PPOParams(
            total_episodes=12_800, batch_size=128, nminibatches=4, lr=3e-5, vf_coef=1.0, whiten_rewards=False
        ),
        model=TrainedPartParams(train_top=2),
        evaluation=EvaluationParams(split="test"),
    )


def trl_rewards(**more: Any) -> RewardsParams:
    """The KL penalty of TRL's PPO, as long as it had that trainer."""
    return RewardsParams(kl_coef=0.2, adaptive_kl=AdaptiveKLParams(target=6.0, horizon=10_000), **more)


def writing_prompts_policy() -> PolicyTrainingParams:
    """TRL's PPO of 2022 with a value model apart from the policy."""
    return PolicyTrainingParams(
        task=writing_prompts_task(),
        rewards=trl_rewards(train_new_model=writing_prompts_reward()),
        ppo=PPOParams(total_episodes=25_600, batch_size=256, nminibatches=16, lr=1.41e-5, whiten_rewards=False),
        value=ValueParams(model="separate"),
        evaluation=EvaluationParams(split="test"),
    )


def helpful_policy() -> PolicyTrainingParams:
    """6,400 questions once, against a reward model of the hub."""
    return PolicyTrainingParams(
        task=helpful_task(),
        rewards=trl_rewards(trained_model="hf:OpenAssistant/reward-model-deberta-v3-large-v2?pair&truncate=own"),
        ppo=PPOParams(total_episodes=6_400, batch_size=64, nminibatches=4, lr=1e-5, whiten_rewards=False),
        evaluation=EvaluationParams(split="test"),
    )


def own_policy() -> PolicyTrainingParams:
    """Prompts of one's own, with the values of movies: they are those that the small model needs."""
    params = movies_policy()
    params.task, params.rewards.train_new_model = own_task(), own_reward()
    params.rewards.kl_coef = 0.1
    return params


# --- expert iteration ---


def expert(policy: PolicyTrainingParams, lr: float) -> ExpertIterationParams:
    """The task's policy training, with the best of eight responses to each query kept and learned from once. The rate
    is ours.
    """
    params = ExpertIterationParams(**vars(policy))
    params.rewards.kl_coef, params.rewards.adaptive_kl = 0.0, None
    params.ppo.responses_per_query, params.ppo.noptepochs, params.ppo.lr = 8, 1, lr
    return params


def movies_expert() -> ExpertIterationParams:
    """The best of eight responses to each query, kept and learned from."""
    params = expert(movies_policy(), 1e-4)
    params.ppo.batch_size = 256
    return params


def own_expert() -> ExpertIterationParams:
    """The best of eight answers to each prompt, kept and learned from."""
    params = expert(own_policy(), 1e-4)
    params.ppo.batch_size = 256
    return params


def books_expert(name: str) -> ExpertIterationParams:
    """The best of eight continuations of each query, kept and learned from."""
    return expert(books_policy(name), 1e-5)


def summary_expert(name: str, kl_coef: float) -> ExpertIterationParams:
    """The best of eight summaries of each query, kept and learned from."""
    params = expert(summary_policy(name, kl_coef), 2e-6)
    params.ppo.batch_size = 256
    return params


# --- language models ---


def corpus_sft() -> SFTParams:
    """The small model from scratch, on a folder of text prepared by datasets/corpus.py."""
    return SFTParams(
        data=DataParams(dataset="corpus", rows="packed", block=128),
        model=ModelParams(n_ctx=128, n_layer=6),
        optimizer=SFTOptimizerParams(
            method="muon",
            batch_size=32,
            lr=2e-3,
            muon_lr=6e-3,
            schedule="wsd",
            final_lr_fraction=0.0,
            warmup=100,
            sampled_vocabulary=4096,
        ),
        validation=ValidationParams(interval=250, rows=128),
        run=RunParams(save_interval=250),
    )


def movies_sft() -> SFTParams:
    """The small model onward, on sentences of film reviews."""
    return SFTParams(
        data=DataParams(dataset="movies", rows="documents", block=64),
        model=ModelParams(initial="saved_models/corpus/lm"),
        optimizer=SFTOptimizerParams(epochs=6, batch_size=16, lr=5e-4, warmup=50, dropout=0.1),
        validation=ValidationParams(interval=50, rows=0, patience=4),
        run=RunParams(save_interval=200),
    )


def own_sft() -> SFTParams:
    """The small model onward on people's answers to prompts, as datasets/prompts.py --reference has them."""
    return SFTParams(
        task=own_task(),
        data=DataParams(dataset="own", rows="references"),
        model=ModelParams(initial=TINY),
        optimizer=SFTOptimizerParams(epochs=3, batch_size=16, lr=2e-4, warmup=20, final_lr_fraction=0.0, dropout=0.1),
        validation=ValidationParams(interval=50, rows=0, patience=4),
        run=RunParams(save_interval=200),
    )


def books_sft(model: str = GPT2) -> SFTParams:
    """GPT-2 onward on the passages of books themselves: one epoch, cosine schedule, dropout 0.1. The learning rate is
    ours.
    """
    return SFTParams(
        data=DataParams(dataset="books", rows="documents", block=256),
        model=ModelParams(initial=model),
        optimizer=SFTOptimizerParams(epochs=1, batch_size=64, lr=5e-5, warmup=100, final_lr_fraction=0.0, dropout=0.1),
        validation=ValidationParams(interval=500, rows=512),
        run=RunParams(save_interval=500, micro_batch=16),
    )


def reference_sft(task: TaskParams) -> SFTParams:
    """A task's model onward on the responses that its data set has: one epoch, cosine schedule, dropout 0.1. The
    learning rate is ours.
    """
    return SFTParams(
        task=task,
        data=DataParams(dataset=task.query_dataset, rows="references"),
        model=ModelParams(initial=task.policy.initial_model),
        optimizer=SFTOptimizerParams(epochs=1, batch_size=64, lr=5e-5, warmup=100, final_lr_fraction=0.0, dropout=0.1),
        validation=ValidationParams(interval=250, rows=1024),
        run=RunParams(save_interval=250, micro_batch=8),
    )


def summary_sft(name: str, model: str = GPT2) -> SFTParams:
    """The paper's supervised baseline on the reference summaries."""
    return reference_sft(SUMMARY_TASKS[name](model))


def imdb_sft() -> SFTParams:
    """GPT-2 onward on film reviews, as lvwerra/gpt2-imdb was made: one epoch."""
    params = books_sft()
    params.data.dataset = "imdb"
    params.optimizer.batch_size = 16
    return params


def writing_prompts_sft() -> SFTParams:
    """The supervised baseline on the best story to each prompt."""
    return reference_sft(writing_prompts_task())


def helpful_sft() -> SFTParams:
    """DLite onward on the assistant's first answers."""
    return reference_sft(helpful_task())


# The paper's KL targets of continuations, in nats (section 3.1.2), and KL coefficients of summaries (section 3.2).
# Which of the two coefficients belongs to which data set is our reading (docs/reproduce.md).
PAPER_TARGETS = {"sentiment": 10.0, "descriptiveness": 6.0}
PAPER_KL_COEFS = {"cnndm": 0.1, "tldr": 0.03}

EXPERIMENTS: dict[str, dict[str, Callable[[], Any]]] = {
    "train_sft": {
        "movies": movies_sft,
        "corpus": corpus_sft,
        "sentiment": books_sft,
        "descriptiveness": books_sft,
        "cnndm": partial(summary_sft, "cnndm"),
        "tldr": partial(summary_sft, "tldr"),
        "sentiment_paper": partial(books_sft, GPT2_LARGE),
        "descriptiveness_paper": partial(books_sft, GPT2_LARGE),
        "cnndm_paper": partial(summary_sft, "cnndm", GPT2_LARGE),
        "tldr_paper": partial(summary_sft, "tldr", GPT2_LARGE),
        "imdb": imdb_sft,
        "writing_prompts": writing_prompts_sft,
        "helpful": helpful_sft,
        "own": own_sft,
    },
    "train_reward": {
        "movies": movies_reward,
        "sentiment": partial(books_reward, "sentiment"),
        "descriptiveness": partial(books_reward, "descriptiveness"),
        "cnndm": partial(summary_reward, "cnndm"),
        "tldr": partial(summary_reward, "tldr"),
        "imdb": imdb_reward,
        "writing_prompts": writing_prompts_reward,
        "helpful": helpful_reward,
        "own": own_reward,
    },
    "train_dpo": {
        "movies": movies_dpo,
        "sentiment": partial(books_dpo, "sentiment"),
        "descriptiveness": partial(books_dpo, "descriptiveness"),
        "cnndm": partial(summary_dpo, "cnndm"),
        "tldr": partial(summary_dpo, "tldr"),
        "writing_prompts": writing_prompts_dpo,
        "helpful": helpful_dpo,
        "own": own_dpo,
    },
    "train_ilql": {"movies": movies_ilql, "imdb": imdb_ilql, "own": own_ilql},
    "expert_iteration": {
        "movies": movies_expert,
        "sentiment": partial(books_expert, "sentiment"),
        "descriptiveness": partial(books_expert, "descriptiveness"),
        "cnndm": partial(summary_expert, "cnndm", 0.01),
        "tldr": partial(summary_expert, "tldr", 0.03),
        "own": own_expert,
    },
    "train_policy": {
        "movies": movies_policy,
        "sentiment": partial(books_policy, "sentiment"),
        "descriptiveness": partial(books_policy, "descriptiveness"),
        "cnndm": partial(summary_policy, "cnndm", 0.01),
        "tldr": partial(summary_policy, "tldr", 0.03),
        "imdb": imdb_policy,
        "writing_prompts": writing_prompts_policy,
        "helpful": helpful_policy,
        "own": own_policy,
    },
}
for name, target in PAPER_TARGETS.items():
    EXPERIMENTS["train_reward"][f"{name}_paper"] = partial(books_reward_paper, name)
    EXPERIMENTS["train_policy"][f"{name}_paper"] = partial(books_policy_paper, name, target)
for name, kl_coef in PAPER_KL_COEFS.items():
    EXPERIMENTS["train_reward"][f"{name}_paper"] = partial(summary_reward_paper, name)
    EXPERIMENTS["train_policy"][f"{name}_paper"] = partial(summary_policy_paper, name, kl_coef)
    baseline = f"saved_models/{name}_paper/lm"  # python launch.py train_sft {name}_paper {name}_paper
    EXPERIMENTS["train_reward"][f"{name}_paper_supervised"] = partial(summary_reward_paper, name, baseline)
    EXPERIMENTS["train_policy"][f"{name}_paper_supervised"] = partial(summary_policy_paper, name, kl_coef, baseline)

"""The experiments as data: one entry per stage and task, assembled from the library's parameter dataclasses.

The paper's tasks have the values of the original's launch.py (whitening of cnndm and tldr as it
was meant there: the original binds a name that does not exist). `movies` is ours: it needs nothing but pip.
"""

from collections.abc import Callable
from functools import partial

from lm_human_preferences.evaluation import EvaluationParams
from lm_human_preferences.labels import LabelParams
from lm_human_preferences.ppo import AdaptiveKLParams, PPOParams
from lm_human_preferences.runs import RunParams
from lm_human_preferences.tasks import PolicyParams, TaskParams
from lm_human_preferences.train_policy import PolicyTrainingParams, RewardsParams
from lm_human_preferences.train_reward import RewardTrainingParams
from lm_human_preferences.train_sft import DataParams, ModelParams, SFTOptimizerParams, SFTParams, ValidationParams

GPT2 = "saved_models/124M"
TINY = "saved_models/tiny"


# --- tasks ---

def books_task() -> TaskParams:
    """Continue a passage of a book (sentiment, descriptiveness): end with a full stop after 16 tokens."""
    return TaskParams(query_dataset="books", query_length=64, response_length=24, start_text=".", end_text=".", truncate_token=13, truncate_after=16,
                      policy=PolicyParams(initial_model=GPT2, temperature=0.7))


def cnndm_task() -> TaskParams:
    """Summarise a news article: end with a newline after 55 tokens."""
    return TaskParams(query_dataset="cnndm", query_length=500, response_length=75, query_prefix="Article:\n\n", query_suffix="\n\nTL;DR:",
                      end_text="\n", truncate_token=198, truncate_after=55, policy=PolicyParams(initial_model=GPT2, temperature=0.5))


def tldr_task() -> TaskParams:
    """Summarise a Reddit post: end with a newline after 55 tokens."""
    return TaskParams(query_dataset="tldr", query_length=500, response_length=75, query_suffix="\n\nTL;DR:", truncate_token=198, truncate_after=55,
                      policy=PolicyParams(initial_model=GPT2, temperature=0.7))


def movies_task() -> TaskParams:
    """Finish a sentence of a film review: end with <|endoftext|> within 32 tokens."""
    return TaskParams(query_dataset="movies:queries_", query_length=8, response_length=32, truncate_token=50256, truncate_after=3,
                      policy=PolicyParams(initial_model=TINY, temperature=0.7))


# --- reward training ---

def books_reward(name: str) -> RewardTrainingParams:
    """5,000 choices among four continuations."""
    return RewardTrainingParams(task=books_task(), labels=LabelParams(type="best_of_4", num_train=4992, source=f"datasets/labels/{name}/offline_5k.json"),
                                batch_size=32, lr=5e-5, rollout_batch_size=512, normalize_samples=256, run=RunParams(save_interval=50))


def summary_reward(task: Callable[[], TaskParams], name: str) -> RewardTrainingParams:
    """60,000 choices among four summaries."""
    return RewardTrainingParams(task=task(), labels=LabelParams(type="best_of_4", num_train=46_000, source=f"datasets/labels/{name}/offline_60k.json"),
                                batch_size=16, lr=2.5e-5, rollout_batch_size=128, normalize_samples=256, run=RunParams(save_interval=200))


def movies_reward() -> RewardTrainingParams:
    """Choices among four sentences that open alike, by their mean human rating."""
    return RewardTrainingParams(task=movies_task(), labels=LabelParams(type="best_of_4", num_train=9_600, source="datasets/movies/labels_train.json",
                                                                       valid_source="datasets/movies/labels_test.json"),
                                batch_size=32, lr=1e-3, rollout_batch_size=256, normalize_samples=512,
                                run=RunParams(save_interval=100, micro_batch=128))


# --- policy training ---

def books_policy(name: str) -> PolicyTrainingParams:
    """A million episodes; the KL coefficient is steered to 6 nats."""
    return PolicyTrainingParams(
        task=books_task(),
        rewards=RewardsParams(kl_coef=0.15, adaptive_kl=AdaptiveKLParams(target=6.0), train_new_model=books_reward(name)),
        ppo=PPOParams(total_episodes=1_000_000, batch_size=512, lr=1e-5))


def summary_policy(task: Callable[[], TaskParams], name: str, kl_coef: float) -> PolicyTrainingParams:
    """A million episodes at a fixed KL coefficient; rewards are not whitened."""
    return PolicyTrainingParams(
        task=task(), rewards=RewardsParams(kl_coef=kl_coef, train_new_model=summary_reward(task, name)),
        ppo=PPOParams(total_episodes=1_000_000, batch_size=32, lr=2e-6, whiten_rewards=False))


def movies_policy() -> PolicyTrainingParams:
    """A demonstration's worth of episodes on a small model."""
    return PolicyTrainingParams(
        task=movies_task(),
        rewards=RewardsParams(kl_coef=0.12, train_new_model=movies_reward()),
        ppo=PPOParams(total_episodes=2_048, batch_size=64, lr=3e-4), evaluation=EvaluationParams(samples=512, split="test"),
        run=RunParams(save_interval=20))


# --- language models ---

def corpus_sft() -> SFTParams:
    """The small model from scratch, on a folder of text prepared by datasets/corpus.py."""
    return SFTParams(data=DataParams(dataset="corpus", rows="packed", block=128), model=ModelParams(n_ctx=128),
                     optimizer=SFTOptimizerParams(batch_size=16, lr=2e-3, warmup=100, sampled_vocabulary=4096),
                     validation=ValidationParams(interval=250, rows=128), run=RunParams(save_interval=500))


def movies_sft() -> SFTParams:
    """The small model onward, on sentences of film reviews."""
    return SFTParams(data=DataParams(dataset="movies", rows="documents", block=64), model=ModelParams(initial="saved_models/corpus/lm"),
                     optimizer=SFTOptimizerParams(epochs=6, batch_size=16, lr=5e-4, warmup=50, dropout=0.1),
                     validation=ValidationParams(interval=50, rows=0, patience=4), run=RunParams(save_interval=200))


EXPERIMENTS: dict[str, dict[str, Callable]] = {
    "train_sft": {"movies": movies_sft, "corpus": corpus_sft},
    "train_reward": {
        "movies": movies_reward,
        "sentiment": partial(books_reward, "sentiment"),
        "descriptiveness": partial(books_reward, "descriptiveness"),
        "cnndm": partial(summary_reward, cnndm_task, "cnndm"),
        "tldr": partial(summary_reward, tldr_task, "tldr"),
    },
    "train_policy": {
        "movies": movies_policy,
        "sentiment": partial(books_policy, "sentiment"),
        "descriptiveness": partial(books_policy, "descriptiveness"),
        "cnndm": partial(summary_policy, cnndm_task, "cnndm", 0.01),
        "tldr": partial(summary_policy, tldr_task, "tldr", 0.03),
    },
}

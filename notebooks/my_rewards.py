"""Rewards to copy and change: functions of queries and responses, lists of texts, that give a number for each response.

    python launch.py train_policy movies my_policy --rewards.function my_rewards:positive

finds them from this folder, or wherever PYTHONPATH names it.
"""

from lm_human_preferences.judging.ratings import lexicon_scores


def positive(queries: list[str], responses: list[str]) -> list[float]:
    """How good the feelings in query and response are, −1 to +1, by VADER's lexicon."""
    return [float(score) for score in lexicon_scores([q + r for q, r in zip(queries, responses, strict=True)])]


def neutral(queries: list[str], responses: list[str]) -> list[float]:
    """0 for a text without feelings, −1 for one full of good or of bad ones."""
    return [-abs(score) for score in positive(queries, responses)]


def eight_words(queries: list[str], responses: list[str]) -> list[float]:
    """0 for a response of eight words, −1 for each word more or less."""
    return [-abs(len(response.split()) - 8.0) for response in responses]

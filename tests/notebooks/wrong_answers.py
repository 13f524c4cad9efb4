"""Answers that a reader may give and that are wrong: for each exercise of each notebook, in the place of its cell.

The message of the checking cell must contain the text beside it, so that an answer is refused for the right reason.
"""

# notebook -> exercise -> [(the cell, a part of what the check says)]
WRONG_ANSWERS: dict[str, dict[str, list[tuple[str, str]]]] = {}

WRONG_ANSWERS["01_gpt2_and_its_probabilities"] = {
    "perplexity": [
        ("def perplexity(logprobs):\n    return torch.exp(logprobs.mean())", "it is 50"),
        ("def perplexity(logprobs):\n    return 1 / logprobs.exp().mean()", "average the logarithms"),
        ("def perplexity(logprobs):\n    return no_such_name", "NameError"),
    ],
    "temperature": [
        ("def tempered(logits, temperature):\n    return (logits / temperature).softmax(-1)", "log_softmax"),
        ("def tempered(logits, temperature):\n    return logits.log_softmax(-1) / temperature", "before the softmax"),
        ("def tempered(logits, temperature):\n    return (logits * temperature).log_softmax(-1)", "divide"),
    ],
    "inversion": [("token = 2", "0.5"), ("token = 0", "0.5")],
    "kl": [
        ("def kl_divergence(p, q):\n    return (q.exp() * (p - q)).sum()", "p weighs"),
        ("def kl_divergence(p, q):\n    return (p - q).mean()", "p weighs"),
        ("def kl_divergence(p, q):\n    return (p.exp() * (q - p)).sum()", "p weighs"),
    ],
}

WRONG_ANSWERS["02_what_people_preferred"] = {
    "credit": [("credit = 1", "the same rating"), ("credit = 0", "half")],
    "loss": [
        ("def choice_loss(rewards, best):\n    return torch.log_softmax(rewards, dim=0)[best]", "positive"),
        ("def choice_loss(rewards, best):\n    return 1 - torch.softmax(rewards, dim=0)[best]", "log 4"),
        ("def choice_loss(rewards, best):\n    return -torch.log_softmax(-rewards, dim=0)[best]", "above the line"),
        ("def choice_loss(rewards, best):\n    return -torch.log_softmax(rewards, dim=0)[0]", "above the line"),
    ],
    "confidence": [
        ("def confidence_of(rewards):\n    return np.exp(rewards).max()", "one number for each"),
        ("def confidence_of(rewards):\n    return rewards.max(1) - 5", "between 1/4 and 1"),
        ("def confidence_of(rewards):\n    return 1 / (1 + np.exp(-abs(rewards).max(1)))", "softmax"),
    ],
    "likelihood": [
        (
            "def log_likelihood(rewards, best, T):\n"
            "    return log_probabilities(rewards * T)[np.arange(len(best)), best].mean()",
            "at T = 2.0",
        ),
        ("def log_likelihood(rewards, best, T):\n    return log_probabilities(rewards, T).mean()", "at T = 1.0"),
        (
            "def log_likelihood(rewards, best, T):\n"
            "    return -log_probabilities(rewards, T)[np.arange(len(best)), best].mean()",
            "negative",
        ),
    ],
}
WRONG_ANSWERS["03_ppo_step_by_step"] = {
    "truncation": [("seen = 2", "too early"), ("seen = 3", "included"), ("seen = 6", "first end")],
    "rewards": [
        (
            "def token_rewards(scores, logprobs, ref_logprobs, kl_coef):\n"
            "    rewards = kl_coef * (logprobs - ref_logprobs)\n    rewards[:, -1] += scores\n    return rewards",
            "before the last token",
        ),
        (
            "def token_rewards(scores, logprobs, ref_logprobs, kl_coef):\n"
            "    rewards = -kl_coef * (logprobs - ref_logprobs)\n    rewards[:, -1] = scores\n    return rewards",
            "pays its price",
        ),
        (
            "def token_rewards(scores, logprobs, ref_logprobs, kl_coef):\n"
            "    return scores - kl_coef * (logprobs - ref_logprobs).sum(1)",
            "each token",
        ),
        (
            "def token_rewards(scores, logprobs, ref_logprobs, kl_coef):\n"
            "    return scores[:, None] - kl_coef * (logprobs - ref_logprobs)",
            "before the last token",
        ),
    ],
    "advantages": [
        (
            "def advantages_of(rewards, values, lam):\n"
            "    return [sum(rewards[t:]) - values[t] for t in range(len(rewards))]",
            "surprise alone",
        ),
        (
            "def advantages_of(rewards, values, lam):\n    after = [*values[1:], 0.0]\n"
            "    return [r + n - v for r, n, v in zip(rewards, after, values)]",
            "still to come",
        ),
        ("def advantages_of(rewards, values, lam):\n    return [0.0]", "each token"),
    ],
    "clipping": [("loss = -3.0", "without the clip"), ("loss = 2.4", "negative"), ("loss = -1.6", "larger")],
}
WRONG_ANSWERS["04_gaming_the_reward"] = {
    "best": [
        ("def gold_of_best(proxies, golds):\n    return golds.max(1).mean()", "best by gold"),
        ("def gold_of_best(proxies, golds):\n    return proxies.max(1).mean()", "take the gold score"),
        ("def gold_of_best(proxies, golds):\n    return golds[proxies.argmax(1)].mean()", "take the gold score"),
        ("def gold_of_best(proxies, golds):\n    return golds[proxies.best()]", "AttributeError"),
    ],
    "distance": [
        ("def distance(n):\n    return math.log(n)", "it is 1.84"),
        ("def distance(n):\n    return math.log(n) - 1 / n", "best of one"),
        ("def distance(n):\n    return math.log2(n) - (n - 1) / n", "natural"),
    ],
    "optimal": [
        (
            "def weights_of_best_policy(rewards, beta):\n    e = np.exp(rewards / beta)\n    return e / e.sum()",
            "sum to 1",
        ),
        (
            "def weights_of_best_policy(rewards, beta):\n    e = np.exp(rewards * beta)\n"
            "    return e / e.sum(1, keepdims=True)",
            "exp(reward / beta)",
        ),
    ],
    "price": [
        ('beta = table["without"]["proxy"] / table["without"]["KL"]', "set them equal"),
        ("beta = 100.0", "set them equal"),
    ],
}
WRONG_ANSWERS["05_any_function_as_reward"] = {
    "neutral": [
        ("my_neutral = my_rewards.positive", "both cost"),
        ("def my_neutral(queries, responses):\n    return abs(lexicon_scores(responses))", "both cost"),
        (
            "def my_neutral(queries, responses):\n    return -(lexicon_scores(responses) ** 2)",
            "minus the absolute score",
        ),
        ("def my_neutral(queries, responses):\n    return -0.5", "one number for each"),
    ],
    "length": [
        ("def my_length(queries, responses):\n    return [len(r.split()) - 8 for r in responses]", "absolute value"),
        ("def my_length(queries, responses):\n    return [-abs(len(r) - 8) for r in responses]", "two words"),
        ("def my_length(queries, responses):\n    return [0.0]", "one number"),
    ],
    "scale": [
        ("def gain_and_bias(scores):\n    return 1 / scores.std(), -scores.mean()", "the mean comes out"),
        ("def gain_and_bias(scores):\n    return 1 / scores.var(), 0.0", "the deviation"),
        (
            "def gain_and_bias(scores):\n    return -1 / scores.std(), scores.mean() / scores.std()",
            "turn the reward around",
        ),
    ],
    "hack": [
        ('response = "a film."', "it gets"),
        ('response = "love " * 9', "at most five"),
        ("response = 5", "in quotes"),
    ],
}
WRONG_ANSWERS["06_value_model_and_prompts"] = {
    "prompts": [
        ('my_prompts = ["The film"] * 5', "no two the same"),
        ('my_prompts = ["One ", "Two", "Three", "Four", "Five"]', "without a space"),
        (
            'my_prompts = ["One", "Two", "Three", "Four", "A film about a robot that is as old as time"]',
            "has 11 tokens",
        ),
    ],
    "surprise": [("advantage = 1", "that is the return"), ("advantage = 0.1", "with lambda 1")],
    "explained": [
        (
            "def var_explained(values, returns):\n"
            "    return ((values - returns) ** 2).mean() / returns.var(correction=0)",
            "a perfect guess",
        ),
        (
            "def var_explained(values, returns):\n    return 1 - ((values - returns) ** 2).mean() / returns.var()",
            "explains nothing",
        ),
        (
            "def var_explained(values, returns):\n"
            "    return 1 - (values - returns).abs().mean() / (returns - returns.mean()).abs().mean()",
            "one less the mean squared error",
        ),
    ],
}
WRONG_ANSWERS["07_methods_compared"] = {
    "rloo": [
        ("def advantages_of(rewards):\n    return [r - sum(rewards) / len(rewards) for r in rewards]", "GRPO's"),
        (
            "def advantages_of(rewards):\n    return [sum(rewards) / len(rewards) - r for r in rewards]",
            "advantage is -3",
        ),
    ],
    "factor": [("factor = 1", "not the same"), ("factor = 4 / 3", "(k - 1) / k")],
    "dpo": [
        ("def dpo_loss(h, best, beta):\n    return torch.log_softmax(beta * h, dim=0)[best]", "minus the logarithm"),
        ("def dpo_loss(h, best, beta):\n    return -torch.log_softmax(h, dim=0)[best]", "notebook 02"),
        ("def dpo_loss(h, best, beta):\n    return -torch.log_softmax(h / beta, dim=0)[best]", "notebook 02"),
    ],
    "distance": [("gain_at_four = 0.6 * 4 / 9", "root of the KL"), ("gain_at_four = 0.6", "how much at")],
}
WRONG_ANSWERS["08_asking_people"] = {
    "card": [("chosen = 2", "the place of the card"), ("chosen = 1", "third card")],
    "alpha": [("alpha_of_three = 2 / 3", "plain agreement"), ("alpha_of_three = 1 - 1 / 3 / 2", "(1/3) / (3/5)")],
    "majority": [
        ("target = [0, 2, 2, 0]", "sum to 1"),
        ("target = [0, 0, 1, 0]", "share the label"),
        ("target = 2", "TypeError"),
    ],
    "schedule": [
        ("def wanted(n, N, first, labels):\n    return first + (labels - first) * n / N", "halfway"),
        ("def wanted(n, N, first, labels):\n    return labels * (1 - (1 - n / N) ** 2)", "before the first episode"),
        ("def wanted(n, N, first, labels):\n    return first + labels * (1 - (1 - n / N) ** 2)", "at the end"),
    ],
}

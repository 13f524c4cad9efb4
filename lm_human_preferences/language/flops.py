"""Floating-point operations that a model needs: two for each multiply-add of its matrix products, nothing else.

A token's way through a block takes 12 C^2 multiply-adds: 3 C^2 for query, key and value, C^2 for attention's
projection, 8 C^2 for the MLP. Its attention takes 2 C for each token that it sees, itself included (scores and weighted
sum): a causal mask halves the square. In the last block, tokens whose output is not used need only their key and
value, 2 C^2. A row of vocabulary logits takes C V. A backward pass takes twice its forward pass. Padding counts as
nothing, and so does what an implementation computes twice. Embedding, layer norms, softmax, GELU, heads and the
optimizer are not matrix products.
"""

from lm_human_preferences.language.gpt2 import GPT2Config

TRAINING = 3  # a forward and its backward pass, in forward passes


def forward_flops(config: GPT2Config, tokens: int, outputs: int, logits: int = 0, past: int = 0) -> int:
    """Of one row's forward pass: `tokens` new ones after `past` cached ones; the final states of the last `outputs` are
    used, `logits` rows made.
    """
    C, L, V = config.n_embd, config.n_layer, config.n_vocab
    earlier_blocks = (L - 1) * (12 * C * C * tokens + 2 * C * _seen(tokens, past))
    last_block = 2 * C * C * tokens + 10 * C * C * outputs + 2 * C * _seen(outputs, past + tokens - outputs)
    return 2 * (earlier_blocks + last_block + C * V * logits)


def response_flops(config: GPT2Config, context: int, response: int) -> int:
    """Of log-probabilities of a response to a context of `context` tokens, written or read: the last token is
    never read.
    """
    return forward_flops(config, context + response - 1, outputs=response, logits=response)


def choice_flops(config: GPT2Config, query: int, responses: list[int]) -> int:
    """Of the rewards of several responses to one query, whose pass they share. Numbers of tokens; an empty response
    costs its query's end.
    """
    shared = forward_flops(config, query, outputs=int(min(responses) == 0))
    return shared + sum(forward_flops(config, response, outputs=1, past=query) for response in responses if response)


def choice_logprob_flops(config: GPT2Config, query: int, responses: list[int]) -> int:
    """Of log-probabilities of several responses to one query, whose pass they share."""
    shared = forward_flops(config, query, outputs=1, logits=1)
    return shared + sum(
        forward_flops(config, response - 1, outputs=response - 1, logits=response - 1, past=query)
        for response in responses
        if response
    )


def _seen(tokens: int, past: int) -> int:
    """How many tokens each of `tokens` consecutive ones sees, added up, the first of them after `past` others."""
    return tokens * past + tokens * (tokens + 1) // 2

"""GPT-2 against the recorded values of the original's `Model.__call__`, and padding's rules. ORIGINAL details 1-12, 15."""

import numpy as np
import pytest
import torch

from conftest import TINY_CONFIG, load_original, tensor
from lm_human_preferences.language.gpt2 import GPT2


@pytest.fixture(scope="module")
def policy(goldens):
    return load_original(GPT2(TINY_CONFIG), goldens("weights"), "policy")


def close(actual, expected, atol=3e-5):
    np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("case", ["a", "b", "c", "bc"])
def test_forward(goldens, policy, case):
    f = goldens("forward")
    tokens = tensor(f[f"{case}/tokens"])
    hidden = policy(tokens)
    close(hidden, f[f"{case}/h"])
    close(policy.logits(hidden), f[f"{case}/lm_logits"])


@pytest.mark.parametrize("case, chunks", [("d_a_chunks", [10, 2, 4]), ("d_b_chunks", [10, 2, 4]), ("d_b_one", [10] + [1] * 6)])
def test_incremental(goldens, policy, case, chunks):
    f = goldens("forward")
    tokens = tensor(f[f"{case[2]}/tokens"])
    cache = policy.new_cache(4, 16)
    hidden = torch.cat([policy.extend(part, cache) for part in tokens.split(chunks, dim=1)], dim=1)
    close(hidden, f[f"{case}/h"])
    close(policy.logits(hidden), f[f"{case}/lm_logits"])

"""Learning from human preferences with language models (Ziegler et al. 2019), in PyTorch.

The rooms, floor by floor; each imports only from its own floor or below:

1. `host`, `language` (GPT-2, encoding, sampling, model folders), `distributed`, `precision`, `optim`
2. `tasks`, `queries`, `labels`, `ppo`
3. `policy`, `reward_model`, `runs`, `tracking`
4. `train_sft`, `train_reward`, `train_policy`, `report`, `sample`
"""

__version__ = "0.1.0"

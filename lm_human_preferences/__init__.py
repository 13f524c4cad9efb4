"""Learning from human preferences with language models (Ziegler et al. 2019), in PyTorch.

Begin with the stages, which lie here: `train_sft.py`, `train_reward.py`, `train_policy.py`; `train_dpo.py` and
`train_ilql.py`, which need no reward model; `expert_iteration.py`. Each reads from top to bottom. What they use lies in
rooms; each imports only from those before it in this list (tests/house/test_rooms.py keeps it):

    foundation  compute  language  data  learning  judging  runs  watching  serving  people  (the stages)  reports
    commands

The first lines of a room's `__init__.py` say what lives there and where to begin.
"""

__version__ = "0.2.0"

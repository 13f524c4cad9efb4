"""All checks, stage by stage, in the order in which the doctor makes them. docs/doctor.md is generated from them."""

from lm_human_preferences.watching.check import Check
from lm_human_preferences.watching.checks_dpo import DPO_CHECKS
from lm_human_preferences.watching.checks_every_stage import EVERY_STAGE_CHECKS
from lm_human_preferences.watching.checks_ilql import ILQL_CHECKS
from lm_human_preferences.watching.checks_online import ONLINE_CHECKS
from lm_human_preferences.watching.checks_policy import POLICY_CHECKS
from lm_human_preferences.watching.checks_reward import REWARD_CHECKS
from lm_human_preferences.watching.checks_sft import SFT_CHECKS

CHECKS = (*POLICY_CHECKS, *ONLINE_CHECKS, *REWARD_CHECKS, *SFT_CHECKS, *DPO_CHECKS, *ILQL_CHECKS, *EVERY_STAGE_CHECKS)


def checks_of(stage: str) -> list[Check]:
    """Those that are made in a stage. No two of them have the same name."""
    return [check for check in CHECKS if stage in check.stages]

"""Metrics and samples in their files, TensorBoard and Weights & Biases; what a resume cuts off and what a crash leaves
behind.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.runs.tracking import NullTracker, Tracker, TrackingParams, check_tracking, read_jsonl


def open_tracker(folder, resume_at=None, **params) -> Tracker:
    return Tracker.open(
        folder, TrackingParams(**params), run_name="test", config={"ppo": {"lr": 1e-4}}, resume_at=resume_at
    )


def log_steps(tracker, first, last):
    with tracker:
        for step in range(first, last):
            tracker.log(step, {"score": step / 7, "kl": 2.0 * step})
            tracker.samples(step, [{"query": "a", "response": f"b{step}"}, {"query": "c", "response": "d"}])


def test_metrics_and_samples_are_lines_of_json(tmp_path):
    with open_tracker(tmp_path / "new" / "run") as tracker:
        tracker.log(0, {"z": 0.1, "a": 3, "tensor": torch.tensor(0.5), "numpy": np.float32(0.25)})
        tracker.samples(0, [{"query": "naïve \u2028 “x”\n", "score": 1.5}])
        tracker.flush()
    text = (tmp_path / "new/run/metrics.jsonl").read_text(encoding="utf-8")
    assert text == '{"step": 0, "z": 0.1, "a": 3, "tensor": 0.5, "numpy": 0.25}\n'
    assert read_jsonl(tmp_path / "new/run/samples.jsonl") == [{"step": 0, "query": "naïve \u2028 “x”\n", "score": 1.5}]


def test_every_line_can_be_read_while_the_run_goes_on(tmp_path):
    tracker = open_tracker(tmp_path)
    tracker.log(0, {"loss": 1.0})
    assert read_jsonl(tmp_path / "metrics.jsonl") == [{"step": 0, "loss": 1.0}]
    tracker.close()
    tracker.close()


def test_numbers_that_are_not_finite_are_null(tmp_path):
    with open_tracker(tmp_path) as tracker:
        tracker.log(0, {"nan": math.nan, "inf": -math.inf, "torch": torch.tensor(float("nan")), "fine": 1.0})
        tracker.samples(0, [{"score": np.float32("inf"), "response": "\ud800 half a pair", "odd": {1}}])
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=pytest.fail) == {
        "step": 0,
        "nan": None,
        "inf": None,
        "torch": None,
        "fine": 1.0,
    }
    assert read_jsonl(tmp_path / "samples.jsonl") == [
        {"step": 0, "score": None, "response": "\ud800 half a pair", "odd": "{1}"}
    ]


def test_resume_leaves_neither_gap_nor_double(tmp_path):
    log_steps(open_tracker(tmp_path / "whole"), 0, 9)
    log_steps(open_tracker(tmp_path / "stopped"), 0, 7)  # the last checkpoint was after step 4
    log_steps(open_tracker(tmp_path / "stopped", resume_at=4), 4, 9)
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "stopped").iterdir()) == ["metrics.jsonl", "samples.jsonl"]


@pytest.mark.parametrize(
    "left", ['{"step": 3, "sco', '{"step": 3, "score": 0.5', "\0\0\0\0", "{", '{"step": 2, "score": 0.25}']
)
def test_resume_after_a_half_written_line(tmp_path, left):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "score": 0.5}\n{"step": 1, "score": 0.5}\n' + left)
    whole = 3 if left.endswith("}") else 2
    assert len(read_jsonl(path)) == whole
    with open_tracker(tmp_path, resume_at=whole) as tracker:
        tracker.log(whole, {"score": 1.0})
    assert [row["step"] for row in read_jsonl(path)] == list(range(whole + 1))


def test_resume_before_anything_was_written_and_starting_anew(tmp_path):
    log_steps(open_tracker(tmp_path, resume_at=0), 0, 3)
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 3
    log_steps(open_tracker(tmp_path), 0, 1)
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 1
    open_tracker(tmp_path).close()
    assert not (tmp_path / "metrics.jsonl").exists()


def test_damage_before_the_last_line_is_named_and_nothing_is_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step"\n{"step": 2}\n')
    for attempt in (lambda: read_jsonl(path), lambda: open_tracker(tmp_path, resume_at=1)):
        with pytest.raises(UserError, match="line 2"):
            attempt()
    assert path.read_text().count("\n") == 3
    with pytest.raises(UserError, match="does not exist"):
        read_jsonl(tmp_path / "nothing.jsonl")


def test_tensorboard_events_can_be_read(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log_steps(open_tracker(tmp_path, tensorboard=True), 0, 5)
    log_steps(open_tracker(tmp_path, tensorboard=True, resume_at=3), 3, 6)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    scores = events.Scalars("score")
    assert [event.step for event in scores] == list(range(6))
    assert [event.value for event in scores] == pytest.approx([step / 7 for step in range(6)])
    texts = {tag: events.Tensors(tag)[-1].tensor_proto.string_val[0].decode() for tag in events.Tags()["tensors"]}
    assert any("a|b5" in text for text in texts.values()) and any('"lr": 0.0001' in text for text in texts.values())


TWO_WANDB_SESSIONS = """
import sys
from pathlib import Path
from test_tracking import log_steps, open_tracker
folder = Path(sys.argv[1])
log_steps(open_tracker(folder, wandb=True), 0, 3)
log_steps(open_tracker(folder, wandb=True, resume_at=2), 2, 4)
"""


def test_wandb_offline(tmp_path):
    pytest.importorskip("wandb")
    here = Path(__file__).resolve().parent
    environment = os.environ | {
        "WANDB_SILENT": "true",
        "WANDB_ERROR_REPORTING": "false",
        "PYTHONPATH": os.pathsep.join([str(here), str(here.parent.parent.parent)]),
        **{f"WANDB_{name}_DIR": str(tmp_path / name) for name in ("CACHE", "CONFIG", "DATA")},
    }
    done = subprocess.run(
        [sys.executable, "-c", TWO_WANDB_SESSIONS, str(tmp_path / "run")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    files = list((tmp_path / "run/wandb").glob("offline-run-*/*.wandb"))
    assert files and all(file.stat().st_size > 0 for file in files)
    assert len({file.name for file in files}) == 1  # a resumed run keeps its identifier
    assert len(read_jsonl(tmp_path / "run/metrics.jsonl")) == 4


@pytest.mark.parametrize(
    "params, module, message",
    [
        ({"tensorboard": True}, "torch.utils.tensorboard", "pip install tensorboard"),
        ({"wandb": True}, "wandb", "pip install wandb"),
        ({"wandb": True, "wandb_mode": "sometimes"}, None, "offline or online"),
    ],
)
def test_what_is_missing_is_one_line_and_nothing_is_written(tmp_path, monkeypatch, params, module, message):
    if module:
        monkeypatch.setitem(sys.modules, module, None)
    for attempt in (lambda: open_tracker(tmp_path / "run", **params), lambda: check_tracking(TrackingParams(**params))):
        with pytest.raises(UserError, match=message) as caught:
            attempt()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_nothing_else_is_imported_unless_asked(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    log_steps(open_tracker(tmp_path), 0, 1)


def test_the_null_tracker_has_the_same_interface(tmp_path):
    log_steps(NullTracker(), 0, 2)
    NullTracker().flush()
    public = [{name for name in dir(kind) if not name.startswith("_")} for kind in (Tracker, NullTracker)]
    assert public[0] - {"open"} == public[1] == {"log", "samples", "flush", "close"}


def test_an_exception_closes_the_files(tmp_path):
    with pytest.raises(ZeroDivisionError), open_tracker(tmp_path) as tracker:
        tracker.log(0, {"loss": 1.0})
        raise ZeroDivisionError
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 1

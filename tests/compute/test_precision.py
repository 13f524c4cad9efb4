"""Which device and precision `auto` comes to, on GPUs that are not here too, and what a run's record says of it."""

import json
import platform
from types import SimpleNamespace

import pytest
import torch

from lm_human_preferences.compute.hardware import cpu_name, describe_computing
from lm_human_preferences.compute.precision import choose_precision, cpu_says
from lm_human_preferences.foundation.errors import UserError

T4, V100, A100, H100 = (7, 5), (7, 0), (8, 0), (9, 0)
RANKS = {
    "WORLD_SIZE": "4",
    "RANK": "3",
    "LOCAL_WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "a",
    "MASTER_PORT": "1",
}


@pytest.fixture
def gpus(monkeypatch):
    """Makes PyTorch see GPUs of these compute capabilities, and one rank, as when `torchrun` has not been used."""

    def gpus(*capabilities: tuple[int, int], hip: str | None = None) -> None:
        def properties(device) -> SimpleNamespace:
            device = torch.device(device) if not isinstance(device, int) else torch.device("cuda", device)
            major, minor = capabilities[device.index or 0]
            return SimpleNamespace(major=major, minor=minor, name=f"GPU {major}.{minor}")

        for name in RANKS:
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr("torch.version.hip", hip)
        monkeypatch.setattr("torch.cuda.is_available", lambda: bool(capabilities))
        monkeypatch.setattr("torch.cuda.device_count", lambda: len(capabilities))
        monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
        monkeypatch.setattr("torch.cuda.get_device_properties", properties)
        monkeypatch.setattr("torch.cuda._check_bf16_tensor_supported", lambda device: True)  # emulation makes tensors

    return gpus


@pytest.mark.parametrize("capability, bfloat16", [(T4, False), (V100, False), (A100, True), (H100, True)])
def test_auto_takes_bfloat16_on_gpus_that_multiply_it(gpus, capability, bfloat16):
    """Not where it is emulated; whoever asks for it by name gets it."""
    gpus(capability)
    found = choose_precision()
    assert (found.device.type, found.bfloat16) == ("cuda", bfloat16)
    assert choose_precision("cuda", "bfloat16").bfloat16 and not choose_precision("cuda", "float32").bfloat16


def test_auto_looks_at_the_gpu_that_is_used(gpus, monkeypatch):
    gpus(A100, T4)
    assert choose_precision("cuda:0").bfloat16 and not choose_precision("cuda:1").bfloat16
    for name, value in RANKS.items():
        monkeypatch.setenv(name, value)
    assert not choose_precision("cuda").bfloat16  # the second rank of its machine


def test_amds_gpus_multiply_bfloat16(gpus):
    gpus((1, 0), hip="6.0")
    assert choose_precision("cuda").bfloat16


@pytest.mark.parametrize(
    "amx, avx512, vendor, fast",
    [
        (True, False, "GenuineIntel", True),
        (False, True, "GenuineIntel", False),
        (False, True, "AuthenticAMD", True),
        (False, False, "AuthenticAMD", False),
    ],
)
def test_auto_on_a_cpu(gpus, monkeypatch, amx, avx512, vendor, fast):
    gpus()
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr("lm_human_preferences.compute.precision.cpu_says", lambda name: vendor)
    assert choose_precision().device == torch.device("cpu") and choose_precision().bfloat16 == fast


def test_the_vendor_of_a_cpu(tmp_path):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\n")
    assert (
        cpu_says("vendor_id", tmp_path / "cpuinfo") == "AuthenticAMD" and cpu_says("vendor_id", tmp_path / "none") == ""
    )
    (tmp_path / "cpuinfo").write_text("processor\t: 0\n")
    assert cpu_says("vendor_id", tmp_path / "cpuinfo") == ""


@pytest.mark.parametrize(
    "device, precision, says",
    [
        ("gpu", "auto", "--run.device gpu: must be auto, cpu, cuda or cuda:N"),
        ("cuda:", "auto", "must be auto, cpu, cuda or cuda:N"),
        ("cuda:x", "auto", "must be auto, cpu, cuda or cuda:N"),
        ("cpu:front", "auto", "must be auto, cpu, cuda or cuda:N"),
        ("cuda:2", "auto", "--run.device cuda:2: this machine has 2 CUDA devices, counted from 0"),
        ("cpu", "bf17", "--run.precision bf17: must be auto, float32 or bfloat16"),
    ],
)
def test_what_is_not_there_is_a_line(gpus, device, precision, says):
    gpus(A100, A100)
    with pytest.raises(UserError, match=says):
        choose_precision(device, precision)


def test_no_gpu_is_a_line(gpus):
    gpus()
    with pytest.raises(UserError, match="--run.device cuda: this machine has no CUDA device; use --run.device cpu"):
        choose_precision("cuda")


def test_one_gpu_for_several_ranks_is_refused(gpus, monkeypatch):
    """All of them would compute on it, while their messages went by way of others."""
    gpus(A100, A100)
    for name, value in RANKS.items():
        monkeypatch.setenv(name, value)
    assert choose_precision("cuda").device == torch.device("cuda")
    with pytest.raises(UserError, match="--run.device cuda:1: each of the 4 ranks takes a GPU of its own"):
        choose_precision("cuda:1")
    gpus(A100)
    for name, value in RANKS.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="started 2 ranks on this machine, which has 1 CUDA devices"):
        choose_precision("cuda")
    assert choose_precision("cpu").device == torch.device("cpu")


# --- the record ---


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_record_of_a_cpu(precision):
    found = describe_computing(choose_precision("cpu", precision))
    assert found == json.loads(json.dumps(found))
    assert found["device"] == "cpu" and found["precision"] == precision and found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads() and found["processor"] == cpu_name()
    assert isinstance(found["amx_bfloat16"], bool) and found["instructions"]


def test_the_record_of_a_gpu(gpus, monkeypatch):
    gpus(T4)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "Tesla T4")
    found = describe_computing(choose_precision())
    assert (found["device"], found["processor"], found["precision"]) == ("cuda", "Tesla T4", "float32")


def test_a_processors_name(tmp_path, monkeypatch):
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    file = tmp_path / "cpuinfo"
    assert cpu_name(file) == "aarch64"  # not Linux
    file.write_text("processor\t: 0\nBogoMIPS\t: 50.00\n")
    assert cpu_name(file) == "aarch64"  # Linux on a processor that tells no name
    file.write_text("processor\t: 0\nmodel name\t: Some CPU @ 2.0: fast\n\nprocessor\t: 1\nmodel name\t: another\n")
    assert cpu_name(file) == "Some CPU @ 2.0: fast"

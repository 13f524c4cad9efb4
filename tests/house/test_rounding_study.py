"""The study of bfloat16's rounding: the roundings themselves, the commands, and what is read off finished runs."""

from pathlib import Path

import pytest
import torch

from benchmarks import rounding
from benchmarks.rounding import Member, commands_of, dither, dithered, parser, rounded_at_random, table
from lm_human_preferences.compute.precision import Precision
from lm_human_preferences.foundation.errors import UserError
from lm_human_preferences.foundation.files import write_json
from lm_human_preferences.language.gpt2 import GPT2, Projection
from lm_human_preferences.language.model_folders import load_model, save_model

from small import CONFIG


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def weights(count=20_000):
    return (0.1 * torch.randn(count, generator=generator())).bfloat16().float()


def test_dithered_weights_round_to_what_they_were():
    """And lie evenly about it: a twentieth of a step is the standard error of 20,000 of them times ten."""
    plain = torch.cat([weights(), torch.tensor([0.0, 1.0, -2.0, 2**-20])])
    moved = dithered(plain, generator(1))
    assert torch.equal(moved.bfloat16().float(), plain) and moved[-4] == 0
    step = plain.abs() * 2**-8
    shares = ((moved - plain) / step)[plain != 0]
    assert abs(float(shares.mean())) < 0.02 and 0.9 < float(shares.abs().max()) <= 1.0 and float(shares.std()) > 0.3


def test_rounding_at_random_is_the_weight_on_average():
    weight = 0.1 * torch.randn(500, generator=generator())
    draws = torch.stack([rounded_at_random(weight, generator(seed)).float() for seed in range(400)])
    assert torch.equal(draws.bfloat16().float(), draws)
    step = 2.0 ** (weight.abs().log2().floor() - 7)
    assert ((draws - weight).abs() < step).all(), "one of the two neighbours"
    assert ((draws.mean(0) - weight).abs() / step).max() < 5 * 0.5 / 400**0.5
    exact = weights(100)
    assert torch.equal(rounded_at_random(exact, generator()).float(), exact)


def test_projections_read_one_copy_until_their_weight_changes(monkeypatch):
    monkeypatch.setattr(Projection, "forward", Projection.forward)
    layer, x = Projection(8, 6, std=0.1), torch.randn(3, 8, generator=generator())
    torch.nn.init.normal_(layer.weight, generator=generator(1))
    torch.nn.init.zeros_(layer.bias)
    plain = layer(x)
    handle = rounding.round_at_random(seed=1)
    assert torch.equal(layer(x), plain), "float32 is left alone"
    with Precision(torch.device("cpu"), bfloat16=True).autocast():
        first, second, part = layer(x), layer(x), layer(x, slice(2, 4))
        assert torch.equal(first, second) and torch.equal(first[:, 2:4], part) and first.dtype == torch.bfloat16
        first.float().sum().backward()
        expected = x.bfloat16().float().sum(0)[:, None].expand(-1, 6)
        torch.testing.assert_close(layer.weight.grad, expected, rtol=1e-2, atol=1e-2)
        with torch.no_grad():
            layer.weight.add_(0)
        changed = layer(x)
        assert not torch.equal(changed, first)
        torch.optim.Adam(layer.parameters(), lr=1e-12, fused=True).step()
        assert not torch.equal(layer(x), changed), "a fused step changes weights, not their version"
    handle.remove()
    torch.testing.assert_close(first.float(), plain, rtol=0.05, atol=0.05)


def test_dithering_a_model(tmp_path):
    model = GPT2(CONFIG).initialise(generator())
    save_model(tmp_path / "plain", model, dtype=torch.bfloat16)
    dither(tmp_path / "plain", tmp_path / "dithered")
    before, after = load_model(tmp_path / "plain"), load_model(tmp_path / "dithered")
    for (name, one), other in zip(before.named_parameters(), after.parameters(), strict=True):
        projection = ".c_" in name and name.endswith("weight")
        assert torch.equal(one, other) != projection and torch.equal(one.bfloat16(), other.bfloat16())


def arguments(folder, *words):
    return parser().parse_args(["--folder", str(folder), "--device", "cpu", *words])


def test_commands(tmp_path, monkeypatch, capsys):
    a = arguments(tmp_path)
    train, judged = commands_of(Member("stochastic", 2, tmp_path), a)
    assert train.program == ("-m", "benchmarks.rounding", "--train") and "bfloat16" in train.words
    words = train.words
    assert words[words.index("--run.captured_decoding") + 1] == "off", "a graph would keep the copies of its making"
    assert judged.program == ("launch.py",) and judged.words[0] == "evaluate"
    assert str(tmp_path / "dithered") in commands_of(Member("dithered", 1, tmp_path), a)[0].words
    assert "bfloat16" not in commands_of(Member("float32", 1, tmp_path), a)[0].words
    monkeypatch.setattr("sys.argv", ["rounding", "--dry_run", "--seeds", "1,2", "--folder", str(tmp_path / "f")])
    rounding.main()
    assert len(capsys.readouterr().out.splitlines()) == 2 + 2 * 4 * 2 and not (tmp_path / "f").exists()
    for words, says in ((["--ways", "up"], "up is none of"), (["--seeds", "1,1"], "none of them twice")):
        monkeypatch.setattr("sys.argv", ["rounding", *words])
        with pytest.raises(UserError, match=says):
            rounding.main.__wrapped__()


def test_what_is_read_off(tmp_path):
    def number(value):
        return {"mean": value, "low": value - 0.1, "high": value + 0.1}

    members = [Member("nearest", seed, tmp_path) for seed in (1, 2, 3)]
    for member in members[:2]:
        figures = {"scores": {"sentences": number(member.seed)}, "kl": number(6.0), "no_valid_end": number(0.1)}
        figures |= {"distinct_2": number(0.25)}
        win = {"judge": "sentences", "policy": "after", "against": "before", "share": number(0.8)}
        write_json(
            tmp_path / member.name("evaluation") / "result.json", {"policies": {"after": figures}, "wins": [win]}
        )
        metrics = Path(tmp_path / member.name("policy") / "metrics.jsonl")
        metrics.parent.mkdir()
        metrics.write_text("".join(f'{{"objective/kl": {kl}}}\n' for kl in (*[float(member.seed)] * 8, 99.0)))
    row = table(members)[2]
    assert row == "| nearest | 2 | 6.0 | +1.50 (+1.00 to +2.00) | 80.0% | 25.0% | 1.50 (1.00 to 2.00) |"

"""What the runtime itself takes can be measured for every family, and a simulation charges it."""

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from tiny_models import FAMILIES, family

from foregate.errors import ModelError
from foregate.hardware.presets import PRESETS
from foregate.hardware.profile import Timing
from foregate.hardware.turns import time_turns
from foregate.simulation.costs import Costs
from foregate.simulation.pace import pace_of
from foregate.simulation.shapes import ModelShape

KNOWN = [Timing("expert", 1, 1e-7, "measured"), Timing("dense", 1, 1e-7, "measured")]
SECONDS = {"expert-turn": 0.25, "layer-turn": 0.5, "pass-turn": 2.0, "look-turn": 0.125, "read-turn": 4.0}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_runtimes_own_part_is_measured_without_weights(name: str, tmp_path: Path) -> None:
    family(name).config.save_pretrained(tmp_path)
    found = {timing.kind: timing for timing in time_turns(str(tmp_path), KNOWN, "cpu")}
    assert set(found) == set(SECONDS)
    for timing in found.values():
        assert timing.basis == "derived", "a difference"
        least = 0 if timing.kind == "read-turn" else 1e-6  # a tiny model may need no more experts than fit
        assert least < timing.seconds < 1, f"{timing.kind} takes {timing.seconds} s"


def test_a_model_that_cannot_be_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model folder"):
        time_turns(str(tmp_path / "nothing"), KNOWN, "cpu")


def test_simulation_and_budget_are_charged_the_runtimes_own_part() -> None:
    plain = PRESETS["rtx-3090"]
    timed = replace(plain, timings=(*plain.timings, *(Timing(k, 1, s, "derived") for k, s in SECONDS.items())))
    shape = ModelShape("made up", 3, 8, 2, "bfloat16", (10**6,) * 3, (10**6,) * 3, 10**6, "made up")
    before, after = (Costs.of(profile, shape, tokens=4, rows=4) for profile in (plain, timed))
    for name, kind in {
        "expert": "expert-turn",
        "dense": "layer-turn",
        "around": "pass-turn",
        "look": "look-turn",
    }.items():
        charged = getattr(after, name) - getattr(before, name)
        assert (charged[..., 0] == 0).all(), "of nothing"
        assert charged[..., 1:] == pytest.approx(SECONDS[kind])
    disk = after.read[0] - before.read[0]
    assert disk[:, 0] == pytest.approx(4.0)
    assert (after.read[1] == before.read[1]).all(), "from host memory nothing changes"
    slow, quick = pace_of(timed, shape, on_disk=False), pace_of(plain, shape, on_disk=False)
    assert slow.window - quick.window == pytest.approx(0.5 + 2 * 0.25)
    assert slow.look - quick.look == pytest.approx(0.125)

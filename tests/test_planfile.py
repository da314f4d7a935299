"""A plan file says what a run is to do, or is refused with a sentence that names the field."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from foregate.errors import SourceError
from foregate.simulation.planfile import Expected, Plan, read, write

PLAN = Plan(
    model="m",
    layers=4,
    experts=8,
    memory="25%",
    evict="lfu-decay:half_life=500.0",
    prefetch="top:2",
    predictor="multi-layer",
    distance=2,
    read_seconds=0.001,
    window_seconds=0.002,
    look_seconds=0.0,
    expected=Expected(10.0, 9.0, 11.0, 8.0),
    provenance={"trace": "t.parquet"},
)


def test_a_plan_comes_back_as_it_was(tmp_path: Path) -> None:
    write(PLAN, tmp_path / "plan.json")
    assert read(tmp_path / "plan.json") == PLAN
    assert PLAN.wish == "multi-layer,top:2,distance=2"


def test_a_plan_without_guesses_wishes_nothing(tmp_path: Path) -> None:
    plain = replace(PLAN, predictor=None, prefetch="none", read_seconds=None)
    write(plain, tmp_path / "plan.json")
    assert read(tmp_path / "plan.json").wish is None


def test_a_fitted_predictor_is_found_beside_the_plan(tmp_path: Path) -> None:
    write(replace(PLAN, predictor="p.npz"), tmp_path / "plan.json")
    with pytest.raises(SourceError, match="does not lie beside it"):
        read(tmp_path / "plan.json")
    (tmp_path / "p.npz").write_bytes(b"")
    assert read(tmp_path / "plan.json").predictor == str(tmp_path / "p.npz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 1}, "plan format 1"),
        ({"evict": "nobody"}, "nobody"),
        ({"evict": "belady"}, "cannot be run"),
        ({"predictor": None}, "cannot be run"),
        ({"predictor": "nobody"}, "nobody"),
        ({"prefetch": "top:0"}, "at least 1"),
        ({"distance": 0}, "distance is 0"),
        ({"distance": "2"}, "must be of type int"),
        ({"distance": True}, "must be of type int"),
        ({"read_seconds": float("nan")}, "read_seconds is nan"),
        ({"expected": {"low": 1}}, r"expected\.tokens_per_second is missing"),
        ({"surprise": 1}, "surprise is no field"),
    ],
)
def test_what_no_plan_can_say_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "plan.json"
    write(PLAN, path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(SourceError, match=message):
        read(path)


@pytest.mark.parametrize(("text", "message"), [("{", "no JSON"), ("[]", "no plan"), ("{}", "no plan")])
def test_what_is_no_plan_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(SourceError, match=message):
        read(tmp_path / "plan.json")
    with pytest.raises(SourceError, match="cannot be read"):
        read(tmp_path / "absent.json")


def test_a_run_takes_the_plan_where_nothing_was_typed(tmp_path: Path) -> None:
    from foregate.cli.run import _settings

    nothing: dict[str, str | None] = {"memory": None, "evict": None, "prefetch": None}
    assert _settings("m", None, None, nothing) == {"memory": "25%", "evict": "predicted", "prefetch": None}
    write(PLAN, tmp_path / "plan.json")
    found = _settings("m", tmp_path / "plan.json", None, {**nothing, "evict": "lru"})
    assert found == {
        "memory": "25%", "evict": "lru", "prefetch": PLAN.wish, "read_seconds": 0.001, "window_seconds": 0.002,
        "look_seconds": 0.0,
    }  # fmt: skip
    # A speculation mode that was typed names another predictor: the plan's is not asked.
    assert _settings("m", tmp_path / "plan.json", None, {**nothing, "prefetch": ""})["prefetch"] is None

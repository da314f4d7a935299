"""Tiny models on disk, whole and run from slots, for tests that compare the two. No tests here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tiny_models  # noqa: E402

from foregate.runtime.engine import Engine  # noqa: E402
from foregate.runtime.loading import HollowModel, load_hollow  # noqa: E402
from foregate.runtime.wish import Wish  # noqa: E402
from foregate.store.checkpoint import CheckpointStore  # noqa: E402

TWO_PROMPTS = torch.tensor(
    [[5, 9, 23, 44, 7, 8, 100, 3, 50, 61, 77, 90], [0, 0, 0, 12, 14, 90, 91, 92, 93, 94, 95, 96]]
)
"""Token ids, the shorter one padded on the left."""


@dataclass(frozen=True, eq=False)
class Pair:
    """A model in a folder: whole, its experts computed by `eager`; and hollow, to be run from slots."""

    folder: Path
    whole: Any
    hollow: HollowModel

    @classmethod
    def of(cls, name: str, folder: Path, dtype: Any = torch.float32, model: Any = None) -> "Pair":
        """The family's tiny model, or the one given, saved and loaded both ways."""
        model = (tiny_models.family(name) if model is None else model).to(dtype)
        model.save_pretrained(folder)
        tiny_models.tokenizer().save_pretrained(folder)
        hollow = load_hollow(str(folder))
        whole = type(hollow.model).from_pretrained(folder, dtype=dtype, experts_implementation="eager").eval()
        for tensor in (*whole.parameters(), *whole.buffers()):
            tensor.data = tensor.data.clone()  # as loaded it lies in the file, at any address; see docs of load_hollow
        return cls(folder, whole, hollow)

    @property
    def experts(self) -> int:
        """Of all layers."""
        return len(self.hollow.layers) * max(layer.num_experts for layer in self.hollow.layers)

    @property
    def fewest(self) -> int:
        """The fewest slots that a planner takes."""
        return max(2, *(layer.top_k for layer in self.hollow.layers))

    def engine(self, slots: int | None = None, prefetch: str | None = None, **options: Any) -> Engine:
        """The hollow model at work, with the fewest slots."""
        store = CheckpointStore(self.folder)
        if options.get("evict") == "static":
            shape = store.num_layers, store.num_experts
            options["usage"] = np.random.default_rng(0).integers(0, 9, shape)
        return Engine(self.hollow, store, slots or self.fewest, **{"wish": Wish.of(prefetch), **options})


def written(generate: Any, ids: Any = TWO_PROMPTS, **options: Any) -> Any:
    """What a model writes after the prompts, with the logits of every token."""
    given = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, **options}
    torch.manual_seed(0)
    return generate(ids, attention_mask=(ids > 0).long(), return_dict_in_generate=True, output_logits=True, **given)


def same(a: Any, b: Any) -> bool:
    """Whether both wrote the same ids, from logits that are equal to the last bit."""
    pairs = zip(a.logits, b.logits, strict=True)
    return torch.equal(a.sequences, b.sequences) and all(torch.equal(x, y) for x, y in pairs)

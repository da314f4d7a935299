"""The interface of every store: one expert's bytes into a buffer, and the buffer as weights. Holds no weights."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foregate.store.layout import Layout

Buffer = NDArray[np.uint8]  # [slot_bytes], contiguous; starting at a multiple of 4096 spares a copy


class ExpertStore(ABC):
    """Where a model's expert weights are kept while they are not in a slot.

    num_layers    mixture layers, counted from 0 as everywhere in foregate: where a model has an encoder and a decoder,
                  the encoder's first, then the decoder's (the order of `foregate.models.stacks`)
    num_experts   of every layer: those that have weights (LongCat's identity experts, numbered behind them, have none)
    layout        of one expert in a slot: the same for all layers
    bits          of one weight: 32, 16, 8 or 4
    beside        bytes of memory that each thread which reads takes besides what it reads into
    """

    num_layers: int
    num_experts: int
    layout: Layout
    bits: int
    beside: int = 0

    @abstractmethod
    def read_into(self, layer: int, expert: int, buffer: Buffer) -> int:
        """Fill `buffer` with one expert; safe to call from several threads at once, which the GIL does not hold up.

        Returns: bytes read from the device.
        Raises: StorageError if the disk refuses (trying again may help); SourceError if what it holds is damaged
        (trying again will not). The buffer then holds nothing of use.
        """

    @abstractmethod
    def views(self, buffer: Any) -> dict[str, Any]:
        """The weights in a filled buffer (torch uint8 [slot_bytes], any device), by the names of `layout.parts`.

        Tensors that share the buffer's memory for 32 and 16 bits. Below that, objects that
        `torch.nn.functional.linear` and `@` compute with, named after the parameters of the 16-bit model.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the files. Buffers stay good; reading afterwards is our mistake."""

"""The order in which a training run reads its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset


class ShuffledRows(Dataset):
    """`count` items drawn from `rows`: every epoch is a fresh permutation given by (seed, epoch) alone.

    To be read in order (`train_sampling_strategy="sequential"`). With `lengths` and `batch_size`, rows of similar
    length share a batch: each chunk of eight batches is sorted by length, and its batches are shuffled. That
    saves padding.
    """

    def __init__(
        self, rows: Any, count: int, seed: int, lengths: Sequence[int] | None = None, batch_size: int = 1
    ) -> None:
        self.rows, self.count, self.seed = rows, count, seed
        self.lengths, self.batch_size = lengths, batch_size
        self._epochs: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        epoch, place = divmod(index, len(self.rows))
        if epoch not in self._epochs:
            self._epochs = {epoch: self.order(epoch)}
        return self.rows[self._epochs[epoch][place]]

    def order(self, epoch: int) -> list[int]:
        """The permutation of an epoch."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.rows), generator=generator).tolist()
        if self.lengths is None or self.batch_size == 1:
            return order
        # A batch may span two epochs, so batches are aligned to the stream of items and not to the epoch.
        offset = -(epoch * len(self.rows)) % self.batch_size
        size, chunk = self.batch_size, 8 * self.batch_size
        sorted_order: list[int] = order[:offset]
        for start in range(offset, len(order), chunk):
            part = sorted(order[start : start + chunk], key=lambda row: self.lengths[row])  # type: ignore[index]
            full = len(part) // size
            for batch in torch.randperm(full, generator=generator).tolist():
                sorted_order += part[batch * size : (batch + 1) * size]
            sorted_order += part[full * size :]
        return sorted_order

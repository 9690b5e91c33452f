"""The order of the images of a split, and how they are divided into batches and among ranks.

All of it is a function of (seed, epoch, rank): nothing depends on what was iterated before, so a run that is
resumed at an epoch sees exactly the batches of a run that was never stopped.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError
from .checks import whole_number


def derived_seed(*parts: int | str) -> int:
    """A seed of 63 bits from numbers and words, the same on every machine and version of Python.

    >>> derived_seed(0, 1, "order") == derived_seed(0, 1, "order") != derived_seed(0, 2, "order")
    True
    """
    text = ",".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def derived_generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded with `derived_seed(*parts)`."""
    return torch.Generator().manual_seed(derived_seed(*parts))


@dataclass(frozen=True)
class Order:
    """The batches of one rank over a split of `count` images.

    With `shuffle` (training) every rank gets equally many images and batches: the epoch's permutation is
    padded by wrapping around until the ranks divide it.  A last batch of a single image is left out, because
    BatchNorm cannot train on one value per channel (unless batch_size=1 asks for exactly that).

    Without `shuffle` (evaluation) the images come in the order of the split, each exactly once over all
    ranks: rank r takes r, r + world_size, ...  Ranks may then differ by one image, and so in their number of
    batches; a rank may even get none.  Sum counts over the ranks after the loop, not inside it.

    Raises `UserError` if an argument does not fit or no batch would remain.

    >>> [batch.tolist() for batch in Order(count=5, batch_size=2).batches(epoch=0)]
    [[0, 1], [2, 3], [4]]
    >>> order = Order(count=5, batch_size=2, shuffle=True, seed=1)
    >>> len(order), order.images
    (2, 4)
    """

    count: int
    batch_size: int
    shuffle: bool = False
    drop_last: bool = False
    seed: int = 0
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("seed", None), ("world_size", 1), ("rank", 0)):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), least=least))
        if self.rank >= self.world_size:
            raise UserError(f"rank={self.rank} must be below world_size={self.world_size}")
        self._check_some_batch_remains()

    def _check_some_batch_remains(self) -> None:
        # checked on the smallest share, so that all ranks agree: if one raised alone, the others would
        # wait for it
        smallest = self._share if self.shuffle else self.count // self.world_size
        share = "images" if self.world_size == 1 else "images of each rank"
        if self.drop_last and smallest < self.batch_size:
            way_out = (
                f"use a batch_size of at most {smallest} or drop_last=False"
                if smallest
                else "use fewer ranks"
            )
            raise UserError(
                f"batch_size={self.batch_size} is more than the {smallest} {share}, and drop_last=True "
                f"leaves no batch: {way_out}"
            )
        if self.shuffle and self._share == 1 and self.batch_size > 1:
            raise UserError(
                f"the {self.count} images give each of {self.world_size} ranks a single one, and BatchNorm "
                "cannot train on a batch of one: give more images, or use batch_size=1"
            )

    @property
    def _share(self) -> int:
        """How many images this rank gets, before they are cut into batches."""
        if self.shuffle:
            return -(-self.count // self.world_size)
        return len(range(self.rank, self.count, self.world_size))

    def __len__(self) -> int:
        """The number of batches of this rank, the same in every epoch."""
        full, rest = divmod(self._share, self.batch_size)
        left_out = self.drop_last or (self.shuffle and rest == 1 and self.batch_size > 1)
        return full + (rest > 0 and not left_out)

    @property
    def images(self) -> int:
        """The number of images in this rank's batches of one epoch."""
        return min(self._share, len(self) * self.batch_size)

    def positions(self, epoch: int) -> Tensor:
        """Positions in the split, int64 (images,), batch after batch."""
        if not self.shuffle:
            return torch.arange(self.rank, self.count, self.world_size)[: self.images]
        order = torch.randperm(self.count, generator=derived_generator(self.seed, epoch, "order"))
        dealt = torch.arange(self.rank, self._share * self.world_size, self.world_size) % self.count
        return order[dealt][: self.images]

    def batches(self, epoch: int) -> tuple[Tensor, ...]:
        """`positions(epoch)`, cut into batches."""
        return torch.split(self.positions(epoch), self.batch_size) if len(self) else ()

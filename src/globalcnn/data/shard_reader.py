"""What one process reads from WebDataset shards in an epoch, through timm's reader."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from ..errors import UserError
from .order import derived_seed
from .pictures import BadImage, decoded_bytes
from .shards import Shards
from .streamed import Failure
from .transforms import Transform, seeded_transforms

IMAGE_SUFFIXES = "jpg;jpeg;png;webp"
SHUFFLED, SHUFFLED_AT_FIRST = 2048, 512  # samples, not yet decoded, among which a worker draws the next


@dataclass(frozen=True)
class Plan:
    """What one process reads in an epoch. shards: all of the split if mixed, else this process's own;
    batches: how many; for mixed ones all are full.
    """

    shards: Shards
    mixed: bool
    batch_size: int
    batches: int
    drop_last: bool
    rank: int
    world_size: int

    @property
    def most_workers(self) -> int:
        each = len(self.shards.paths) // (self.world_size if self.mixed else 1)
        return min(each, self.batches) if self.mixed else each

    def samples(self, worker: int, workers: int) -> int:
        """How many images a worker reads in an epoch."""
        if self.mixed:
            return len(range(worker, self.batches, workers)) * self.batch_size
        own = sum(self.shards.lengths[worker::workers])
        return own // self.batch_size * self.batch_size if self.drop_last else own


def plan_of(
    shards: Shards, *, batch_size: int, mixed: bool, drop_last: bool, rank: int, world_size: int
) -> Plan:
    """The plan of process `rank` of `world_size`."""
    if mixed:
        batches = -(-shards.images // (batch_size * world_size))
        return Plan(shards, True, batch_size, batches, drop_last, rank, world_size)
    own = shards.chosen(range(rank, len(shards.paths), world_size))
    return Plan(own, False, batch_size, 0, drop_last, rank, world_size)


class Samples(IterableDataset[Any]):
    """The decoded images of one epoch; in a worker, that worker's share."""

    def __init__(
        self,
        plan: Plan,
        transform: Transform,
        *,
        split: str,
        seed: int,
        epoch: int,
        classes: int,
        skip_damaged: bool = False,
    ) -> None:
        self._plan, self._transform, self._split = plan, transform, split
        self._seed, self._epoch, self._classes = seed, epoch, classes
        self._skip_damaged = skip_damaged

    def __iter__(self) -> Iterator[tuple[Tensor, int] | Failure]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        try:
            yield from self._read(worker, workers)
        except UserError as error:  # a value, as an exception from a worker arrives as a traceback
            yield Failure(str(error))

    def _read(self, worker: int, workers: int) -> Iterator[tuple[Tensor, int] | Failure]:
        plan = self._plan
        wanted, got = plan.samples(worker, workers), 0
        samples = iter(_reader(plan, workers, seed=derived_seed(self._seed, self._epoch, "shards")))
        with _refusing(plan.shards, self._split, skip=self._skip_damaged) as refused:
            # without a limit an evaluation sees images beyond those that were counted, too
            limited = plan.mixed or plan.drop_last
            for picture, label in islice(samples, wanted) if limited else samples:
                if not 0 <= label < self._classes:
                    raise UserError(
                        f"a label in the shards of {self._split} is {label}, and the classes are 0 to "
                        f"{self._classes - 1}: give the right num_classes or list of classes"
                    )
                parts = (self._seed, self._epoch, plan.rank, worker, got, "transform")
                with seeded_transforms(derived_seed(*parts)):
                    pixels = torch.as_tensor(self._transform(picture))
                got += 1
                yield pixels, label
        yield from map(Failure, refused.messages)
        if refused.messages:
            return
        if got != wanted and (plan.shards.counted or plan.mixed or not got):
            first = plan.shards.paths[0 if plan.mixed else worker]
            raise UserError(
                f"{wanted} images were promised in {first!r} and other shards of {self._split}, and {got} "
                "are there: correct their numbers, or replace shards that were cut short"
            )


def _reader(plan: Plan, workers: int, *, seed: int) -> Any:
    """timm's reader of these shards for one epoch."""
    from timm.data.readers import reader_wds

    with _silent(_log()):  # it would warn that there is no _info.json; the numbers are known already
        reader = reader_wds.ReaderWds(
            os.path.dirname(plan.shards.paths[0]),
            split="given below.tar",
            is_training=plan.mixed,
            batch_size=plan.batch_size,
            seed=seed,
            input_key=IMAGE_SUFFIXES,
            sample_shuffle_size=SHUFFLED,
            sample_initial_size=SHUFFLED_AT_FIRST,
            num_samples=max(workers * plan.world_size * plan.samples(0, workers), 1),
        )
    shards = plan.shards
    reader.split_info.filenames = shards.paths  # type: ignore[assignment, unused-ignore]
    reader.split_info.alt_label = shards.label_key
    # without mixing the shards are this process's own already, and each image must come once
    reader.dist_rank, reader.dist_num_replicas = (plan.rank, plan.world_size) if plan.mixed else (0, 1)
    _decode_by_our_rules(reader, plan.shards.label_key)
    return reader


def _decode_by_our_rules(reader: Any, label_key: str) -> None:
    """Make the reader decode images by the rules of `pictures`, like those of folders.

    timm's own stage opens any format, PostScript included. The reader builds its stages when it is first
    iterated; the decoding stage is replaced then.
    """
    import webdataset
    from timm.data.readers import reader_wds

    make_stages = reader._lazy_init
    ours = webdataset.map(partial(_sample, label_key=label_key), handler=reader_wds.log_and_continue)

    def with_our_stage() -> None:
        make_stages()
        stages = reader.ds.pipeline
        for place, stage in enumerate(stages):
            if any(getattr(arg, "func", None) is reader_wds._decode for arg in getattr(stage, "args", ())):
                stages[place] = ours
                return
        raise UserError("this version of timm reads shards in a way that is not known here: install timm 1.0")

    reader._lazy_init = with_our_stage


def _sample(sample: dict[str, Any], *, label_key: str) -> dict[str, Any]:
    """The image and label of one sample, under the keys that the rest of timm's pipeline expects.

    Of what is in a sample only the image and its label (a number in .cls, or a field of .json) are looked
    at; nothing is unpickled.
    """
    name = f"{sample.get('__key__')} in {sample.get('__url__')}"
    try:
        label = int(json.loads(sample["json"])[label_key] if label_key else sample["cls"])
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        field = f"{label_key!r} in its .json" if label_key else "in a .cls file"
        text = f"the image {name} has no label, which must be a whole number {field}: fix the shard"
        raise BadImage(name, "no label", text) from error
    suffix = next((suffix for suffix in IMAGE_SUFFIXES.split(";") if suffix in sample), None)
    if suffix is None:
        raise BadImage(name, f"it has none of {', '.join(IMAGE_SUFFIXES.split(';'))}")
    picture = decoded_bytes(sample[suffix], name).convert("RGB")
    return {"jpg": picture, "target": label, "json": sample.get("json")}


def _log() -> logging.Logger:
    return logging.getLogger("timm.data.readers.reader_wds")


@contextmanager
def _silent(logger: logging.Logger) -> Iterator[None]:
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


class _Refusing(logging.Handler):
    """Turns what timm's reader skips with a warning into a `UserError`, or into a message if it may be
    skipped."""

    def __init__(self, shards: Shards, split: str, *, skip: bool) -> None:
        super().__init__(logging.WARNING)
        self._shards, self._split, self._skip = shards, split, skip
        self.messages: dict[str, None] = {}  # in the order found, each once

    def emit(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if error is None:
            return
        # one error comes here several times, on its way out of the reader's stages
        if self._skip or not self.messages:
            self.messages[self._text(error)] = None
        if not self._skip:
            raise UserError(next(iter(self.messages)))

    def _text(self, error: BaseException) -> str:
        if isinstance(error, BadImage):
            return str(error)
        texts = [str(arg) for arg in error.args]
        named = [path for path in self._shards.paths if any(path in text for text in texts)]
        where = f"the shard {named[0]!r}" if named else f"an image or label in the shards of {self._split}"
        reason = (texts[0] if texts else "").partition(" @ ")[0].strip() or type(error).__name__
        return f"{where} is damaged, cut short or unreadable ({' '.join(reason.split())}): replace it"


@contextmanager
def _refusing(shards: Shards, split: str, *, skip: bool) -> Iterator[_Refusing]:
    handler = _Refusing(shards, split, skip=skip)
    log = _log()
    propagates = log.propagate
    log.addHandler(handler)
    log.propagate = not skip  # the caller reports what was skipped, once
    try:
        yield handler
    finally:
        log.removeHandler(handler)
        log.propagate = propagates

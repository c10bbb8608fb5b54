"""Pre-training on shards, where one disk or one folder does not hold the images; exact, as all of pre-training is.

Which picture sample k is follows from the seed and k alone, so that a run that goes on, or another number of workers or
processes, needs no position to be kept.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from medmdm.data.dataset import CropDataset
from medmdm.data.selection import Selection
from medmdm.data.shard_files import as_file, known_of, picture_bytes, read_index, scratch, shard_files
from medmdm.data.transforms.spatial import with_spacing
from medmdm.errors import UserError, counted
from medmdm.files import lines_hash
from medmdm.progress import followed

_HELD_OUT_SHARE = 0.1


def select_shards(shards: str | Sequence[str], num_held_out: int = 8, seed: int = 0) -> Selection:
    """Choose shards to pre-train on, and pictures of them that previews are made of and that do not train.

    Args:
        shards: see :func:`shard_files`.
        num_held_out: how many pictures; a tenth at most.
        seed: chooses them.

    Raises:
        UserError: as :func:`shard_files` and :func:`read_index`, there is one picture only, or none is to be held out.
    """
    if num_held_out < 1:
        raise UserError(f"num_held_out is {num_held_out}: give 1 or more.")
    files = shard_files(shards)
    counts = [len(read_index(path)) for path in files]
    total = sum(counts)
    if total < 2:
        raise UserError(f"{files[0]} holds a single picture: previews need one more.")
    wanted = min(num_held_out, max(1, int(total * _HELD_OUT_SHARE)))
    ends = np.cumsum(counts)
    chosen: dict[int, list[int]] = {}
    for number in np.random.default_rng([seed, 9]).choice(total, wanted, replace=False):
        which = int(np.searchsorted(ends, number, side="right"))
        chosen.setdefault(which, []).append(int(number - (ends[which] - counts[which])))
    validation, folder = [], scratch()
    for which, numbers in sorted(chosen.items()):
        for number in numbers:
            image = read_index(files[which])[number]
            path = folder / f"held_out_{which}_{number}{PurePath(image['name']).suffix}"
            path.write_bytes(picture_bytes(files[which], image))
            validation.append({"image": str(path), "name": f"{files[which].name}/{image['name']}", **known_of(image)})
    training = tuple(
        {"image": str(path), "name": path.name, "held_out": sorted(chosen.get(which, ()))}
        for which, path in enumerate(files)
    )
    sentences = (f"{counted(len(files), 'shard')} of {counted(total, 'picture')}, {wanted} held out for previews",)
    return Selection(folder, None, training, tuple(validation), (), sentences, ())


class ShardDataset(CropDataset):
    """Random crops of the pictures of shards, in streams.

    As many streams as possible fill the places of a batch, each from shards of its own, one picture after the other; at
    their end a stream takes its shards in another order.

    Sample ``k`` is a function of the seed, the batch size and ``k``, as in :class:`CropDataset`: the number of workers,
    the processes and resuming change nothing. Pictures are not drawn with replacement: a stream shows each of its own
    once before any of them again. Shards should be alike in size, and each a mixture of the set
    (:func:`write_shards` makes them so). With a number of processes that divides the number of streams each process
    reads shards of its own.

    Args:
        data: entries of :func:`select_shards`.
        transform: as of :class:`CropDataset`.
        seed: whole number ≥ 0.
        channels: of each picture.
        batch_size: global batch, the sum over all processes; the streams are its largest divisor that is no more than
            there are shards.
        num_samples: as of :class:`CropDataset`.

    Raises:
        UserError: a picture has another number of channels, or a shard holds none that trains.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Sequence[Callable] | Callable | None,
        seed: int = 0,
        channels: int | None = None,
        batch_size: int = 1,
        num_samples: int = 2**31 - 1,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}: give 1 or more.")
        self.batch_size = batch_size
        super().__init__(data, transform, seed, channels, cache_gib=0, num_samples=num_samples)

    @property
    def entries(self) -> list[dict[str, Any]]:
        """What the indexes say of each picture that trains."""
        return [image for images in self.images for image in images]

    @property
    def ledger(self) -> list[str]:
        """Sorted, distinct SHA-256 of the pixels that train."""
        return sorted({image["pixels_sha256"] for image in self.entries})

    @property
    def sentences(self) -> list[str]:
        """What to tell the user about the streams."""
        streams = f"{counted(self.streams, 'stream')} of shards, in the order of the tars"
        return [f"{counted(self.num_images, 'picture')} in {streams}"]

    def place(self, index: int) -> tuple[int, int]:
        """Return which picture sample ``index`` is a crop of: (number of the shard, number among those that train)."""
        step, slot = divmod(index, self.batch_size)
        share = self.batch_size // self.streams  # places of a batch that a stream fills
        stream, turn = divmod(slot, share)
        shards = self._shards[stream]
        epoch, position = divmod(step * share + turn, sum(len(self.images[shard]) for shard in shards))
        order, ends = self._order(stream, epoch)
        which = bisect_right(ends, position)
        return order[which], position - (ends[which - 1] if which else 0)

    def _order(self, stream: int, epoch: int) -> tuple[list[int], list[int]]:
        """Return a stream's shards in the order of an epoch, and how many pictures there are up to the end of each."""
        if self._last.get(stream, (-1,))[0] != epoch:
            shards = self._shards[stream]
            order = [shards[i] for i in np.random.default_rng([self.seed, 10, stream, epoch]).permutation(len(shards))]
            ends = np.cumsum([len(self.images[shard]) for shard in order]).tolist()
            self._last[stream] = epoch, order, ends
        return self._last[stream][1], self._last[stream][2]

    def _transform(self, index: int) -> dict[str, Any]:
        self._seed(index)
        return {"image": self._crop(*self.place(index)), "index": index}

    def _crop(self, shard: int, number: int) -> Any:
        path, image = Path(self.data[shard]["image"]), self.images[shard][number]
        with as_file(picture_bytes(path, image), image, path) as file:
            entry = with_spacing({"image": str(file), **known_of(image)}, {})
            return self._finish(self._prepare_entry(entry)[0])["image"]

    def _fill(self, channels: int | None, budget: int, num_threads: int, progress: bool) -> None:
        """Look at all indexes, and put a picture of each shard through the whole of ``transform``."""
        self.images: list[list[dict[str, Any]]] = []
        shapes = []
        self.transform.set_random_state(seed=0)
        for entry in followed(self.data, "looking at shards", shown=progress):
            path, held_out = Path(entry["image"]), set(entry.get("held_out", ()))
            images = [image for n, image in enumerate(read_index(path)) if n not in held_out]
            if not images:
                raise UserError(f"{path} holds no picture but those held out for previews: make larger shards.")
            wrong = [image for image in images if channels not in (None, image["channels"])]
            if wrong:
                count = counted(wrong[0]["channels"], "channel")
                raise UserError(
                    f"{path}: {wrong[0]['name']} has {count}, but the network takes {channels}: leave such pictures "
                    f"out of the shards, or pass --channels if all are so."
                )
            self.images.append(images)
            digest = lines_hash([f"{image['name']} {image['pixels_sha256']}" for image in images])
            self._hashes.append((digest, digest))
            shapes.append(tuple(self._crop(len(self.images) - 1, 0).shape))
        self._check_shapes(shapes, channels)
        most = min(self.batch_size, len(self.data))
        self.streams = max(n for n in range(1, most + 1) if self.batch_size % n == 0)
        order = np.random.default_rng([self.seed, 11]).permutation(len(self.data)).tolist()
        self._shards = [order[stream :: self.streams] for stream in range(self.streams)]
        self._last: dict[int, tuple[int, list[int], list[int]]] = {}

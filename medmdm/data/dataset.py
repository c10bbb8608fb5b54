"""The pre-training data set and its batches: sample k is the same crop of the same image whoever asks, and whenever."""

from __future__ import annotations

import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.pool import AsyncResult, ThreadPool
from typing import Any

import numpy as np
import torch
from monai.data import Dataset, MetaTensor
from monai.transforms import RandomizableTrait, Transform
from torch.utils.data import Sampler

from medmdm.data.given_labels import given_map
from medmdm.data.threads import decoding_threads
from medmdm.data.transforms.intensity import as_monai_loads, file_dtype_tensor, is_flat
from medmdm.data.transforms.spatial import cut_region, plain_tensor
from medmdm.data.validity import check_finite, check_range
from medmdm.errors import UserError, counted, find_user_error
from medmdm.files import lines_hash, pixel_hash, tensor_hash, text_hash
from medmdm.patients import patient_id
from medmdm.progress import followed

logger = logging.getLogger(__name__)


class CropDataset(Dataset):
    """Random crops, drawn with replacement, each a function of the seed and its number only.

    Sample ``k`` takes its image and the seed of all MONAI random transforms from ``(seed, k)``, so that the number
    of workers, the batch size, the process and resuming change nothing. (A random transform must draw from its own
    ``self.R``, as MONAI's do.) ``transform`` is split as MONAI's ``CacheDataset`` splits it: what comes before the
    first random transform runs once per image and is kept in memory, in the file's own type, as far as ``cache_gib``
    goes; images beyond that are decoded again for every crop.

    Constructing it decodes every image once and puts it through the whole of ``transform``, so that bad files are
    found before the first training step. Of a slide (:func:`medmdm.data.tile_slides`) one crop is: its crops are read
    as they are drawn, uniformly over its tissue, and nothing of it is kept.

    Args:
        data: entries ``{"image": path, ...}`` as :func:`medmdm.data.select_training_images` or
            :func:`medmdm.data.hold_out` gives them.
        transform: MONAI dictionary transforms from a path to a float tensor ``[C, h, w]`` (of whole volumes ``[C, d, h,
            w]``) in [−1, 1] under "image".
        seed: whole number ≥ 0.
        channels: channels the network takes; an image with another number is an error. ``None``: those of most images.
        cache_gib: memory for decoded images, in GiB, for each process (its workers share it where they are forked).
        num_samples: length of the data set; batches come by index, so it matters to samplers other than
            :class:`medmdm.data.StepSampler` only.
        num_threads: threads that decode at the start; ``None``: up to 8, as there are cores.
        progress: log how far the decoding has come.
        label_as: name under which a sample has what the corruption is given of its label, see
            :func:`medmdm.data.given_labels.given_map`; ``None``: labels are not looked at.

    Raises:
        UserError: no data, an image that cannot be read or has another number of channels or non-finite values, or
            crops that differ in size; the sentence names the file.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Sequence[Callable] | Callable | None,
        seed: int = 0,
        channels: int | None = None,
        cache_gib: float = 4.0,
        num_samples: int = 2**31 - 1,
        num_threads: int | None = None,
        progress: bool = True,
        label_as: str | None = None,
    ) -> None:
        super().__init__(data=[dict(entry) for entry in data], transform=transform)
        if not self.data:
            raise UserError("there is no image to train on: check dataset_dir and data_list.")
        if seed < 0:
            raise UserError(f"seed is {seed}: give a whole number of 0 or more.")
        if cache_gib < 0:
            raise UserError(f"cache_gib is {cache_gib}: give 0 or more.")
        self.seed = seed
        self.num_samples = num_samples
        self.label_as = label_as
        self._all_slices = all("position" in entry for entry in self.data)
        first_random = self.transform.get_index_of_first(
            lambda t: isinstance(t, RandomizableTrait) or not isinstance(t, Transform)
        )
        self._first_random = len(self.transform.transforms) if first_random is None else first_random
        self._cache: dict[int, dict[str, Any]] = {}
        self._cached_bytes = 0
        self._hashes: list[tuple[str, str]] = []
        #: SHA-256 of each label that is given to the corruption, "" of an image without.
        self.label_hashes: list[str] = []
        self._fill(channels, int(cache_gib * 2**30), num_threads or min(8, os.cpu_count() or 1), progress)

    def __len__(self) -> int:
        return self.num_samples

    @property
    def entries(self) -> list[dict[str, Any]]:
        """What is known of each image that trains."""
        return list(self.data)

    @property
    def num_images(self) -> int:
        """How many images train."""
        return len(self.entries)

    @property
    def ledger(self) -> list[str]:
        """Sorted, distinct SHA-256 of the pixels that train: each case, and the whole image where a case is a part.

        Slices count as their volume, whose hash does not depend on its file format or the order of its axes.
        """
        cases = zip(self.data, self._hashes, strict=True)
        # Of a volume its own hash says it all: one for each of its slices would only fill the weights file.
        return sorted({digest for entry, pair in cases for digest in (pair[1:] if "volume_hash" in entry else pair)})

    @property
    def labelled(self) -> dict[str, str]:
        """SHA-256 of each case whose label trains, and of the whole image that it is a part of."""
        if self.label_as is None:
            return {}
        cases = zip(self.data, self._hashes, strict=True)
        labelled = [(entry, *pair) for entry, pair in cases if entry.get("label") is not None]
        return {whole if "volume_hash" in entry else case: whole for entry, case, whole in labelled}

    @property
    def case_hashes(self) -> list[str]:
        """SHA-256 of the pixels of each entry of ``data``, in its order, with the strip that previews took from it."""
        return [case for case, _ in self._hashes]

    @property
    def data_hash(self) -> str:
        """One SHA-256 that stands for all training images, whatever their order, names and file formats."""
        return lines_hash(self.case_hashes)

    @property
    def patient_ids(self) -> list[str]:
        """Sorted, distinct patient ids in clear text: for memory only, hash them before they are written."""
        known = {patient_id(image.get("patient_id")) for image in self.entries}
        return sorted(patient for patient in known if patient is not None)

    @property
    def sentences(self) -> list[str]:
        """What to tell the user about the images and the cache."""
        images = len(self.data)
        decoded = sum("slide" not in entry for entry in self.data)
        size = self._cached_bytes / 2**20
        kept = f"{len(self._cache)} of {counted(decoded, 'image', 'is', 'are')}"
        sentences = [f"{kept} kept decoded in memory ({size:.0f} MiB)"] if decoded else []
        if len(self._cache) < decoded:
            sentences[0] += "; the others are decoded for every crop: raise cache_gib if you can"
        repeated = images - len(set(self.case_hashes))
        if repeated:
            sentences.append(f"{repeated} of {images} images are pixel-identical to another one")
        return sentences

    def _transform(self, index: int) -> dict[str, Any]:
        """Return sample ``index``: ``{"image": [C, *spatial] float32 tensor in [-1, 1], "index": index}``.

        Where all images are slices of volumes, also ``position``: the slice's place along the axis, from 0 to 1. With
        ``label_as`` that map, ``[1, h, w]``, under its name.
        """
        choice, place = self._seed(index)
        which = int(np.random.default_rng(choice).integers(len(self.data)))
        item = self._cache[which] if which in self._cache else self._prepare(which, place)[0]
        sample = {**self._finish(item), "index": index}
        if self._all_slices:
            sample["position"] = float(self.data[which]["position"])
        return sample

    def _seed(self, index: int) -> tuple[np.random.SeedSequence, np.random.SeedSequence]:
        """Seed the transforms for a sample; return the seeds of which image it is, and of the place on a slide."""
        if not 0 <= index < self.num_samples:
            raise IndexError(f"sample {index} of {self.num_samples}")
        choice, randomness, place = np.random.SeedSequence([self.seed, index]).spawn(3)
        self.transform.set_random_state(state=np.random.RandomState(np.random.MT19937(randomness)))
        return choice, place

    def _prepare(
        self, which: int, place: np.random.SeedSequence | None = None
    ) -> tuple[dict[str, Any], tuple[str, str]]:
        """Do :meth:`_prepare_entry`; of a slide ``place`` seeds where a crop is drawn."""
        entry = self.data[which]
        if "slide" in entry:
            entry = {**entry, "tile": entry["slide"].draw(np.random.default_rng(place or [self.seed, which]))}
        return self._prepare_entry(entry)

    def _prepare_entry(self, entry: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, str]]:
        """Run the deterministic transforms on an entry; return the item and its (case, whole image) hashes."""
        item: dict[str, Any] = dict(entry)
        hashes: tuple[str, str] | None = None
        with _naming(entry["image"]):
            for step in range(self._first_random):
                item = self.transform(item, start=step, end=step + 1, threading=True)
                if hashes is None and isinstance(item["image"], torch.Tensor):  # just loaded
                    hashes = _hash_case(item["image"], entry)
            if hashes is None:
                raise UserError("the first random transform comes before the one that loads the image: reorder them.")
            image = item["image"]
            check_finite(plain_tensor(image).numpy(), entry["image"])
        found = image.meta if isinstance(image, MetaTensor) else {}
        meta = {key: found[key] for key in ("original_dtype", "spacing") if key in found}
        meta["filename_or_obj"] = str(entry["image"])
        item |= {"image": file_dtype_tensor(image).contiguous(), "_meta": meta}
        if self._is_labelled(item):
            item["label"] = plain_tensor(item["label"]).contiguous()
            meta["label"] = str(entry["label"])
        return item, hashes

    def _finish(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """Run the transforms from the first random one on; return the image and what else a sample has of it."""
        image = as_monai_loads(item["image"].numpy())
        sample = {key: value for key, value in item.items() if key != "_meta"}
        # A fresh wrapper each time: transforms write into the metadata.
        sample["image"] = MetaTensor(image, meta=dict(item["_meta"]))
        if self._is_labelled(item):
            sample["label"] = MetaTensor(item["label"], meta={"filename_or_obj": item["_meta"]["label"]})
        with _naming(item["_meta"]["filename_or_obj"]):
            sample = self.transform(sample, start=self._first_random)
            made = {"image": plain_tensor(sample["image"]).to(torch.float32).contiguous()}
            if self.label_as is not None:
                made[self.label_as] = given_map(sample, self.label_as)
        return made

    def _is_labelled(self, item: Mapping[str, Any]) -> bool:
        return self.label_as is not None and isinstance(item.get("label"), torch.Tensor)

    def _fill(self, channels: int | None, budget: int, num_threads: int, progress: bool) -> None:
        """Decode every image, check it, and keep those that fit into ``budget`` bytes."""
        shapes: list[tuple[int, ...]] = []
        flat: list[str] = []
        total = len(self.data)
        self.transform.set_random_state(seed=0)  # once: seeding costs as much as a small crop, which is only checked
        with decoding_threads(min(num_threads, total)) as pool:
            prepared = self._prepare_in_order(pool, 2 * num_threads)
            for which, (item, hashes) in enumerate(followed(prepared, "reading images", total, progress)):
                self._hashes.append(hashes)
                if self.label_as is not None:
                    self.label_hashes.append(tensor_hash(item["label"]) if self._is_labelled(item) else "")
                crop = self._finish(item)["image"]
                shapes.append(tuple(crop.shape))
                check_range(crop.numpy(), self.data[which]["image"])
                if "slide" in item:
                    continue
                if is_flat(item["image"], item.get("intensity_range")):
                    flat.append(str(self.data[which]["image"]))
                size = item["image"].nbytes + (item["label"].nbytes if self._is_labelled(item) else 0)
                if self._cached_bytes + size <= budget:
                    self._cache[which] = item
                    self._cached_bytes += size
        if flat:
            told = f"{len(flat)} of {total} images have one value everywhere once they are scaled (first: {flat[0]})"
            if len(flat) == total:
                raise UserError(
                    f"{told}: there is nothing to learn; check the images, and percentiles if they are set."
                )
            logger.warning("%s: nothing can be learnt from them; leave them out, or choose wider percentiles.", told)
        self._check_shapes(shapes, channels)

    def _prepare_in_order(self, pool: ThreadPool, ahead: int) -> Iterator[tuple[dict[str, Any], tuple[str, str]]]:
        """Yield every entry prepared, few ahead of the consumer: ``imap`` could pile up the whole set in memory."""
        waiting: deque[AsyncResult] = deque()
        for which in range(len(self.data)):
            waiting.append(pool.apply_async(self._prepare, (which,)))
            if len(waiting) > ahead:
                yield waiting.popleft().get()
        while waiting:
            yield waiting.popleft().get()

    def _check_shapes(self, shapes: list[tuple[int, ...]], channels: int | None) -> None:
        counts = [shape[0] for shape in shapes]
        wanted = max(set(counts), key=counts.count) if channels is None else channels
        wrong = [which for which, count in enumerate(counts) if count != wanted]
        if wrong:
            name, count = self.data[wrong[0]]["image"], counts[wrong[0]]
            advice = f"{len(wrong)} of {len(counts)} images differ from {wanted}, so convert them or leave them out"
            if set(counts) == {count}:
                advice = f"pass --channels {count}"
            raise UserError(f"{name} has {counted(count, 'channel')}, but the network takes {wanted}: {advice}.")
        for which, shape in enumerate(shapes):
            if shape != shapes[0]:
                raise UserError(
                    f"{self.data[which]['image']} gives crops of {shape[1:]} but {self.data[0]['image']} of "
                    f"{shapes[0][1:]}: put PadToSized with the crop size before the random crop."
                )


class StepSampler(Sampler[list[int]]):
    """Batch sampler that gives step ``s`` the samples ``s·G … s·G + G − 1``, G being the global batch.

    With a data set whose sample ``k`` depends on ``k`` only (:class:`medmdm.data.CropDataset`) this makes a step the
    same whatever the number of workers and processes, and after resuming: set :attr:`start_step` before iterating.

    Args:
        num_steps: number of the step to stop before, counted from 0 (not from ``start_step``).
        batch_size: global batch G, the sum over all processes.
        start_step: first step to give.
        rank: this process, in ``0 … world_size − 1``; it gets its contiguous share of every batch.
        world_size: number of processes; must divide ``batch_size``.

    Raises:
        UserError: a number is out of range or the batch cannot be shared equally.
    """

    def __init__(
        self, num_steps: int, batch_size: int, start_step: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        limits = (("num_steps", num_steps, 0), ("batch_size", batch_size, 1), ("start_step", start_step, 0))
        for name, value, least in limits:
            if value < least:
                raise UserError(f"{name} is {value}: give {least} or more.")
        if not 0 <= rank < world_size:
            raise UserError(f"rank is {rank}: with world_size {world_size} it must be 0 … {world_size - 1}.")
        if batch_size % world_size:
            problem = f"batch_size {batch_size} cannot be shared equally by {world_size} processes"
            raise UserError(f"{problem}: give a multiple of {world_size}.")
        self.num_steps, self.batch_size, self.start_step = num_steps, batch_size, start_step
        self.rank, self.world_size = rank, world_size

    def __iter__(self) -> Iterator[list[int]]:
        share = self.batch_size // self.world_size
        for step in range(self.start_step, self.num_steps):
            first = step * self.batch_size + self.rank * share
            yield list(range(first, first + share))

    def __len__(self) -> int:
        return max(0, self.num_steps - self.start_step)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Turn MONAI's wrapped errors back into the sentence inside, or say which image it was."""
    try:
        yield
    except Exception as error:
        if user_error := find_user_error(error):
            raise user_error from None
        raise RuntimeError(f"a transform failed on {name}") from error


def _hash_case(image: torch.Tensor, entry: Mapping[str, Any]) -> tuple[str, str]:
    # `case_region` is the part the data list names, before a strip was taken from it for previews.
    region = entry.get("case_region", entry.get("region"))
    if "volume_hash" in entry:  # a slice, or whole: its volume was hashed when it was decoded
        frame = [entry["frame"]] if "frame" in entry else []
        case = [entry["volume_hash"], entry["axis"], entry.get("slice"), region, *frame]
        return text_hash(json.dumps(case)), entry["volume_hash"]
    if "slide_hash" in entry:  # of its file: nobody decodes a slide for a hash
        return text_hash(json.dumps([entry["slide_hash"], region])), entry["slide_hash"]
    whole = file_dtype_tensor(image).numpy()
    digest = pixel_hash(whole)
    return (digest if region is None else pixel_hash(cut_region(whole, region, entry["image"]))), digest

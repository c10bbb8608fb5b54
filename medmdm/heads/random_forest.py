"""A random forest on the features of single pixels: scikit-learn grows the trees, tensors evaluate them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medmdm.backbones.extractor import Extractor
from medmdm.backbones.feature_maps import stack
from medmdm.components import buildable, declared
from medmdm.data.reading import Example
from medmdm.errors import UserError, need
from medmdm.heads.pixel_classifier import read_pixels
from medmdm.heads.segmenter import Segmenter
from medmdm.heads.task import Fitted, Task, labelled, views
from medmdm.progress import followed

_LEAST = 1e-7  # probability whose logarithm stands for that of 0: logits are finite, for they are blended
_PIXELS_AT_ONCE = 4096  # whose places in all trees stay in the processor's cache


@buildable
class RandomForest(nn.Module):
    """The trees of a ``sklearn.ensemble.RandomForestClassifier`` as tensors, all of them walked down at once.

    Args:
        in_channels: channels of all feature maps together.
        num_classes: K.
        trees: number of trees.
        nodes: of all trees together.
        depth: of the deepest tree: number of comparisons on the way to its lowest leaf.

    Raises:
        UserError: a number is out of range.
    """

    members = 1
    roots: Tensor
    feature: Tensor
    threshold: Tensor
    left: Tensor
    right: Tensor
    probabilities: Tensor

    def __init__(
        self, in_channels: int = 72, num_classes: int = 2, trees: int = 1, nodes: int = 1, depth: int = 0
    ) -> None:
        super().__init__()
        self.config = declared(locals())
        if min(in_channels, num_classes, trees) < 1 or nodes < trees or depth < 0:
            raise UserError(f"RandomForest: {self.config} are no numbers of a forest.")
        self.num_classes = num_classes
        self.register_buffer("roots", torch.zeros(trees, dtype=torch.int32))
        # Node by node: what is compared, and where to go; a leaf stays where it is.
        self.register_buffer("feature", torch.zeros(nodes, dtype=torch.int32))
        self.register_buffer("threshold", torch.zeros(nodes))
        self.register_buffer("left", torch.zeros(nodes, dtype=torch.int32))
        self.register_buffer("right", torch.zeros(nodes, dtype=torch.int32))
        self.register_buffer("probabilities", torch.zeros(nodes, num_classes))

    @classmethod
    def grown(cls, forest: Any, num_classes: int) -> RandomForest:
        """Return the trees of a fitted ``RandomForestClassifier`` whose classes are numbers below ``num_classes``."""
        trees = [estimator.tree_ for estimator in forest.estimators_]
        sizes = [tree.node_count for tree in trees]
        depth = max(tree.max_depth for tree in trees)
        made = cls(forest.n_features_in_, num_classes, len(trees), sum(sizes), depth)
        roots = np.cumsum([0, *sizes[:-1]])
        is_leaf = np.concatenate([tree.children_left < 0 for tree in trees])
        own = np.arange(sum(sizes))
        for name in ("left", "right"):
            children = [getattr(tree, f"children_{name}") + root for tree, root in zip(trees, roots, strict=True)]
            made.get_buffer(name).copy_(torch.from_numpy(np.where(is_leaf, own, np.concatenate(children))))
        made.roots.copy_(torch.from_numpy(roots))
        made.feature.copy_(torch.from_numpy(np.where(is_leaf, 0, np.concatenate([tree.feature for tree in trees]))))
        # Features are float32: at most a threshold is at most the next float32 below it.
        thresholds = np.concatenate([tree.threshold for tree in trees])
        below = thresholds.astype(np.float32)
        below = np.where(below > thresholds, np.nextafter(below, np.float32(-np.inf)), below)
        made.threshold.copy_(torch.from_numpy(below))
        shares = np.concatenate([tree.value[:, 0] for tree in trees])
        shares = shares / shares.sum(1, keepdims=True)  # counts, in some versions of scikit-learn
        made.probabilities[:, torch.as_tensor(forest.classes_, dtype=torch.long)] = torch.from_numpy(shares).float()
        return made

    def forward(self, maps: Sequence[Tensor], size: Sequence[int], members: slice | None = None) -> Tensor:
        """Return logarithms of probabilities ``[1, B, K, *size]``; see :meth:`PixelClassifier.forward`."""
        x = stack(maps, size).float().flatten(2)
        if not torch.jit.is_tracing() and x.shape[1] != self.config["in_channels"]:
            given = f"{x.shape[1]} channels of features were given"
            raise UserError(f"{given}, but the head expects {self.config['in_channels']}.")
        # What is exported does it in one go: a loop would become thousands of operations.
        whole = torch.jit.is_tracing() or torch.compiler.is_compiling()
        count = math.prod(int(n) for n in size)
        parts = [self._mean(part) for part in x.split(count if whole else _PIXELS_AT_ONCE, dim=2)]
        return torch.cat(parts, dim=2).clamp_min(_LEAST).log().unflatten(2, [int(n) for n in size])[None]

    def _mean(self, x: Tensor) -> Tensor:
        """Return the mean probabilities over trees, ``[B, in_channels, N]`` → ``[B, K, N]``."""
        feature, children = self.feature.long(), torch.stack([self.left, self.right], dim=1).long().flatten()
        node = self.roots.long()[:, None].expand(x.shape[0], -1, x.shape[2])
        for _ in range(self.config["depth"]):
            goes_right = x.gather(1, feature[node]) > self.threshold[node]
            node = children[2 * node + goes_right]
        return self.probabilities[node].mean(1).transpose(1, 2)


@dataclass
class RandomForestHead:
    """A random forest on single pixels, as trainable segmentation in ilastik, Weka or scikit-image fits one.

    Needs scikit-learn (``pip install 'medmdm[forest]'``), to be fitted only: what is fitted is made of tensors. Images
    are read in the views that predictions are made in. Equal seeds give equal bits.

    Args:
        trees: number of trees.
        depth: most comparisons on the way to a leaf.
        pixels: labelled pixels of each image to fit to, drawn without replacement; all of them where it has fewer.
        leaf: fewest of these pixels in a leaf.

    Raises:
        UserError: an argument is out of range, or scikit-learn is missing.
    """

    trees: int = 60
    depth: int = 12
    pixels: int = 3000
    leaf: int = 1

    needs_backbone = True

    def __post_init__(self) -> None:
        if min(self.trees, self.depth, self.pixels, self.leaf) < 1:
            raise UserError("trees, depth, pixels and leaf must be at least 1.")
        need("RandomForestHead", "sklearn", "forest", "scikit-learn")

    def fit(self, task: Task, extractor: Extractor | None) -> Fitted:
        """Fit to drawn pixels of the labelled images; see :class:`medmdm.heads.task.Fitter`."""
        from sklearn.ensemble import RandomForestClassifier  # slow to import, and not everybody has it

        assert extractor is not None
        examples = followed(labelled(task.examples), "reading features of images")
        drawn = [self._draw(e, number, task, extractor) for number, e in enumerate(examples)]
        x, y = (np.concatenate(same) for same in zip(*drawn, strict=True))
        forest = RandomForestClassifier(
            n_estimators=self.trees,
            max_depth=self.depth,
            min_samples_leaf=self.leaf,
            n_jobs=torch.get_num_threads(),
            random_state=task.seed % 2**32,
        )
        head = RandomForest.grown(forest.fit(x, y), task.num_classes).to(task.device)
        evidence = {"pixels": len(y), "nodes": head.config["nodes"], "depth": head.config["depth"]}
        return Fitted(Segmenter(extractor, head, undeclared=task.undeclared), evidence)

    def _draw(self, example: Example, number: int, task: Task, extractor: Extractor) -> tuple[np.ndarray, np.ndarray]:
        """Return features ``[N, C]`` and classes ``[N]`` of pixels of an image, drawn over all its views together."""
        reading = task.reading
        parts = labelled(views(example, reading.kind, reading.window, reading.overlap))
        known = [part.known.nonzero() for part in parts]
        ends = np.cumsum([len(pixels) for pixels in known])
        rng = np.random.default_rng([task.seed, 9, number])
        chosen = np.sort(rng.choice(ends[-1], min(self.pixels, ends[-1]), replace=False))
        features, classes = [], []
        for part, pixels, end in zip(parts, known, ends, strict=True):
            here = chosen[(chosen >= end - len(pixels)) & (chosen < end)] - (end - len(pixels))
            if len(here):
                x, y = read_pixels(part, pixels[torch.from_numpy(here)], task, extractor)
                features.append(x.cpu().numpy())
                classes.append(y.cpu().numpy())
        return np.concatenate(features), np.concatenate(classes)

"""Learn objects beside classes: a whole network with further outputs that tell touching objects apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medmdm.backbones.extractor import Extractor
from medmdm.errors import UserError
from medmdm.heads.end_to_end import FineTuning, FromScratch
from medmdm.heads.map_losses import UNCERTAINTY, MapLosses
from medmdm.heads.object_maps import check_maps
from medmdm.heads.task import Fitted, Task


@dataclass
class MultiTaskHead:
    """Train a whole network as :class:`FromScratch` or :class:`FineTuning` does, with maps of objects beside classes.

    The maps are made of labels that number objects, of every crop after its augmentation. The segmenter gives logits of
    classes as any other; its maps ``distance`` and ``hv`` find instances (``instances`` ``"distance"`` or ``"hover"``
    of :class:`medmdm.segment.PostProcess`). ``boundary`` and ``centres`` are auxiliary targets of the fit: nothing is
    made of them afterwards. On frozen features: :class:`FineTuning` with a ``backbone_rate`` of 0.

    Args:
        learner: trains the network. That of a :class:`FromScratch` needs a channel for each class and further ones:
            two for ``hv``, one for each other map.
        maps: some of ``"boundary"``, ``"distance"``, ``"hv"``, ``"centres"``; see
            :data:`medmdm.heads.object_maps.MAPS`.
        weights: of the losses, see :class:`medmdm.heads.map_losses.MapLosses`: learnt (``"uncertainty"``), or numbers
            by name.
        centre_sigma: standard deviation of the Gaussians of ``centres``, in pixels.

    Raises:
        UserError: an argument is unknown or out of range.
    """

    learner: FromScratch | FineTuning
    maps: Sequence[str] = ("distance",)
    weights: Mapping[str, float] | str = UNCERTAINTY
    centre_sigma: float = 2.0

    def __post_init__(self) -> None:
        if not isinstance(self.learner, (FromScratch, FineTuning)):
            given = type(self.learner).__name__
            raise UserError(f"learner is a {given}: give a medmdm.heads.FromScratch or FineTuning.")
        self.maps = check_maps(self.maps)
        self._losses()

    def __getattr__(self, name: str) -> Any:
        """Be what the learner is: needs a backbone, changes it, looks at unlabelled images, has a network."""
        if name.startswith("_") or "learner" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.learner, name)

    def fit(self, task: Task, extractor: Extractor | None = None) -> Fitted:
        """Train on the labelled images; see :class:`medmdm.heads.task.Fitter`.

        Raises:
            UserError: the labels do not number objects.
        """
        if any(example.objects is None for example in task.examples):
            need = 'labels that number objects ("label_type": "instances" in the data list)'
            raise UserError(f"MultiTaskHead needs {need}: use its learner alone for classes.")
        if "hv" in self.maps and len(task.reading.window) != 2:
            raise UserError("the map 'hv' is for pictures and slices, and not for volumes that are read as such.")
        return self.learner.fit(task, extractor, self._losses())

    def _losses(self) -> MapLosses:
        return MapLosses(self.maps, self.weights, self.centre_sigma)

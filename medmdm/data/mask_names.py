"""Names by which labels are told from images, as annotation programs, standards and people give them.

The one table of such names: pre-training leaves out what it names, and the preparations pair it with images.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import Literal, NamedTuple

#: What a mask may hold: whichever the user says, numbers of classes, numbers of objects, or nothing to learn from, such
#: as a drawing over the image or one object of many.
Content = Literal["any", "classes", "objects", "other"]


class MaskName(NamedTuple):
    """What a path says of the labels that a file holds.

    Args:
        content: what the numbers in it mean.
        folder: name of the folder that says so; ``""`` where the file's own name does.
    """

    content: Content
    folder: str = ""


# Folders, by their words in lower case and without separators; the first that fits counts.
_FOLDERS: Sequence[tuple[str, Content]] = (
    (r"segmentation(class|object)(visuali[sz]ation|npy)s?", "other"),  # labelme2voc
    (r"masks?human|masks?instances|masks?overlays?|overlays?|labelviz|semanticrgb|(contour|outline)s?", "other"),
    (r"segmentationclass[a-z]*|masks?machine|semantic|stuffthingmaps|(train|val|test|default)annot", "classes"),
    (r"segmentationobject[a-z]*|instances?|instancemasks?", "objects"),  # VOC and CVAT; Supervisely is above
    (r"derivatives", "any"),  # BIDS: whatever was made of the images, masks among it
    (r"gt(fine|coarse)|labelids", "any"),  # Cityscapes
    (r"anns?|ann(dir|s|train|val|test)|(1st|2nd)manual|pixelmaps", "any"),  # COCO, DRIVE
    (r"(anno|annot|annotation|gt|groundtruth|instance|label|mask|seg|segmentation|trimap)s?\d*", "any"),
    (r"(label|mask|seg|segmentation|gt|annotation|instance)(images?|imgs?|maps?|pngs?|files?)", "any"),
    (r"labels(tr|ts|val)", "any"),  # nnU-Net, Decathlon
)
# Masks of several people: `rater1`, `masks_B`.
_PEOPLE = re.compile(r"(annotator|expert|rater|masks?|labels?|gt|segs?)( [a-z]| ?\d+)")
# A first word in the singular (`seg_study`) says too little; a last one is enough: `train_masks`.
_FIRST_WORDS = ("annotations", "gt", "labels", "masks", "panoptic")
_LAST_WORD = re.compile(
    r"(anno|annot|annotation|gt|groundtruth|instance|label|mask|seg|segmentation|pixelmap)s?|labels(tr|ts|val)"
)

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+|[0-9]+")  # also of `leftMask`

# File names, in lower case but for the last.
# `x_anno.bmp`, `x_annotation_2.png`, `x-mask.png`, `mask.png`, `x_mask_3.tif`; not `x_masked.png`.
_MASK_ANYWHERE = re.compile(r"(?:^|[_\-. ])(?:anno|masks?(?![a-z]))")
# `x_label.png`, `x_gt.png`, `x-seg2.png`, BIDS' `x_dseg`: words that may begin an image's name too, so they end it.
_WORDS_AT_END = (
    r"labels?|gt|ground[_\- ]?truth|inst(?:ances?)?|seg(?:mentations?)?|[dp]seg|probseg|labelmap|trimap"
    r"|(?:gtfine_|gtcoarse_)?(?:label|labeltrain|instance|instancetrain)ids|manual"
    r"|simple[_\- ]segmentation|object[_\- ](?:predictions|identities)"  # ilastik
)
_MASK_AT_END = re.compile(rf"(?:^|[_\-. ])(?:{_WORDS_AT_END})[_\- ]?\d*$|-labelled$")  # the last is QuPath's
# `x_seg_rater2`, `x_mask_b`: of several people, or one object of several.
_CAMEL_AT_END = re.compile(r"(?<=[a-z0-9])(?:Mask|Label|Annotation|GT|Seg)s?\d*$")  # `cellMask`
_PERSON = r"(?:rater|reader|expert|annotator|observer)"
_ONE_OF_SEVERAL = re.compile(
    rf"[_\-. ](?:{_WORDS_AT_END}|masks?|anno[a-z]*)(?:[_\-. ](?:[a-z]|{_PERSON}?[_\-]?\d+|{_PERSON}[_\-]?[a-z\d]+))+$"
)
# Drawings over the image, and the probabilities of BIDS and ilastik.
_OTHER = re.compile(
    r"(?:^|[_\-. ])(?:(?:label|mask|seg)[_\- ]?viz|overlay|(?:gtfine|gtcoarse)_color|probseg|probabilities)$"
)

# What tells masks from images in paths, beyond which `train_masks/x_mask.png` and `train_images/x.png` are the same.
_WORDS = re.compile(
    r"(?:^|[_\-. ])(?:anno|annos|annotations?|masks?|labels?|gts?|ground[_\- ]?truths?|instances?|inst|segs?"
    r"|segmentations?|images?|imgs?|[dp]seg|gtfine|gtcoarse|leftimg8bit|labelids|manual)(?=$|[_\-. ])"
    r"|(?<=.)-labelled$|^(?:images|labels)(?=(?:tr|ts|val)$)",
    re.IGNORECASE,
)
# Folders that say nothing but that images or labels are in them, whatever the words of their names.
_BARE_FOLDER = re.compile(
    r"segmentation(class|object)[a-z]*|masks?[_\-]?(machine|human|instances?)|jpegimages|leftimg8bit|gt(fine|coarse)"
    r"|image[_\-]?0?2|semantic|stuffthingmaps|ann|anns|(img|ann)[_\-]dir|tiles|media|(rater|expert|annotator)"
    r"[_\-]?[a-z\d]+|(masks?|labels?|gt|segs?)[_\-]?([a-z]|\d+)|(label|mask|seg|gt)[_\- ]?(images?|imgs?|maps?)",
    re.IGNORECASE,
)
_CUTS = re.compile(rf"(?<=.)[_\-. ](?:masks?|anno[a-z]*|{_WORDS_AT_END})(?=$|[_\-. \d])", re.IGNORECASE)
_WORD_AT_END = re.compile(rf"[_\-. ](?:masks?|anno[a-z]*|{_WORDS_AT_END})$", re.IGNORECASE)
_CAMVID = re.compile(r"^(train|val|test|default)annot$", re.IGNORECASE)
# `x.jpg.png` is the mask of `x.jpg` in Supervisely and others.
_INNER_SUFFIX = re.compile(r"\.(png|jpe?g|tiff?|bmp)$", re.IGNORECASE)


def mask_name(path: PurePath) -> MaskName | None:
    """Return what a path says of the labels that its file holds, ``None`` where it names an image.

    Args:
        path: path *below* the data set's folder, so that a data set kept in ``/data/labels`` is not taken for masks.
    """
    stem = path.stem.lower().removesuffix(".nii")  # of .nii.gz
    for folder in path.parent.parts:
        words = [word.lower() for word in _WORD.findall(folder)]
        content = _content(words) if words else None
        if content is not None:
            return MaskName("other" if _OTHER.search(stem) else content, folder)
    if _OTHER.search(stem):
        return MaskName("other")
    if (
        _CAMEL_AT_END.search(path.stem)
        or _MASK_ANYWHERE.search(stem)
        or _MASK_AT_END.search(stem)
        or _ONE_OF_SEVERAL.search(stem)
    ):
        return MaskName("any")
    return None


def is_mask(path: PurePath) -> bool:
    """Whether the name of a file, or of a folder in ``path``, says that it holds labels rather than an image.

    Args:
        path: path *below* the data set's folder, as for :func:`mask_name`.
    """
    return mask_name(path) is not None


def common_name(path: PurePath) -> str:
    """Return what the paths of an image and of its mask have in common, such as ``train/x``."""
    folders = [*path.parent.parts]
    lower = [part.lower() for part in folders]
    if "derivatives" in lower:  # BIDS: `derivatives/<program>/sub-1/...`
        i = lower.index("derivatives")
        del folders[i : i + 1 + (len(lower) > i + 1 and not lower[i + 1].startswith("sub-"))]
    folders = [_CAMVID.sub(r"\1", part) for part in folders if not _BARE_FOLDER.fullmatch(part)]
    stem = _CAMEL_AT_END.sub("", _INNER_SUFFIX.sub("", path.stem))
    parts = [_WORDS.sub("", part).strip("_-. ") for part in (*folders, stem)]
    return "/".join(part for part in parts if part)


def without_mask_word(stem: str) -> str:
    """Return a name without the word at its end that says that it is of a mask: ``a`` for ``a_seg``."""
    return _WORD_AT_END.sub("", stem)


def names_before_mask_word(path: PurePath) -> list[str]:
    """Return :func:`common_name` of a mask without what begins with a word that makes it one, longest first.

    ``x_mask_2.png`` and ``x_seg-rater_b.png`` may be masks of ``x.png``, the second of several.
    """
    stem = _INNER_SUFFIX.sub("", path.stem)
    return [common_name(path.with_name(stem[: found.start()] + path.suffix)) for found in _CUTS.finditer(stem)][::-1]


def names_it_begins_with(path: PurePath) -> list[str]:
    """Return :func:`common_name` of a mask without its last words, longest first.

    ``x_left_mask.png`` may be of ``x.png``.
    """
    name = common_name(path)
    ends = [found.start() for found in re.finditer(r"[_\-. ]", name) if found.start() > name.rfind("/") + 1]
    return [name[:end].strip("_-. ") for end in reversed(ends)]


def _content(words: Sequence[str]) -> Content | None:
    """Return what a folder of these words holds, ``None`` for images."""
    joined = "".join(words)
    for pattern, content in _FOLDERS:
        if re.fullmatch(pattern, joined):
            return content
    last = _LAST_WORD.fullmatch(words[-1]) or words[-2:] == ["ground", "truth"]
    return "any" if last or words[0] in _FIRST_WORDS or _PEOPLE.fullmatch(" ".join(words)) else None

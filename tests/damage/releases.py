"""Published sets and archives that are damaged or hostile."""

import zipfile
from pathlib import Path

import numpy as np

from tests.damage.attempts import Attempt, check, damage, prepare
from tests.damage.sound import cut, data_list, picture, written
from tests.prepare import layouts


def annotation(name: str, words: str, text: str) -> None:
    """Add a row on an Aperio XML file."""

    def make(root: Path) -> list[Attempt]:
        source = layouts.monuseg(root / "source")
        path = source / "MoNuSegTrainingData" / "Annotations" / f"{layouts.TRAINED}.xml"
        path.write_text(text or path.read_text()[:300])
        own = root / "own"
        picture(own / "x.png")
        (own / "x.xml").write_text(path.read_text())
        listed = data_list(own, [{"image": "x.png", "label": "x.xml"}], label_type="instances")
        return [prepare("monuseg", source), check(listed)]

    damage(name, words)(make)


BOMB = (
    '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]><Annotations>&b;&b;&b;</Annotations>'
)
SPY = '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><Annotations>&a;</Annotations>'
annotation("truncated XML", r"\.xml is truncated or no XML", "")
annotation("an XML of entities that multiply", r"\.xml .*(document type|entit)", BOMB)
annotation("an XML that reads another file", r"\.xml .*(document type|entit)", SPY)
annotation("an empty XML", r"\.xml is an empty annotation file", " ")
annotation("an XML of another kind", r"\.xml .*Aperio", "<html><body>Please log in.</body></html>")
annotation(
    "a vertex that is no number",
    r"\.xml: region 1 has a vertex with",
    layouts.aperio([[(1, 1), (5, "left"), (5, 5)]]),  # type: ignore[list-item]
)


def archive(name: str, words: str, *members: tuple[str, bytes], share: float = 1.0) -> None:
    """Add a row on a zip file."""

    def make(root: Path) -> list[Attempt]:
        path = root / "source.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.write(picture(root / "a.png"), "images/a.png")
            for member, content in members:
                file.writestr(member, content)
        cut(path, share)
        return [prepare("folder", path), prepare("glas", path)]

    damage(name, words)(make)


archive("a zip whose paths lead out", r"'\.\./\.\./a\.png', which leaves its folder", ("../../a.png", b"x"))
archive("a zip with an absolute path", r"'/tmp/a\.png', which leaves its folder", ("/tmp/a.png", b"x"))
archive("a truncated zip", r"source\.zip is neither a folder nor a sound zip file", share=0.5)


@damage("a zip bomb", r"source\.zip would unpack to .* GiB, .* possible zip bomb")
def _(root: Path) -> list[Attempt]:
    path = root / "source.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file, file.open("a.png", "w") as member:
        for _ in range(40):
            member.write(bytes(1 << 20))
    # The sizes that the directory states are raised to a gigabyte each, as forged archives do.
    content = path.read_bytes()
    size = (40 << 20).to_bytes(4, "little")
    assert content.count(size) >= 1
    written(path, content.replace(size, (2 << 30).to_bytes(4, "little")))
    return [prepare("folder", path), prepare("monuseg", path)]


@damage("a damaged member of a zip", r"source\.zip/images/a\.png .*(cannot be unpacked|damaged)")
def _(root: Path) -> list[Attempt]:
    path = root / "source.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.write(picture(root / "a.png"), "images/a.png")
    content = bytearray(path.read_bytes())
    content[200] ^= 255
    path.write_bytes(content)
    return [prepare("folder", path)]


@damage("a text named .zip", r"source\.zip is neither a folder nor a sound zip file")
def _(root: Path) -> list[Attempt]:
    return [prepare("dsb2018", written(root / "source.zip", b"404"))]


@damage("another set than the one named", r"holds no ")
def _(root: Path) -> list[Attempt]:
    picture(root / "source" / "holiday.jpg")
    return [prepare(kind, root / "source") for kind in ("glas", "monuseg", "dsb2018")]


@damage("a truncated image of a release", r"train_10\.bmp is truncated or damaged")
def _(root: Path) -> list[Attempt]:
    source = layouts.glas(root / "source")
    cut(source / "train_10.bmp")
    return [prepare("glas", source)]


@damage("a mask of another size in a release", r"train_10_anno\.bmp is 20x31 but its image .*train_10\.bmp is 20x30")
def _(root: Path) -> list[Attempt]:
    source = layouts.glas(root / "source")
    picture(source / "train_10_anno.bmp", np.eye(20, 31))
    return [prepare("glas", source)]


@damage("a Grade.csv of other columns", r"Grade\.csv is not the Grade\.csv of the release")
def _(root: Path) -> list[Attempt]:
    source = layouts.glas(root / "source")
    (source / "Grade.csv").write_text("image;patient\ntrain_1;2\n")
    return [prepare("glas", source)]


@damage("missing parts of a release", r"training: 83 of 85 images are not in the source", "warning")
def _(root: Path) -> list[Attempt]:
    return [prepare("glas", layouts.glas(root / "source"))]


@damage("nowhere", r"does not exist")
def _(root: Path) -> list[Attempt]:
    return [prepare("glas", root / "source"), check(root / "source" / "dataset.json")]

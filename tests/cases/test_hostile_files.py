"""Shards, their indexes and annotations that lie: a sentence each, and nothing is read that they point at elsewhere."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medmdm.data.files.annotations import read_annotations
from medmdm.data.shard_files import _read_index, index_path, picture_bytes, read_index
from medmdm.data.writers import encode_picture
from medmdm.errors import UserError
from medmdm.intact import save_record
from tests.made import refused

PICTURE = encode_picture(np.random.default_rng(0).integers(0, 255, (3, 20, 30)).astype(np.uint8), ".png")


def shard(path: Path, *members: tuple[tarfile.TarInfo, bytes | None]) -> Path:
    with tarfile.open(path, "w") as tar:
        for one, content in [member("0.png", PICTURE), *members]:
            tar.addfile(one, None if content is None else io.BytesIO(content))
    return path


def member(name: str, content: bytes | None = b"", **how: Any) -> tuple[tarfile.TarInfo, bytes | None]:
    made = tarfile.TarInfo(name)
    made.size = len(content or b"")
    for key, value in how.items():
        setattr(made, key, value)
    return made, content


def header(size: int, name: str, kind: bytes) -> bytes:
    """A header whose size is any number, as GNU tar writes large ones, with a checksum that fits."""
    made = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    made[124:136] = (
        (b"\x80" + size.to_bytes(11, "big")) if size >= 0 else (b"\xff" + (256**11 + size).to_bytes(11, "big"))
    )
    made[156:157] = kind
    made[148:156] = b" " * 8
    made[148:156] = b"%06o\0 " % sum(made)
    return bytes(made)


def test_names_and_links_point_nowhere(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(PICTURE)
    links = [
        (tarfile.SYMTYPE, str(secret)),
        (tarfile.LNKTYPE, "../secret.png"),
        (tarfile.CHRTYPE, ""),
        (tarfile.FIFOTYPE, ""),
    ]
    others = [member(f"{n}.png", None, type=kind, linkname=link) for n, (kind, link) in enumerate(links, 1)]
    before = set(tmp_path.rglob("*"))
    (tmp_path / "in").mkdir()
    path = shard(tmp_path / "in" / "a.tar", *others, member("../../up.png", PICTURE))
    assert [image["name"] for image in read_index(path)] == ["0.png", "../../up.png"]
    assert set(tmp_path.rglob("*")) == before | {path.parent, path, index_path(path)}


@pytest.mark.parametrize("size", [2**80, 2**60, 2**30, -512, -1536])
@pytest.mark.parametrize("kind", [b"0", b"x", b"g", b"L", b"K", b"S"])
def test_sizes_that_lie(size: int, kind: bytes, tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar")
    whole = path.read_bytes()
    used = 512 + -(-len(PICTURE) // 512) * 512
    for name in ("1.png", "0.json", "other"):
        path.write_bytes(whole[:used] + header(size, name, kind) + whole[used:])
        refused("a.tar is no uncompressed tar, or it is cut off", read_index, path)


def test_a_damaged_header_is_no_end(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", member("1.png", PICTURE))
    whole, second = path.read_bytes(), 512 + -(-len(PICTURE) // 512) * 512
    for damaged in (whole[:second] + b"9" + whole[second + 1 :], whole[:second], whole[: second + 100]):
        path.write_bytes(damaged)
        refused("a.tar is no uncompressed tar, or it is cut off", read_index, path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"[" * 20000 + b"]" * 20000, "is not JSON"),
        (b"\xff\xfe{", "is not JSON"),
        (b'{"spacing": Infinity}', "give a number above 0"),
        (b'{"spacing": "x"}', "give a number above 0"),
        (b'{"magnification": [2]}', "give a number above 0"),
        (b'{"patient_id": {"a": 1}}', "patient_id"),
        (b" " * (1 << 20) + b"{}", "at most"),
    ],
)
def test_what_is_said_of_a_picture(content: bytes, sentence: str, tmp_path: Path) -> None:
    refused(sentence, read_index, shard(tmp_path / "a.tar", member("0.json", content)))


@pytest.mark.parametrize(
    "change",
    [
        {"offset": -1}, {"offset": "1"}, {"size": 2**70}, {"size": 2**40}, {"size": -1}, {"name": 5}, {"crc32": None},
        {"channels": "x"}, {"pixels_sha256": 5}, {"name": None},
    ],
    ids=str,
)  # fmt: skip
def test_an_index_that_lies_is_made_again(change: dict[str, Any], tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar")
    expected = read_index(path)
    for images in ([{**expected[0], **change}], "abc", None, [1]):
        _read_index.cache_clear()
        save_record({"format": 1, "bytes": path.stat().st_size, "images": images}, index_path(path))
        assert read_index(path) == expected
        assert picture_bytes(path, read_index(path)[0]) == PICTURE


def qupath(coordinates: str = "[[[0,0],[9,0],[9,9],[0,0]]]", geometry: str = "", properties: str = "{}") -> str:
    shape = f'{{"type": "Polygon", "coordinates": {coordinates}{geometry}}}'
    return f'{{"type": "Feature", "properties": {properties}, "geometry": {shape}}}'


@pytest.mark.parametrize(
    "text",
    [
        "[" * 20000 + "]" * 20000,
        '{"a":' * 20000 + "1" + "}" * 20000,
        qupath("[" * 900 + "]" * 900),
        *(
            qupath(f"[[[{x},0],[9,0],[9,9],[{x},0]]]")
            for x in ("NaN", "Infinity", "1" + "0" * 400, "1" * 5000, '"0"', "1e8")
        ),
        qupath(geometry=', "plane": [1]'),
        qupath("[5]"),
        qupath(properties='{"classification": {"name": "\\ud800"}}'),
        qupath(properties='{"classification": {"names": [1]}}'),
    ],
    ids=range(13),
)
def test_hostile_geojson(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.geojson").write_text(text)
    with pytest.raises(UserError, match=r"a\.geojson"):
        read_annotations(tmp_path / "a.geojson")


def test_names_of_classes_are_only_data(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>"
    (tmp_path / "a.geojson").write_text(qupath(properties=json.dumps({"classification": {"name": name}})))
    assert read_annotations(tmp_path / "a.geojson")[0][0].name == name


@pytest.mark.parametrize("encoding", ["utf-7", "nope", "hex"])
def test_encodings_of_xml(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(f'<?xml version="1.0" encoding="{encoding}"?><Annotations/>')
    refused("a.xml is in an encoding", read_annotations, tmp_path / "a.xml")


def test_a_shape_of_many_digits(tmp_path: Path) -> None:
    corners = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in ((0, 0), (9, 0), (9, 9)))
    region = f'<Region Id="1" Type="{"9" * 5000}"><Vertices>{corners}</Vertices></Region>'
    (tmp_path / "a.xml").write_text(f"<Annotations><Annotation><Regions>{region}</Regions></Annotation></Annotations>")
    assert len(read_annotations(tmp_path / "a.xml")[0]) == 1

"""Folders and zip files as sources: what is seen, what is refused, and that nothing stays behind."""

import zipfile
from pathlib import Path

import pytest

from medmdm.errors import UserError
from medmdm.prepare import release as release_module
from medmdm.prepare.release import open_release
from tests.written import picture


@pytest.fixture
def archive(tmp_path: Path):
    def write(members: dict[str, bytes], name: str = "set.zip") -> Path:
        path = tmp_path / name
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for member, content in members.items():
                file.writestr(member, content)
        return path

    return write


def refused(source: Path) -> str:
    with pytest.raises(UserError) as error, open_release(source):
        pass
    assert source.name in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "name", ["../evil.png", "a/../../evil.png", "/etc/evil.png", "..\\evil.png", "\\evil.png", "C:\\evil.png", "C:evil"]
)
def test_paths_that_leave_the_folder(archive, tmp_path: Path, name: str) -> None:
    assert "not to be trusted" in refused(archive({"ok.png": b"", name: b"x"}))


def test_the_same_path_twice(archive, tmp_path: Path) -> None:
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.png", b"1")
        with pytest.warns(UserWarning, match="Duplicate name"):
            file.writestr("a.png", b"2")
    assert "twice" in refused(path)


def test_zip_bomb(archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release_module, "_SUSPICIOUS_SIZE", 1 << 20)
    assert "possible zip bomb" in refused(archive({"a.png": bytes(4 << 20)}))


def test_a_size_that_the_directory_hides_is_not_unpacked(archive, tmp_path: Path) -> None:
    path = archive({"a.png": bytes(1 << 20)})
    path.write_bytes(path.read_bytes().replace((1 << 20).to_bytes(4, "little"), (100).to_bytes(4, "little")))
    with open_release(path) as release, pytest.raises(UserError, match=r"set\.zip/a\.png"):
        release.files[0].sha256()


def test_encrypted(archive, tmp_path: Path) -> None:
    path = archive({"a.png": b"secret"})
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(bytes(content))
    assert "encrypted" in refused(path)


def test_no_zip_and_half_a_zip(archive, tmp_path: Path) -> None:
    path = archive({"a.png": bytes(range(256)) * 20})
    path.write_bytes(path.read_bytes()[:-30])
    assert "download it again" in refused(path)
    path.write_text("<html>not found</html>")
    assert "neither a folder nor a sound zip file" in refused(path)


def test_empty_sources(archive, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    assert "is empty" in refused(tmp_path / "nothing")
    assert "is empty" in refused(archive({}))


def test_a_damaged_member_is_named_and_leaves_nothing(archive, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    path = archive({"top/a.png": bytes(range(256)) * 20})
    content = bytearray(path.read_bytes())
    content[60] ^= 255
    path.write_bytes(bytes(content))
    unpacked = r"set\.zip/top/a\.png cannot be unpacked"
    with open_release(path) as release, pytest.raises(UserError, match=unpacked), release.files[0].local():
        pass
    assert not list((tmp_path / "scratch").iterdir())


def test_messages_name_the_member_not_the_unpacked_copy(archive, tmp_path: Path) -> None:
    bad = r"^\S*set\.zip/top/a\.png is bad$"
    with (
        open_release(archive({"top/a.png": b"x"})) as release,
        pytest.raises(UserError, match=bad),
        release.files[0].local() as path,
    ):
        raise UserError(f"{path} is bad")


def test_hidden_files_are_not_seen(archive, tmp_path: Path) -> None:
    members = {"a/b.png": b"1", "__MACOSX/a/._b.png": b"2", ".DS_Store": b"3", "a/Thumbs.db": b"4"}
    with open_release(archive(members)) as release:
        assert [str(file.path) for file in release.files] == ["a/b.png"]
    for name, content in members.items():
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    with open_release(tmp_path / "set") as release:
        assert [str(file.path) for file in release.files] == ["a/b.png"]


def test_a_link_to_a_folder_above_is_visited_once(tmp_path: Path) -> None:
    picture(tmp_path / "set" / "a" / "b.png")
    (tmp_path / "set" / "a" / "loop").symlink_to(tmp_path / "set")
    with open_release(tmp_path / "set") as release:
        assert [str(file.path) for file in release.files] == ["a/b.png"]


def test_a_folder_of_zip_files_is_one_release(archive, tmp_path: Path) -> None:
    folder = tmp_path / "both"
    folder.mkdir()
    archive({"a.png": b"1"}, "both/one.zip")
    archive({"a.png": b"2"}, "both/two.zip")
    with open_release(folder, zips_inside=True) as release:
        assert [str(file.path) for file in release.images] == ["one/a.png", "two/a.png"]
    picture(folder / "b.png")
    with open_release(folder, zips_inside=True) as release:
        assert [str(file.path) for file in release.images] == ["b.png"]
        assert release.notices == ("2 zip files beside the images are not read",)

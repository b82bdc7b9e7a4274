"""Files at a local path and at URIs: the same calls, the same answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from perpeft_ray.data.places import (
    is_uri,
    reached,
    read_file,
    remove_file,
    remove_folder,
    subfolder,
    subfolders,
    write_file,
)
from perpeft_ray.errors import InputError


@pytest.fixture(params=["path", "file", "fsspec+memory", "s3"])
def place(request, tmp_path):
    """A folder that is not there yet."""
    if request.param == "path":
        return tmp_path / "folder"
    if request.param == "s3":
        return f"{request.getfixturevalue('s3')}/folder"
    return f"{request.param}://{tmp_path}/folder"


def test_files_come_and_go(place):
    file = subfolder(place, "a", "b.json")
    assert read_file(file) is None
    assert subfolders(place) == []
    for content in (b"one", b"", b"another"):
        write_file(file, content)
        assert read_file(file) == content
    write_file(subfolder(place, "c", "d"), b"d")
    assert sorted(subfolders(place)) == ["a", "c"]
    assert subfolders(subfolder(place, "a")) == []  # no temporary is left
    remove_file(file)
    remove_file(file)
    assert read_file(file) is None
    remove_folder(subfolder(place, "c"))
    remove_folder(subfolder(place, "c"))
    assert read_file(subfolder(place, "c", "d")) is None


def test_what_is_a_uri():
    assert is_uri("s3://bucket/folder")
    assert not is_uri("results/folder")
    assert not is_uri(Path("s3://bucket"))


def test_what_is_out_of_reach_is_named(s3):
    with (
        pytest.raises(InputError, match=r"`storage` must be a place .*, but s3://none/a: "),
        reached("s3://none/a"),
    ):
        write_file("s3://none/a/b", b"1")
    with pytest.raises(InputError, match=r"but nosuch://a: "), reached("nosuch://a"):
        read_file("nosuch://a/b")

"""Members of a tar archive, against Python's own reader."""

import gc
import io
import os
import random
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from copcube.errors import ImageError
from copcube.files.objects import ObjectFolder
from copcube.images import tar
from copcube.images.archives import LocalArchive, open_archive

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
OTHERS = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
NAMES = st.text("abé/._0", min_size=1, max_size=60).filter(
    lambda name: name.strip("/.") and not name.endswith("/")
)
ENTRIES = st.lists(
    st.tuples(NAMES, st.integers(0, 1500), st.sampled_from([None] * 4 + OTHERS)), max_size=8
)


def pack(path, entries, form=tarfile.PAX_FORMAT, mtime=0.5):
    with tarfile.open(path, "w", format=form) as archive:
        for name, size, kind in entries:
            info = tarfile.TarInfo(name)
            info.mtime = mtime if form == tarfile.PAX_FORMAT else 0
            if kind is None:
                info.size = size
                archive.addfile(info, io.BytesIO(random.Random(size).randbytes(size)))
            else:
                info.type, info.linkname = kind, "../../../etc/passwd"
                archive.addfile(info)
    return str(path)


def by_tarfile(path):
    with tarfile.open(path) as archive:
        return [(m.name, m.offset_data, m.size) for m in archive if m.isreg()]


def found(path):
    return [(m.name, m.offset, m.size) for m in tar.members(LocalArchive(path))]


@pytest.mark.slow
@given(entries=ENTRIES, form=st.sampled_from(FORMATS))
def test_members_are_those_of_tarfile(entries, form, tmp_path_factory):
    path = pack(tmp_path_factory.mktemp("tar") / "x.tar", entries, form)
    assert found(path) == by_tarfile(path)
    archive = LocalArchive(path)
    for member in tar.members(archive):
        assert member.read(archive, 0, member.size) == random.Random(member.size).randbytes(
            member.size
        )


@pytest.mark.parametrize("form", FORMATS[1:])
def test_long_names(form, tmp_path):
    name = "/".join(["folder"] * 60) + "/0772176.json"
    path = pack(tmp_path / "x.tar", [(name, 3, None), ("b", 5, None)], form)
    assert found(path) == by_tarfile(path)
    assert found(path)[0][0] == name


@given(cut=st.integers(0, 10_239))
def test_a_cut_archive_gives_what_is_whole_and_says_where_it_ends(cut, tmp_path_factory):
    path = pack(
        tmp_path_factory.mktemp("tar") / "x.tar", [("a", 700, None), ("b", 1, None)], FORMATS[0]
    )
    whole = by_tarfile(path)
    with open(path, "r+b") as file:
        file.truncate(cut)
    listing = []
    ended = None
    try:
        for member in tar.members(LocalArchive(path)):
            listing.append((member.name, member.offset, member.size))
    except ImageError as error:
        ended = str(error)
    assert listing == [m for m in whole if m[1] + m[2] <= cut]
    end_mark = whole[-1][1] + 512
    assert (ended is None) == (cut >= end_mark + 512)
    # Less than a header may be anything, and is called by what it looks like.
    assert ended is None or "truncated at byte" in ended or (cut < 512 and "found" in ended)


def test_a_member_that_has_gone_is_broken(tmp_path):
    path = pack(tmp_path / "x.tar", [("a", 700, None)])
    archive = LocalArchive(path)
    (member,) = tar.members(archive)
    with open(path, "r+b") as file:
        file.truncate(member.offset + 10)
    with pytest.raises(ImageError, match=f"expected 700 bytes at {member.offset}, found 10"):
        member.read(archive, 0, member.size)


def header(name, size, kind=tarfile.REGTYPE):
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_file_has_no_data_whatever_its_size(kind, tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(header("a", 1000, kind) + header("b", 3) + b"abc".ljust(1536, b"\0"))
    assert found(str(path)) == by_tarfile(path) == [("b", 1024, 3)]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x01" * 1024, "damaged at byte 0"),
        (header("a", 0) + b"junk" * 128 + bytes(1024), "damaged at byte 512"),
        (header("a", -1024) + bytes(1024), "a member of -1024 bytes"),
        (header("a", 1 << 60) + bytes(1024), "truncated at byte 1536: 'a' of 1152921504606846976"),
        (header("x", 2 << 20, tarfile.XHDTYPE) + bytes(3 << 20), "an extension header of 2097152"),
        (header("x", 9, tarfile.XHDTYPE) + b"99999 a=b".ljust(512, b"\0"), "damaged extension"),
        (header("x", 9, tarfile.XHDTYPE) + b"0 a=bbbbb".ljust(512, b"\0"), "damaged extension"),
        (header("x", 9, tarfile.XHDTYPE) + "²²² a=".encode().ljust(512), "damaged extension"),
        (
            header("x", 21, tarfile.XHDTYPE)
            + b"21 size=999999999999\n".ljust(512, b"\0")
            + header("a", 0)
            + bytes(1024),
            "truncated",
        ),
        (b"", "found an empty file"),
    ],
)
def test_hostile_headers_end_the_listing(content, reason, tmp_path):
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(ImageError, match=reason):
        list(tar.members(LocalArchive(str(tmp_path / "x.tar"))))


def test_an_archive_of_endless_members_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(tar, "_MAX_MEMBERS", 3)
    path = pack(tmp_path / "x.tar", [("a", 0, None)] * 5, FORMATS[0])
    with pytest.raises(ImageError, match="more than 3 members"):
        list(tar.members(LocalArchive(path)))


def test_an_object_is_read_as_a_file(bucket, tmp_path):
    entries = [("folder/a", 70_000, None), ("b", 3, None), ("link", 0, tarfile.SYMTYPE)]
    path = pack(tmp_path / "x.tar", entries)
    with open(path, "rb") as file:
        ObjectFolder(bucket).write("x.tar", file.read())
    for whole in (True, False):
        archive = open_archive(f"{bucket}/x.tar", whole=whole)
        listing = list(tar.members(archive))
        assert [(m.name, m.offset, m.size) for m in listing] == by_tarfile(path)
        local = LocalArchive(path)
        assert [m.read(archive, 0, m.size) for m in listing] == [
            m.read(local, 0, m.size) for m in listing
        ]


@pytest.mark.slow
def test_a_file_is_closed_with_its_archive(tmp_path):
    archive = LocalArchive(pack(tmp_path / "x.tar", [("a", 3, None)]))
    descriptor = archive._descriptor
    os.fstat(descriptor)
    del archive
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)

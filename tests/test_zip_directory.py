"""Directories of zip archives: what `zipfile` finds, and refused where readers disagree."""

import io
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from copcube.files.zip_directory import ZipDirectory, open_directory

MEMBERS = {"a/data.pkl": b"pickle", "a/data/0": bytes(range(200)), "a/ä": b"", "b": b"x" * 3000}
END, ENTRY = 22, 46


def packed(members=None, **options):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", **options) as archive:
        for name, content in (MEMBERS if members is None else members).items():
            archive.writestr(name, content)
    return out.getvalue()


def directory(raw):
    return ZipDirectory.of(lambda at, n: raw[at : at + n], len(raw))


def contents(raw):
    found = directory(raw)
    return {name: found.content(name, len(raw)) for name in found.entries}


def entry_of(raw, name):
    """Position of a member's entry in the directory."""
    return raw.rindex(name.encode()) - ENTRY


def changed(raw, at, form, *values):
    edited = bytearray(raw)
    struct.pack_into(form, edited, at, *values)
    return bytes(edited)


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


@pytest.mark.slow
@given(st.dictionaries(NAMES.filter(lambda name: name[-1] != "/"), st.binary(max_size=300)))
def test_members_are_those_that_zipfile_finds(members):
    raw = packed(members)
    assert contents(raw) == members
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        assert [*directory(raw).entries] == archive.namelist()


@pytest.mark.parametrize("number", [0, 1, 60])
def test_a_directory_longer_than_the_tail_is_read(number):
    members = {f"{i:04d}" * 20: bytes([i]) for i in range(number)}
    assert contents(packed(members)) == members


def test_arrays_of_numpy_are_found_in_their_file(tmp_path):
    numbers = np.arange(1000.0)
    np.savez(tmp_path / "a.npz", first=numbers, second=numbers[:3])
    with open_directory(str(tmp_path / "a.npz")) as found:
        for name, expected in ("first", numbers), ("second", numbers[:3]):
            start, length = found.locate(f"{name}.npy")
            raw = (tmp_path / "a.npz").read_bytes()[start : start + length]
            np.testing.assert_array_equal(np.load(io.BytesIO(raw)), expected)


def test_members_beyond_4_gib_are_found(tmp_path):
    """The file is sparse: nothing but its last bytes is written."""
    path = tmp_path / "large.zip"
    with open(path, "wb") as file:
        file.seek(5 << 30)
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in MEMBERS.items():
                archive.writestr(name, content)
    with open_directory(str(path)) as found:
        assert min(entry.header for entry in found.entries.values()) == 5 << 30
        assert {name: found.content(name, 3000) for name in found.entries} == MEMBERS


def test_sizes_may_stand_in_the_extra_field():
    """As they do of members of 4 GiB and more; other fields may come before."""
    raw = packed()
    start, at, name = raw.index(b"PK\1\2"), entry_of(raw, "a/data/0"), "a/data/0"
    size = len(MEMBERS[name])
    extra = struct.pack("<2HL", 9, 4, 7) + struct.pack("<2H2Q", 1, 16, size, size)
    edited = changed(raw, at + 20, "<2L", 0xFFFFFFFF, 0xFFFFFFFF)
    edited = changed(edited, at + 30, "<H", len(extra))
    after = at + ENTRY + len(name)
    edited = edited[:after] + extra + edited[after:]
    edited = changed(edited, len(edited) - 10, "<L", len(raw) - END - start + len(extra))
    with zipfile.ZipFile(io.BytesIO(edited)) as archive:
        assert archive.read(name) == MEMBERS[name]
    assert contents(edited) == MEMBERS


def test_other_members_than_asked_for_may_be_compressed():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("deflated", bytes(1000), zipfile.ZIP_DEFLATED)
        archive.writestr("stored", b"content")
        archive.mkdir("folder")
    found = directory(out.getvalue())
    assert found.content("stored", 7) == b"content"
    with pytest.raises(
        zipfile.BadZipFile, match="'deflated' is compressed; expected it uncompressed"
    ):
        found.locate("deflated")
    with pytest.raises(zipfile.BadZipFile, match="'folder/' is a folder"):
        found.locate("folder/")
    with pytest.raises(zipfile.BadZipFile, match="no member 'absent'"):
        found.locate("absent")
    with pytest.raises(zipfile.BadZipFile, match="'stored' has 7 bytes; expected at most 6"):
        found.content("stored", 6)


RAW = packed()
START = RAW.index(b"PK\1\2")
AT = entry_of(RAW, "a/data/0")
HEADER = RAW.index(b"PK\3\4", 1)
LISTING = RAW[START:-END]
CONTRADICTORY = {
    "no archive": (b"", "does not end like a zip archive"),
    "cut": (RAW[:-1], "does not end like a zip archive"),
    "a comment": (changed(RAW, len(RAW) - 2, "<H", 3) + b"abc", "does not end like"),
    "a comment that is not there": (changed(RAW, len(RAW) - 2, "<H", 3), "ends with a comment"),
    "several disks": (changed(RAW, len(RAW) - 18, "<H", 1), "one of several parts"),
    "something before it": (b"#!" + RAW, "its directory ends at .*, its end record begins at"),
    "two directories": (RAW[:-END] + LISTING + RAW[-END:], "its directory ends at"),
    "fewer entries": (changed(RAW, len(RAW) - 14, "<2H", 3, 3), "does not have exactly"),
    "more entries": (changed(RAW, len(RAW) - 14, "<2H", 5, 5), "its directory is damaged"),
    "entries elsewhere": (changed(RAW, len(RAW) - 14, "<2H", 3, 4), "one of several parts"),
    "a damaged entry": (changed(RAW, START, "<L", 0), "its directory is damaged"),
    "a name that is no text": (
        RAW.replace("ä".encode(), b"\xff\xff"),
        "its directory is damaged: .* decode",
    ),
    "encrypted": (changed(RAW, AT + 8, "<H", 1), "is encrypted"),
    "strongly encrypted": (changed(RAW, AT + 8, "<H", 0x41), "is encrypted"),
    "compressed": (changed(RAW, AT + 10, "<H", 8), "is compressed"),
    "compressed to less": (changed(RAW, AT + 20, "<L", 1), "is compressed"),
    "a folder": (changed(RAW, AT + 38, "<L", 0x10), "is a folder"),
    "outside": (changed(RAW, AT + 42, "<L", len(RAW)), "outside the archive"),
    "at another header": (changed(RAW, AT + 42, "<L", 0), "contradicts the directory"),
    "at no header": (changed(RAW, AT + 42, "<L", 7), "contradicts the directory"),
    "too long": (changed(RAW, AT + 20, "<2L", 9999, 9999), "of 9999 bytes .* extends beyond"),
    "a header that says deflated": (changed(RAW, HEADER + 8, "<H", 8), "contradicts the directory"),
    "a header that says encrypted": (
        changed(RAW, HEADER + 6, "<H", 1),
        "contradicts the directory",
    ),
}


@pytest.mark.parametrize("kind", CONTRADICTORY)
def test_an_archive_that_contradicts_itself_is_refused(kind):
    raw, message = CONTRADICTORY[kind]
    with pytest.raises(zipfile.BadZipFile, match=message):
        directory(raw).locate("a/data/0")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_refused():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a", b"1")
        archive.writestr("a", b"2")
    with pytest.raises(zipfile.BadZipFile, match="its directory is damaged at 'a'"):
        directory(out.getvalue())


def with_64_bit_end(**values):
    """The archive with end records as `torch.save` writes them, changed in some values."""
    end = len(RAW) - END
    said = {"number": 4, "length": len(LISTING), "start": START, "position": end, **values}
    record = struct.pack(
        "<4sQ2H2L4Q",
        b"PK\6\6",
        44,
        45,
        45,
        0,
        0,
        said["number"],
        4,
        *(said["length"], said["start"]),
    )
    return (
        RAW[:-END] + record + struct.pack("<4sLQL", b"PK\6\7", 0, said["position"], 1) + RAW[-END:]
    )


def test_end_records_of_64_bits_have_to_agree_with_the_others():
    raw = with_64_bit_end()
    assert contents(raw) == MEMBERS
    for at, form, bits in ((14, "<2H", 16), (10, "<L", 32), (6, "<L", 32)):
        left_out = [2**bits - 1] * (2 if form == "<2H" else 1)
        assert contents(changed(raw, len(raw) - at, form, *left_out)) == MEMBERS
        with pytest.raises(zipfile.BadZipFile, match="end records contradict each other"):
            directory(changed(raw, len(raw) - at, form, *(3 for _ in left_out)))
    for name in ("number", "length", "start", "position"):
        with pytest.raises(zipfile.BadZipFile, match="end records contradict each other"):
            directory(with_64_bit_end(**{name: 1}))


def test_a_directory_is_read_up_to_a_limit():
    with pytest.raises(zipfile.BadZipFile, match=r"has \d+ bytes; expected at most 1048576"):
        directory(packed({f"{i:05d}" * 100: b"" for i in range(2000)}))


@pytest.mark.slow
@given(st.data())
@settings(max_examples=200)
def test_of_a_damaged_archive_no_member_reaches_outside(data):
    raw = bytearray(RAW)
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = directory(bytes(raw))
    except zipfile.BadZipFile:
        return
    for name in found.entries:
        try:
            start, length = found.locate(name)
        except zipfile.BadZipFile:
            continue
        assert 0 <= start <= start + length <= found.start < len(raw)
        assert len(found.content(name, len(raw))) == length

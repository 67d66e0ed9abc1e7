"""Reading WebDataset shards."""

import io
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import tarfile
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from copcube.errors import CopcubeError, SourceError, StorageError
from copcube.files import limits
from copcube.files.objects import ObjectFolder, ReadAhead
from copcube.files.objects.ahead import KEPT
from copcube.files.objects.stores import REQUESTS
from copcube.grid import format_cell
from copcube.images import Image, Rejected, archives, open_source, webdataset
from copcube.images.naming import from_names
from copcube.images.webdataset import WebDatasetSource
from copcube.lookahead import map_ahead
from copcube.modalities import MODALITIES
from copcube.selection import Selection

ALL = Selection.of()
KEY, CELL, OTHER = "0772176", format_cell(772176), format_cell(772175)
LOCAL = ["0865831_-95.92_43.96", "0000007_-96.01_44.02"]
DATES = ["20210301", "20200715"]
S5P, S3, S2, S1, DEM = (MODALITIES[k] for k in ("s5p_co", "s3_olci", "s2_toa", "s1_grd", "dem"))


def tensor(modality, lead, seed=0):
    rng = np.random.default_rng(seed)
    drawn = rng.uniform(1, 9000, lead + modality.shape)
    return torch.from_numpy(drawn.astype(modality.tensor_dtype))


def names(modality, cell=CELL, dates=DATES, local=LOCAL, leaf=lambda name: [name]):
    """Names as published, nested like the tensor."""
    if modality.local:
        return [[leaf(f"{cell}/{patch}/{date}") for date in dates] for patch in local]
    if modality.dates > 1:
        return [leaf(f"{cell}/{date}") for date in dates]
    return leaf(cell)


def lead(modality):
    return {"s1_grd": (2, 2), "s2_toa": (2, 2), "dem": ()}.get(modality.key, (2,))


def saved(value, **options):
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def sample(key=KEY, modalities=(S5P,), seed=0, **options):
    """Members of a sample, {name: bytes}, the JSON among them."""
    members = {f"{key}.{m.key}.pth": saved(tensor(m, lead(m), seed)) for m in modalities}
    about = {m.key: names(m, **{"cell": format_cell(int(key)), **options}) for m in modalities}
    return members | {f"{key}.json": json.dumps(about).encode()}


def shard(path, *samples):
    with tarfile.open(path, "w") as archive:
        for members in samples:
            for name, content in members.items():
                if isinstance(content, tarfile.TarInfo):
                    archive.addfile(content)
                    continue
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def read(source, selection=ALL):
    found = []
    for partition in source.partitions():
        for job in source.jobs(partition, selection):
            found += job() if callable(job) else [job]
    return [f for f in found if isinstance(f, Image)], [f for f in found if isinstance(f, Rejected)]


@pytest.fixture
def given_samples(tmp_path):
    """Return a reader of one shard that holds some samples."""
    return lambda *samples, **options: read(
        open_source(shard(tmp_path / "example-000000.tar", *samples)), **options
    )


# Which shards.


PATTERNS = ["s-{000..003}.tar", "s-{8..11}.tar", "{a,b,}/s-{1..2}.tar", "s.tar", "{x,y}{0..1}"]
# Braces around anything else are letters like all others.
PATTERNS += ["s{1..2.tar", "s}.tar", "s{}{old}.tar", "s{{1..2}}.tar", "s{1..}{a,b}.tar"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash to compare with")
@pytest.mark.parametrize("pattern", PATTERNS)
def test_braces_stand_for_what_they_do_in_a_shell(pattern):
    shell = subprocess.run(["bash", "-c", f"echo {pattern}"], capture_output=True, text=True)
    assert webdataset._expand(pattern) == shell.stdout.split()


def test_shards_by_file_folder_glob_and_pattern(tmp_path):
    paths = [shard(tmp_path / f"example-{i:06d}.tar", sample()) for i in range(3)]
    (tmp_path / "notes.txt").write_text("")
    everything = tuple((path.name, path.stat().st_size) for path in paths)
    for given_path in (
        tmp_path,
        tmp_path / "*.tar",
        tmp_path / "example-*",
        tmp_path / "example-{000000..000002}.tar",
        tmp_path / "example-00000{2,0,1}.tar",
    ):
        source = open_source(given_path)
        assert source == WebDatasetSource(str(tmp_path), everything)
        assert [p.name for p in source.partitions()] == [p.stem for p in paths]
    assert open_source(paths[1]) == WebDatasetSource(str(tmp_path), everything[1:2])


def test_capitals_of_an_extension_hide_no_shard(tmp_path):
    for name in ("a.TAR", "b.tar"):
        shard(tmp_path / name, sample())
    assert [name for name, _ in open_source(tmp_path).shards] == ["a.TAR", "b.tar"]


def test_shards_of_two_folders_have_names_of_their_own(tmp_path):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        shard(tmp_path / folder / "s.tar", sample())
    source = open_source(tmp_path / "*" / "*.tar")
    assert [(p.name, p.paths) for p in source.partitions()] == [
        ("a-s", ("a/s.tar",)),
        ("b-s", ("b/s.tar",)),
    ]
    assert len(read(source)[0]) == 4
    shard(tmp_path / "a-s.tar", sample())
    names = [p.name for p in open_source(tmp_path / "**" / "*.tar").partitions()]
    assert names == ["000000-a-s", "000001-a-s", "000002-b-s"]


def test_missing_shards_are_named(tmp_path):
    shard(tmp_path / "s-000001.tar", sample())
    with pytest.raises(SourceError, match=r"9 are missing: s-000000.tar, s-000002.tar, .* 6 more"):
        open_source(tmp_path / "s-{000000..000009}.tar")
    with pytest.raises(SourceError, match="more than 100000"):
        open_source(tmp_path / "s-{0..999999999}{0..999999999}.tar")
    with pytest.raises(SourceError, match="none"):
        open_source(tmp_path / "s-{3..1}.tar")
    with pytest.raises(SourceError, match="no such file"):
        open_source(tmp_path / "t-*.tar")


def test_compressed_shards_are_refused(tmp_path):
    (tmp_path / "s.tar.gz").write_bytes(b"")
    for path in (tmp_path / "s.tar.gz", tmp_path, tmp_path / "*.gz"):
        with pytest.raises(SourceError, match=r"compressed; .* decompress it first"):
            open_source(path)


def test_fingerprint_follows_names_and_sizes(tmp_path):
    first, second = (shard(tmp_path / f"{i}.tar", sample()) for i in "ab")
    before = open_source(tmp_path).fingerprint()
    copy = shutil.copytree(tmp_path, tmp_path / "copy" / "x")
    assert open_source(copy).fingerprint() == before
    second.write_bytes(second.read_bytes() + bytes(512))
    longer = open_source(tmp_path).fingerprint()
    first.rename(tmp_path / "c.tar")
    assert len({before, longer, open_source(tmp_path).fingerprint()}) == 3


# What is in them.


@pytest.mark.parametrize("key", MODALITIES)
@pytest.mark.parametrize("leaf", [lambda name: [name], lambda name: name], ids=["list", "bare"])
def test_every_image_is_found_under_its_name(key, leaf, given_samples):
    modality = MODALITIES[key]
    about = names(modality, leaf=leaf)
    members = sample(modalities=[modality], leaf=leaf)
    images, rejected = given_samples(members)
    expected = {}
    for index in np.ndindex(*lead(modality)):
        name = about
        for i in index:
            name = name[i]
        expected["".join(name)] = tensor(modality, lead(modality)).numpy()[index]
    assert len(images) == len(expected) == np.prod(lead(modality), dtype=int)
    for image in images:
        name = "/".join(filter(None, [CELL, image.local_id, image.date]))
        stored = expected[name].view("uint16") if key == "s2_toa" else expected[name]
        np.testing.assert_array_equal(image.pixels, stored)
        assert image.pixels.dtype == ("uint16" if key == "s2_toa" else "float32")
        place = {LOCAL[0]: (-95.92, 43.96), LOCAL[1]: (-96.01, 44.02), None: (-96.0, 44.0)}
        assert (image.lon, image.lat) == place[image.local_id]
        assert (image.grid_id, image.modality) == (772176, key)
        assert image.origin == f"example-000000.tar:{KEY}.{key}.pth"
    assert not rejected


def test_elevation_without_a_band_axis(given_samples):
    members = sample(modalities=[DEM])
    members[f"{KEY}.dem.pth"] = saved(tensor(DEM, ())[0])
    (image,), _ = given_samples(members)
    np.testing.assert_array_equal(image.pixels, tensor(DEM, ()).numpy())


def test_sentinel_2_above_32767_is_unwrapped(given_samples):
    counts = np.full((1, 1, *S2.shape), 40_000, "uint16")
    members = sample(modalities=[S2], local=LOCAL[:1], dates=DATES[:1])
    members[f"{KEY}.s2_toa.pth"] = saved(torch.from_numpy(counts.view("int16")))
    (image,), _ = given_samples(members)
    assert (image.pixels == 40_000).all()


def test_other_float_widths_become_float32(given_samples):
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        values = tensor(S5P, (2,)).to(dtype)
        images, _ = given_samples(sample() | {f"{KEY}.s5p_co.pth": saved(values)})
        assert images[0].pixels.dtype == np.float32
        np.testing.assert_array_equal(images[1].pixels, values[0].to(torch.float32).numpy())


def test_too_large_sentinel_3_bands_and_empty_images(given_samples):
    values = tensor(S3, (3,))
    values[0, [0, 9]] *= 1e9
    values[1] = float("nan")
    dates = ["20210101", "20210102", "20210103"]
    members = sample(modalities=[S3], dates=dates) | {f"{KEY}.s3_olci.pth": saved(values)}
    images, rejected = given_samples(members)
    assert [(i.date, i.rescaled) for i in images] == [(dates[0], True), (dates[2], False)]
    np.testing.assert_allclose(images[0].pixels, tensor(S3, (3,))[0].numpy(), rtol=1e-6)
    assert [(r.kind, r.images, r.member) for r in rejected] == [("empty", 1, f"{KEY}.s3_olci.pth")]


def test_order_selection_and_count(tmp_path):
    samples = [sample(key, [S5P, S1]) for key in ("0772177", "0772176")]
    source = open_source(shard(tmp_path / "s.tar", *samples))
    images, _ = read(source)
    found = [(i.grid_id, i.modality, i.local_id, i.date) for i in images]
    expected = []
    for cell in (772177, 772176):  # as they lie in the shard
        expected += [(cell, "s1_grd", p, d) for p in sorted(LOCAL) for d in sorted(DATES)]
        expected += [(cell, "s5p_co", None, d) for d in sorted(DATES)]
    assert found == expected
    (partition,) = source.partitions()
    assert source.count(partition, ALL) == {"s1_grd": 8, "s5p_co": 4}
    some = Selection.of(["s5p_co", "dem"], "2021")
    assert [i.date for i in read(source, some)[0]] == [DATES[0]] * 2
    assert source.count(partition, some) == {"s5p_co": 2}


def test_a_sample_is_given_as_soon_as_it_is_known(tmp_path):
    samples = [sample(f"{772176 + i:07d}", [S5P], seed=i) for i in range(3)]
    path = shard(tmp_path / "s.tar", *samples)
    source = open_source(path)
    (partition,) = source.partitions()
    jobs = source.jobs(partition, ALL)
    first = next(jobs)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)  # what comes later was not read yet
    assert {image.grid_id for image in first()} == {772176}
    assert any(isinstance(job, Rejected) and "truncated" in job.reason for job in jobs)


def test_a_reader_reads_any_partition_and_pickles_small(tmp_path):
    for i in range(50):
        shard(tmp_path / f"s-{i:06d}.tar", sample(f"{772176 + i:07d}"))
    source = open_source(tmp_path)
    reader = pickle.loads(pickle.dumps(source.reader))
    assert len(pickle.dumps(source.reader)) < 1000 < len(pickle.dumps(source))
    assert reader.partitions() == []
    last = source.partitions()[-1]
    (job,) = reader.jobs(last, ALL)
    assert {image.grid_id for image in job()} == {772225}


def test_members_outside_the_selection_are_not_read(given_samples):
    members = sample(modalities=[S5P, DEM]) | {f"{KEY}.dem.pth": b"reading this is an error"}
    _, (rejected,) = given_samples(members)
    assert rejected.member == f"{KEY}.dem.pth"
    assert given_samples(members, selection=Selection.of(["s5p_co"]))[1] == []
    members[f"{KEY}.s5p_co.pth"] = b"nor this"
    assert given_samples(members, selection=Selection.of(["s5p_co"], "1999")) == ([], [])


def test_threads_read_what_one_thread_reads_and_a_source_pickles(tmp_path):
    samples = [sample(f"{772176 + i:07d}", [S5P, S3], seed=i) for i in range(6)]
    source = open_source(shard(tmp_path / "s.tar", *samples))
    serial, _ = read(source)
    again = pickle.loads(pickle.dumps(source))
    (partition,) = again.partitions()
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(job) for job in again.jobs(partition, ALL)]
        found = [image for future in futures for image in future.result()]
    assert len(found) == len(serial) == 24
    assert_same_images(found, serial)


def assert_same_images(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert (one.grid_id, one.modality, one.local_id, one.date, one.origin) == (
            other.grid_id,
            other.modality,
            other.local_id,
            other.date,
            other.origin,
        )
        np.testing.assert_array_equal(one.pixels, other.pixels)


@pytest.mark.slow
def test_both_layouts_give_the_same_images(tmp_path):
    from test_geotiff import write

    cells = ["0772176", "0906994"]
    shard(tmp_path / "s.tar", *(sample(c, [S1, S2, S3, S5P], int(c), local=LOCAL) for c in cells))
    folders = {m.key: m.folders[0] for m in (S1, S2, S3, S5P)}
    tars, _ = read(open_source(tmp_path / "s.tar"))
    for image in tars:
        date = image.date
        if image.modality == "s5p_co":
            name = f"{date[:4]}-{date[4:6]}-{date[6:]}_x.tif"
        else:
            name = f"X_{date}T000000.tif"
        local = [image.local_id] if image.local_id else []
        folder = [folders[image.modality], format_cell(image.grid_id), *local]
        write(tmp_path.joinpath("tree", *folder, name), image.pixels)
    tree = open_source(tmp_path / "tree")
    tifs, rejected = read(tree)
    assert not rejected

    def by_cell(images):
        return sorted(images, key=lambda i: i.grid_id)  # stable: the order within a cell stays

    assert len(tifs) == len(tars) == 24
    for a, b in zip(by_cell(tifs), by_cell(tars), strict=True):
        assert (a.grid_id, a.modality, a.local_id, a.date) == (
            b.grid_id,
            b.modality,
            b.local_id,
            b.date,
        )
        assert (a.lon, a.lat, a.rescaled) == (b.lon, b.lat, b.rescaled)
        assert a.pixels.dtype == b.pixels.dtype
        np.testing.assert_array_equal(a.pixels, b.pixels)


# What the names say.


@pytest.mark.slow
@given(patches=st.integers(1, 6), dates=st.integers(1, 5), listed=st.booleans(), data=st.data())
def test_names_nested_as_the_tensor_and_no_other_way(patches, dates, listed, data):
    days = [f"202101{i + 1:02d}" for i in range(dates)]
    local = [f"{i:07d}_-95.92_43.96" for i in range(patches)]
    wrap = (lambda name: [name]) if listed else (lambda name: name)
    modality = data.draw(st.sampled_from([S1, S2, S3, S5P]))
    about = names(modality, dates=days, local=local, leaf=wrap)
    shape, images = from_names(about, modality)
    assert shape == ((patches, dates) if modality.local else (dates,))
    assert [index for _, index in images] == list(np.ndindex(*shape))
    for image, index in images:
        assert image.date == days[index[-1]]
        assert image.local_id == (local[index[0]] if modality.local else None)
    rows = [*about] if modality.local else [about]
    broken = data.draw(st.sampled_from(rows))
    if modality.local and patches > 1:
        broken.append(broken[0])
        with pytest.raises(CopcubeError):
            from_names(about, modality)
        broken.pop()
    broken[data.draw(st.integers(0, dates - 1))] = data.draw(
        st.sampled_from([None, 3, {}, [], "", "x", f"{CELL}/2021", [f"{CELL}/20210101", "b"], [[]]])
    )
    with pytest.raises(CopcubeError):
        from_names(about, modality)


TEXTS = st.text(max_size=30)


@pytest.mark.slow
@given(
    st.recursive(
        st.none() | TEXTS | st.integers(),
        lambda x: st.lists(x, max_size=4) | st.dictionaries(TEXTS, x, max_size=4),
        max_leaves=10,
    )
)
def test_any_json_is_read_or_refused(about):
    for modality in (S1, S3, DEM):
        with pytest.raises(CopcubeError):
            from_names(about, modality)


def test_padded_dates_count_once(given_samples):
    members = sample(modalities=[S1, S5P], dates=[DATES[0], DATES[1], DATES[0], DATES[0]])
    members[f"{KEY}.s1_grd.pth"] = saved(tensor(S1, (2, 4)))
    members[f"{KEY}.s5p_co.pth"] = saved(tensor(S5P, (4,)))
    images, rejected = given_samples(members)
    assert len(images) == 4 + 2
    assert [(r.kind, r.member[8:], r.images) for r in rejected] == [
        ("duplicate", "s1_grd.pth", 4),
        ("duplicate", "s5p_co.pth", 2),
    ]
    np.testing.assert_array_equal(images[-1].pixels, tensor(S5P, (4,))[0].numpy())


def test_tensors_of_the_former_cell_are_stale(given_samples):
    """Cell 772177 lacks S5P and DEM: both members and the key stayed those of 772176."""
    first = sample(KEY, [S3, S5P, DEM], seed=1)
    about = json.loads(first[f"{KEY}.json"])
    about["s3_olci"] = names(S3, format_cell(772177))
    second = first | {
        f"{KEY}.s3_olci.pth": saved(tensor(S3, (2,), 2)),
        f"{KEY}.json": json.dumps(about).encode(),
    }
    third = sample("0772178", [S5P, DEM], seed=3)
    third["0772178.json"] = first[f"{KEY}.json"]
    images, rejected = given_samples(first, second, third)
    assert [(i.grid_id, i.modality) for i in images] == [
        *[(772176, "s3_olci")] * 2,
        *[(772176, "s5p_co")] * 2,
        (772176, "dem"),
        *[(772177, "s3_olci")] * 2,
    ]
    np.testing.assert_array_equal(images[0].pixels, tensor(S3, (2,), 1)[1].numpy())
    np.testing.assert_array_equal(images[-1].pixels, tensor(S3, (2,), 2)[0].numpy())
    assert sorted((r.kind, r.member, r.images) for r in rejected) == [
        ("stale", "0772176.dem.pth", 1),
        ("stale", "0772176.s5p_co.pth", 2),
        ("stale", "0772178.dem.pth", 1),
        ("stale", "0772178.s5p_co.pth", 2),
    ]
    assert all("those of cell 0772176, which come before" in r.reason for r in rejected)


def as_the_published_script(world, per_shard):
    """Shards of cells, each given as its modalities, as the script that published them packs them.

    It keeps one dictionary of tensors and one of names for all cells, puts into them what a cell
    has, and takes the key from the names of the elevation model.
    """
    tensors, about, shards = {}, {}, []
    for number, present in enumerate(world):
        cell = format_cell(772176 + number)
        for modality in present:
            tensors[f"{modality.key}.pth"] = b"not read"
            about[modality.key] = names(modality, cell, leaf=lambda name: [name])
        about["dem"] = [about["dem"]] if isinstance(about["dem"][0], str) else about["dem"]
        key = about["dem"][0][0].split("_")[0]
        members = {**tensors, "json": json.dumps(about).encode()}
        if number % per_shard == 0:
            shards.append([])
        shards[-1].append({f"{key}.{part}": members[part] for part in sorted(members)})
    return shards


@pytest.mark.slow
@given(
    st.lists(st.sets(st.sampled_from([S1, S2, S3, S5P, DEM])), max_size=7),
    st.integers(1, 4),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_shards_of_incomplete_cells_give_every_image_once(tmp_path, cells, per_shard):
    world = [{S3, DEM}, *cells]
    expected = {
        (m.key, 772176 + number, local, date)
        for number, present in enumerate(world)
        for m in present
        for local in (LOCAL if m.local else [None])
        for date in (DATES if m.dates > 1 else [None])
    }
    everything = set()
    for samples in as_the_published_script(world, per_shard):
        source = open_source(shard(tmp_path / "example-000000.tar", *samples))
        (partition,) = source.partitions()
        jobs = list(source.jobs(partition, ALL))
        found = [image for job in jobs if callable(job) for image, _ in job.args[-1].images]
        assert len(found) == len(set(found)) == source.count(partition, ALL).total()
        everything |= {(i.modality, i.grid_id, i.local_id, i.date) for i in found}
        assert {job.kind for job in jobs if not callable(job)} <= {"stale", "duplicate"}
    assert everything == expected


def test_a_tensor_of_two_cells_is_rejected(given_samples):
    members = sample()
    about = {"s5p_co": [[f"{CELL}/20210101"], [f"{OTHER}/20210201"]]}
    images, rejected = given_samples(members | {f"{KEY}.json": json.dumps(about).encode()})
    assert not images
    assert "expected names of one cell, found 0772175, 0772176" in rejected[0].reason


def test_what_does_not_fit_together_is_rejected(given_samples):
    def only(members):
        images, rejected = given_samples(members)
        assert not images
        assert {r.kind for r in rejected} == {"broken"}
        return rejected[0].reason

    good = sample()
    assert "found no 0772176.json, which names its images" in only(
        {k: v for k, v in good.items() if "json" not in k}
    )
    assert "does not name the images of s5p_co" in only(good | {f"{KEY}.json": b"{}"})
    assert "not JSON" in only(good | {f"{KEY}.json": b"{"})
    assert "not JSON" in only(good | {f"{KEY}.json": b"[" * 100_000})
    assert "expected a JSON object, found a list" in only(good | {f"{KEY}.json": b"[]"})
    assert "contradicts itself" in only(sample(cell="0772176_-96.00_44.25"))
    assert "'20210230' is not a date" in only(sample(dates=["20210230"]))
    assert "expected shape (3, 1, 28, 28)" in only(
        sample(dates=["20210101", "20210102", "20210103"])
    )
    for key in ("cell", "9999999", "77217", "٠٧٧٢١٧٦"):
        members = {name.replace(KEY, key): content for name, content in good.items()}
        assert "id" in only(members)
    assert "no sample" in only({"a.tif": b""})
    absent = json.dumps({m: names(MODALITIES[m]) for m in ("s5p_co", "dem")}).encode()
    images, rejected = given_samples(good | {f"{KEY}.json": absent})
    assert (len(images), rejected) == (2, [])


# Hostile members.


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def deflated(content):
    """The same records, compressed."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w", 8) as new:
        for record in old.infolist():
            new.writestr(record.filename, old.read(record))
    return out.getvalue()


def claiming(content, old, new):
    """The same file with some bytes of its pickle replaced."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(out, "w") as changed:
        for record in archive.infolist():
            data = archive.read(record)
            if record.filename.endswith("data.pkl"):
                assert old in data
                data = data.replace(old, new)
            changed.writestr(record.filename, data)
    return out.getvalue()


def with_pickle(pickled):
    """A tensor file of another pickle."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(SMALL))) as archive, zipfile.ZipFile(out, "w") as changed:
        for record in archive.infolist():
            unpickled = record.filename.endswith("data.pkl")
            changed.writestr(record.filename, pickled if unpickled else archive.read(record))
    return out.getvalue()


def shared_tuples(depth):
    """A pickle of a few bytes that takes 2 to the power of depth steps to hash."""
    pairs = (b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(depth))
    return b"\x80\x02K\x01K\x01\x86q\x00" + b"".join(pairs) + b"}h%cK\x01s." % depth


def with_two_directories(size):
    """An archive in which zipfile sees records of one byte, and torch all of them deflated."""
    bomb = deflated(saved(torch.zeros(size)))
    length, offset = struct.unpack("<II", bomb[-10:-2])
    (number,) = struct.unpack("<H", bomb[-12:-10])
    other, at = bytearray(bomb[offset : offset + length]), 0
    for _ in range(number):
        lengths = struct.unpack_from("<HHH", other, at + 28)
        struct.pack_into("<H", other, at + 10, 0)
        struct.pack_into("<II", other, at + 20, 1, 1)
        at += 46 + sum(lengths)
    return bomb[:-22] + other + bomb[-22:]


def as_folder(content):
    """The same file, whose data is marked a folder: torch returns memory as it finds it."""
    marked = bytearray(content)
    marked[marked.rindex(b"archive/data/0") - 46 + 38] |= 0x10
    return bytes(marked)


SMALL = tensor(S5P, (2,))
NUMEL = b"M" + SMALL.numel().to_bytes(2, "little")
HOSTILE = {
    "pickle": lambda flag: pickle.dumps(Payload(flag)),
    "code in a tensor file": lambda flag: saved({"a": Payload(flag)}),
    "code in a legacy file": lambda flag: saved(
        Payload(flag), _use_new_zipfile_serialization=False
    ),
    "legacy": lambda _: saved(SMALL, _use_new_zipfile_serialization=False),
    "dictionary": lambda _: saved({"s5p_co": SMALL}),
    "list": lambda _: saved([SMALL]),
    "number": lambda _: saved(3),
    "numpy array": lambda _: saved(SMALL.numpy()),
    "parameter": lambda _: saved(torch.nn.Parameter(SMALL)),
    "sparse": lambda _: saved(SMALL.to_sparse()),
    "quantised": lambda _: saved(torch.quantize_per_tensor(SMALL, 0.1, 0, torch.quint8)),
    "meta": lambda _: saved(torch.empty(SMALL.shape, device="meta")),
    "expanded": lambda _: saved(torch.ones(1).expand(SMALL.shape)),
    "strided": lambda _: saved(torch.ones(1).as_strided(SMALL.shape, (0, 0, 0, 0))),
    "transposed": lambda _: saved(SMALL.transpose(2, 3)),
    "complex": lambda _: saved(SMALL.to(torch.complex64)),
    "bool": lambda _: saved(SMALL > 0),
    "wrong shape": lambda _: saved(tensor(S5P, (3,))),
    "no axis for dates": lambda _: saved(tensor(S5P, ())),
    "wrong size": lambda _: saved(torch.zeros(2, 1, 56, 56)),
    "bomb": lambda _: deflated(saved(torch.zeros(4096, 1024))),
    "bomb behind another directory": lambda _: with_two_directories(4096 * 1024),
    "legacy before an archive": lambda _: (
        saved(SMALL, _use_new_zipfile_serialization=False) + saved(SMALL)
    ),
    "endless hash": lambda _: with_pickle(shared_tuples(60)),
    "endless pickle": lambda _: with_pickle(b"\x80\x02" + 100_000 * b"K\x00" + b"."),
    "memory": lambda _: with_pickle(b"\x80\x02c__builtin__\nbytearray\nJ\0\0\0\x40\x85R."),
    "folder": lambda _: as_folder(saved(SMALL.double())),
    "nested": lambda _: saved(torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)])),
    "bits": lambda _: saved(SMALL.to(torch.uint8).view(torch.bits8)),
    "empty": lambda _: b"",
    "cut": lambda _: saved(SMALL)[:-200],
    "larger than stored": lambda _: claiming(saved(SMALL), NUMEL, b"J\0\0\0\x10"),
    "negative": lambda _: claiming(saved(SMALL), NUMEL, b"J\xff\xff\xff\xff"),
}


@pytest.mark.filterwarnings(
    "ignore:.*quantize:UserWarning",
    "ignore:.*TypedStorage:UserWarning",
    "ignore:.*sparse tensor:UserWarning",
    "ignore:.*nested tensors:UserWarning",
)
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_or_unfit_tensor_is_rejected(kind, given_samples, tmp_path):
    flag = tmp_path / "executed"
    content = HOSTILE[kind](flag)
    good = sample("0772177")
    images, (rejected,) = given_samples(sample() | {f"{KEY}.s5p_co.pth": content}, good)
    assert {i.grid_id for i in images} == {772177}
    assert (rejected.kind, rejected.images) == ("broken", 2)
    assert (rejected.file, rejected.member) == ("example-000000.tar", f"{KEY}.s5p_co.pth")
    assert "weights_only" not in rejected.reason
    assert not flag.exists()


def test_sentinel_2_must_be_counts(given_samples):
    members = sample(modalities=[S2])
    members[f"{KEY}.s2_toa.pth"] = saved(tensor(S2, (2, 2)).float())
    _, (rejected,) = given_samples(members)
    assert rejected.reason == "expected s2_toa as uint16 or int16, found float32"
    assert rejected.images == 4


def test_sizes_are_limited(given_samples, monkeypatch):
    monkeypatch.setattr(limits.PIECE, "count", 2000)
    reason = given_samples(sample())[1][0].reason
    assert re.search(r"the tensor would expand to .*expected at most 2.0 kB", reason)
    monkeypatch.setattr(limits.CELL, "count", 10)
    reason = given_samples(sample())[1][0].reason
    assert re.search(r"0772176.json would expand to .*at most 10 B.*COPCUBE_LIMITS=\d", reason)


def test_names_and_links_in_a_tar_touch_nothing(given_samples, tmp_path):
    secret = tmp_path / "secret.pth"
    secret.write_bytes(saved(tensor(S5P, (2,))))
    before = sorted(tmp_path.rglob("*"))
    link = tarfile.TarInfo(f"{KEY}.s5p_co.pth")
    link.type, link.linkname = tarfile.SYMTYPE, str(secret)
    about = sample()[f"{KEY}.json"]
    images, rejected = given_samples({"link": link, f"{KEY}.json": about})
    assert (images, rejected) == ([], [])
    climbing = {f"../../{name}": content for name, content in sample().items()}
    absolute = {f"{tmp_path}/{n}": c for n, c in sample("0772177").items()}
    images, rejected = given_samples(climbing, absolute)
    assert ({i.grid_id for i in images}, rejected) == ({772176, 772177}, [])
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "example-000000.tar"])


def test_a_cut_shard_is_read_up_to_the_cut(tmp_path):
    keys = [f"{772176 + i:07d}" for i in range(3)]
    path = shard(tmp_path / "s.tar", *(sample(key) for key in keys))
    with tarfile.open(path) as archive:
        ends = {m.name: m.offset_data + m.size for m in archive}
    whole = path.read_bytes()
    for cut in (ends["0772177.json"] - 1, ends["0772177.json"], ends["0772178.s5p_co.pth"] + 512):
        path.write_bytes(whole[:cut])
        images, rejected = read(open_source(path))
        complete = {int(key) for key in keys if ends[f"{key}.json"] <= cut}
        assert {i.grid_id for i in images} == complete
        assert {r.kind for r in rejected} == {"broken"}
        (reason,) = (r.reason for r in rejected if not r.member)
        assert re.search(r"truncated at byte \d+", reason)
        assert {r.file for r in rejected} == {"s.tar"}


# Shards in object stores and on web servers.


@pytest.fixture(params=["s3", "http"])
def upload(request):
    """Return what brings a folder's files to a server, and gives their address."""
    if request.param == "s3":
        bucket = request.getfixturevalue("bucket")

        def bring(folder):
            for path in folder.rglob("*.*"):
                where = ObjectFolder(f"{bucket}/shards")
                where.write(str(path.relative_to(folder)), path.read_bytes())
            return f"{bucket}/shards"
    else:
        web = request.getfixturevalue("web")

        def bring(folder):
            for path in folder.rglob("*.*"):
                web.files[f"shards/{path.relative_to(folder)}"] = path.read_bytes()
            return f"{web.url}/shards"

    return bring


@pytest.fixture
def world(tmp_path):
    """Two shards with duplicated, stale and broken members, the second of them cut off."""
    folder = tmp_path / "world"
    folder.mkdir()
    stale = sample("0772178", [S5P, DEM], seed=3)
    stale["0772178.json"] = sample(KEY, [S5P, DEM])[f"{KEY}.json"]
    broken = sample("0772179", [S3, S5P]) | {"0772179.s5p_co.pth": b"no tensor"}
    shard(
        folder / "s-000000.tar",
        sample("0772177", [S1, S5P], seed=1),
        sample(KEY, [S5P, S1, DEM], seed=2),
        sample("0772177", [S5P], seed=5),
        stale,
        broken,
    )
    path = shard(folder / "s-000001.tar", *(sample(f"{906994 + i:07d}", [S3]) for i in range(3)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("part", [8 << 20, 1 << 16])
def test_a_server_gives_what_the_files_give(upload, world, part, monkeypatch):
    monkeypatch.setattr(archives, "ReadAhead", partial(ReadAhead, part=part))
    url = upload(world)
    there, here = open_source(f"{url}/s-{{000000..000001}}.tar"), open_source(world)
    assert there.root == url
    assert there.partitions() == here.partitions()
    assert there.fingerprint() == here.fingerprint()
    (images, rejected), (expected, refused) = read(there), read(here)
    assert len(images) > 15
    assert_same_images(images, expected)
    assert rejected == refused
    assert {r.kind for r in rejected} == {"broken", "stale", "duplicate"}
    assert any("truncated at byte" in r.reason for r in rejected)
    for partition in here.partitions():
        assert there.count(partition, ALL) == here.count(partition, ALL) != {}
    one = open_source(f"{url}/s-000001.tar")
    assert one.fingerprint() == open_source(world / "s-000001.tar").fingerprint()


@pytest.mark.slow
def test_a_prefix_stands_for_its_shards(bucket, world):
    where = ObjectFolder(f"{bucket}/a/shards")
    for path in world.iterdir():
        where.write(path.name, path.read_bytes())
    where.write("notes.txt", b"")
    where.write("deeper/s-000002.tar", b"")
    for url in (f"{bucket}/a/shards", f"{bucket}/a/shards/"):
        source = open_source(url)
        assert source.root == f"{bucket}/a/shards"
        assert source.fingerprint() == open_source(world).fingerprint()
    where.write("s.tar.gz", b"")
    with pytest.raises(SourceError, match="compressed"):
        open_source(f"{bucket}/a/shards")


@pytest.mark.slow
def test_shards_of_several_prefixes_have_one_root(bucket, world):
    for name in "ab":
        where = ObjectFolder(f"{bucket}/x/{name}")
        where.write("s.tar", (world / "s-000000.tar").read_bytes())
    source = open_source(f"{bucket}/x/{{a,b}}/s.tar")
    assert source.root == f"{bucket}/x"
    assert [(p.name, p.paths) for p in source.partitions()] == [
        ("a-s", ("a/s.tar",)),
        ("b-s", ("b/s.tar",)),
    ]


def test_what_is_not_there_is_named(bucket, web):
    ObjectFolder(bucket).write("s/s-000001.tar", b"")
    ObjectFolder(bucket).write("tree/s2_toa_mix/images/x.tif", b"")
    with pytest.raises(SourceError, match=r"of 10 shards 9 are missing: s-000000.tar.* 6 more"):
        open_source(f"{bucket}/s/s-{{000000..000009}}.tar")
    for url in (f"{bucket}/tree", f"{bucket}/none", f"{bucket}/s/none.tar", f"{web.url}/x.tar"):
        with pytest.raises(SourceError, match=r"found none; a GeoTIFF tree cannot be read from"):
            open_source(url)
    with pytest.raises(SourceError, match=r"do not list folders; name the shards"):
        open_source(f"{web.url}/shards/")
    with pytest.raises(SourceError, match="compressed"):
        open_source(f"{bucket}/s/s.tar.gz")


def test_a_shard_is_fetched_once_from_front_to_back_without_a_copy(web, tmp_path, monkeypatch):
    path = shard(
        tmp_path / "s.tar", *(sample(f"{772176 + i:07d}", [S5P, S3], seed=i) for i in range(12))
    )
    web.files["s.tar"] = path.read_bytes()
    size, part = path.stat().st_size, 1 << 19
    # The parts kept hold the four samples that seven jobs can be in and what is fetched ahead,
    # however late a thread runs, but not the shard.
    assert 4 * size / 12 + REQUESTS * part < KEPT * part < size
    monkeypatch.setattr(archives, "ReadAhead", partial(ReadAhead, part=part))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    source = open_source(f"{web.url}/s.tar")
    (partition,) = source.partitions()
    found = list(map_ahead(lambda job: job(), source.jobs(partition, ALL), 3, ahead=4))
    assert sum(map(len, found)) == 12 * 4
    spans = web.fetched("s.tar")
    fetched = sum(last + 1 - first for first, last in spans)
    assert sorted(set(spans))[0][0] == 0
    assert size <= fetched < 1.1 * size
    assert list(scratch.iterdir()) == []


def test_counting_fetches_little(web, tmp_path):
    path = shard(tmp_path / "s.tar", *(sample(f"{772176 + i:07d}", [S3, S1]) for i in range(3)))
    web.files["s.tar"] = path.read_bytes()
    source = open_source(f"{web.url}/s.tar")
    (partition,) = source.partitions()
    assert source.count(partition, ALL) == {"s3_olci": 6, "s1_grd": 12}
    fetched = sum(last + 1 - first for first, last in web.fetched("s.tar"))
    assert 0 < fetched < path.stat().st_size / 4


def test_a_store_that_fails_rejects_no_image(web, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "ReadAhead", partial(ReadAhead, part=1 << 16, ahead=0))
    path = shard(tmp_path / "s.tar", *(sample(f"{772176 + i:07d}", [S3]) for i in range(3)))
    web.files["s.tar"] = path.read_bytes()
    source = open_source(f"{web.url}/s.tar")
    (partition,) = source.partitions()
    web.cut["s.tar"] = 2
    first, *_ = source.jobs(partition, ALL)
    assert len(first()) == 2
    jobs = source.jobs(partition, ALL)
    first = next(jobs)
    web.status["s.tar"] = 503
    for read_on in (first, lambda: next(jobs)):
        with pytest.raises(StorageError, match="503"):
            read_on()
    del web.status["s.tar"]
    assert len(first()) == 2


def test_members_of_a_cell_may_lie_apart(given_samples):
    first, second = sample(), sample(key="0772177")
    together, _ = given_samples(first, second)
    members = sorted({**first, **second}.items(), key=lambda item: item[0].partition(".")[2])
    apart, rejected = given_samples(dict(members))
    assert rejected == []
    assert len(apart) == len(together) > 1
    assert {image.grid_id for image in apart} == {image.grid_id for image in together}
    reversed_, rejected = given_samples(dict(members[::-1]))
    assert rejected == []
    assert len(reversed_) == len(together)

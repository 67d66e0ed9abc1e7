"""Fetching, against a hub on this machine that speaks the real protocol and fails on demand."""

import errno
import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import zipfile
from collections import namedtuple
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
from hub_server import Hub, Repo, serve
from huggingface_hub import constants, utils
from hypothesis import given
from hypothesis import strategies as st

from copcube.cli import main
from copcube.errors import FetchError, MissingPackageError, OptionError, StorageError
from copcube.hub import unzip
from copcube.hub.fetch import _mark, cached, fetch, fetch_files
from copcube.hub.published import (
    ARCHIVE,
    BENCH,
    CHECKPOINT,
    ENCODERS,
    EXAMPLE,
    LANGUAGE,
    PRODUCTS,
    Published,
    published,
    sizes_and_licences,
)
from copcube.hub.unzip import is_inside, unpack
from copcube.probes.bench.catalogue import find
from copcube.probes.bench.opening import open_dataset

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BODY = bytes(range(256)) * 2000
WEIGHTS = Published("owner/model", "model", COMMIT, "weights.pth", "CC-BY-4.0")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with one model, and a cache of its own."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    offline(monkeypatch, False)
    with serve(Hub({"owner/model": Repo(COMMIT, {"weights.pth": BODY})})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub
    offline(monkeypatch, False)


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def offline(monkeypatch, value: bool) -> None:
    """Set HF_HUB_OFFLINE as if before the start."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", value)
    # Before 1.0 an open session stays what it was.
    getattr(utils, "reset_sessions", lambda: None)()


def downloads(hub: Hub) -> list[str]:
    return hub.bodies("cdn/")


# What is published


def test_every_product_is_pinned_licensed_and_described():
    for name in [*PRODUCTS, "shards"]:
        files = published(name, "0-9" if name == "shards" else None)
        assert len({file.path for file in files}) == len(files)
        text = sizes_and_licences(published(name, "0-9" if name == "shards" else None))
        for file in files:
            assert file.licence in text
            assert file.page in text
            assert all(len(digest) == 64 for digest in file.sha256)
    assert "Llama 3.2 Community License" in sizes_and_licences(published("weights"))
    assert "558 MB" in sizes_and_licences(published("weights"))
    large, words = published("weights", "large")
    assert "_large_" in large.path
    assert words == published("weights")[1]
    assert not {*large.sha256} & {*published("weights")[0].sha256}
    with pytest.raises(OptionError, match="only 'large' to choose from, given 'tiny'"):
        published("weights", "tiny")
    assert "10 files, about 50 GB" in sizes_and_licences(published("shards", "0-9"))


def test_weights_of_other_encoders_are_named_one_by_one():
    for name, file in ENCODERS.items():
        assert published("weights", encoder=name) == (file,)
        assert file.licence in sizes_and_licences([file])
    # The first digits of these checksums stand in the names of the files.
    for name in ("ssl4eo-s2", "ssl4eo-s1rtc"):
        assert ENCODERS[name].path.endswith(f"-{ENCODERS[name].sha256[0][:8]}.pth")
    with pytest.raises(OptionError, match="unknown encoder 'vit'"):
        published("weights", encoder="vit")
    with pytest.raises(OptionError, match="'dinov2' has no 'map'"):
        published("map", encoder="dinov2")
    with pytest.raises(OptionError, match="'dinov2' has no 'weights large'"):
        published("weights", "large", encoder="dinov2")


@pytest.mark.slow
@given(st.integers(0, 3210), st.integers(0, 3210))
def test_shards_are_named_as_published(a, b):
    first, last = sorted((a, b))
    files = published("shards", f"{first}-{last}")
    assert len(files) == last - first + 1
    for number, file in zip(range(first, last + 1), files, strict=True):
        folder, name = file.path.split("/")
        assert name == f"example-{number:06d}.tar"
        aligned = folder == "ssl4eo_s_220k_aligned"
        assert aligned == (number < 2256)
        assert aligned or folder == "ssl4eo_s_220k_310k_union"


@pytest.mark.parametrize(
    "which", ["", "3211", "9-0", "-1", "0-3211", "a-b", "1-", "0,1", "٣", None]
)
def test_impossible_shards_are_refused(which):
    with pytest.raises(OptionError, match="expected shards such as 7 or 0-99 within 0-3210"):
        published("shards", which)


def test_one_shard_and_unknown_products():
    assert published("shards", "5") == published("shards", "5-5")
    with pytest.raises(OptionError, match="unknown product 'maps'"):
        published("maps")
    with pytest.raises(OptionError, match="no parts"):
        published("map", "0-9")


# Bringing a file


def test_file_comes_whole_with_commit_and_checksum(hub):
    (got,) = fetch_files([WEIGHTS])
    assert got.path.read_bytes() == BODY
    assert (got.commit, got.sha256, got.size) == (COMMIT, sha256(BODY), len(BODY))
    assert cached(WEIGHTS) == got.path


def test_second_call_asks_nobody_and_hashes_nothing(hub, monkeypatch):
    first = fetch_files([WEIGHTS])
    hub.requests.clear()
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("hashed again"))
    assert fetch_files([WEIGHTS]) == first
    assert hub.requests == []


def test_cut_connection_goes_on_where_it_broke(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what is not a chunk is lost
    hub.cut["weights.pth"] = 123_456
    (got,) = fetch_files([WEIGHTS])
    assert got.path.read_bytes() == BODY
    assert downloads(hub) == ["", "bytes=123000-"]


def test_wrong_checksum_is_named_and_the_next_try_downloads_again(hub):
    hub.corrupt.add("weights.pth")
    with pytest.raises(FetchError, match=rf"expected SHA-256 {sha256(BODY)}, found [0-9a-f]{{64}}"):
        fetch_files([WEIGHTS])
    assert cached(WEIGHTS) is None
    assert fetch_files([WEIGHTS])[0].path.read_bytes() == BODY
    assert len(downloads(hub)) == 2


def test_file_that_is_not_the_known_one_is_refused_before_the_download(hub):
    known = replace(WEIGHTS, sha256=(sha256(b"what it was"),))
    with pytest.raises(FetchError, match="the hub now has a different file: expected SHA-256"):
        fetch_files([known])
    assert downloads(hub) == []


def test_known_checksum_holds_where_the_hub_declares_none(hub):
    hub.repos["owner/model"].lfs = False
    known = replace(WEIGHTS, sha256=(sha256(b"another"),))
    with pytest.raises(FetchError, match=f"expected SHA-256 {sha256(b'another')}"):
        fetch_files([known])
    assert cached(known) is None
    either = replace(WEIGHTS, sha256=(sha256(b"another"), sha256(BODY)))
    assert fetch_files([either])[0].sha256 == sha256(BODY)


def test_file_that_changed_in_the_cache_is_verified_again(hub):
    (got,) = fetch_files([WEIGHTS])
    with got.path.open("r+b") as handle:
        handle.write(b"x")
    with pytest.raises(FetchError, match="wrong checksum"):
        fetch_files([WEIGHTS])
    assert fetch_files([WEIGHTS])[0].path.read_bytes() == BODY


def test_cache_filled_by_another_program_is_verified_without_network(hub, monkeypatch):
    api = huggingface_hub.HfApi(endpoint=hub.url)
    api.hf_hub_download(
        "owner/model", "weights.pth", revision=COMMIT, cache_dir=constants.HF_HUB_CACHE
    )
    hub.requests.clear()
    offline(monkeypatch, True)
    assert fetch_files([WEIGHTS])[0].sha256 == sha256(BODY)
    assert hub.requests == []


# Folders, branches and patterns


def test_a_branch_in_the_cache_is_asked_for_once_and_known_by_its_commit(hub, monkeypatch):
    branch = replace(WEIGHTS, revision="main")
    hub.repos["owner/model"] = Repo(COMMIT, {"weights.pth": BODY})
    (got,) = fetch_files([branch])
    assert (got.commit, got.sha256) == (COMMIT, sha256(BODY))
    hub.requests.clear()
    offline(monkeypatch, True)
    assert fetch_files([branch]) == (got,)
    assert hub.requests == []


def test_first_file_of_a_branch_without_checksum_is_noted_and_no_other_is_taken(hub, caplog):
    """SigLIP's: its bytes and commit are what was fetched first, whatever the branch is later."""
    file = ENCODERS["siglip"]
    hub.repos[file.repo] = Repo(COMMIT, {file.path: BODY})
    (first,) = fetch("weights", ".", encoder="siglip")
    (said,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "its checksum is not known here" in said
    assert sha256(BODY) in said
    assert COMMIT in said
    pin = Path(constants.HF_HUB_CACHE, f"models--{file.repo.replace('/', '--')}")
    pin /= f".{file.path}.pinned"
    assert str(pin) in said
    caplog.clear()
    hub.requests.clear()
    assert fetch("weights", ".", encoder="siglip") == (first,)
    assert (hub.requests, caplog.text) == ([], "")

    # The branch moves, and another program brings what is there now into the same cache.
    hub.repos[file.repo] = Repo("f" * 40, {file.path: b"newer"})
    api = huggingface_hub.HfApi(endpoint=hub.url)
    api.hf_hub_download(file.repo, file.path, cache_dir=constants.HF_HUB_CACHE)
    assert cached(file).read_bytes() == b"newer"
    assert fetch("weights", ".", encoder="siglip") == (first,)

    # The file is lost, and the hub has only the newer one, or other bytes under the same commit.
    first.path.unlink()
    with pytest.raises(
        FetchError, match=rf"not found \(404\).*published now instead, remove {pin}"
    ):
        fetch("weights", ".", encoder="siglip")
    hub.repos[file.repo] = Repo(COMMIT, {file.path: b"newer"})
    with pytest.raises(FetchError, match=f"expected SHA-256 {sha256(BODY)}, found .*remove {pin}"):
        fetch("weights", ".", encoder="siglip")
    pin.unlink()
    assert fetch("weights", ".", encoder="siglip")[0].sha256 == sha256(b"newer")


def test_branch_that_another_program_brought_is_known_by_its_commit(hub, monkeypatch):
    hub.repos["owner/model"] = Repo(COMMIT, {"weights.pth": BODY})
    api = huggingface_hub.HfApi(endpoint=hub.url)
    api.hf_hub_download("owner/model", "weights.pth", cache_dir=constants.HF_HUB_CACHE)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (got,) = fetch_files([replace(WEIGHTS, revision="main")])
    assert (got.commit, got.sha256) == (COMMIT, sha256(BODY))


def test_folder_keeps_published_paths_and_is_not_fetched_twice(hub, tmp_path):
    shards = {file.path: file.path.encode() for file in published("shards", "2255-2256")}
    hub.repos["wangyi111/Copernicus-Pretrain"] = Repo(ARCHIVE.revision, shards)
    got = fetch("shards", tmp_path / "data", "2255-2256")
    assert [file.path for file in got] == [tmp_path / "data" / path for path in shards]
    assert [file.path.read_bytes() for file in got] == list(shards.values())
    hub.requests.clear()
    assert fetch("shards", tmp_path / "data", "2255-2256") == got
    assert hub.requests == []


def test_only_what_is_missing_is_brought(hub, tmp_path):
    shards = {file.path: file.path.encode() for file in published("shards", "0-3")}
    hub.repos["wangyi111/Copernicus-Pretrain"] = Repo(ARCHIVE.revision, shards)
    fetch("shards", tmp_path, "1-2")
    hub.requests.clear()
    fetch("shards", tmp_path, "0-3")
    assert len(downloads(hub)) == 2


@pytest.mark.slow
def test_rows_are_what_the_hub_lists_over_all_pages(hub, tmp_path, caplog):
    under = "embeddings_025_v1/full_chunks"
    rows = {f"{under}/220k_aligned/embeddings_220k_chunk_{k}.parquet": b"%d" % k for k in range(5)}
    rest = {f"{under}/220k_310k_union/embeddings_220k_310k_chunk_0.parquet": b"union"}
    other = {"embeddings_025_v1/embed_map_310k.npz": b"map", "elsewhere_chunk_0.parquet": b"no"}
    average = {"embeddings_025_v1/avg_chunks/embeddings_avg_310k.parquet": b"average"}
    parts = {"embeddings_025_v1/avg_chunks/embeddings_avg_220k_aligned.parquet": b"part"}
    files = {**rows, **rest, **other, **average, **parts}
    hub.repos["wangyi111/Copernicus-Embed-025deg"] = Repo(COMMIT, files)
    hub.page_size = 2
    caplog.set_level("INFO", "copcube")
    got = fetch("rows", tmp_path)
    assert {str(file.path.relative_to(tmp_path)): file.path.read_bytes() for file in got} == {
        **rows,
        **rest,
    }
    assert {file.commit for file in got} == {COMMIT}
    assert f"main is commit {COMMIT}" in caplog.text
    assert "6 files" in caplog.text
    assert "CC-BY-4.0" in caplog.text
    (one,) = fetch("averages", tmp_path)
    assert one.path.read_bytes() == b"average"


def test_branch_that_moved_brings_the_new_file(hub, tmp_path):
    newest = replace(WEIGHTS, revision="main")
    fetch_files([newest], tmp_path)
    hub.repos["owner/model"] = Repo("f" * 40, {"weights.pth": b"newer"})
    (got,) = fetch_files([newest], tmp_path)
    assert (got.path.read_bytes(), got.commit) == (b"newer", "f" * 40)


def test_hostile_listing_cannot_leave_the_folder(hub, tmp_path):
    hub.repos["owner/model"].files = {"data/../../out_chunk_0.parquet": b"x"}
    with pytest.raises(FetchError):
        fetch_files([replace(WEIGHTS, path="data/*_chunk_*.parquet")], tmp_path / "in")
    assert not (tmp_path / "out_chunk_0.parquet").exists()
    assert downloads(hub) == []


# What goes wrong


@pytest.mark.parametrize(
    ("file", "names"),
    [
        (replace(WEIGHTS, path="other.pth"), ["owner/model", "other.pth", COMMIT]),
        (
            replace(WEIGHTS, revision="a" * 40),
            ["owner/model", "weights.pth", "aaaaaaaaaaaa", "404"],
        ),
        (replace(WEIGHTS, repo="owner/none"), ["owner/none", "weights.pth", "huggingface.co"]),
    ],
)
def test_what_is_not_there_is_named(hub, file, names):
    with pytest.raises(FetchError) as caught:
        fetch_files([file])
    assert all(name in str(caught.value) for name in names)


@pytest.mark.parametrize(
    ("status", "says"),
    [
        ((403, "GatedRepo"), r"access denied \(403\).*HF_TOKEN"),
        ((401, "Invalid credentials"), r"access denied \(401\)"),
        ((404, "EntryNotFound"), r"not found \(404\)"),
        ((500, ""), "the hub answered 500; try again later"),
    ],
)
@pytest.mark.parametrize("where", ["paths-info", "resolve"])
def test_refusals_say_what_to_do(hub, monkeypatch, status, says, where):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    hub.status[where] = status
    with pytest.raises(FetchError, match=says):
        fetch_files([WEIGHTS])


def test_without_network_both_ways_out_are_named_at_once(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        FetchError, match=r"127\.0\.0\.1:9.*--weights PATH.*--weights untrained:SEED"
    ):
        fetch("weights", ".")
    with pytest.raises(FetchError) as caught:
        fetch("map", ".")
    assert "--weights" not in str(caught.value)


def test_a_file_in_the_way_is_no_fault_of_the_connection(hub, monkeypatch, tmp_path):
    (tmp_path / "home").write_text("no folder")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "home" / "token"))
    with pytest.raises(FetchError, match=r"home/token.*; check that file, or set HF_HOME") as told:
        fetch_files([WEIGHTS])
    assert "connection" not in str(told.value)


def test_offline_uses_the_cache_and_says_what_it_lacks(hub, monkeypatch):
    offline(monkeypatch, True)
    with pytest.raises(FetchError, match=r"weights\.pth.*HF_HUB_OFFLINE forbids"):
        fetch_files([WEIGHTS])
    offline(monkeypatch, False)
    first = fetch_files([WEIGHTS])
    offline(monkeypatch, True)
    assert fetch_files([WEIGHTS]) == first


def test_too_small_a_disk_is_told_before_the_download(hub, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10**6, 10**6, 1000))
    with pytest.raises(StorageError, match=r"1\.0 kB free, but 512 kB are needed"):
        fetch_files([WEIGHTS])
    assert downloads(hub) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_disk_that_refuses_in_the_middle(hub, monkeypatch, code):
    def full(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with pytest.raises(StorageError, match="cannot be written"):
        fetch_files([WEIGHTS])


@pytest.mark.slow
def test_environment_of_a_new_process_is_heeded(hub, tmp_path):
    """HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE as a user sets them; no bars without a terminal."""
    program = (
        "from copcube.hub.fetch import fetch_files; from copcube.hub.published import Published;"
        f"print(fetch_files([{WEIGHTS!r}])[0].sha256)"
    )
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    environment.pop("HF_HUB_CACHE", None)
    for offline in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-W", "error::UserWarning", "-c", program],
            env={**environment, "HF_HUB_OFFLINE": offline},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == sha256(BODY)
        assert done.stderr == ""
    assert len(downloads(hub)) == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_bars_are_for_terminals(hub, monkeypatch, stream):
    monkeypatch.setattr("sys.stderr", shown := stream())
    fetch_files([WEIGHTS])
    assert ("512k/512k" in shown.getvalue()) == shown.isatty()


def test_without_huggingface_hub_the_remedy_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for folder in (None, tmp_path):
        with pytest.raises(MissingPackageError, match=r"copcube\[build\]"):
            fetch_files([WEIGHTS], folder)


# Archives


def archive(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, body in members.items():
            file.writestr(name, body)
    return buffer.getvalue()


@pytest.mark.slow
def test_example_comes_in_both_layouts_unpacked(hub, tmp_path):
    files = {file.path: b"tar" for file in EXAMPLE}
    inner = {"s3_olci_wgs/images/a/b.tif": b"tif", "dem_grid_wgs/images/c.tif": b"dem"}
    files[ARCHIVE.path] = archive({f"example_100_geotiff/{name}": b for name, b in inner.items()})
    hub.repos["wangyi111/Copernicus-Pretrain"] = Repo(ARCHIVE.revision, files)
    assert len(fetch("example", tmp_path)) == 12
    root = tmp_path / "example_100_grids"
    assert len(list(root.glob("example_100_webdataset/example-*.tar"))) == 10
    assert (root / "fnames_100_union.json.gz").exists()
    for name, body in inner.items():
        assert (root / "example_100_geotiff" / name).read_bytes() == body
    hub.requests.clear()
    fetch("example", tmp_path)
    assert hub.requests == []


def test_tasks_come_checked_by_md5_unpacked_and_once(hub, tmp_path, monkeypatch):
    """Both tasks of an archive are one download; HDF5 files are not unpacked."""
    members = {"dfc2020_s1s2/dfc-train-new.csv": b"a_dfc.tif", "dfc2020_s1s2/dfc/a_dfc.tif": b"tif"}
    bodies = {
        file.path: file.path.encode() for name in ("dfc2020-s1", "lcz-s2") for file in BENCH[name]
    }
    bodies["l2_dfc2020_s1s2/dfc2020.zip"] = archive(members)
    for name in ("dfc2020-s1", "dfc2020-s2", "lcz-s2"):
        files = [
            replace(file, md5=hashlib.md5(bodies[file.path]).hexdigest()) for file in BENCH[name]
        ]
        monkeypatch.setitem(BENCH, name, tuple(files))
    hub.repos["wangyi111/Copernicus-Bench"] = Repo(files[0].revision, bodies)
    tasks = ["dfc2020-s1", "dfc2020-S2", "lcz-s2"]
    assert len(fetch("bench", tmp_path, tasks)) == 4
    assert (tmp_path / "l2_dfc2020_s1s2/dfc2020/dfc2020_s1s2/dfc/a_dfc.tif").read_bytes() == b"tif"
    assert open_dataset(find("dfc2020-s2"), tmp_path).names("train") == ["a_dfc.tif"]
    hub.requests.clear()
    fetch("bench", tmp_path, tasks)
    assert hub.requests == []


def test_another_file_than_the_published_one_is_refused_by_its_md5(hub, tmp_path):
    """The hub's own checksum agrees with what it sends, whatever that is."""
    (file,) = BENCH["eurosat-s1"]
    hub.repos[file.repo] = Repo(file.revision, {file.path: archive({"a.tif": b"other"})})
    with pytest.raises(FetchError, match=f"wrong checksum: expected MD5 {file.md5}, found"):
        fetch("bench", tmp_path, "eurosat-s1")
    assert not (tmp_path / file.path).exists()
    assert not (tmp_path / file.path).with_suffix("").exists()


def test_tasks_are_chosen_by_name_or_all():
    names = [file.path for file in published("bench", "all")]
    assert len(names) == len(set(names)) == 13
    assert all(len(file.md5) == 32 for file in published("bench", "all"))
    assert len(published("bench", ["eurosat-s1", "eurosat-s1"])) == 1
    for wrong, says in (
        (None, "no task given"),
        ("all,x", "unknown task 'all,x'"),
        (["all", "lcz-s2"], "unknown task 'all'; expected one or more of cloud-s2"),
    ):
        with pytest.raises(OptionError, match=says):
            published("bench", wrong)


def test_command_without_a_product_asks_for_no_more_than_that(capsys):
    with pytest.raises(SystemExit):
        main(["fetch"])
    assert capsys.readouterr().err.endswith("are required: what\n")


def test_command_takes_several_tasks_and_one_range(capsys):
    for wrong, says in (
        (["map", "1", "2"], "fetch map takes one range, got 1 2"),
        (["bench"], "no task given; expected one or more of cloud-s2"),
        (["bench", "lcz-s2", "lcz"], "unknown task 'lcz'"),
    ):
        assert main(["fetch", *wrong]) == 1
        assert says in capsys.readouterr().err


def link() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        info = zipfile.ZipInfo("innocent.tif")
        info.external_attr = 0o120777 << 16
        file.writestr(info, "/etc/passwd")
    return buffer.getvalue()


def damaged() -> bytes:
    body = bytearray(archive({"a.tif": random.Random(0).randbytes(5000)}))
    body[2500] ^= 1
    return bytes(body)


def repeated() -> bytes:
    return archive({"a.tif": b"1", "b.tif": b"2"}).replace(b"b.tif", b"a.tif")


def misplaced() -> bytes:
    """An archive whose only member begins before the file."""
    body = bytearray(archive({"a.tif": b"1"}))
    end = body.index(b"PK\5\6")
    claimed = body.index(b"PK\1\2") + 100  # of the directory, from which `zipfile` counts back
    body[end + 16 : end + 20] = claimed.to_bytes(4, "little")
    return bytes(body)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: archive({"../out.tif": b"x"}), "leaves its folder"),
        (lambda: archive({"a/../../out.tif": b"x"}), "leaves its folder"),
        (lambda: archive({"/tmp/out.tif": b"x"}), "leaves its folder"),
        (lambda: archive({"a\\..\\out.tif": b"x"}), "leaves its folder"),
        (lambda: archive({"c:out.tif": b"x"}), "leaves its folder"),
        (link, "is a link"),
        (repeated, "repeats a name"),
        (lambda: archive({"bomb.tif": bytes(50_000_000)}), "unpack to 50 MB"),
        (lambda: archive({"a.tif": BODY})[:-100], "not a readable zip"),
        (damaged, "not a readable zip"),
        (lambda: b"", "not a readable zip"),
        (lambda: archive({}), "holds no files; remove it"),
        (lambda: archive({"images/": b""}), "holds no files; remove it"),
        (lambda: archive({"a": b"1", "a/b.tif": b"2"}), "'a' is both a file and a folder in it"),
        (lambda: archive({"images/a.tif": b"1", "images": b"2"}), "'images' is both a file and"),
        (lambda: archive({"ä.tif": b"1"}).replace("ä".encode(), b"\xff\xfe"), "not a readable zip"),
        (misplaced, "not a readable zip"),
        (lambda: archive({"a.tif": b"1"}, zipfile.ZIP_BZIP2), "by method 12; .* into .*images$"),
        (lambda: archive({"a.tif": b"1"}, zipfile.ZIP_LZMA), "by method 14; .* into .*images$"),
    ],
)
def test_hostile_and_broken_archives_leave_nothing_behind(tmp_path, make, says):
    path = tmp_path / "in" / "images.zip"
    path.parent.mkdir()
    path.write_bytes(make())
    with pytest.raises(FetchError, match=says):
        unpack(path)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]
    assert not (tmp_path / "in" / "images").exists()


def test_a_file_may_have_the_name_of_its_archive(tmp_path):
    (tmp_path / "images.zip").write_bytes(archive({"images": b"1"}))
    for _ in range(2):
        assert (unpack(tmp_path / "images.zip") / "images").read_bytes() == b"1"


@pytest.mark.parametrize("other", ["is faster", "is stopped"])
def test_two_that_unpack_an_archive_at_once_leave_it_whole(tmp_path, monkeypatch, other):
    path, names = tmp_path / "images.zip", {"a.tif", "b.tif", "c.tif"}
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, bytes(100))
    copy, steps = shutil.copyfileobj, iter(range(9))

    def copied(source, sink, length):
        step = next(steps)
        if step == 1:
            with suppress(KeyboardInterrupt):
                unpack(path)
        if step == 2 and other == "is stopped":
            raise KeyboardInterrupt
        copy(source, sink, length)

    monkeypatch.setattr(shutil, "copyfileobj", copied)
    assert {file.name for file in unpack(path).iterdir()} == names
    assert {file.name for file in tmp_path.iterdir()} == {"images", "images.zip"}


def test_too_many_members_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(unzip, "MAX_MEMBERS", 2)
    path = tmp_path / "images.zip"
    path.write_bytes(archive({f"{i}.tif": b"x" for i in range(3)}))
    with pytest.raises(FetchError, match="refused: 3 files"):
        unpack(path)


@given(st.text(alphabet="ab./\\:\0", max_size=12))
def test_only_names_that_stay_inside_are_accepted(name):
    """Against the operating system's own reading of a path."""
    if is_inside(name):
        resolved = os.path.normpath(os.path.join("/root", name))
        assert resolved == f"/root/{name}"


def test_broken_mark_is_no_mark(hub):
    (got,) = fetch_files([WEIGHTS])
    mark = _mark(got.path)
    for text in ("", "[]", "null", "{}", json.dumps({"size": 1})):
        mark.write_text(text)
        assert fetch_files([WEIGHTS]) == (got,)


def test_weights_are_the_checkpoint_and_the_language_embeddings(hub):
    body = {CHECKPOINT.path: b"checkpoint", LANGUAGE.path: b"language"}
    hub.repos[CHECKPOINT.repo] = Repo(CHECKPOINT.revision, body)
    with pytest.raises(FetchError, match=CHECKPOINT.sha256[0]):
        fetch("weights", ".")
    assert fetch_files([LANGUAGE])[0].path.read_bytes() == b"language"

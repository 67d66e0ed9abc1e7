"""The folder of a build: plan, receipts, rows, cells, and one driver at a time.

    world.build/
      plan.json  partitions.parquet  quarantine.parquet
      rows/NAME.parquet              one file a partition
      survey.json                    summary of all rows
      cells/WORK/NAME-BAND-BAND.arrow  statistics of cells, until the cube is done; first
                                     and last band of the cube
      variances/WORK/BAND.json       those of the modalities, if they are to be made equal
      receipts/STAGE/NAME.json       one per finished task
      running/NAME.json              what a worker is doing, and since when
      failed/NAME.json               what failed and may succeed next time
      cube.zarr/WORK                 the cube until it is complete, then renamed
      replaced.zarr                  a former cube, while its successor takes its name
      replacing                      present while a cube is made that will replace another
      publishing                     present while a cube is copied to its name in a bucket
      .lock-*                        who owns the build, while anybody does

`copcube.builds.receipts` explains what a receipt proves. In an object store the folder looks the
same.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa

from copcube.arguments import flag, is_in_utf8
from copcube.builds.partitions import encode_partitions, read_digest, read_partitions
from copcube.builds.plan import Plan
from copcube.builds.receipts import Receipts
from copcube.cube import foreign, overlap, read_attributes
from copcube.cube.replacing import added, require_outside, require_store_name, unusual
from copcube.cube.store import lacks_root
from copcube.errors import BuildError, CopcubeError, OptionError, StorageError, WriteError, few
from copcube.files.atomic import NOT_UTF8, sync
from copcube.files.contents import HEAD, other_than
from copcube.files.folders import LocalFolder, absolute, open_folder
from copcube.files.limits import rule_out_shortage
from copcube.files.lock import BEAT, DEAD, Lock
from copcube.files.objects import ObjectFolder, is_remote, listing
from copcube.files.objects.stores import split
from copcube.images import Partition

SCRATCH = (
    *("cells", "variances", "running", "failed", "survey.json", "replaced.zarr", "cube.zarr"),
    *("replacing", "publishing"),
)
"""Files that only making the cube needs."""

_OWN = (*SCRATCH, "receipts", "rows", "quarantine.parquet", "partitions.parquet", "plan.json")
"""Everything that a build's folder may hold, in a safe order of removal."""

_OF_OTHER_ROWS = b"rows were lost"
"""Content of the file `replacing` if it exists for another reason than ``--overwrite``."""


class BuildFolder:
    """The folder beside a cube that its build works in.

    Parameters
    ----------
    out : str or Path
        The cube, such as ``world.zarr`` or ``s3://bucket/world.zarr``; the folder is
        ``world.build`` beside it.

    Raises
    ------
    WriteError
        If the path is not UTF-8.
    """

    def __init__(self, out: str | Path) -> None:
        self.out = absolute(out)
        if not is_in_utf8(self.out):  # needed by arrow, which reads the folder's files
            raise WriteError(f"{self.out} cannot be written: {NOT_UTF8}")
        self.path = self.out.removesuffix(".zarr") + ".build"
        self.files = open_folder(self.path)
        self.receipts = Receipts(self.files)
        self._lock: Lock | None = None

    def rows(self, name: str = "") -> str:
        """Path of the rows of a partition, or of the folder of all rows."""
        return f"{self.path}/rows/{name}.parquet" if name else f"{self.path}/rows"

    def cube(self, place: str) -> str:
        """Path of the cube of some work until it is complete."""
        return f"{self.path}/cube.zarr/{place}"

    def plan(self) -> Plan | None:
        """Return the plan of the build under way, if any.

        Raises
        ------
        BuildError
            If the file exists and is not a plan.
        """
        try:
            data = self.files.read("plan.json")
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            return Plan.of(json.loads(data))
        except (ValueError, TypeError, RecursionError) as error:
            other = other_than(("json",), data[:HEAD]) or f"something else ({error})"
            raise BuildError(
                f"{self.path}/plan.json: expected the plan of a build, found {other}; --overwrite "
                "starts over"
            ) from error

    def followed(
        self, plan: Plan, known: Plan | None, *, keep_batches: bool = True, alone: bool = True
    ) -> Plan:
        """Return the plan to follow: that of the build under way, if it is the requested one.

        A build that has made nothing, such as one for dates without images, may be replaced.

        Parameters
        ----------
        plan : Plan
            The requested plan.
        known : Plan or None
            The plan of the build under way, see `plan`.
        keep_batches : bool
            Whether to keep the batch sizes of the build under way, as no others were requested.
        alone : bool
            Whether no other run may be at work on the build under way.

        Raises
        ------
        BuildError
            If the build under way has other options, or a cube would be replaced unasked.
        """
        if known is not None:
            # The encoder chooses them for the machine, and a build may continue on another one.
            same = replace(plan, batch_sizes=known.batch_sizes) if keep_batches else plan
            try:
                known.refuse_changes(same, self.path)
                plan = known
            except BuildError:
                if not alone or self.has_made_something():
                    raise
        self.require_result(plan)
        return plan

    def has_made_something(self) -> bool:
        """Whether starting over would discard more than lists of work to do."""
        if self.has_cube() or self.receipts.names("combine"):
            return True
        # Usually the first receipt decides and no other is read: in a store each is a request.
        embedded = self.receipts.readable("embed")
        return any(receipt["images"] or receipt["rejected"] for _, receipt in embedded)

    def begins_anew(self, plan: Plan) -> bool:
        """Whether the plan's cube exists and has not begun to be replaced."""
        # The former cube may be one of the same plan: then only the folder shows whether an
        # earlier run has begun to replace it.
        return self.is_cube_of(plan) and self._replacing() != b""

    def write_plan(self, plan: Plan) -> None:
        """Write the plan if there is none.

        Raises
        ------
        BuildError
            If there is a different one, as when two processes begin at the same moment.
        """
        text = json.dumps(asdict(plan), indent=1, sort_keys=True)
        # Created, not overwritten: if two drivers begin at once, one plan counts for both.
        self.files.create("plan.json", text.encode())
        there = self.plan()
        assert there is not None
        there.refuse_changes(plan, self.path)

    def partitions(self) -> list[Partition]:
        """List of partitions; empty until it is written."""
        try:
            return read_partitions(self.files.open("partitions.parquet"))
        except FileNotFoundError:
            return []
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, CopcubeError | MemoryError):
                raise
            rule_out_shortage(error)
            raise BuildError(
                f"{self.path}/partitions.parquet: damaged ({error}); the same `copcube build` "
                "command writes it again"
            ) from error

    def write_partitions(self, partitions: Sequence[Partition], digest: str) -> None:
        """Write the list of partitions, unless one with this digest exists."""
        try:
            there = read_digest(self.files.open("partitions.parquet"))
            # A damaged list is written again: its digest may be intact although its pages are not.
            if there == digest and self.partitions() != list(partitions):
                there = ""
        except (pa.ArrowException, OSError, ValueError, BuildError) as error:
            if isinstance(error, StorageError):
                raise
            there = ""
        if there != digest:
            self.files.write("partitions.parquet", encode_partitions(partitions, digest))

    def prepare(self) -> None:
        """Remove what killed drivers and workers left behind."""
        self.require_lock()
        # A store shows no file before it is complete, so nothing half-written can be there.
        if isinstance(self.files, LocalFolder):
            self.files.sweep()
        self.files.remove("running")

    def require_own(self) -> None:
        """Check that the folder may be used: it is new, or belongs to a build.

        Raises
        ------
        BuildError
            If it holds something else.
        """
        if not is_remote(self.path) and os.path.lexists(self.path) and not os.path.isdir(self.path):
            raise BuildError(
                f"{self.path}: this build needs a folder of that name, which something else has; "
                "choose another output name, or move it away"
            )
        tops = {name.partition("/")[0] for name in self.files.names()}
        strange = sorted(tops.difference(_OWN))
        # All files but two are written after the plan, which is removed last: without it, nothing
        # here belongs to a build.
        if "plan.json" not in tops:
            strange = strange or sorted(tops - {"partitions.parquet", "replacing"})
        elif strange:
            try:
                self.plan()
                strange = []  # a user's note beside the rows; it is never touched
            except BuildError:
                pass
        if strange:
            raise BuildError(
                f"{self.path}: a build needs this folder, but it is not the folder of one: found "
                f"{', '.join(strange[:3])} and no plan of a build; choose another output name, or "
                "move that folder away"
            )

    def require_apart(self, source: str | Path, *, overwrite: bool) -> None:
        """Check, before anything is written, that a build replaces none of its input.

        Raises
        ------
        OptionError
            If the cube or the folder of its build is the source, lies in it or contains it, and
            something would be replaced; if `overwrite` is not a flag, or the cube's name has the
            ending of a file.
        BuildError
            As `require_own`.
        WriteError
            If the cube would lie in another.
        """
        flag(overwrite, "overwrite")
        require_store_name(self.out)
        if is_remote(self.out) and not split(self.out)[1]:
            raise OptionError(f"{self.out}: expected a name in the bucket, such as /world.zarr")
        for place in (self.out, self.path) if overwrite else ():
            if (how := overlap(place, source)) is not None:
                raise OptionError(
                    f"{place} {how} {source}, which is read: --overwrite would replace what the "
                    "cube is made of; choose another output name"
                )
        require_outside(self.out)
        self.require_own()

    def clear(self) -> None:
        """Remove what belongs to a build from the folder, its plan last.

        The note that a cube in a bucket may be incomplete stays.
        """
        self.discard(*(name for name in _OWN if name != "publishing"))

    def discard(self, *names: str) -> None:
        """Remove files and folders of the build, if they exist."""
        for name in names:
            self.require_lock()
            self.files.remove(name)

    def has_cube(self) -> bool:
        """Whether something has the cube's final name, even a broken link."""
        return bool(listing(self.out)) if is_remote(self.out) else os.path.lexists(self.out)

    def is_cube_of(self, plan: Plan) -> bool:
        """Whether the cube at the final name was made by a plan."""
        return read_attributes(self.out).get("copcube_plan") == plan.id

    def give_up(self) -> None:
        """Remove all of a build that cannot be made; a former cube stays where it was."""
        self.require_lock()
        self._bring_back()
        self.clear()

    def begin_replacing(self) -> None:
        """Start over, and note that what has the final name is to be replaced."""
        self.give_up()
        if self.has_cube():
            self.files.write("replacing", b"")

    def distrust(self, plan: Plan) -> None:
        """Have everything made from the rows made again, even a cube that looks finished."""
        self.discard("survey.json")  # without it, cells and chunks are not reused
        if self.is_cube_of(plan) and not self.is_replacing():
            self.files.write("replacing", _OF_OTHER_ROWS)

    def is_replacing(self) -> bool:
        """Whether the build under way will replace what has the final name."""
        return self._replacing() is not None

    def _replacing(self) -> bytes | None:
        """Content of the file `replacing`, empty for ``--overwrite``; None if it is missing."""
        try:
            return self.files.read("replacing")
        except FileNotFoundError:
            return None

    def _is_remnant(self) -> bool:
        """Whether what has the final name is part of a cube of this build, which nobody can open.

        In a bucket a killed driver may have left it; anywhere its group's metadata may be damaged.
        Beside a build with a plan, nothing else has that name.
        """
        known = self.files.states(["plan.json", "publishing"])
        if "publishing" in known and is_remote(self.out):
            return not open_folder(self.out).states(["zarr.json"])
        if not is_remote(self.out) and (unusual(self.out) or not os.path.isdir(self.out)):
            return False
        return "plan.json" in known and lacks_root(self.out)

    def require_result(self, plan: Plan) -> None:
        """Check that whatever has the final name is the result of a plan.

        Raises
        ------
        BuildError
            If it is not.
        """
        if self.has_cube() and not self.is_cube_of(plan):
            if not self._is_remnant():
                raise BuildError(
                    f"{self.out} exists and is not the result of this build; choose another output "
                    "name, or give --overwrite to replace it"
                )
            self.require_nothing_added()

    def require_nothing_added(self) -> None:
        """Check that nothing is lost if a damaged cube is made again without --overwrite.

        Raises
        ------
        BuildError
            If variables were added to it.
        """
        if names := added(self.out):
            raise BuildError(
                f"{self.out} is damaged, and making it again from its rows would remove "
                f"{few(names)}, which copcube did not write; move that elsewhere and give the "
                "command again"
            )

    def require_own_cube(self) -> None:
        """Check that whatever has the final name was made by copcube.

        Raises
        ------
        BuildError
            If it was not, or contains something else.
        """
        if not self.has_cube():
            return
        if (found := foreign(self.out, half=self._is_remnant())) is not None:
            raise BuildError(
                f"{self.out}: only what copcube made is replaced, found {found}; remove it "
                "yourself, or choose another output name"
            )

    def publish(self, plan: Plan, place: str, *, overwrite: bool = False) -> None:
        """Give the finished cube of some work its final name; it appears complete or not at all.

        A cube that already has the name stays until then.

        Raises
        ------
        BuildError
            As `require_result`, without `overwrite`, and `require_own_cube`: much may have
            happened since the build began.
        """
        if not overwrite:
            self.require_result(plan)
        self.require_own_cube()
        self.require_lock()
        if is_remote(self.out):
            there = open_folder(self.out)
            self.files.write("publishing", b"")
            there.remove("zarr.json")  # without it, there is no cube
            self.require_lock()
            # The rest of the former cube, which can no longer be opened.
            there.remove("")
            ObjectFolder(self.cube(place)).copy_to(
                self.out, last="zarr.json", check=self.check_lock
            )
            return
        try:
            if os.path.lexists(self.out):
                self.discard("replaced.zarr")
                self.require_lock()
                # A folder cannot replace another in one step.
                os.rename(self.out, f"{self.path}/replaced.zarr")
                self.require_lock()
            os.rename(self.cube(place), self.out)
        except (OSError, KeyboardInterrupt):
            self._bring_back()
            raise
        # The name must be durable before the files that could make the cube again are removed.
        sync(Path(self.out).parent)

    def _bring_back(self) -> None:
        """Give a former cube its name back, if its replacement stopped between two renames."""
        former = f"{self.path}/replaced.zarr"
        if not is_remote(self.path) and os.path.isdir(former) and not os.path.lexists(self.out):
            os.rename(former, self.out)

    def sweep(self) -> None:
        """Remove what only making the cube needs; rows, plan and their receipts stay."""
        stages = (f"receipts/{stage}" for stage in ("combine", "balance", "create", "write"))
        # The note that the cube is to be made again goes first.
        self.discard("replacing", *SCRATCH, *stages)
        self.prepare()

    @contextmanager
    def lock(
        self, *, shared: bool = False, beat: float = BEAT, dead: float = DEAD
    ) -> Iterator[None]:
        """Own the build, exclusively or shared with others that share it.

        Parameters
        ----------
        shared : bool
            Whether others that share it may own it too.
        beat, dead : float
            As `copcube.files.lock.hold`.

        Raises
        ------
        BuildError
            If another process owns it or takes it over.
        """
        try:
            with self.files.lock(shared=shared, beat=beat, dead=dead) as lock:
                self._lock = lock
                try:
                    yield
                finally:
                    self._lock = None
        finally:
            # A refused build leaves nothing, not even a folder.
            if not is_remote(self.path):
                with suppress(OSError):
                    os.rmdir(self.path)

    def require_lock(self) -> None:
        """Prove that this process still owns the build, before anything is published or removed.

        Raises
        ------
        BuildError
            If another process took it over.
        """
        assert self._lock is not None, "only the owner of a build publishes and removes"
        self._lock.prove()

    def check_lock(self) -> None:
        """Stop if another process took the build over; cheap enough to call all the time.

        Raises
        ------
        BuildError
            If so.
        """
        if self._lock is not None:
            self._lock.check()

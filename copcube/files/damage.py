"""Damaged chunks of Zarr arrays: what reading one raises, and which chunk it was.

The chunks that copcube writes carry a checksum, which is compared at each decompression. The
codecs' exceptions name neither file nor remedy.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from copcube.errors import CopcubeError, CubeError
from copcube.files.limits import rule_out_shortage

UNDECODABLE = (ValueError, RuntimeError, MemoryError)
"""Exceptions of the codecs for a damaged chunk: they have no common class."""


@contextmanager
def naming_damage() -> Iterator[None]:
    """Turn the exception of a damaged chunk into an error that names the chunk and the remedy.

    Raises
    ------
    CubeError
        If a chunk read in the body, lazily or not, cannot be decoded; other errors pass.
    MemoryError
        If there is too little memory to decode one.
    """
    try:
        yield
    except CopcubeError:
        raise
    except (OSError, *UNDECODABLE) as error:
        let_zarr_finish(error)
        if isinstance(error, OSError):
            raise
        rule_out_shortage(error)
        # Only the frame in which zarr decoded the chunk still knows which one it was.
        frame = _innermost(error, "read_batch")
        if frame is None:
            raise
        # zarr passes chunks in groups, by default of one; with several, the damaged one is unknown.
        batch = [str(item[0]) for item in frame.f_locals.get("batch_info", ())]
        chunk = batch[0].removeprefix("file://") if len(batch) == 1 else "a chunk of the data"
        raise CubeError(
            f"{chunk}: a damaged chunk ({reason(error)}); `copcube validate` of the cube it "
            "belongs to lists all that are damaged and says how to repair it"
        ) from error


def reason(error: BaseException) -> str:
    """Describe in a few words why a chunk could not be decoded."""
    text = " ".join(str(error).split()) or type(error).__name__
    if "checksum" in text:
        return "its checksum does not match"
    return f"not decodable: {text.removeprefix('Zstd decompression error: '):.80}"


def let_zarr_finish(error: BaseException, *, cancel: bool = False) -> None:
    """Wait, at most a minute, until zarr has read everything else requested.

    If reading one chunk fails or is interrupted, zarr leaves the others to its thread. For each one
    still unread when Python ends, lines are printed: thousands after a single error.

    Parameters
    ----------
    error : BaseException
        Error raised while zarr read; for others there is nothing to wait for.
    cancel : bool
        Cancel all further reading.
    """
    frame = _innermost(error, "sync")
    loop = None if frame is None else frame.f_locals.get("loop")
    if frame is None or loop is None or not loop.is_running():
        return

    # An interruption just as this thread has locked the result that it waits for leaves it locked,
    # and zarr's thread waiting for it forever.
    with suppress(KeyError, AttributeError, RuntimeError):  # not locked, or not by this thread
        frame.f_locals["future"]._condition.release()

    import asyncio  # zarr has imported it; `copcube --help` does not need it

    patience = 5 if cancel else 60

    async def others_end() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others if cancel else ():
            task.cancel()
        if others:
            await asyncio.wait(others, timeout=patience)

    # Other locks can be left in the same way; then zarr's thread never answers.
    with suppress(TimeoutError):
        asyncio.run_coroutine_threadsafe(others_end(), loop).result(timeout=patience + 1)


def _innermost(error: BaseException, function: str) -> FrameType | None:
    """Find the innermost frame of a function of zarr that an error passed through."""
    found, trace = None, error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        module = str(frame.f_globals.get("__name__"))
        if module.startswith("zarr.") and frame.f_code.co_name == function:
            found = frame
        trace = trace.tb_next
    return found

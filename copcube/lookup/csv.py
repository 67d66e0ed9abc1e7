"""CSV files of all kinds: their separators, encodings and columns of numbers."""

import csv
import io
import logging
import re
import warnings
from collections import deque
from itertools import islice
from typing import IO, TYPE_CHECKING, Any

from copcube.errors import OptionError, in_a_line
from copcube.files.regular import open_regular

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("copcube")


def read_csv(path: str) -> "pd.DataFrame":
    """Read a table of texts; columns of numbers only become numbers.

    Parameters
    ----------
    path : str
        A file whose separator is a comma, a semicolon or a tab, or is named in its first line.

    Returns
    -------
    pandas.DataFrame
        Columns of numbers and of texts, by the names in the first row.

    Raises
    ------
    OptionError
        If it cannot be read, or is not a table of texts.
    """
    import pandas as pd

    with open_regular(path, OptionError) as file:
        # pandas skips empty lines before the names.
        while (head := file.readline(1 << 20)) and not head.strip():
            pass
        start = 0
        # Excel understands a first line that names the separator, and other programs write one.
        if said := re.fullmatch(rb'(?:\xef\xbb\xbf)?"?sep=(.)"?\s*', head.rstrip(b"\r\n")):
            start, head = file.tell(), file.readline(1 << 20)
        file.seek(start)
        if b"\0" in head:
            raise OptionError(f"{path}: not a table of texts; expected .csv or .parquet")
        head = re.sub(rb'"[^"]*"', b"", head)  # marks within quotes separate nothing
        separator = said[1][0] if said else max(b",;\t", key=lambda mark: head.count(bytes([mark])))
        options: dict[str, Any] = {
            "sep": chr(separator),
            "dtype": str,
            "encoding": _encoding(file, path),
            "encoding_errors": "replace",
            "skipinitialspace": True,
            # pandas takes NA for a missing value, which may be Namibia's code.
            "keep_default_na": False,
            # With a separator at the end of each row, pandas would take the first column for row
            # names.
            "index_col": False,
        }
        width, slow = head.count(bytes([separator])) + 1, False
        try:
            with warnings.catch_warnings(record=True) as cut:
                # pandas warns about some surplus fields, which are cut.
                warnings.simplefilter("always", pd.errors.ParserWarning)
                try:
                    frame = pd.read_csv(file, **options)
                except pd.errors.ParserError as error:
                    # The slow reader ignores everything after an unclosed quote.
                    if "EOF inside string" in str(error):
                        raise
                    # A row has too many fields: the slow reader can cut it and keep the others.
                    file.seek(start)
                    slow = True
                    frame = pd.read_csv(
                        file, engine="python", on_bad_lines=lambda row: row[:width], **options
                    )
            if cut or slow:
                file.seek(start)
                _name_surplus(file, options, width, path)
        except (csv.Error, ValueError, OSError) as error:
            raise OptionError(f"{path}: not a readable table ({in_a_line(error)})") from error
    numbers: pd.DataFrame = frame.apply(_numbers)
    return numbers


def _name_surplus(file: IO[bytes], options: dict[str, Any], width: int, path: str) -> None:
    """Log the first row that holds something beyond the last name, which is left out.

    Raises
    ------
    csv.Error
        At a field with which the slow reader ended the table.
    """
    texts = io.TextIOWrapper(file, options["encoding"], options["encoding_errors"], newline="")
    surplus = (
        row
        for row in csv.reader(texts, delimiter=options["sep"])
        if any(field.strip() for field in row[width:])
    )
    for row in islice(surplus, 1):
        log.warning(
            f"{path}: the row {options['sep'].join(row):.80} has {len(row)} fields for {width} "
            "names, and what is beyond is left out; where commas are decimal marks, separate "
            "fields by semicolons"
        )
    deque(surplus, 0)  # to the end
    texts.detach()


def _encoding(file: IO[bytes], path: str) -> str:
    """Find the encoding of a text file: UTF-8, or that of Windows spreadsheets."""
    start = file.tell()
    try:
        for line in file:
            line.decode()
        return "utf-8"
    except UnicodeDecodeError:
        log.warning(
            f"{path} is not UTF-8 and is read as Windows-1252; save it as UTF-8 if letters come "
            "out wrong"
        )
        return "cp1252"
    finally:
        file.seek(start)


def _numbers(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """Turn texts into numbers if all are numbers; codes such as 06610 and long ones stay."""
    import pandas as pd

    if column.str.fullmatch(r"\s*[+-]?0\d.*").any():
        return column
    # Empty fields are missing, and make a column of numbers one of floats.
    empty = column.fillna("").str.strip() == ""
    numbers = pd.to_numeric(column.where(~empty), errors="coerce")
    # As floats, the longest would lose digits.
    lossy = numbers.dtype.kind == "f" and column.str.fullmatch(r"\s*[+-]?\d{16,}\s*").any()
    return column if lossy or (numbers.isna() & ~empty).any() or empty.all() else numbers

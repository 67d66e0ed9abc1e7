"""Dates in all forms that people have, and what is not a date."""

import datetime
import string

import cftime
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from copcube.dates import day, is_missing, since_1970, yyyymmdd
from copcube.errors import OptionError
from copcube.selection import Selection

TZ = datetime.timezone(datetime.timedelta(hours=-5))


@given(st.dates())
def test_every_form_of_a_day_is_that_day(date):
    forms = [
        date,
        datetime.datetime(date.year, date.month, date.day, 23, 59, 59),
        date.isoformat(),
        f" {date.isoformat()}T12:30:00.123456789Z ",
        f"{date.isoformat()} 00:00",
        date.isoformat().replace("-", ""),
        date.isoformat().replace("-", "").encode(),
        np.str_(date.isoformat()),
        np.datetime64(date, "D"),
        np.datetime64(date, "h"),
        cftime.DatetimeProlepticGregorian(date.year, date.month, date.day, 12),
        xr.DataArray(np.datetime64(date, "s")),
    ]
    if date.year >= 1000:
        number = int(date.isoformat().replace("-", ""))
        forms += [number, float(number), np.int64(number), np.int32(number), np.float64(number)]
        forms += [np.array(number), xr.DataArray(number)]
    assert [day(form) for form in forms] == [date] * len(forms)
    assert day(yyyymmdd(date)) == date
    assert since_1970(date) == (date - datetime.date(1970, 1, 1)).days


def test_pandas_and_cftime():
    for form in (
        pd.Timestamp("2021-06-01 23:00"),
        pd.Timestamp("2021-06-01").to_datetime64(),
        cftime.DatetimeNoLeap(2021, 6, 1),
        cftime.datetime(2021, 6, 1, calendar="standard"),
        xr.date_range("2021-06-01", periods=1, use_cftime=True)[0],
    ):
        assert yyyymmdd(form) == "20210601"


def test_times_with_a_zone_count_in_utc():
    expected = datetime.date(2021, 6, 2)
    assert day("2021-06-01T23:30:00-05:00") == expected
    assert day(datetime.datetime(2021, 6, 1, 23, 30, tzinfo=TZ)) == expected
    assert day(pd.Timestamp("2021-06-01 23:30", tz="America/Lima")) == expected


@pytest.mark.parametrize(
    "value",
    [
        *(2021, 202106, 44348, 18779, 1622505600, 1622505600000000000, 20210231, 0, -20210601),
        *(20210601.5, 2021.0, float("nan"), float("inf"), np.float32(20210601), True, False),
        *(
            "2021",
            "2021-06",
            "2021-02-30",
            "20210231",
            "",
            "yesterday",
            "2021-06-01T",
            "06/01/2021",
        ),
        *(
            "2021-W22",
            "２０２１０６０１",
            "20210601x",
            "2021-06-01T",
            b"\xff",
            "2021-06-01\n2021-06-02",
        ),
        *(None, pd.NaT, np.datetime64("NaT", "ns")),
        *(np.datetime64("2021"), np.datetime64("2021-06")),
        *(["2021-06-01"], np.array(["2021-06-01"]), {}, NotImplemented, pd.Period("2021-06"), 1j),
        *(np.timedelta64(3, "D"), datetime.timedelta(3), datetime.time(3)),
        *(cftime.Datetime360Day(2021, 6, 1), cftime.DatetimeJulian(2021, 6, 1)),
    ],
    ids=repr,
)
def test_what_is_no_day_is_refused(value):
    with pytest.raises(OptionError, match=r"is not a date.*expected a date"):
        day(value)


@given(st.one_of(st.text(string.printable, max_size=30), st.integers(), st.floats()))
def test_anything_is_a_day_or_refused(value):
    try:
        day(value)
    except OptionError:
        return


def test_what_is_missing():
    missing = [None, pd.NaT, np.datetime64("NaT", "ns"), float("nan"), np.float64("nan"), pd.NA]
    there = [0, "", "NaT", pd.Timestamp(0), np.datetime64(0, "D"), datetime.date(2021, 1, 1)]
    assert [is_missing(value) for value in missing] == [True] * len(missing)
    assert [is_missing(value) for value in there] == [False] * len(there)


@pytest.mark.parametrize(
    ("dates", "start", "end"),
    [
        *((form, "20210201", "20210228") for form in ("2021-02", "202102", 202102)),
        *((form, "20210101", "20211231") for form in ("2021", 2021, np.int64(2021))),
        *((form, "20210601", "20210601") for form in (20210601, datetime.date(2021, 6, 1))),
        (pd.Timestamp("2021-06-01 12:00"), "20210601", "20210601"),
        ("2021-03..2021-08-15", "20210301", "20210815"),
        ("2021-03-01T00:00Z..", "20210301", None),
        ("..20210815", None, "20210815"),
        ((np.datetime64("2021-03-05"), "2021-04"), "20210305", "20210430"),
        ([None, 2021], None, "20211231"),
        (slice("2020", None), "20200101", None),
        (None, None, None),
    ],
    ids=str,
)
def test_selections_of_dates(dates, start, end):
    selection = Selection.of(None, dates)
    assert (selection.start, selection.end) == (start, end)


@pytest.mark.parametrize(
    "dates",
    [
        *("2021-13", "20210231", "x", "", "2021-02..x", "２０２１", "2021-03..2021-02"),
        *(21, 2021.0, True, float("nan"), pd.NaT, ["2021", "2022", "2023"], {}, NotImplemented),
    ],
    ids=repr,
)
def test_selections_of_what_is_no_date_are_refused(dates):
    with pytest.raises(OptionError, match=r"is not a date; expected|end before they start"):
        Selection.of(None, dates)

"""Climate statistics as targets: mean and spread of variables on the cells of a cube."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from copcube.arguments import is_several
from copcube.cube.latlon import spatial_dims
from copcube.cube.presence import refuse_undecoded
from copcube.cube.view import CubeView, require_dataset
from copcube.era5.statics import squeezed
from copcube.errors import CubeError, OptionError
from copcube.grid import Floats
from copcube.probes.parameters import PARAMETERS, STATISTICS, conversion, recognise
from copcube.probes.regrid import Regrid

if TYPE_CHECKING:
    import xarray as xr

_MONTHS = ("time", "valid_time", "month", "date")


@dataclass(frozen=True)
class Target:
    """One field to be predicted.

    Parameters
    ----------
    name : str
        Such as ``t2m_mean``.
    label : str
        Such as ``temperature, mean``.
    unit : str
        Of its values.
    """

    name: str
    label: str
    unit: str


@dataclass(frozen=True, eq=False)
class Targets:
    """Statistics on the cells of a cube.

    Parameters
    ----------
    targets : tuple of Target
        What they are.
    values : numpy.ndarray
        (lat, lon, target) float64, in the cube's order; NaN where one is missing.
    months : int
        Number of months that means and spreads were made of; 0 if they were given.
    how : str
        How they came to the cube's cells.
    """

    targets: tuple[Target, ...]
    values: Floats
    months: int
    how: str

    @classmethod
    def of(
        cls,
        statistics: "xr.Dataset | Sequence[xr.Dataset]",
        view: CubeView,
        *,
        variables: Sequence[str] | None = None,
        units: Mapping[str, str] | None = None,
    ) -> Self:
        """Find means and spreads in datasets, in the paper's units, on the cells of a cube.

        Parameters
        ----------
        statistics : xarray.Dataset or sequence of xarray.Dataset
            Monthly means along a dimension of time, or means and spreads that were made already,
            named as such (``t2m_mean``, ``std_t2m``). Of months, mean and standard deviation
            (that of a population) are made of every cell. Each dataset has a grid of its own.
        view : CubeView
            The cube.
        variables : sequence of str, optional
            Which variables, or which of their statistics, such as ``tp_mean``; by default all that
            have latitude and longitude.
        units : mapping of str to str, optional
            Units of variables by their name, in place of those that their attributes say.

        Raises
        ------
        CubeError
            If there is no such variable, or one has further dimensions or steps other than months.
        OptionError
            If `units` or `variables` names a variable that is not there, or a unit is missing,
            unknown or does not state a time.
        GridError
            If the statistics lie where the cube has no cell.
        """
        several: Any = statistics if isinstance(statistics, list | tuple) else [statistics]
        if not (variables is None or is_several(variables)):
            raise OptionError(f"variables={variables!r}; expected a list, [{variables!r}]")
        asked_for = None if variables is None else tuple(map(str, variables))
        units = {} if units is None else units
        found = [(ds, _fields(ds)) for ds in several]
        made_of = {name: _makes(ds[name]) for ds, listed in found for name in listed}
        known = {*made_of, *(target for made in made_of.values() for target in made)}
        for asked in (*(asked_for or ()), *units):
            if asked not in known:
                raise OptionError(
                    f"the statistics have no variable {asked} along latitude and longitude; they "
                    f"have {', '.join(made_of) or 'none'}"
                )
        if not made_of:
            raise CubeError(
                "the statistics hold no field along latitude and longitude; expected variables "
                "such as t2m, "
                "tp, sp, msl, u10 and v10"
            )
        chosen = set(known if asked_for is None else asked_for)
        if not chosen:
            raise OptionError("variables=[]; expected one or more, or None for all")
        fields: dict[Target, Floats] = {}
        months, how = 0, set()
        for ds, listed in found:
            wanted = [name for name in listed if chosen & {name, *made_of[name]}]
            if not wanted:
                continue
            regrid = Regrid.between(ds, view)
            how.add(regrid.how)
            for name in wanted:
                made, n = _of_variable(squeezed(ds)[name], regrid, units.get(name))
                if twice := [target.name for target in made if target in fields]:
                    raise CubeError(
                        f"{name}: another variable already gives {' and '.join(twice)}; select one "
                        "of them with variables (--variables)"
                    )
                fields |= {t: v for t, v in made.items() if chosen & {name, t.name}}
                months = max(months, n)
        order = sorted(fields, key=_rank)
        values = np.stack([fields[target] for target in order], axis=-1)
        return cls(tuple(order), values, months, " and ".join(sorted(how)))


def _fields(ds: "xr.Dataset") -> list[str]:
    """Names of the variables of a dataset along latitude and longitude."""
    require_dataset(ds, "the climate statistics")
    spatial = set(spatial_dims(ds))
    return [str(n) for n, v in ds.data_vars.items() if spatial <= {*v.dims} and _is_field(n, v)]


def _makes(field: "xr.DataArray") -> tuple[str, ...]:
    """Names of the statistics that a variable may give."""
    _, name, statistic = recognise(field)
    return tuple(f"{name}_{one}" for one in ((statistic,) if statistic else STATISTICS))


def _is_field(name: Hashable, field: "xr.DataArray") -> bool:
    return field.dtype.kind in "fiu" and not str(name).endswith(("_bnds", "_bounds"))


def _rank(target: Target) -> tuple[int, str]:
    """Position in the paper's order; variables not in it come last."""
    name = target.name.rsplit("_", 1)[0]
    known = [parameter.name for parameter in PARAMETERS]
    return (known.index(name) if name in known else len(known), target.name)


def _of_variable(
    field: "xr.DataArray", regrid: Regrid, unit: str | None
) -> tuple[dict[Target, Floats], int]:
    """Mean and spread of a variable, or the one of the two that it is; and of how many months."""
    refuse_undecoded(field)
    parameter, name, statistic = recognise(field)
    others = [str(dim) for dim in field.dims if dim not in (regrid.lat, regrid.lon)]
    factor, offset, unit = conversion(field, parameter, unit)

    def target(statistic: str) -> Target:
        label = parameter.label if parameter else name
        return Target(f"{name}_{statistic}", f"{label}, {statistic}", unit)

    if not others:
        values = factor * regrid(_plane(field, regrid))
        statistic = statistic or "mean"
        # A different zero of the unit shifts a mean, but not a spread.
        return {target(statistic): values + offset * (statistic == "mean")}, 0
    along = _months(field, others)
    if statistic is not None:
        raise CubeError(
            f"{field.name} is named as a {statistic}, yet runs along {along}; rename it, or "
            f"select one of {along}"
        )
    mean, squares = np.zeros(regrid.shape), np.zeros(regrid.shape)
    # Month by month, as most files are stored, so that a year of maps is never in memory. The sums
    # are Welford's (1962, doi:10.1080/00401706.1962.10490022).
    for i in range(field.sizes[along]):
        values = factor * regrid(_plane(field.isel({along: i}), regrid)) + offset
        step = values - mean
        mean += step / (i + 1)
        squares += step * (values - mean)
    spread = np.sqrt(squares / field.sizes[along])
    return {target("mean"): mean, target("std"): spread}, field.sizes[along]


def _plane(field: "xr.DataArray", regrid: Regrid) -> Floats:
    return np.asarray(field.transpose(regrid.lat, regrid.lon).values, np.float64)


def _months(field: "xr.DataArray", others: list[str]) -> str:
    """Name of the dimension along months, the only one besides latitude and longitude."""
    along = [dim for dim in others if dim.lower() in _MONTHS or field[dim].dtype.kind == "M"]
    if len(others) > 1 or not along:
        raise CubeError(
            f"{field.name} has the dimensions {', '.join(map(str, field.dims))}; expected latitude "
            f"and longitude, and at most one of time: select one of {' and '.join(others)}"
        )
    times = field[along[0]]
    if times.dtype.kind == "M" and times.size > 1:
        step = float(np.median(np.diff(np.sort(times.values))) / np.timedelta64(1, "D"))
        if not 25 <= step <= 35:
            raise CubeError(
                f"{field.name} has steps of {step:g} days along {along[0]}; expected monthly "
                f"means: ds.resample({along[0]}='MS').mean()"
            )
    return along[0]

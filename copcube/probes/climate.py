"""The climate experiments of Copernicus-FM's paper, on any cube and any statistics."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, get_args

import numpy as np

from copcube.arguments import flag, is_several, listed, numbers, one_of, whole_number
from copcube.cube.caution import of_encoder
from copcube.cube.results import as_result
from copcube.cube.view import CubeView
from copcube.errors import CubeError, OptionError
from copcube.files.damage import naming_damage
from copcube.grid import Floats, require_block
from copcube.pca.predictors import Predictors, expanded
from copcube.probes import sgd
from copcube.probes.cells import ProbeCells
from copcube.probes.fitting import Fitter
from copcube.probes.inputs import COMPONENTS, Input, Layout, usual
from copcube.probes.results import assembled, with_residuals
from copcube.probes.ridge import Solver
from copcube.probes.splits import (
    TEST,
    TRAIN,
    UNUSED,
    VALIDATE,
    Sampling,
    Split,
    divided,
    refuse_empty,
)
from copcube.probes.statistics import Targets
from copcube.version import __version__

if TYPE_CHECKING:
    import xarray as xr

log = logging.getLogger("copcube")

_LEAST = 100
"""Fewest cells from which errors can be estimated."""


@naming_damage()
def probe(
    cube: "xr.Dataset",
    statistics: "xr.Dataset | Sequence[xr.Dataset]",
    *,
    given: "xr.Dataset | xr.DataArray | None" = None,
    inputs: Sequence[str] | None = None,
    k: int | Sequence[int] | None = None,
    variables: Sequence[str] | None = None,
    units: Mapping[str, str] | None = None,
    cells: int | None = 10_000,
    sampling: Sampling = "cells",
    complete: bool = True,
    split: Split = "random",
    block: float = 10.0,
    shares: Sequence[float] = (0.6, 0.2, 0.2),
    seeds: int | Sequence[int] = 3,
    solver: Solver = "ridge",
    residuals: str | None = None,
) -> "xr.Dataset":
    """Predict climate statistics from embeddings, coordinates and static fields.

    Parameters
    ----------
    cube : xarray.Dataset
        A cube, or a reduction, without leading dimensions, whole or in part, lazy or not, on
        nodes of the 0.25° lattice.
    statistics : xarray.Dataset or sequence of xarray.Dataset
        Monthly means along a dimension of time, of which mean and standard deviation are made
        for every cell; or means and spreads made already, named so (``t2m_mean``, ``t2m_std``).
        ERA5's 2 m temperature, precipitation, surface and sea-level pressure and 10 m winds are
        recognised by any of their usual names and brought to the paper's units: °C, metres a
        year, Pa, m/s; other variables stay as they are. On nodes of the lattice, values are
        taken by index; on another grid they are averaged over the cells, or interpolated
        linearly if the grid is coarser. Several datasets may each have a grid of their own.
    given : xarray.Dataset or xarray.DataArray, optional
        Static fields that a weather model has, such as ``z`` and ``lsm``, on the lattice.
    inputs : sequence of str, optional
        What to predict from: ``lonlat`` (degrees), ``fourier`` (the encoder's code of them),
        ``xyz`` (on the sphere), ``harmonics10`` (spherical harmonics up to that degree),
        ``embedding``, ``pc16`` (that many principal components), ``given``, or several with
        ``+`` between them. By default each of them, and those of the paper.
    k : int or sequence of int, optional
        The default inputs' numbers of components; 1, 2, 4 … 512 by default. Components are those of
        the training cells, of which there are no more than their rank; of a reduction its own.
    variables : sequence of str, optional
        Which variables of `statistics`, or which statistics, such as ``tp_mean``; all by default.
    units : mapping of str to str, optional
        Units by variable, if the file lacks them or they are wrong: ``{"tp": "m/day"}``.
    cells : int or None
        How many cells are drawn for each seed, 10,000 as in the paper; None for all.
    sampling : {"cells", "area"}
        Every cell as likely (the paper), or in proportion to its area.
    complete : bool
        Whether to draw only cells with images of all modalities that the cube has (the paper),
        where the cube counts them.
    split : {"random", "blocks"}
        How the cells are divided: one by one (the paper), or in whole squares, so that no cell
        is predicted from its neighbours.
    block : float
        Side of such a square in degrees.
    shares : sequence of float
        Shares of the cells that train, validate and test. The paper does not state its own.
    seeds : int or sequence of int
        How many seeds, or which. Each draws and divides cells again, so the spread over seeds is
        that of the experiment; the paper's is only that of the optimiser.
    solver : {"ridge", "descent", "sgd"}
        Ridge regression; gradient descent that is stopped early, in closed form; or stochastic
        gradient descent (`copcube.probes.sgd`), which the paper's spread over seeds hints at. The
        last takes minutes, and 50,000 cells at most.
    residuals : str, optional
        An input for which truth minus prediction is mapped, at all cells that took no part in
        training and validation (for blocks, those of test squares). All vectors are read for it.

    Returns
    -------
    xarray.Dataset
        Along ``seed``, ``input`` and ``target``: ``rmse`` over the test cells in the units of
        ``unit`` (target), ``r2``, and the ``penalty``, or the number of ``steps`` or ``epochs``,
        that served best on the validation cells.
        ``embedding_adds`` (seed, over, target): the share of the variance left over by an input
        that it leaves no more when the embedding stands beside it. ``published_rmse`` and
        ``published_spread`` (input, target): the paper's. ``cells`` (seed, part),
        ``components`` (input): k, 0 without components. With `residuals` also
        ``residual`` (target, lat, lon).

    Raises
    ------
    CubeError
        If the dataset is not a cube, fewer than 100 cells hold all that is needed, a statistic is
        constant on them, or `statistics` holds no field.
    GridError
        If the cube or `given` does not lie on the lattice, or `statistics` lies elsewhere.
    OptionError
        If an option is not valid, or a variable or its unit is missing or unknown.

    Notes
    -----
    Ridge regression in closed form on inputs of unit variance (`copcube.probes.ridge`): equal to
    scikit-learn's ``Ridge`` after ``StandardScaler``. The paper speaks of linear regression; on
    its Fourier code plain least squares diverges, since half of the waves are shorter than a cell.

    Examples
    --------
    >>> found = probe(cube, xr.open_dataset("era5_months.nc"), given=statics)  # doctest: +SKIP
    >>> print(table(found, "markdown"))  # doctest: +SKIP
    """
    view = CubeView.of(cube).ungrouped()
    seeds, shares, block, cells = _checked(sampling, split, solver, block, shares, seeds, cells)
    chosen = _inputs(view, given is not None, inputs, k, residuals)
    mapped = None if residuals is None else Input.parse(residuals)
    targets = Targets.of(statistics, view, variables=variables, units=units)
    predictors = None if given is None else Predictors.of(given, view, expanded(given, 1))
    known = _cells(view, targets, predictors, flag(complete, "complete"))
    log.info(
        "%d cells hold a vector and all of %s (%s)",
        len(known.i),
        ", ".join(target.name for target in targets.targets),
        targets.how,
    )
    places = known.lat, known.lon, known.areas
    part_of, unseen = divided(places, seeds, cells, sampling, split, block, shares)
    used = np.flatnonzero((part_of != UNUSED).any(axis=0))
    vectors = None
    if any(one.reads_vectors for one in chosen):
        vectors = known.vectors(used)
        # A user may have masked the vector even where images are counted.
        finite = np.isfinite(vectors).all(axis=1)
        used, vectors = used[finite], vectors[finite]
    refuse_empty(part_of[:, used], split, shares)
    if solver == "sgd" and len(used) > sgd.MOST_CELLS:
        raise OptionError(
            f"solver='sgd' keeps the inputs of its cells in memory, but {len(used)} are drawn; "
            f"expected at most {sgd.MOST_CELLS}: give cells=10000 (--cells 10000), or "
            "solver='descent'"
        )
    given_width, dim = known.given.shape[1], view.field.shape[-1]
    layout = Layout.of(chosen, given_width, dim, len(targets.targets))
    parts = known.parts(layout, part_of[:, used], vectors, used)

    def table(seed: int, part: int) -> Floats:
        here = np.flatnonzero(part_of[seed, used] == part)
        return known.table(layout, used[here], None if vectors is None else vectors[here])

    fitter = Fitter(layout, solver, seeds, view.name == "embedding", table)
    rmse, r2, strength, models = fitter.fit(parts, chosen, mapped)
    counts = [[by_part[p].cells for p in (TRAIN, VALIDATE, TEST)] for by_part in parts]
    name = {"ridge": "penalty", "descent": "steps", "sgd": "epochs"}[solver]
    result = assembled(chosen, targets, seeds, rmse, r2, {name: strength}, np.array(counts))
    if mapped is not None:
        maps = known.residuals(layout, models, unseen, mapped.reads_vectors)
        result = with_residuals(result, maps, view, str(mapped))
    result.attrs |= {
        "title": "climate statistics predicted from embeddings, coordinates and static fields",
        "split": split,
        "solver": solver,
        "sampling": sampling,
        "shares": list(shares),
        "cells_in_common": len(known.i),
        "months": targets.months,
        "statistics": targets.how,
        **({"block_degrees": block} if split == "blocks" else {}),
        **({"given": list(predictors.names)} if predictors else {}),
        "history": f"copcube {__version__} probe",
        **of_encoder(cube.attrs),
    }
    return as_result(result)


def _checked(
    sampling: str,
    split: str,
    solver: str,
    block: float,
    shares: Sequence[float],
    seeds: int | Sequence[int],
    cells: int | None,
) -> tuple[tuple[int, ...], tuple[float, ...], float, int | None]:
    """Check options; return the seeds, the shares, which then sum to 1, the block and the cells."""
    for name, value, allowed in (
        ("sampling", sampling, Sampling),
        ("split", split, Split),
        ("solver", solver, Solver),
    ):
        one_of(value, name, get_args(allowed))
    block = require_block(block)
    given = numbers(shares, "shares", "part")
    if len(given) != 3 or not all(0 < share < np.inf for share in given):
        raise OptionError(
            f"shares={shares!r}; expected three numbers above 0, for the cells that train, "
            "validate and test"
        )
    if cells is not None:
        cells = whole_number(cells, "cells", _LEAST)
    several = seeds if is_several(seeds) else range(whole_number(seeds, "seeds", 1, 10_000))
    drawn = tuple(whole_number(seed, "a seed", 0) for seed in several)
    if not drawn or len(set(drawn)) < len(drawn):
        raise OptionError(f"seeds={seeds!r}; expected different numbers, or how many")
    return drawn, tuple(share / sum(given) for share in given), block, cells


def _inputs(
    view: CubeView,
    given: bool,
    names: Sequence[str] | None,
    k: int | Sequence[int] | None,
    residuals: str | None,
) -> list[Input]:
    """Parse the names of inputs, each once, and check that they are available."""
    dim = view.field.shape[-1]
    if k is None:
        k = [n for n in COMPONENTS if n <= dim]
    elif names is not None:
        raise OptionError(
            "k applies to the default inputs; name inputs with components instead: 'pc16'"
        )
    k = [whole_number(n, "k", 1, dim) for n in listed(k)]
    if isinstance(names, str) or not isinstance(names, Iterable | None):
        raise OptionError(f"inputs={names!r}; expected a list of names, [{names!r}]")
    names = usual(given=given, k=k) if names is None else names
    parsed = [Input.parse(name) for name in (*names, *([] if residuals is None else [residuals]))]
    chosen = list(dict.fromkeys(parsed))
    if not chosen:
        raise OptionError("inputs=[]; expected one or more")
    for one in chosen:
        if "given" in one.parts and not given:
            raise OptionError(f"input {one} needs static fields: given=… (--given STATICS)")
        if one.components > dim:
            raise OptionError(f"input {one}; the cube's vectors have {dim} dimensions")
    return chosen


def _cells(
    view: CubeView, targets: Targets, predictors: Predictors | None, complete: bool
) -> ProbeCells:
    """Find the cells that hold a vector and all fields.

    Raises
    ------
    CubeError
        If there are too few, or a statistic is constant on them.
    """
    filled = view.filled().values
    finite = np.isfinite(targets.values)
    there = filled & finite.all(axis=-1)
    counts = [(filled.sum(), "a vector")]
    counts += [
        ((filled & finite[..., n]).sum(), target.name) for n, target in enumerate(targets.targets)
    ]
    if predictors is not None:
        there &= predictors.there()
        counts.append(((filled & predictors.there()).sum(), "all given fields"))
    by_modality = view.dataset.get("n_images_by_modality")
    if complete and by_modality is not None and "modality" in by_modality.dims:
        images = by_modality.transpose("modality", view.lat, view.lon).values > 0
        # A modality that the cube lacks everywhere does not count as missing.
        whole = images[images.any(axis=(1, 2))].all(axis=0)
        there &= whole
        counts.append(
            ((filled & whole).sum(), "all modalities (else --incomplete, complete=False)")
        )
    if there.sum() < _LEAST:
        raise CubeError(
            f"{there.sum()} cells of the cube hold everything needed; expected {_LEAST} or more. "
            f"Of its cells {', '.join(f'{n} hold {what}' for n, what in counts)}: leave out what "
            "most of them lack, or use a larger cube"
        )
    given = None if predictors is None else predictors.values
    known = ProbeCells.of(view, there, given, targets.values)
    spans = np.ptp(known.targets, axis=0)
    largest = np.abs(known.targets).max(axis=0)
    # Differences below the rounding of float64 do not count as variation.
    for n in np.flatnonzero(spans <= 1e-12 * largest).tolist():
        target = targets.targets[n]
        raise CubeError(
            f"{target.name} is {known.targets[0, n]:g} {target.unit} at all {len(known.i)} cells: "
            "it cannot be predicted; select the others with variables (--variables)"
        )
    return known

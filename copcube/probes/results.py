"""What a probe returns, as a dataset."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from copcube.cube.view import CubeView
from copcube.grid import Floats, Integers
from copcube.probes import reference
from copcube.probes.inputs import Input
from copcube.probes.statistics import Targets

if TYPE_CHECKING:
    import xarray as xr


def assembled(
    chosen: Sequence[Input],
    targets: Targets,
    seeds: Sequence[int],
    rmse: Floats,
    r2: Floats,
    strength: Mapping[str, Floats],
    cells: Integers,
) -> "xr.Dataset":
    """Put errors, (seed, input, target), beside the paper's and beside each other.

    Parameters
    ----------
    chosen, targets, seeds
        Inputs, targets and seeds.
    rmse, r2 : numpy.ndarray
        (seed, input, target).
    strength : mapping
        Name of what validation chose, and its values, (seed, input, target).
    cells : numpy.ndarray
        (seed, part) how many train, validate and test.
    """
    import xarray as xr

    dims = ("seed", "input", "target")
    names = [str(one) for one in chosen]
    wanted = [target.name for target in targets.targets]
    paper = np.array(
        [[reference.error(one, t) or (np.nan, np.nan) for t in wanted] for one in names]
    )
    data: dict[str, Any] = {
        "rmse": (dims, rmse, {"long_name": "root mean squared error on the test cells"}),
        "r2": (dims, r2, {"units": "1", "long_name": "share of variance of the test cells"}),
        "published_rmse": (dims[1:], paper[..., 0], {"comment": reference.SOURCE}),
        "published_spread": (dims[1:], paper[..., 1], {"comment": reference.SOURCE}),
    }
    over = [
        (names.index(without), n, without)
        for n, one in enumerate(chosen)
        if "embedding" in one.parts and len(one.parts) > 1
        if (without := "+".join(one.parts[1:])) in names
    ]
    coords: dict[str, Any] = {
        "seed": list(seeds),
        "input": names,
        "target": wanted,
        "unit": ("target", [target.unit for target in targets.targets]),
        "label": ("target", [target.label for target in targets.targets]),
        "components": ("input", [one.components for one in chosen]),
    }
    if over:
        shares = np.stack([1 - (rmse[:, a] / rmse[:, b]) ** 2 for b, a, _ in over], axis=1)
        about = "share of the variance left over by an input that the embedding explains"
        data["embedding_adds"] = (
            ("seed", "over", "target"),
            shares,
            {"units": "1", "long_name": about},
        )
        coords["over"] = [name for *_, name in over]
    served = {"units": "1", "long_name": "what served best on the validation cells"}
    data |= {name: (dims, values, served) for name, values in strength.items()}
    data["cells"] = ("seed", "part"), cells, {"units": "1", "long_name": "number of cells"}
    coords["part"] = ["train", "validate", "test"]
    return xr.Dataset(data, coords)


def with_residuals(
    result: "xr.Dataset", maps: NDArray[np.float32], view: CubeView, name: str
) -> "xr.Dataset":
    """Add maps of residuals, (lat, lon, target), of an input."""
    y, x = view.field[view.lat], view.field[view.lon]
    attrs = {"long_name": f"truth minus prediction from {name}, at cells not seen", "input": name}
    return result.assign(
        residual=(("target", view.lat, view.lon), np.moveaxis(maps, -1, 0), attrs)
    ).assign_coords({view.lat: y.variable, view.lon: x.variable})

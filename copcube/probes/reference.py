"""Results of Copernicus-FM's paper (Wang et al., 2025, arXiv:2503.11849, table 5).

Root mean squared errors of linear regressions on 10,000 cells that have all modalities, mean and
spread over three runs; of ten years of ERA5.
"""

SOURCE = "arXiv:2503.11849, table 5"
"""Source of the figures."""

TARGETS = (
    *("t2m_mean", "t2m_std", "tp_mean", "tp_std", "sp_mean", "sp_std"),
    *("msl_mean", "msl_std", "u10_mean", "u10_std", "v10_mean", "v10_std"),
)
"""Columns of the table, in °C, m a year, Pa and m/s."""

SATCLIP = "SatCLIP"
"""The row of a code of coordinates that copcube does not have."""

ROWS = {
    "lonlat": (8.36, 3.06, 0.79, 0.50, 7305.91, 141.38, 290.68, 164.84, 1.12, 0.55, 0.95, 0.58),
    "fourier": (3.99, 2.09, 0.61, 0.42, 6537.54, 101.09, 200.93, 108.12, 0.96, 0.51, 0.80, 0.54),
    "embedding": (2.66, 1.72, 0.47, 0.33, 1627.21, 97.53, 197.17, 117.57, 0.94, 0.43, 0.78, 0.43),
    "embedding+fourier": (
        *(1.98, 1.35, 0.46, 0.32, 1676.39, 78.53, 174.80, 90.37, 0.91, 0.42, 0.76, 0.43),
    ),
    SATCLIP: (3.67, 1.58, 0.48, 0.32, 3178.91, 97.74, 202.76, 110.71, 0.92, 0.43, 0.79, 0.45),
}
"""Errors by input. "embed + coord" probably means the Fourier code, which is not stated."""

SPREADS = {
    "lonlat": (0, 0, 0, 0, 0.37, 0.01, 0.02, 0.01, 0, 0, 0, 0),
    "fourier": (0, 0, 0, 0, 1.78, 0.18, 0.09, 0.01, 0, 0, 0, 0),
    "embedding": (0.01, 0, 0, 0, 30.13, 0.71, 0.62, 0.86, 0, 0, 0, 0),
    "embedding+fourier": (0.01, 0, 0, 0, 33.64, 0.08, 0.21, 0.15, 0, 0, 0, 0),
    SATCLIP: (0.03, 0, 0, 0, 8.75, 0.19, 0.27, 0.41, 0, 0, 0, 0),
}
"""Standard deviations over the runs; 0 is less than 0.005."""


def error(name: str, target: str) -> tuple[float, float] | None:
    """Error and spread of an input and a target, as published; None if there is none."""
    if name not in ROWS or target not in TARGETS:
        return None
    column = TARGETS.index(target)
    return ROWS[name][column], SPREADS[name][column]

"""copcube: Copernicus Sentinel imagery as an embedding datacube on ERA5's grid."""

__version__ = "0.1.0"

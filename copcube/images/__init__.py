"""Images and where they come from: GeoTIFF trees and WebDataset shards."""

from copcube.images.base import Image, Job, Partition, Rejected, Source
from copcube.images.opening import open_source

__all__ = ["Image", "Job", "Partition", "Rejected", "Source", "open_source"]

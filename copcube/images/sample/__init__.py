"""A small, made-up Copernicus-Pretrain in either published layout."""

from copcube.images.sample.writing import Layout, SampleSummary, write_sample

__all__ = ["Layout", "SampleSummary", "write_sample"]

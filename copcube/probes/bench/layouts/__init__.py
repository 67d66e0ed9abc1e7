"""The published layouts of Copernicus-Bench's data, one reader per family."""

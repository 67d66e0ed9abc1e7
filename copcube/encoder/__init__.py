"""The frozen encoder: Copernicus-FM, its weights, and how images go through it."""

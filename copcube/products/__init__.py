"""Embedding products of others, as rows on ERA5's lattice."""

"""Other embedding products, as rows on ERA5's lattice."""

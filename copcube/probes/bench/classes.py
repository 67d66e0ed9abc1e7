"""Names of the classes of Copernicus-Bench, by index as in the official code."""

CLOUDS_S2 = ("clear", "thick cloud", "thin cloud", "cloud shadow")
# Sources name the codes 2 and 3 both ways round, so they stay without a name of their own.
CLOUDS_S3 = ("clear", "cloud (code 2)", "cloud (code 3)", "cloud shadow", "snow or ice")
EUROSAT = (
    *("AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture"),
    *("PermanentCrop", "Residential", "River", "SeaLake"),
)
BIGEARTHNET = (
    "Urban fabric",
    "Industrial or commercial units",
    "Arable land",
    "Permanent crops",
    "Pastures",
    "Complex cultivation patterns",
    "Land principally occupied by agriculture with natural vegetation",
    "Agro-forestry",
    "Broad-leaved forest",
    "Coniferous forest",
    "Mixed forest",
    "Natural grassland and sparsely vegetated areas",
    "Moors, heathland and sclerophyllous vegetation",
    "Transitional woodland, shrub",
    "Beaches, dunes, sands",
    "Inland wetlands",
    "Coastal wetlands",
    "Inland waters",
    "Marine waters",
)
LC100_CODES = (
    *(0, 20, 30, 40, 50, 60, 70, 80, 90, 100, 111, 112, 113),
    *(114, 115, 116, 121, 122, 123, 124, 125, 126, 200),
)
"""Codes of the CGLS land cover map by the index of their class."""
LC100 = tuple(f"CGLS {code}" for code in LC100_CODES)
DFC2020 = (
    *("forest", "shrubland", "grassland", "wetlands", "croplands", "urban", "barren", "water"),
)
LCZ = tuple(f"LCZ {name}" for name in (*range(1, 11), *"ABCDEFG"))

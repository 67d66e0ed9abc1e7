"""Static fields in exactly the files that weather models read."""

from copcube.models.write import FORMS, Written, write

__all__ = ["FORMS", "Written", "write"]

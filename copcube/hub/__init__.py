"""Published files, and downloading them."""

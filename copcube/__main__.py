"""``python -m copcube`` is the command ``copcube``."""

import sys

from copcube.cli import main

sys.exit(main())

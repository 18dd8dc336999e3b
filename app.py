"""Serve the page: `python app.py [--host HOST] [--port PORT] [--public] [--mcp]`, as `retro-demo serve` does.

A Hugging Face Space and the container start this file.
"""

import sys

from retro_demo.ui.serve import main

if __name__ == "__main__":
    sys.exit(main())

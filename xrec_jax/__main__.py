"""`python -m xrec_jax` is `xrec`."""

import sys

from xrec_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m retro_demo VERB`."""

import sys

from retro_demo.allowance import keep_to_allowance
from retro_demo.stopping import stop_on_signal

if __name__ == "__main__":
    stop = stop_on_signal()  # before the slow imports: a stop in the first seconds is a stop, not a kill
    keep_to_allowance()
    from retro_demo.cli import main

    sys.exit(main(stop=stop))

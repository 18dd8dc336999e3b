"""`python -m retro_demo VERB`."""

import os
import sys

from retro_demo.jobs.worker import keep_to_allowance, stop_on_signal

if __name__ == "__main__":
    stop = stop_on_signal()  # before the slow imports: a stop in the first seconds is a stop, not a kill
    keep_to_allowance()
    from retro_demo.cli.main import main

    code = main(stop=stop)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # DDP never frees its process group, so the threads of gloo outlive it; one that frees a tensor
        # while the interpreter ends would abort the process, and torchrun then the others
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)

"""`python -m retro_demo VERB`, and the command `retro-demo VERB` of an installed package."""

import os
import sys

from retro_demo.jobs.worker import keep_to_allowance, stop_on_signal


def main() -> int:
    """Run the verb that this process was started with; returns the exit code."""
    if sys.argv[1:2] == ["serve"]:  # it ends at once when asked to, and imports in an order of its own
        from retro_demo.ui.serve import main as serve

        return serve(sys.argv[2:], "retro-demo serve")
    stop = stop_on_signal()  # before the slow imports: a stop in the first seconds is a stop, not a kill
    keep_to_allowance()
    from retro_demo.cli.main import main as run

    code = run(stop=stop)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # DDP never frees its process group, so the threads of gloo outlive it; one that frees a tensor
        # while the interpreter ends would abort the process, and torchrun then the others
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main())

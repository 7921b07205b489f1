"""Stop Python's garbage collector until the command line is read (`cli.parse_arguments`).

This is the first import of a script that loads torch or transformers.

Those imports make many objects that live as long as the process. Python looked through all of them
several times while it imported, and once more when it ended, which took 1.9 of 4.3 CPU seconds
(`benchmarks/start_up.py`). In a process that imports a script, such as a test, nothing changes.
"""

import gc
import sys
from pathlib import Path

if Path(getattr(sys.modules["__main__"], "__file__", None) or "").parent.name == "scripts":
    gc.disable()


def keep_imports() -> None:
    """Collect garbage again, but not among what was imported."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()

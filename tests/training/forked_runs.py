"""Start runs of scripts/train_policy.py that need no imports of their own.

Each line of stdin is the arguments of a run, as JSON. The run is a process of its own, a fork of
this one, which has imported everything and computed nothing. stdout gets a line with the id of the
process when it starts, and a line with what `os.waitstatus_to_exitcode` says when it has ended.
"""

import json
import os
import sys

import train_policy


def main() -> None:
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            os.dup2(2, 1)  # stdout is for the lines below
            train_policy.main(json.loads(line))
            os._exit(0)
        print(process, flush=True)
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()

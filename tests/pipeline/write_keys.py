"""Write keys.yaml anew, the list of files in each rule's key: python tests/pipeline/write_keys.py

To be run, and its difference read, when a rule is meant to use other code than before.
"""

import re
from pathlib import Path

import yaml

from warpflow.pipeline.code_files import code_files

HEADER = """\
# The code in the key of each rule, beside its script: an edit of these files can make its results
# due. A test compares. Written by tests/pipeline/write_keys.py; paths start at workflow/warpflow/.
"""


def files_of_rules() -> dict[str, list[str]]:
    """Return the library files in the key of each rule."""
    text = "".join(path.read_text() for path in sorted(Path("rules").glob("*.smk")))
    return {
        rule: [
            path.removeprefix("workflow/warpflow/")
            for path in code_files(rule)
            if path != f"scripts/{rule}.py"
        ]
        for rule in sorted(set(re.findall(r'code_hash\("(\w+)"', text)))
    }


if __name__ == "__main__":
    text = HEADER + yaml.safe_dump(files_of_rules())
    Path(__file__).with_name("keys.yaml").write_text(text)

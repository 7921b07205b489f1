"""Stop Python's garbage collector while the libraries and all tests are imported, as scripts do.

This is the first import of conftest.py, which starts it again once the tests are collected. See
`warpflow.quick_start`.
"""

import gc

gc.disable()

"""What a run will take: `costs` in hours, disk and money, `memory` in bytes of a device.

`scripts/plan_run.py` and `scripts/estimate_resources.py` print them. Read next: `docs/plan.md`.
"""

"""A chosen point as a model to share.

`merge_facts` names what a point was merged from, in mergekit's terms. `card` writes the model card,
and `push` uploads a folder to the Hugging Face hub. Read next: `scripts/export_point.py`, which
uses them.
"""

"""Figures of the tables, each a pure function from tables to a figure.

One file for each figure; `style` has looks, labels and axes that all of them share; `cli` is the
command line of the `plot_*` scripts. Imports no model code. Next: `dvc.yaml`, whose stages draw
them.
"""

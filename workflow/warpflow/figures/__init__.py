"""Figures of the tables, each a pure function from tables to a figure.

One file for each figure, named as its script. What they share, each file on those before it:
`rows` chooses rows of the tables, `style` has the looks, `panels` the axes and legends, `labels`
the texts beside points, `front_panels` the plane of KL and reward. `cli` is the command line of
the `plot_*` scripts. Imports no model code. Next: `dvc.yaml`, whose stages draw them.
"""

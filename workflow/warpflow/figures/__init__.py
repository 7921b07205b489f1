"""Figures drawn from the tables. Each is a pure function from tables to a figure.

Each figure has a file, named like its script. They share five files, of which each builds on those
before it: `rows` chooses rows of the tables, `style` has the looks, `panels` the axes and legends,
`labels` the texts beside points, `front_panels` the plane of KL and reward. `cli` is the command
line of the `plot_*` scripts. The folder imports no model code. Read next: `dvc.yaml`, whose stages
draw the figures.
"""

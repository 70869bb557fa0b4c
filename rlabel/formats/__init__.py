"""Other people's layouts: theirs into the COCO that rlabel labels (`convert`), a run's labels into theirs (`export`).

One module a layout and direction. Every reader gives `Found` pictures, every writer takes `Shown` ones, so that a layout knows
nothing of the others. What a layout cannot say is counted where it is left out, and told at the end.
"""

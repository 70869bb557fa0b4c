"""What a run is worth against a truth file: `evaluate.evaluate_run`, `text.evaluation_to_text`.

Left to others: making the run, drawing it (`rlabel.report`), and scores of free text or captions.
"""

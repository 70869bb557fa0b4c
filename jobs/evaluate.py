"""`python -m jobs.evaluate`: the same as `rlabel evaluate`."""

from rlabel.cli.evaluate import evaluate

if __name__ == "__main__":
    evaluate()

"""`python -m jobs.label`: the same as `rlabel label`."""

from rlabel.cli.label import label

if __name__ == "__main__":
    label()

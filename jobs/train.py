"""`python -m jobs.train`: the same as `rlabel train`."""

from rlabel.cli.train import train

if __name__ == "__main__":
    train()

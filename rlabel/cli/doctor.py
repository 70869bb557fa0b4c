"""`rlabel doctor`: what a model can do here, before a weight of it is loaded."""

from __future__ import annotations

import click

from rlabel.cli.options import ends_cleanly, print_json


@click.command()
@click.argument("model")
@click.option("--family", help="Take it for a model of this family.")
@click.option(
    "--trust-remote-code",
    is_flag=True,
    help="Of a model that transformers does not know: run the Python code in its repository, with your rights. Read it first.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@ends_cleanly
def doctor(model: str, family: str | None, trust_remote_code: bool, as_json: bool) -> None:
    """Say what a model can do, what memory it takes at each precision, and what is missing on this machine.

    MODEL is a folder or hub id; "embedded" is the labeler that ships with rlabel.

    \b
    Example:
      rlabel doctor embedded
    """
    from rlabel.config import EMBEDDED_MODEL
    from rlabel.vlm.examining import examination_text, examine

    folder = model
    if model == EMBEDDED_MODEL:
        from rlabel.run.job import embedded_model_folder

        folder = str(embedded_model_folder())
    facts = examine(folder, family, trust_remote_code=trust_remote_code)
    facts["model"] = model
    if as_json:
        print_json(facts)
        return
    print(examination_text(facts))

"""The `rlabel` command. Commands are imported when they run, so that help needs neither torch nor Ray."""

from __future__ import annotations

import difflib
import importlib

import click

import rlabel

_SECTIONS = {
    "Label": {
        "label": "Label the regions of a corpus and write COCO.",
        "propose": "Find regions in bare pictures, for `label` to read.",
        "ask": "Ask about regions of one picture.",
        "snap": "Snap a run's answers to another vocabulary, without the model.",
    },
    "Check first": {
        "validate": "Check a corpus before it is labeled or trained on.",
        "vocabulary": "Check a vocabulary before it is used.",
        "doctor": "Say what a model can do, its memory, and what is missing here.",
        "bench": "Measure how fast this machine labels.",
    },
    "Runs": {
        "status": "Say how far a run is.",
        "repair": "Find a run's damaged shards and take them out, to be made anew.",
        "report": "Write a page to look at: numbers, curves, and a gallery of regions to review.",
        "review": "Apply what people decided on that page.",
    },
    "Trust": {
        "evaluate": "Compare a run with the truth.",
        "evaluate-captions": "Compare a run's captions with human ones.",
        "compare": "Compare two runs on the same regions.",
        "calibrate": "Fit scores to how often labels are right.",
        "audit": "List human labels that a run contradicts.",
    },
    "Models": {
        "train": "Fine-tune a labeler on labeled COCO.",
        "assemble": "Build a fresh RegionGPT from a vision tower and a language model.",
        "average": "Write the mean of several labelers trained from one start.",
        "import-spatialrgpt": "Convert a SpatialRGPT checkpoint into a model folder.",
        "ablate": "Train small models and print RegionGPT's tables with ours beside them.",
    },
    "Other tools' files": {
        "convert": "Turn masks or boxes of another layout into COCO.",
        "export": "Write a run's labels for another tool: YOLO, VOC, CVAT and others.",
    },
}
_COMMANDS = {name: said for commands in _SECTIONS.values() for name, said in commands.items()}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        command = getattr(importlib.import_module(f"rlabel.cli.{name}"), name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, _COMMANDS))
        for title, commands in _SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), said) for name, said in commands.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it; an unknown word is answered with the commands that look like it."""
        if args and not args[0].startswith("-") and args[0] not in _COMMANDS:
            near = difflib.get_close_matches(args[0], _COMMANDS, n=3)
            meant = f" Did you mean {' or '.join(near)}?" if near else " `rlabel --help` lists them."
            ctx.fail(f"{args[0]}: there is no such command.{meant}")
        return super().resolve_command(ctx, args)


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(rlabel.__version__, prog_name="rlabel")
def main() -> None:
    """Turn class-agnostic masks or boxes into scored COCO labels with a region vision-language model.

    \b
    Example:
      rlabel label --images photos/ --regions masks.json --vocabulary names.txt --out run/
    """


if __name__ == "__main__":
    main()

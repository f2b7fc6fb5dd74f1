"""The class a config.json names and what it is for, as transformers' own Auto mappings say it. No model by name."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from surgery.diagnostics import SurgeryError, did_you_mean
from surgery.models.huggingface.folder import not_installed

TASKS = (
    ("MODEL_FOR_CAUSAL_LM_MAPPING", "causal-lm"),
    ("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING", "seq2seq-lm"),
    ("MODEL_FOR_MASKED_LM_MAPPING", "masked-lm"),
    ("MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING", "classification"),
    ("MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING", "classification"),
    ("MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING", "classification"),
    ("MODEL_FOR_QUESTION_ANSWERING_MAPPING", None),
    ("MODEL_FOR_PRETRAINING_MAPPING", None),
    ("MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING", None),
    ("MODEL_FOR_TEXT_ENCODING_MAPPING", "embedding"),
    ("MODEL_MAPPING", "embedding"),
)
"""An Auto class's mapping and the task of the classes in it; the first that holds a class decides."""


def transformers() -> Any:
    """The package. Errors: S206 where it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise not_installed(error) from error
    return transformers


def read_as_config(document: dict[str, Any], folder: Path) -> Any:
    """transformers' own config object. Errors: S209 for a model of its own code, an unknown kind, a damaged config."""
    kinds = transformers().CONFIG_MAPPING
    kind = document.get("model_type")
    if kind not in kinds:
        raise _unknown_kind(document, kind, folder, list(kinds.keys()))
    if "quantization_config" in document:
        raise SurgeryError(
            f"`{folder}` holds quantized weights, which are not read",
            code="S209",
            help="start from the model it was made of, in float32, bfloat16 or float16",
        )
    try:
        return kinds[kind].from_dict(document)
    except Exception as error:  # a config's own checks raise what they like
        raise SurgeryError(
            f"transformers cannot read the config.json of `{folder}`: {type(error).__name__}: {error}",
            code="S209",
            help="it was edited, or written by another version of transformers",
        ) from error


def class_of(config: Any, names: Any, folder: Path) -> tuple[type, str | None]:
    """The class that config.json's `architectures` name and its task; the plain model where none is named.

    Errors: S209 for a class that is not one of transformers' for this kind of model.
    """
    found = list(_classes(config))
    if not names:
        found = [(made, task) for made, task, mapping in found if mapping == "MODEL_MAPPING"]
        names = ["AutoModel"]
        if found:
            return found[0]
    for made, task, mapping in found:
        if made.__name__ == names[0]:
            # What an encoder–decoder's plain model returns are states of its decoder, not of a sentence.
            decodes = mapping == "MODEL_MAPPING" and getattr(config, "is_encoder_decoder", False)
            return made, None if decodes else task
    made = getattr(transformers(), str(names[0]), None)
    if isinstance(made, type) and getattr(made, "config_class", None) is type(config):
        return made, None
    raise SurgeryError(
        f"`{folder}` holds a {names[0]}, which transformers does not have for `{config.model_type}`",
        code="S209",
        help=did_you_mean(str(names[0]), [made.__name__ for made, *_ in found])
        or "code beside a checkpoint is never run; from Python, pass the module to `surgery.compile`",
    )


def task_of(module: Any) -> str | None:
    """What a module is for, where it is of one of transformers' own classes that a mapping names."""
    transformers = sys.modules.get("transformers")  # whoever made such a module has imported it
    if transformers is None or not isinstance(module, transformers.PreTrainedModel):
        return None
    return next((task for made, task, _ in _classes(module.config) if made is type(module)), None)


def _classes(config: Any) -> Iterator[tuple[type, str | None, str]]:
    from transformers.models.auto import modeling_auto

    for mapping, task in TASKS:
        table = getattr(modeling_auto, mapping, {})
        if type(config) in table:
            made = table[type(config)]
            yield from ((one, task, mapping) for one in (made if isinstance(made, tuple) else (made,)))


def _unknown_kind(document: dict[str, Any], kind: Any, folder: Path, kinds: list[str]) -> SurgeryError:
    if "auto_map" in document:
        return SurgeryError(
            f"`{folder}` brings its own code, which a spec may not run",
            code="S209",
            help="load it yourself with trust_remote_code=True and pass the module to `surgery.compile`",
        )
    return SurgeryError(
        f"`{folder}` holds a model of the kind `{kind}`, which this transformers does not know",
        code="S209",
        help=did_you_mean(str(kind), kinds) or "a newer transformers may: pip install -U transformers",
    )

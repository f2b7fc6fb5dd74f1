"""`generate`: a loaded model writes text, with torch and surgery alone."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.fx import GraphModule

from surgery.anatomy.graphs import placeholders
from surgery.diagnostics import RefusalError
from surgery.generation.decoder import decoder_of
from surgery.generation.faults import wrong
from surgery.generation.inputs import inputs_at
from surgery.generation.parts import Parts, parts_of
from surgery.generation.sample import Sampling

DEFAULTS = "generation"
"""The key of `module.meta` under which a bundle's own settings stand: eos_token_id, pad_token_id, …"""
Reader = Callable[[Tensor], Tensor]


def generate(
    module: GraphModule,
    input_ids: Tensor,
    *,
    max_new_tokens: int = 32,
    attention_mask: Tensor | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    eos_token_id: int | Iterable[int] | None = None,
    pad_token_id: int | None = None,
    decoder_start_token_id: int | None = None,
    use_cache: bool | None = None,
    **inputs: Any,
) -> Tensor:
    """Continue prompts.

    module          a captured or loaded decoder, or encoder-decoder
    input_ids       [B, S] int64; shorter prompts are padded on the left, and `attention_mask` [B, S] marks that by 0
    max_new_tokens  how many tokens are written at most; a row ends with one of `eos_token_id`, and is then padded
    temperature     0: the likeliest token; above 0 one is drawn with `seed`, out of `top_k` and `top_p`
    use_cache       keep keys and values; None: where the graph allows it; False: run the whole graph for every token
    inputs          further inputs of the model, as in a forward pass of the prompt

    Returns [B, S + new] int64, prompt first; of an encoder-decoder what the decoder wrote, its start token first.
    Token identifiers that are not given are those of the bundle's config.json. Raises RefusalError (S721) where
    `use_cache=True` and the graph cannot, SurgeryError (S722) for arguments that do not fit.
    """
    settings = module.meta.get(DEFAULTS, {})
    sampling = Sampling(temperature, top_k, top_p)
    parts = parts_of(module)
    given = {**inputs, "attention_mask": attention_mask}
    given = {name: value for name, value in given.items() if value is not None}
    start = decoder_start_token_id if decoder_start_token_id is not None else settings.get("decoder_start_token_id")
    tokens, given = _prompt(parts, input_ids, given, start)
    ends = _ends(eos_token_id if eos_token_id is not None else settings.get("eos_token_id"))
    fill = next((each for each in (pad_token_id, settings.get("pad_token_id"), *ends) if each is not None), 0)
    read = _reader(module, parts, given, tokens, tokens.shape[1] + max_new_tokens, use_cache)
    generator = torch.Generator(tokens.device).manual_seed(seed)
    return _write(read, tokens, max_new_tokens, sampling, generator, ends, fill)


def _write(
    read: Reader,
    tokens: Tensor,
    count: int,
    sampling: Sampling,
    generator: torch.Generator,
    ends: tuple[int, ...],
    fill: int,
) -> Tensor:
    stops = torch.tensor(ends, dtype=torch.int64, device=tokens.device)
    done = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    for _ in range(count):
        chosen = sampling.choose(read(tokens)[:, -1], generator)
        chosen = torch.where(done, fill, chosen)
        tokens = torch.cat([tokens, chosen[:, None]], 1)
        if ends:
            done = done | torch.isin(chosen, stops)
            if bool(done.all()):
                break
    return tokens


def _reader(
    module: GraphModule, parts: Parts, given: Mapping[str, Any], tokens: Tensor, length: int, use_cache: bool | None
) -> Reader:
    """From all tokens so far to logits behind the last."""
    if use_cache is None or use_cache:
        try:
            text = decoder_of(module).start(given, len(tokens), length)
            return lambda tokens: text.read(tokens[:, text.past :])
        except RefusalError as error:
            if use_cache:
                raise
            warnings.warn(f"generating without a cache: {error.diagnostics[0].message}", stacklevel=4)
    place = _place(parts)

    def whole(tokens: Tensor) -> Tensor:
        with torch.no_grad():
            inputs = inputs_at(parts, given, tokens, tokens.shape[1])
            return pytree.tree_leaves(module(**inputs))[place][:, -1:]

    return whole


def _prompt(
    parts: Parts, input_ids: Tensor, given: dict[str, Any], start: int | None
) -> tuple[Tensor, dict[str, Any]]:
    """What is continued, and the other inputs. Raises SurgeryError (S722)."""
    if input_ids.ndim != 2 or not input_ids.shape[1] or input_ids.is_floating_point():
        raise wrong(f"`input_ids` is {list(input_ids.shape)}", "give [batch, length] of int64, at least one token each")
    names = {str(node.target) for node in placeholders(parts.graph_module)}
    given = _masked(given, names, input_ids)
    unknown = sorted(given.keys() - names)
    if unknown:
        raise wrong(f"the model takes no `{unknown[0]}`", f"it takes {', '.join(sorted(names))}")
    if parts.tokens.target == "input_ids" or "input_ids" not in names:
        mask = given.get("attention_mask")
        if mask is not None and not bool(mask[:, -1].all()):
            raise wrong("a prompt ends with padding", "pad on the left, so that every row ends with a token")
        return input_ids, given
    if start is None:
        raise wrong("it is not said with which token the decoder starts", "give `decoder_start_token_id=`")
    return input_ids.new_full((len(input_ids), 1), start), given | {"input_ids": input_ids}


def _masked(given: dict[str, Any], names: set[str], input_ids: Tensor) -> dict[str, Any]:
    mask = given.get("attention_mask")
    if mask is None:
        return given
    if mask.shape != input_ids.shape:
        sizes = f"{list(mask.shape)}, `input_ids` {list(input_ids.shape)}"
        raise wrong(f"`attention_mask` is {sizes}", "give one number for each token: 1, or 0 for padding")
    if "attention_mask" in names:
        return given
    if not bool(mask.all()):
        raise wrong(
            "the model was captured without an `attention_mask`, so it cannot leave padding out",
            "give prompts of one length, or capture the model with `attention_mask` among its example inputs",
        )
    return {name: value for name, value in given.items() if name != "attention_mask"}


def _ends(given: int | Iterable[int] | None) -> tuple[int, ...]:
    if given is None:
        return ()
    return (given,) if isinstance(given, int) else tuple(given)


def _place(parts: Parts) -> int:
    """Which of the model's outputs, flattened, are the logits."""
    output = next(node for node in reversed(parts.graph_module.graph.nodes) if node.op == "output")
    return next(place for place, node in enumerate(pytree.tree_leaves(output.args[0])) if node is parts.logits)

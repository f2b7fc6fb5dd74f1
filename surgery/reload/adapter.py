"""A loaded bundle as transformers knows models: its own `generate()`, beam search and pipelines drive the graph."""

from collections.abc import Mapping
from typing import Any

import transformers
from torch import Tensor, nn
from torch.fx import GraphModule
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutputWithPast, Seq2SeqLMOutput

from surgery.anatomy.graphs import placeholders
from surgery.generation.decoder import Text, decoder_of

ROOM = 64
"""Tokens more than the prompt there is room for at first; room is doubled where it runs out."""


class Kept:
    """The keys and values of texts, as transformers' generation loops handle them."""

    is_compileable = False

    def __init__(self, text: Text) -> None:
        self.text = text

    def get_seq_length(self, *place: Any) -> int:
        return self.text.past

    def reorder_cache(self, rows: Tensor) -> None:
        self.text.reorder(rows)


class Passed(nn.Module):
    """In an encoder's stead: the prompt as it is, for the graph holds the encoder."""

    def forward(self, input_ids: Tensor, **options: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=input_ids[..., None])


class Cut(PreTrainedModel, GenerationMixin):
    """A cut model with the config it had before: widths in it are those of the original, not of the graph.

    `forward` takes what the graph was captured with, `generate` what the library's own does. `save_pretrained` is not
    for it: a bundle is saved by surgery.
    """

    config_class = transformers.PretrainedConfig
    _is_stateful = True  # texts grow in place: no assisted decoding, which takes tokens back

    def __init__(self, graph_module: GraphModule, config: Any, generation: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.graph = graph_module
        self.passed = Passed()
        settings = GenerationConfig.from_model_config(config).to_dict() | {"use_cache": True} | dict(generation)
        self.generation_config = GenerationConfig.from_dict(settings)

    @classmethod
    def can_generate(cls) -> bool:
        return True

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def get_encoder(self, *names: Any) -> nn.Module:
        return self.passed

    def save_pretrained(self, *places: Any, **options: Any) -> None:
        raise NotImplementedError("a cut model is saved as a bundle: copy its folder, or `surgery.save` the graph")

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
        """All tokens so far, each time: what was read before is known from the keys kept."""
        name = "decoder_input_ids" if self.config.is_encoder_decoder else "input_ids"
        known = {"attention_mask", "past_key_values", "encoder_outputs", "use_cache", *self._names}
        return {key: value for key, value in kwargs.items() if key in known} | {name: input_ids}

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: Kept | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **inputs: Any,
    ) -> Any:
        """The graph's own outputs, or with `use_cache` logits and the keys kept."""
        tokens = input_ids if decoder_input_ids is None else decoder_input_ids
        given = {"attention_mask": attention_mask, **inputs}
        if decoder_input_ids is not None:
            given["input_ids"] = input_ids if encoder_outputs is None else encoder_outputs[0][..., 0]
        given = {name: value for name, value in given.items() if name in self._names and value is not None}
        if not use_cache:
            return self._whole(tokens, given)
        if past_key_values is None:
            room = tokens.shape[1] + ROOM
            past_key_values = Kept(decoder_of(self.graph).start(given, len(tokens), room, exact=False))
        text = past_key_values.text
        logits = text.read(tokens[:, text.past :])
        made = Seq2SeqLMOutput if self.config.is_encoder_decoder else CausalLMOutputWithPast
        return made(logits=logits, past_key_values=past_key_values)

    def _whole(self, tokens: Tensor, given: dict[str, Any]) -> Any:
        from surgery.generation.inputs import inputs_at
        from surgery.generation.parts import parts_of

        return self.graph(**inputs_at(parts_of(self.graph), given, tokens, tokens.shape[1]))

    @property
    def _names(self) -> set[str]:
        return {str(node.target) for node in placeholders(self.graph)}

    def _reorder_cache(self, kept: Kept, rows: Tensor) -> Kept:
        kept.reorder_cache(rows)
        return kept


def adapted(graph_module: GraphModule, source: Mapping[str, Any]) -> Cut:
    """A loaded graph as one of transformers' models. `source` is the bundle's: `config` as it was before the cut."""
    config = transformers.AutoConfig.for_model(**source["config"])
    made = type(f"Cut{source['architecture']}", (Cut,), {"config_class": type(config)})
    model = made(graph_module, config, graph_module.meta.get("generation", {}))
    return model.eval()

"""Cutting heads and channels, against Torch-Pruning and against not cutting: `python -m bench.prune [--quick]`.

    vit-b         ViT-B/16 by Hugging Face, 25 % of mlp channels and 25 % of attention heads
    gpt2-small    GPT-2 small by Hugging Face, 25 % of mlp channels (Torch-Pruning 1.6 fails on its fused q, k, v)

Rows `prune` time the cut itself, of both from the model as it stands to a smaller one, nothing kept from round to
round and the same tensors read: what exactly, says `timed` in the document, and `stages_ms` how ours divides. Both
rank by the norm of all weights that belong to a unit. Rows `forward` time the models, eager and under
`torch.compile`, all in the same rounds. Weights are random: time does not depend on them. Torch-Pruning is `pip
install torch-pruning`; without it its column is missing.
"""

import copy
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from surgery.anatomy import inspect
from surgery.passes.runner import run_passes
from surgery.session.prepare import named, prepare
from surgery.session.rewrite import choose, context_of, rewrite
from torch import Tensor, nn

from bench.harness import Case, Options, Scene, main

SHARE = 0.25
BATCHES = (1, 8, 32)
LENGTH = 64
"""Tokens of a GPT-2 sample."""
CHANNELS, HEADS = (f"prune {SHARE:.0%} of {what} by magnitude" for what in ("mlp channels", "attention heads"))
TIMED = {
    "ours": "torch.export with fake tensors and free batch and length, sites, plan, scores, new tensors, new graph",
    "torch-pruning": "modules copied over the same tensors, a real forward pass of one sample under autograd, "
    "dependency graph, scores, new tensors; not: telling which layers hold heads or stay out, making Conv1D Linear",
}
"""What counts as the cut, of either."""


@dataclass(frozen=True)
class Subject:
    """A model, how to feed it, what to ask of surgery, and how to ask Torch-Pruning for the same cut."""

    name: str
    module: nn.Module
    inputs: Callable[[int], dict[str, Tensor]]
    spec: str
    layers: Callable[[nn.Module], dict[str, Any]]
    mend: Callable[[nn.Module], None]


def subjects() -> Iterator[Subject]:
    """Both models, one after the other, so that only one is held."""
    from transformers import GPT2Config, GPT2LMHeadModel, ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    yield Subject(
        "vit-b",
        ViTForImageClassification(ViTConfig(num_labels=1000)).eval(),
        lambda batch: {"pixel_values": torch.randn(batch, 3, 224, 224)},
        f"{CHANNELS}\n{HEADS}",
        vit_layers,
        lambda module: None,
    )
    model = GPT2LMHeadModel(GPT2Config(use_cache=False)).eval()
    yield Subject(
        "gpt2-small",
        model,
        lambda batch: {"input_ids": torch.randint(0, model.config.vocab_size, (batch, LENGTH))},
        CHANNELS,
        gpt2_layers,
        plain_linears,
    )


def vit_layers(module: nn.Module) -> dict[str, Any]:
    """Torch-Pruning's arguments for mlp channels and whole heads; it has to be told which layers hold heads."""
    heads = {}
    for layer in module.vit.layers:
        attention = layer.attention
        heads |= dict.fromkeys((attention.q_proj, attention.k_proj, attention.v_proj), attention.num_attention_heads)
    ratios = dict.fromkeys((layer.mlp.fc1 for layer in module.vit.layers), SHARE) | dict.fromkeys(heads, SHARE)
    return {"pruning_ratio_dict": ratios, "num_heads": heads, "prune_num_heads": True, "head_pruning_ratio": SHARE}


def gpt2_layers(module: nn.Module) -> dict[str, Any]:
    """Torch-Pruning's arguments for mlp channels; attention and embeddings have to be kept out of its sight."""
    blocks = module.transformer.h
    ignored = [layer for block in blocks for layer in (block.attn.c_attn, block.attn.c_proj)]
    ignored += [module.transformer.wte, module.transformer.wpe, module.lm_head]
    return {"pruning_ratio_dict": {block.mlp.c_fc: SHARE for block in blocks}, "ignored_layers": ignored}


def plain_linears(module: nn.Module) -> None:
    """`nn.Linear` for every Conv1D, which Torch-Pruning does not know; done before its time starts."""
    from transformers.pytorch_utils import Conv1D

    for name, layer in list(module.named_modules()):
        if isinstance(layer, Conv1D):
            linear = nn.Linear(*layer.weight.shape)
            linear.weight.data, linear.bias.data = layer.weight.data.t().contiguous(), layer.bias.data
            parent, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(parent), leaf, linear)


def ours(subject: Subject) -> nn.Module:
    """Capture, plan, cut: what `surgery apply` does before it proves the result."""
    return rewrite(prepare(subject.spec, subject.module, example_inputs=subject.inputs(2)))


def stages(subject: Subject, clock: str) -> dict[str, float]:
    """Milliseconds of each stage of ours, the median of three."""
    now = {"cpu": time.thread_time, "wall": time.perf_counter}[clock]
    rounds = []
    for _ in range(3):
        inputs, laps = named(subject.module, subject.inputs(2)), [now()]
        anatomy = inspect(subject.module, inputs)
        laps.append(now())
        prepared = prepare(subject.spec, subject.module, example_inputs=inputs, anatomy=anatomy)
        laps.append(now())
        choices = choose(prepared, context_of(prepared))
        laps.append(now())
        rewrite(prepared, choices)
        laps.append(now())
        rounds.append([(end - start) * 1e3 for start, end in zip(laps, laps[1:], strict=False)])
    medians = [sorted(column)[1] for column in zip(*rounds, strict=True)]
    return dict(zip(("capture", "plan", "choose", "rewrite"), (round(each, 1) for each in medians), strict=True))


def uncut(subject: Subject) -> nn.Module:
    """The captured graph as ours is run, with nothing cut: what of a gain is the cut's own."""
    from surgery.lowering import quicken

    prepared = prepare(subject.spec, subject.module, example_inputs=subject.inputs(2))
    return quicken(run_passes(prepared.anatomy.graph_module, []))


def sharing_copy(module: nn.Module) -> nn.Module:
    """Modules of their own over the same tensors; pruning puts new tensors in their place."""
    memo = {id(each): nn.Parameter(each.detach()) for each in module.parameters()}
    return copy.deepcopy(module, memo)


def torch_pruning() -> Any:
    """The package, or None."""
    try:
        import torch_pruning as found
    except ImportError:
        return None
    return found


def theirs(subject: Subject, prepared: nn.Module, package: Any) -> nn.Module:
    """The same cut by Torch-Pruning."""
    module = sharing_copy(prepared)
    with warnings.catch_warnings(action="ignore"), torch.enable_grad():
        pruner = package.pruner.BasePruner(
            module,
            subject.inputs(1),
            importance=package.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=0.0,
            prune_head_dims=False,
            output_transform=lambda output: output.logits.sum(),
            **subject.layers(module),
        )
        pruner.step()
    return module


def parameters(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


def prune_scene(subject: Subject, prepared: nn.Module, package: Any, clock: str) -> Scene:
    """How long the cut takes, and what it leaves."""
    candidates = {"ours": lambda: ours(subject)}
    facts = {"parameters": {"dense": parameters(subject.module), "ours": parameters(ours(subject))}, "dtype": "fp32"}
    facts |= {"stages_ms": stages(subject, clock), "timed": TIMED}
    if package is not None:
        candidates["torch-pruning"] = lambda: theirs(subject, prepared, package)
        facts["parameters"]["torch-pruning"] = parameters(candidates["torch-pruning"]())
    name = f"prune {subject.name} 25%"
    return Scene(name, candidates, (Case(name, "time to prune", "ours", tuple(candidates)[1:], facts),))


def forward_scene(subject: Subject, models: dict[str, nn.Module], batch: int) -> Scene:
    """A forward pass of every model, eager and compiled."""
    inputs = subject.inputs(batch)
    candidates: dict[str, Callable[[], Any]] = {}
    for name, module in models.items():
        candidates[name] = lambda module=module: module(**inputs)
        compiled = torch.compile(module, dynamic=False)
        candidates[f"{name}-compiled"] = lambda compiled=compiled: compiled(**inputs)
    title = f"forward {subject.name} batch={batch} fp32"
    others = [name for name in models if name != "ours"]
    facts = {"batch": batch, "dtype": "fp32"}
    cases = (
        Case(f"{title} eager", "eager", "ours", tuple(others), facts),
        Case(f"{title} compiled", "compiled", "ours-compiled", tuple(f"{name}-compiled" for name in others), facts),
    )
    return Scene(title, candidates, cases, warmup=3 if batch == 1 else 2)


def scenes(asked: Options) -> Iterator[Scene]:
    package = torch_pruning() if asked.wants("torch-pruning") else None
    for subject in subjects():
        if asked.only and asked.only not in f"prune {subject.name} forward {subject.name} batch=":
            continue
        prepared = sharing_copy(subject.module)
        subject.mend(prepared)
        yield prune_scene(subject, prepared, package, asked.clock)
        models = {"ours": ours(subject), "dense": subject.module, "uncut-graph": uncut(subject)}
        if package is not None:
            models["torch-pruning"] = theirs(subject, prepared, package)
        for batch in BATCHES[:1] if asked.quick else BATCHES:
            torch.compiler.reset()
            if batch > 1:  # what running a graph costs beside a module shows at batch 1
                models.pop("uncut-graph", None)
            yield forward_scene(subject, models, batch)


if __name__ == "__main__":
    raise SystemExit(main("prune", scenes))

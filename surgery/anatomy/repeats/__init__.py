"""Equal blocks are traced once: of a deep model, nearly all of what capture costs goes to blocks that do the same with
other weights.

The first of them is traced as ever, between two marks. A later one that is called alike becomes one node, `again`, with
the shapes of the first one's results; its tensors are hidden meanwhile, as torch.export looks at each many times. In
the finished graph every such node is replaced by the first one's nodes over the later one's own tensors: it is the
graph that tracing all of them gives.

Alike is a block of the same classes, tensor shapes and ties, called in the same modes with tensors of the same symbolic
shapes and with equal options, whose attributes are equal wherever the first one's forward read them: a layer number
that only a cache reads may differ, a window size may not. Whatever cannot be told is traced: blocks with hooks, modules
that are shared, other objects among the arguments, attributes or inputs that a forward writes or a caller sets, sizes
that depend on data. Whatever the graph shows to be unlike, such as a tensor from elsewhere or one that
leaves by a back door, makes capture trace every block.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn, Tensor
from torch.fx import GraphModule

from surgery.anatomy.repeats.blocks import groups_of
from surgery.anatomy.repeats.tracing import Tracing
from surgery.anatomy.repeats.unfolding import Unfolding

TRIES = 3
"""So often a block that was expected to be like another may prove not to be."""


def traced_once(model: nn.Module, export: Callable[[], GraphModule], inputs: Iterable[Any]) -> GraphModule | None:
    """What `export()` gives of `model`, with equal blocks traced once; None where that does not work or gains nothing,
    and the caller has to export without it.

    inputs: the leaves of what the model is called with. Sizes of inputs of several shapes may turn out to be one only
    in the first block, which then is like none behind it.
    """
    shapes = {each.shape for each in inputs if isinstance(each, Tensor)}
    try:
        hopeless, unlike = set(), set()
        for _ in range(TRIES):
            # Looked at anew: where torch.export gives up, it puts other containers in attributes' place.
            groups = [group for group in groups_of(model) if group.name not in hopeless]
            tracing = Tracing(model, groups, unlike, first=min(2, len(shapes)))
            if not tracing.like:
                return None
            graph_module = _unfolded(tracing, export)
            if graph_module is not None or tracing.surprise is None:
                return graph_module
            if tracing.hopeless:
                hopeless |= {group.name for group in groups if tracing.surprise in group.blocks}
            else:
                unlike.add(tracing.surprise.name)
    except RecursionError:  # attributes that hold each other
        pass
    return None


def _unfolded(tracing: Tracing, export: Callable[[], GraphModule]) -> GraphModule | None:
    try:
        with tracing.watched(), torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
            graph_module = export()
        return Unfolding(tracing, graph_module).run()
    except Exception:  # whatever it is, tracing every block shows it as it is
        return None

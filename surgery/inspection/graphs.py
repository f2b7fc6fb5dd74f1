"""The graph behind a model reference."""

from torch.fx import GraphModule


def open_graph(reference: str) -> GraphModule:
    """What `reference` names, as a graph: a bundle as it was saved, anything else captured as it is.

    Raises SurgeryError S2xx for a reference that opens nothing, CaptureError S3xx for a model that is not a graph,
    BundleError S7xx for a damaged bundle.
    """
    from surgery.anatomy import capture
    from surgery.models import open_model

    model = open_model(reference, allow_import=True)
    if isinstance(model.module, GraphModule):
        return model.module
    return capture(model.module, model.example_inputs)

"""Look at a rewritten graph: sites before, code after, and who touched what."""

import surgery
from surgery.inspection import code, diff, difference_text
from surgery.models import open_model
from surgery.passes.provenance import provenance
from surgery.session import prepare
from surgery.session.rewrite import rewrite


def main() -> None:
    model = open_model("zoo:digits-dit")
    anatomy = surgery.inspect(model.module, model.example_inputs)
    for site in anatomy.of_kind("conditioning") + anatomy.of_kind("attention")[:1]:
        print(f"{site.kind:<13} {site.name:<16} {site.describe()}")

    graph_module = rewrite(prepare("prune tail 66% of class embeddings", model, anatomy=anatomy))
    print(code(graph_module, touched=True))
    print(difference_text(diff(anatomy.graph_module, graph_module), "before", "after").plain)

    touched = [node for node in graph_module.graph.nodes if provenance(node)]
    print(f"{len(touched)} nodes were touched; the first by `{provenance(touched[0])[0].clause}`")


if __name__ == "__main__":
    main()

"""`surgery zoo`: the models that ship with the package; show, train and sample them."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from surgery.cli.terminal import COLORS

EXAMPLE = "surgery zoo sample digits-dit --out grid.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    _action(actions, "list", "every model and what it is (the default)")
    show = _action(actions, "show", "size, training and files of one model")
    show.add_argument("name", metavar="NAME")
    train = _action(actions, "train", "train a model again, or go on with a training")
    train.add_argument("name", metavar="NAME")
    train.add_argument("--steps", type=_positive, help="train for so many steps instead of the recipe's")
    train.add_argument("--seed", type=int, help="of the initial weights and of every batch")
    train.add_argument("--out", type=Path, help="where the weights go (build/zoo/NAME.safetensors)")
    train.add_argument("--resume", action="store_true", help="go on from the state beside --out")
    sample = _action(actions, "sample", "draw a grid of samples, a row per class")
    sample.add_argument("name", metavar="NAME")
    sample.add_argument("--out", type=Path, required=True, help="the PNG to write")
    sample.add_argument("--weights", type=Path, help="other weights than the shipped ones")
    sample.add_argument("--each", type=_positive, default=10, help="samples per class (10)")
    sample.add_argument("--steps", type=_positive, help="DDIM steps (16)")
    sample.add_argument("--seed", type=int, default=0, help="of the start noise (0)")


def _action(actions: Any, name: str, summary: str) -> argparse.ArgumentParser:
    """A parser that takes the options of every command after the action too; those before it keep their values."""
    parser = actions.add_parser(name, help=summary, description=summary, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document")
    parser.add_argument("--color", choices=COLORS, default=argparse.SUPPRESS, help="colour the output")
    parser.add_argument("-q", "--quiet", action="store_true", default=argparse.SUPPRESS, help="no progress bar")
    return parser


def run(args: argparse.Namespace) -> int:
    return {"show": _show, "train": _train, "sample": _sample}.get(args.action, _list)(args)


def _list(args: argparse.Namespace) -> int:
    from surgery import zoo

    models = [{"name": name, "summary": zoo.entry(name).summary} for name in zoo.names()]
    if _wants(args, "json"):
        return _print_json({"format": "surgery.zoo/1", "models": models})
    width = max(len(model["name"]) for model in models)
    for model in models:
        print(f"zoo:{model['name']:<{width}}  {model['summary']}")
    return 0


def _show(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from surgery import zoo
    from surgery.models import open_model

    recipe, model = zoo.entry(args.name), open_model(f"zoo:{args.name}")
    facts = {
        "name": recipe.name,
        "summary": recipe.summary,
        "parameters": sum(parameter.numel() for parameter in model.module.parameters()),
        "inputs": {name: [str(value.dtype), *value.shape] for name, value in model.example_inputs.items()},
        "training": asdict(recipe.training),
        "files": model.files,
    }
    if _wants(args, "json"):
        return _print_json({"format": "surgery.zoo/1", **facts})
    print(f"zoo:{facts['name']}: {facts['summary']}")
    print(f"parameters  {facts['parameters']:,}")
    for name, (dtype, _, *shape) in facts["inputs"].items():
        print(f"input       {name} [{', '.join(['batch', *map(str, shape)])}] {dtype.removeprefix('torch.')}")
    print("training    " + ", ".join(f"{key} {value}" for key, value in facts["training"].items()))
    for name, digest in facts["files"].items():
        print(f"file        {zoo.weights_file(args.name).parent / name}  sha256:{digest}")
    return 0


def _train(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from surgery import zoo
    from surgery.zoo.training import state_file, train

    recipe = zoo.entry(args.name)
    changes = {key: value for key in ("steps", "seed") if (value := getattr(args, key)) is not None}
    recipe = replace(recipe, training=replace(recipe.training, **changes))
    out = args.out or Path("build/zoo") / f"{recipe.name}.safetensors"
    try:
        with _bar(args, f"training {recipe.name}", recipe.training.steps, "steps") as advance:
            train(recipe, out, resume=args.resume, progress=advance)
    except KeyboardInterrupt:
        if state_file(out).is_file():
            print(f"stopped; go on with: surgery zoo train {recipe.name} --out {out} --resume", file=sys.stderr)
        raise
    if _wants(args, "json"):
        return _print_json({"format": "surgery.zoo/1", "name": recipe.name, "weights": str(out), "training": changes})
    print(out)
    return 0


def _sample(args: argparse.Namespace) -> int:
    from surgery.diagnostics import SurgeryError
    from surgery.models import open_model
    from surgery.models.checkpoint import fit, read_tensors
    from surgery.verify.quality import STEPS
    from surgery.verify.sampler import sample
    from surgery.zoo.grid import write_grid

    model = open_model(f"zoo:{args.name}")
    if model.diffusion is None:
        raise SurgeryError(f"zoo:{args.name} draws no pictures", code="S803", help="`surgery zoo` tells what each is")
    steps = args.steps or STEPS
    if steps > model.diffusion.length:
        raise SurgeryError(
            f"{steps} steps asked, zoo:{args.name} has {model.diffusion.length} noise levels",
            code="S803",
            help=f"at most --steps {model.diffusion.length}",
        )
    if args.weights:
        fit(model.module, read_tensors(args.weights), f"zoo:{args.name}")
    count = args.each * model.diffusion.classes
    with _bar(args, f"sampling {args.name}", count, "samples") as advance:
        images = sample(
            model.module, model.diffusion, count=count, seed=args.seed, steps=steps, batch=50, progress=advance
        )
    write_grid(args.out, images, rows=model.diffusion.classes)
    if _wants(args, "json"):
        return _print_json({"format": "surgery.zoo/1", "name": args.name, "samples": count, "image": str(args.out)})
    print(args.out)
    return 0


def _bar(args: argparse.Namespace, what: str, total: int, unit: str) -> Any:
    from surgery.zoo.progress import bar

    return bar(what, total, unit, quiet=_wants(args, "quiet"))


def _wants(args: argparse.Namespace, option: str) -> bool:
    return bool(getattr(args, option, False))


def _print_json(document: dict[str, Any]) -> int:
    print(json.dumps(document, indent=2))
    return 0


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value

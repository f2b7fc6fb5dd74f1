"""What ships: the digits, the classifier, and diffusion transformers whose samples it can read."""

import pytest
import torch

from surgery import zoo
from surgery.models import open_model
from surgery.models.data import open_data
from surgery.verify.quality import DiffusionQuality
from surgery.zoo import digits
from surgery.zoo.dit import DiT
from surgery.zoo.judge import digit_judge

GENERATORS = ["digits-dit", "digits-sit"]


def test_the_shipped_files_stay_small():
    files = list(digits.WEIGHTS.glob("*.safetensors"))
    assert {file.stem for file in files} == {*zoo.names(), "digits"}
    assert sum(file.stat().st_size for file in files) <= 10_500_000


def test_the_digits_are_scikit_learns():
    datasets = pytest.importorskip("sklearn.datasets")
    source = datasets.load_digits()
    ours = digits.all_digits()
    assert torch.equal((ours.pixels[:, 0] + 1) * 8, torch.tensor(source.images, dtype=torch.float32))
    assert torch.equal(ours.labels, torch.tensor(source.target))


def test_the_split_covers_every_digit_once():
    training, held_out = digits.split(held_out=False), digits.split(held_out=True)
    assert (len(training), len(held_out)) == (1498, 299)
    assert sorted([*training.labels.tolist(), *held_out.labels.tolist()]) == sorted(digits.all_digits().labels.tolist())


def test_the_classifier_reads_held_out_digits():
    held_out = digits.split(held_out=True)
    read, features = digit_judge().read(held_out.pixels)
    assert (read == held_out.labels).float().mean() >= 0.98
    assert features.shape == (299, 64)


@pytest.mark.parametrize("name", GENERATORS)
def test_the_classifier_reads_what_the_model_draws(name):
    model = open_model(f"zoo:{name}")
    quality = DiffusionQuality(model, open_data("digits", model), samples=300, seed=1, steps=10)
    metrics = quality.measure(model.module).metrics
    assert metrics["accuracy"] >= 0.95
    assert metrics["frechet"] < 4.0
    assert 0.03 < metrics["denoising loss"] < 0.11


@pytest.mark.parametrize("name", GENERATORS)
def test_time_reaches_the_network_in_the_models_own_unit(name):
    diffusion = zoo.entry(name).diffusion()
    times = diffusion.time_input(torch.tensor([0, diffusion.length - 1]))
    assert times.tolist() == pytest.approx([0.0, 990.0] if name == "digits-dit" else [0.0, 0.99])


def test_a_fresh_network_predicts_nothing():
    network, inputs = DiT(width=32, depth=2, heads=2), zoo.entry("digits-dit").example_inputs()
    assert torch.equal(network(**inputs), torch.zeros(2, 1, 8, 8))


def test_unpatchify_undoes_patches():
    network = DiT(width=32, depth=1, heads=2, channels=3)
    image = torch.randn(2, 3, 8, 8)
    patches = image.reshape(2, 3, 4, 2, 4, 2).permute(0, 2, 4, 3, 5, 1).reshape(2, 16, 12)
    assert torch.equal(network.unpatchify(patches), image)


def test_the_network_exports_with_a_free_batch():
    network, inputs = DiT(width=32, depth=2, heads=2).eval(), zoo.entry("digits-dit").example_inputs()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    free = {name: {0: torch.export.Dim.DYNAMIC} for name in inputs}
    program = torch.export.export(network, (), inputs, dynamic_shapes=free, strict=False)
    graph = program.module(check_guards=False)
    more = zoo.entry("digits-dit").example_inputs(batch=5)
    torch.testing.assert_close(graph(**more), network(**more), rtol=0, atol=0)

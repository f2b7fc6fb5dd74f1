"""Diffusion quality: the same seed gives the same figures, a worse module gives worse ones."""

import copy

import pytest
import torch

from surgery.anatomy.capture import capture
from surgery.models import open_model
from surgery.models.data import open_data
from surgery.models.diffusion import Diffusion
from surgery.verify.denoising import denoising_loss
from surgery.verify.measurement import BETTER
from surgery.verify.quality import DiffusionQuality, quality
from surgery.verify.sampler import ancestral, balanced_labels, sample, start_noise


@pytest.fixture(scope="module")
def model():
    return open_model("zoo:digits-sit")


@pytest.fixture(scope="module")
def data(model):
    return open_data("digits", model)


@pytest.fixture(scope="module")
def measured(model, data):
    return DiffusionQuality(model, data, samples=60, seed=0, steps=4).measure(model.module)


class PerfectDenoiser(torch.nn.Module):
    """Knows that every clean sample is `value`, hence the exact noise."""

    def __init__(self, diffusion, value):
        super().__init__()
        self.diffusion, self.value = diffusion, value

    def forward(self, x, t, y):
        signal = self.diffusion.signal[t.long()].float().view(-1, 1, 1, 1)
        return (x - signal.sqrt() * self.value) / (1 - signal).sqrt()


@pytest.fixture
def schedule():
    return Diffusion(
        torch.linspace(1e-3, 0.2, 50, dtype=torch.float64), classes=3, null_class=None, sample_shape=(2, 4, 4)
    )


def test_the_same_seed_gives_the_same_figures(model, data, measured):
    again = DiffusionQuality(model, data, samples=60, seed=0, steps=4)
    second = again.measure(model.module)
    assert second.metrics == measured.metrics
    assert torch.equal(second.samples, measured.samples)
    assert again.compare(measured, second) == {"paired error": 0.0}
    assert again.description == "digits: 60 samples, 4 DDIM steps, seed 0"


def test_another_seed_gives_other_samples(model, data, measured):
    other = DiffusionQuality(model, data, samples=60, seed=1, steps=4).measure(model.module)
    assert not torch.equal(other.samples, measured.samples)
    assert other.metrics["denoising loss"] != measured.metrics["denoising loss"]


def test_the_batch_size_does_not_change_the_samples(model, measured):
    options = {"count": 60, "seed": 0, "steps": 4}
    by_sevens = sample(model.module, model.diffusion, batch=7, **options)
    # Sums in a matrix product are grouped by the batch: float32 rounding, not other noise.
    torch.testing.assert_close(by_sevens, measured.samples, rtol=0, atol=1e-4)


def test_a_captured_graph_measures_like_its_model(model, data, measured):
    graph = capture(model.module, model.example_inputs)
    test = DiffusionQuality(model, data, samples=60, seed=0, steps=4)
    after = test.measure(graph)
    assert test.compare(measured, after)["paired error"] < 1e-10
    assert after.metrics["accuracy"] == measured.metrics["accuracy"]
    assert after.metrics["frechet"] == pytest.approx(measured.metrics["frechet"], rel=1e-4)


def test_a_damaged_module_measures_worse(model, data, measured):
    damaged = copy.deepcopy(model.module)
    with torch.no_grad():
        damaged.y_embedder.embedding_table.weight.zero_()
        damaged.t_embedder.mlp[2].weight.mul_(0.5)
    test = DiffusionQuality(model, data, samples=60, seed=0, steps=4)
    after = test.measure(damaged)
    for name, direction in BETTER.items():
        if name in measured.metrics:
            worse = after.metrics[name] > measured.metrics[name]
            assert worse == (direction == "lower"), name
    assert test.compare(measured, after)["paired error"] > 0.01


def test_a_module_that_gives_nan_fails_instead_of_crashing(model, data):
    class Broken(torch.nn.Module):
        def forward(self, x, t, y):
            return x * float("nan")

    metrics = DiffusionQuality(model, data, samples=20, seed=0, steps=2).measure(Broken()).metrics
    assert metrics["accuracy"] == 0.0 and metrics["frechet"] == float("inf")


def test_bfloat16_modules_are_fed_their_own_dtype(model, data, measured):
    half = copy.deepcopy(model.module).bfloat16()
    test = DiffusionQuality(model, data, samples=60, seed=0, steps=4)
    after = test.measure(half)
    assert after.samples.dtype == torch.float32
    assert 0 < test.compare(measured, after)["paired error"] < 0.05


def test_progress_counts_samples(model, data):
    seen = []
    test = DiffusionQuality(model, data, samples=25, seed=0, steps=1, batch=10)
    test.measure(model.module, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(10, 25), (20, 25), (25, 25)]


def test_without_a_classifier_two_figures_are_absent_and_why(tmp_path, model, data):
    from safetensors.torch import save_file

    file = tmp_path / "mine.safetensors"
    save_file({"x": data.clean[:20].contiguous(), "y": data.labels[:20].contiguous()}, file)
    mine = open_data(f"tensors:{file}", model)
    test = quality(model, mine, samples=4, seed=0, steps=2)
    assert isinstance(test, DiffusionQuality)
    measured = test.measure(model.module)
    assert set(measured.metrics) == {"denoising loss"}
    assert set(measured.absent) == {"accuracy", "frechet"} and "no classifier" in measured.absent["frechet"]
    assert set(test.compare(measured, measured)) == {"paired error"}


def test_ddim_reaches_the_only_sample_there_is(schedule):
    target = torch.full((2, 4, 4), 0.3)
    drawn = sample(PerfectDenoiser(schedule, target), schedule, count=5, seed=0, steps=10)
    torch.testing.assert_close(drawn, target.expand(5, -1, -1, -1), rtol=0, atol=1e-4)


def test_ancestral_sampling_reaches_it_too(schedule):
    target, noise = torch.full((2, 4, 4), -0.6), start_noise(schedule, 5, 0)
    labels, chance = balanced_labels(schedule, 5), torch.Generator().manual_seed(1)
    drawn = ancestral(PerfectDenoiser(schedule, target), schedule, noise, labels, chance)
    torch.testing.assert_close(drawn, target.expand(5, -1, -1, -1), rtol=0, atol=1e-4)


def test_a_perfect_denoiser_has_no_loss_and_a_silent_one_has_the_noises_variance(schedule):
    clean, labels = torch.full((40, 2, 4, 4), 0.3), torch.zeros(40, dtype=torch.long)
    perfect = PerfectDenoiser(schedule, torch.full((2, 4, 4), 0.3))
    assert denoising_loss(perfect, schedule, clean, labels, seed=0) < 1e-9

    class Silent(torch.nn.Module):
        def forward(self, x, t, y):
            return torch.zeros_like(x)

    assert denoising_loss(Silent(), schedule, clean, labels, seed=0) == pytest.approx(1.0, abs=0.05)


def test_sampling_steps_run_from_the_noisiest_to_the_least(schedule):
    assert schedule.sampling_steps(50).tolist() == list(range(49, -1, -1))
    few = schedule.sampling_steps(5).tolist()
    assert few[0] == 49 and few[-1] == 0 and few == sorted(few, reverse=True)
    for steps in (0, 51):
        with pytest.raises(ValueError, match="between 1 and 50"):
            schedule.sampling_steps(steps)


def test_a_learned_variance_is_dropped(schedule):
    assert schedule.noise_of(torch.randn(3, 4, 4, 4)).shape == (3, 2, 4, 4)

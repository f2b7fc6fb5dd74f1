import json
import math

import pytest
import torch
from torch.nn import functional

from surgery.analyses.embeddings import analyze_embeddings
from surgery.analyses.grid import GRID_POINTS, conditioning_grid, variance_directions
from surgery.diagnostics import SurgeryError


def vectors(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


TIME, CLASSES = vectors(40, 24, scale=2.0), vectors(11, 24, seed=1, scale=0.3)
STEPS = torch.arange(39, -1, -1)


@pytest.fixture(scope="module")
def finding():
    return analyze_embeddings(TIME, CLASSES, timesteps=STEPS, null_row=10, kept=torch.arange(0, 24, 3))


def test_finding_is_plain_json(finding):
    assert json.loads(json.dumps(finding, allow_nan=False)) == finding
    assert finding["kind"] == "embeddings"


def test_null_row_is_no_class(finding):
    assert finding["classes"] == 10
    without = analyze_embeddings(TIME, CLASSES[:10], timesteps=STEPS)
    assert without["similarity"] == finding["similarity"]
    moved = analyze_embeddings(TIME, CLASSES.roll(1, 0), timesteps=STEPS, null_row=0)
    assert moved["similarity"] == finding["similarity"]


def test_centred_c_is_centred_y(finding):
    """The shared t cancels exactly; what is left is rounding in float64."""
    assert finding["similarity"]["centred_gap"] < 1e-14
    c, y = TIME[0] + CLASSES[:10], CLASSES[:10]
    own, centred = y - y.mean(0), c - c.mean(0)
    assert torch.allclose(own, centred, rtol=0, atol=1e-14)
    assert finding["similarity"]["centred"]["mean"] == pytest.approx(-1 / 9, abs=0.02)
    assert finding["similarity"]["expected_centred"] == -1 / 9


def test_a_long_time_vector_makes_classes_look_alike(finding):
    similarity = finding["similarity"]
    assert similarity["c"]["mean"] > 0.9
    assert abs(similarity["y"]["mean"]) < 0.2
    assert similarity["predicted"] == pytest.approx(similarity["c"]["mean"], abs=0.01)
    assert len(finding["sweep"]["cosine"]) == len(finding["sweep"]["predicted"]) == 40


def test_first_names_the_step():
    last = analyze_embeddings(TIME, CLASSES, timesteps=STEPS, null_row=10, first=39)
    assert last["timesteps"] == {"count": 40, "first": 0.0}
    assert last["norms"]["time"] == pytest.approx(TIME[39].norm().item())


def test_gaussian_baseline():
    wide = analyze_embeddings(vectors(3, 8192), vectors(4, 8192, seed=1), timesteps=torch.arange(3))
    for part in ("y", "t", "c"):
        assert wide["participation"][part]["npr"] == pytest.approx(2 / math.pi, abs=0.01)
        assert wide["participation"][part]["ratio"] == pytest.approx(1.0, abs=0.02)


def test_spectrum_is_sorted_and_knows_what_was_kept(finding):
    for name in ("magnitude", "activation"):
        spectrum = finding["spectrum"][name]
        assert spectrum["values"] == sorted(spectrum["values"], reverse=True)
        assert sorted(spectrum["coordinates"]) == list(range(24))
        assert [i % 3 == 0 for i in spectrum["coordinates"]] == spectrum["kept"]
    assert "effect" not in finding["spectrum"]
    assert finding["cut"]["kept"] == 8 and finding["cut"]["removed"] == 16


def test_effect_spectrum_weighs_by_the_consumers():
    norms = torch.linspace(0, 1, 24)
    effect = analyze_embeddings(TIME, CLASSES, timesteps=STEPS, null_row=10, consumer_norms=norms)["spectrum"]["effect"]
    assert effect["coordinates"][-1] == 0 and effect["values"][-1] == 0.0


def test_cut_by_magnitude_agrees_with_itself():
    magnitude = (TIME[0] + CLASSES[:10]).abs().mean(0)
    kept = magnitude.argsort(descending=True)[:9]
    cut = analyze_embeddings(TIME, CLASSES, timesteps=STEPS, null_row=10, kept=kept)["cut"]
    assert cut["agreement"]["magnitude"] == 1.0
    assert cut["threshold"] == pytest.approx(magnitude[kept[-1]].item())


def test_tail_curve_rises_and_head_falls(finding):
    tail = finding["tail"]
    assert tail["tail"] == sorted(tail["tail"]) and tail["head"] == sorted(tail["head"], reverse=True)
    assert [row[0] for row in tail["named"]] == [0.01, 0.02, 0.05, 0.1, 1.0, 5.0]
    assert all(abs(below + above - 1) < 1e-5 for _, below, above in tail["named"])


def test_silent_head_is_seen():
    """Large negative coordinates lead |c| and are nothing after SiLU."""
    step = torch.full((1, 100), 0.5)
    step[0, :4] = -6.0
    head = analyze_embeddings(step, vectors(5, 100, scale=0.01), timesteps=torch.zeros(1))["head"]
    assert sorted(head["coordinates"]) == [0, 1, 2, 3] and head["negative"] == 4
    assert head["magnitude_share"] > 0.3
    assert head["activation_share"] < 0.01


def test_class_variance(finding):
    variance = finding["class_variance"]
    assert variance["mean"] == pytest.approx(CLASSES[:10].var(0, unbiased=False).mean().item())
    assert variance["cumulative"][-1] == pytest.approx(1.0)
    assert [top["coordinates"] for top in variance["top"]] == [2, 6, 12]


def test_directions_of_a_flat_grid():
    """Times along one axis, classes along another: two directions hold everything."""
    time, classes = torch.zeros(30, 12).double(), torch.zeros(5, 12).double()
    time[:, 2], classes[:, 7] = torch.linspace(-1, 1, 30), torch.linspace(-1, 1, 5)
    found = variance_directions(time, classes, torch.nn.Identity())
    assert (found["for_99"], found["for_998"], found["points"]) == (2, 2, 150)


def test_directions_are_the_same_from_the_smaller_side():
    """A grid of 6 points in 24 dimensions spans 5 directions; padding the width with nothing changes no share."""
    narrow = variance_directions(TIME[:3, :4], CLASSES[:2, :4], torch.nn.Identity())
    padded = variance_directions(
        functional.pad(TIME[:3, :4], (0, 20)), functional.pad(CLASSES[:2, :4], (0, 20)), torch.nn.Identity()
    )
    assert padded["cumulative"][:4] == pytest.approx(narrow["cumulative"])
    assert len(padded["cumulative"]) == 6


def test_lattice_gives_every_timestep_and_class_its_share():
    time = torch.zeros(200, 2).double()
    classes = torch.zeros(300, 2).double()
    time[:, 0], classes[:, 1] = torch.arange(200), torch.arange(300)
    grid = conditioning_grid(time, classes)
    steps, labels = grid[:, 0].long(), grid[:, 1].long()
    assert len(grid) == GRID_POINTS
    assert steps.bincount(minlength=200).min() >= GRID_POINTS // 200
    assert labels.bincount(minlength=300).min() >= GRID_POINTS // 300 - 2


FAULTS = [
    ("time is 24 wide, classes are 23 wide", {"classes": CLASSES[:, :23]}),
    ("1 class is too few", {"classes": CLASSES[:2], "null_row": 1}),
    ("3 timesteps name 40", {"timesteps": torch.arange(3)}),
    ("NaN or infinity", {"time": TIME.clone().index_fill_(0, torch.tensor([5]), math.nan)}),
    ("no timestep 40 among 40", {"first": 40}),
    ("no row 11 in the class table", {"null_row": 11}),
    ("must be matrices", {"time": TIME[0]}),
]


@pytest.mark.parametrize(("message", "change"), FAULTS, ids=[f[0] for f in FAULTS])
def test_faults(message, change):
    arguments = {"time": TIME, "classes": CLASSES, "timesteps": STEPS, "null_row": 10} | change
    with pytest.raises(SurgeryError, match=message):
        analyze_embeddings(arguments.pop("time"), arguments.pop("classes"), **arguments)


def test_a_thousand_classes_are_thinned_for_display_only():
    finding = analyze_embeddings(
        vectors(50, 96),
        vectors(1001, 96, seed=1),
        timesteps=torch.arange(50),
        null_row=1000,
        activation=functional.gelu,
    )
    assert finding["classes"] == 1000
    assert len(finding["similarity"]["matrices"]["c"]) == len(finding["similarity"]["shown"]) == 64
    assert len(json.dumps(finding)) < 400_000

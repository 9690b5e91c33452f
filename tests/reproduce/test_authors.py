"""Checkpoints of the authors' released code: their names, their logits, and what is said of a bad one.

`fixtures/authors_vectors.json` holds, for five networks, the names and shapes of the state dict that the
released code has, and the logits that it computes in float64 and eval mode. Weights and input are drawn here
again, each array from its own generator: numpy's `default_rng`, seeded with the CRC-32 of the entry's
name for a weight and with 0 for the input, rounded to float32. What is drawn:

    running_var      uniform in 0.5 .. 1.5
    running_mean     normal, deviation 0.1
    weight, 1-d      k (0.5 + uniform); k = 0.1 in the norms of coefficients (bng, bng1, bnDx, bnDy), so that
                     the velocities stay moderate, else the network's `gain`
    bias             normal, deviation 0.1
    other weights    normal, deviation sqrt(2 / fan in)
    input            two standard normal images
"""

from __future__ import annotations

import copy
import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from globalcnn import UserError, create_model, list_models
from globalcnn.models.mdeq import MDEQ
from globalcnn.reproduce import load_authors_state_dict
from globalcnn.reproduce.authors import authors_names

FIXTURE = Path(__file__).parent.parent / "fixtures" / "authors_vectors.json"
NETWORKS = {entry["model"]: entry for entry in json.loads(FIXTURE.read_text())["networks"]}


def drawn(name, shape, gain):
    """The entry `name` of a state dict, by the rule above."""
    leaf = name.rpartition(".")[2]
    if leaf == "num_batches_tracked":
        return torch.zeros((), dtype=torch.long)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if leaf == "running_var":
        values = 0.5 + rng.random(shape)
    elif leaf in ("running_mean", "bias"):
        values = 0.1 * rng.standard_normal(shape)
    elif len(shape) == 1:
        k = 0.1 if any(norm in name for norm in ("bng", "bnDx", "bnDy")) else gain
        values = k * (0.5 + rng.random(shape))
    else:
        values = rng.standard_normal(shape) * math.sqrt(2 / math.prod(shape[1:]))
    return torch.from_numpy(np.asarray(values, dtype=np.float32)).double()


def state_dict_of(entry):
    shapes = {name: tuple(shape) for name, shape in entry["others"].items()}
    for prefix, channels in entry["norms"].items():
        shapes |= {
            f"{prefix}.{leaf}": (channels,) for leaf in ("weight", "bias", "running_mean", "running_var")
        }
        shapes[f"{prefix}.num_batches_tracked"] = ()
    return {name: drawn(name, shape, entry["gain"]) for name, shape in shapes.items()}


def build(entry):
    model = create_model(entry["model"], num_classes=entry["num_classes"])
    return model.double().eval()


def test_all_five_networks_are_registered():
    assert len(NETWORKS) == 5
    assert set(NETWORKS) <= set(list_models())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_logits_are_those_of_the_released_code(name):
    entry = NETWORKS[name]
    model = build(entry)
    load_authors_state_dict(model, state_dict_of(entry))
    images = np.random.default_rng(0).standard_normal((2, *entry["input"])).astype(np.float32)
    with torch.no_grad():
        logits = model(torch.from_numpy(images).double())
    expected = torch.tensor(entry["logits"], dtype=torch.float64)
    assert logits.shape == expected.shape
    torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-6)
    assert expected.std() > 0.1  # constant logits would prove nothing


@pytest.mark.parametrize("name", [n for n in list_models() if "global" in n])
def test_every_global_network_knows_the_authors_names(name):
    """Each entry gets a distinct name, and none keeps ours."""
    names = authors_names(create_model(name)).values()
    assert len(set(names)) == len(names)
    ours = ("velocity_", "diffusion_", ".init.")
    assert not [n for n in names if any(word in n for word in ours)]


@pytest.fixture
def small():
    """(model, a state dict in the authors' names that fits it)."""
    entry = NETWORKS["resnet_global_cifar"]
    return build(entry), state_dict_of(entry)


DIGITS = {
    "stem.0.running_mean": "conv.bn_f1.running_mean",
    "stem.2.weight": "conv.f.weight",
    "body.g.0.weight": "conv.bn_g.weight",
    "body.g.2.weight": "conv.g.weight",
    "body.norm.bias": "conv.bn_out.bias",
    "fc.bias": "fc.bias",
}


@pytest.mark.parametrize("name", ["digits_conv", "digits_residual", "digits_global"])
def test_the_three_digits_networks_have_one_set_of_names(name):
    """Their code makes the output norm in all three and leaves it out of the forward of one."""
    model = create_model(name)
    names = authors_names(model)
    own = [n for n in DIGITS if name != "digits_conv" or "body.norm" not in n]
    assert {n: names[n] for n in own} == {n: DIGITS[n] for n in own}
    theirs = {names[n]: torch.randn(A.shape) for n, A in model.state_dict().items()}
    theirs |= {"conv.bn_out." + n: torch.ones(1) for n in ("weight", "bias", "running_mean", "running_var")}
    load_authors_state_dict(model, theirs)
    assert torch.equal(model.stem[2].weight, theirs["conv.f.weight"])
    assert torch.equal(model.body.g[2].weight, theirs["conv.g.weight"])
    theirs["conv.other"] = torch.ones(1)
    with pytest.raises(UserError, match=r"1 unexpected \(conv\.other\)"):
        load_authors_state_dict(model, theirs)


def test_the_copies_in_a_checkpoint_of_mdeq_are_passed_over():
    """The code of Bai, Koltun and Kolter saves the cell four times: itself, a copy, both in its solver."""
    torch.manual_seed(0)
    model = MDEQ((8, 16), (4, 8), 32, num_classes=4)
    names = authors_names(model)
    theirs = {names[n]: A + 1 for n, A in model.state_dict().items()}
    cell = {n: A for n, A in theirs.items() if n.startswith("fullstage.")}
    assert "fullstage.branches.1.blocks.0.conv1.weight_v" in cell
    for n in cell:
        rest = n.removeprefix("fullstage.")
        theirs |= {
            f"{start}.{rest}": torch.zeros(1) for start in ("fullstage_copy", "deq.func", "deq.func_copy")
        }
    load_authors_state_dict(model, {f"module.{n}": A for n, A in theirs.items()})
    assert all(torch.equal(A, theirs[names[n]]) for n, A in model.state_dict().items())


def entries(model):
    return copy.deepcopy(model.state_dict())


def assert_untouched(model, before):
    for name, A in model.state_dict().items():
        assert torch.equal(A, before[name]), name


def test_each_entry_arrives_where_it_belongs(small):
    model, theirs = small
    load_authors_state_dict(model, theirs)
    layer = model.global2
    for ours, name in {
        "velocity_x.net.weight": "convg.weight",
        "velocity_x.net.bias": "convg.bias",
        "velocity_x.norm.running_var": "bng.running_var",
        "velocity_y.net.weight": "convg1.weight",
        "velocity_y.norm.weight": "bng1.weight",
        "diffusion_x.net.weight": "convDx.weight",
        "diffusion_x.norm.bias": "bnDx.bias",
        "diffusion_y.net.weight": "convDy.weight",
        "diffusion_y.norm.running_mean": "bnDy.running_mean",
        "norm.weight": "bn_out.weight",
    }.items():
        assert torch.equal(layer.state_dict()[ours], theirs[f"global2.{name}"]), ours
    assert torch.equal(model.fc.weight, theirs["fc.weight"])


def test_values_are_rounded_to_the_dtype_of_the_model(small):
    _, theirs = small
    model = create_model("resnet_global_cifar", num_classes=10)
    load_authors_state_dict(model, theirs)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model.fc.weight, theirs["fc.weight"].float())


def test_parameters_stay_the_same_objects_and_trainable(small):
    """An optimiser that was made before keeps working."""
    model, theirs = small
    before = dict(model.named_parameters())
    load_authors_state_dict(model, theirs)
    for name, p in model.named_parameters():
        assert p is before[name]
        assert p.requires_grad


def test_the_prefix_of_data_parallel_is_removed(small):
    model, theirs = small
    load_authors_state_dict(model, {f"module.{name}": A for name, A in theirs.items()})
    assert torch.equal(model.conv1.weight, theirs["conv1.weight"])


def test_counters_of_batches_may_be_missing(small):
    model, theirs = small
    load_authors_state_dict(model, {n: A for n, A in theirs.items() if not n.endswith("num_batches_tracked")})
    assert torch.equal(model.conv1.weight, theirs["conv1.weight"])


def test_one_error_lists_everything_and_nothing_is_changed(small):
    model, theirs = small
    del theirs["global1.convg.weight"]
    del theirs["layer3.0.bn2.bias"]
    theirs["global4.convg.weight"] = torch.zeros(1)
    theirs["fc.weight"] = torch.zeros(100, 64)
    theirs["fc.bias"] = torch.zeros(100)
    before = entries(model)
    with pytest.raises(UserError) as caught:
        load_authors_state_dict(model, theirs)
    text = str(caught.value)
    assert text.startswith("the state dict does not fit ResNet: 2 missing (")
    for words in (
        "global1.convg.weight",
        "layer3.0.bn2.bias",
        "1 unexpected (global4.convg.weight)",
        "2 misshapen (fc.weight has shape (100, 64), not (10, 64), fc.bias has shape (100,), not (10,))",
        "Create the model with the num_classes and settings that the checkpoint was trained with",
    ):
        assert words in text
    assert_untouched(model, before)


def test_a_prefix_on_some_entries_only_is_not_removed(small):
    model, theirs = small
    theirs["module.conv1.weight"] = theirs.pop("conv1.weight")
    with pytest.raises(
        UserError, match=r"1 missing \(conv1\.weight\); 1 unexpected \(module\.conv1\.weight\)"
    ):
        load_authors_state_dict(model, theirs)


def test_a_checkpoint_of_another_network(small):
    model, _ = small
    before = entries(model)
    with pytest.raises(UserError, match=r"does not fit ResNet: \d+ missing .* unexpected"):
        load_authors_state_dict(model, state_dict_of(NETWORKS["global_mnist"]))
    assert_untouched(model, before)


@pytest.mark.parametrize("given", [None, [1], {"conv1.weight": [1.0]}, {"epoch": 3, "state_dict": {}}])
def test_what_is_no_state_dict(small, given):
    model, _ = small
    with pytest.raises(
        TypeError, match="state_dict must map names to tensors; load the file and take its state"
    ):
        load_authors_state_dict(model, given)


def test_an_empty_state_dict_misses_everything(small):
    model, _ = small
    with pytest.raises(UserError, match=r"\d+ missing \(conv1\.weight, "):
        load_authors_state_dict(model, {})


def test_a_network_of_another_library():
    with pytest.raises(UserError, match="no names of the authors' code are known for Linear"):
        load_authors_state_dict(torch.nn.Linear(2, 2), {})

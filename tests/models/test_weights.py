"""Weights files: what they hold, what is refused, and that a damaged file is never believed."""

from __future__ import annotations

import json
import pickle
import warnings

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import globalcnn
from globalcnn import PDE, UserError, create_model
from globalcnn.models import Card, NamedSource, load_with_card, make_card, read_card, save_weights, source_of
from globalcnn.models.weights import checksum, read_weights

SIZE = (28, 28)


class Bomb:
    """Would run code when it is unpickled."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('code ran')",))


def saved(path, name="digits_conv", *, classes=("a", "b", "c", "d"), **settings):
    net = create_model(name, num_classes=len(classes), **settings).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.rand_like(p))
    mean, std = (0.1,) * net.in_chans, (0.3,) * net.in_chans
    card = make_card(net, image_size=SIZE, in_chans=net.in_chans, classes=classes, mean=mean, std=std)
    save_weights(path, net.state_dict(), card)
    return net


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "last.safetensors"
    saved(path)
    return path


def with_metadata(file, **changes):
    """The file with other metadata; None takes an entry out."""
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    metadata = {k: v for k, v in {**metadata, **changes}.items() if v is not None}
    weights = {k: v.clone() for k, v in load_file(file).items()}
    save_file(weights, file, metadata)


def with_card(file, **changes):
    """The file with other entries in its card, and the checksum that belongs to them."""
    with safe_open(file, "pt") as opened:
        card = {**json.loads(opened.metadata()["card"]), **changes}
    text = json.dumps(card)
    with_metadata(file, card=text, checksum=checksum(load_file(file), text))


def test_round_trip(tmp_path):
    path = tmp_path / "w.safetensors"
    net = saved(path, "resnet_global_tiny_cifar", pde=PDE(steps=3, boundary="zero-flux"), drop_rate=0.5)
    again, card = load_with_card(path)
    assert card == read_card(path)
    assert card.classes == ("a", "b", "c", "d")
    assert (card.num_classes, card.in_chans, card.image_size, card.label) == (
        4,
        3,
        SIZE,
        "resnet_global_tiny_cifar",
    )
    assert card.source.settings == {"pde": PDE(steps=3, boundary="zero-flux"), "drop_rate": 0.5}
    assert source_of(again) == card.source
    x = torch.randn(2, 3, 32, 32)
    assert not again.training
    assert torch.equal(again(x), net(x))


def test_a_run_folder_means_its_best_weights(tmp_path):
    net = saved(tmp_path / "best.safetensors")
    saved(tmp_path / "last.safetensors")
    x = torch.randn(2, 1, 28, 28)
    assert torch.equal(globalcnn.load(tmp_path)(x), net(x))
    assert globalcnn.load(str(tmp_path)).num_classes == 4


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated(file, keep):
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        globalcnn.load(file)


def test_every_flipped_bit_is_found(file):
    """A bit in the padding may change nothing; else loading refuses, never gives other weights."""
    whole = file.read_bytes()
    net = globalcnn.load(file)
    x = torch.randn(2, 1, 28, 28)
    g = torch.Generator().manual_seed(0)
    for position in torch.randint(len(whole), (150,), generator=g).tolist():
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        file.write_bytes(damaged)
        try:
            again = globalcnn.load(file)
        except UserError:
            continue
        assert torch.equal(again(x), net(x)), position


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("torch.pt", lambda p: torch.save({"weight": Bomb()}, p)),
        ("whole-module.pt", lambda p: torch.save(nn.Linear(2, 2), p)),
        ("plain.pkl", lambda p: p.write_bytes(pickle.dumps(Bomb()))),
        ("named.safetensors", lambda p: p.write_bytes(pickle.dumps(Bomb()))),
    ],
)
def test_code_is_not_run(tmp_path, name, write):
    write(tmp_path / name)
    with pytest.raises(UserError, match="code, or objects of other programs"):
        globalcnn.load(tmp_path / name, model="digits_conv")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(file, value):
    net, card = load_with_card(file)
    state = net.state_dict()
    state["fc.weight"][1, 2] = value
    save_weights(file, state, card)
    with pytest.raises(UserError, match=r"not finite numbers .* in fc.weight: a training that diverged"):
        globalcnn.load(file)
    again, _ = load_with_card(file, allow_nonfinite=True)
    assert not again.fc.weight.isfinite().all()


DAMAGED_CARDS = {
    "no JSON": "{",
    "a list": "[1, 2]",
    "a number": "3",
    "null": "null",
    "nested deep": "[" * 100_000 + "]" * 100_000,
    "objects nested deep": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "nothing in it": "{}",
    "about nested deep": '{"about": ' + '{"a":' * 500 + "1" + "}" * 501,
    "a long number": '{"num_classes": ' + "9" * 10_000 + "}",
}


@pytest.mark.parametrize("text", DAMAGED_CARDS.values(), ids=DAMAGED_CARDS)
@pytest.mark.parametrize("version", [1, 2])
def test_a_damaged_card(file, text, version):
    key = "description" if version == 1 else "card"
    with_metadata(file, **{"format": f"globalcnn-weights-{version}", "card": None, key: text})
    with pytest.raises(UserError, match=r"(card|description) in .* is damaged"):
        globalcnn.load(file)


def source(**settings):
    return {"kind": "name", "name": "digits_conv", "settings": settings}


WRONG_ENTRIES = {
    "classes are a number": ({"classes": 3}, "classes must be a list of names"),
    "classes hold numbers": ({"classes": [1, 2, 3, 4]}, "classes must be a list of names"),
    "a text for a number": ({"num_classes": "4"}, "num_classes=4 must be a whole number"),
    "true for a number": ({"num_classes": True}, "num_classes=True must be a whole number"),
    "a share of a class": ({"num_classes": 4.0}, "num_classes=4.0 must be a whole number"),
    "too many classes": ({"num_classes": 10**9}, "num_classes=1000000000 must be a whole number from 0 to"),
    "too many channels": ({"in_chans": 10**7, "mean": [], "std": []}, "in_chans=10000000 must be"),
    "no pixels": ({"image_size": [0, 28]}, "image_size must be two whole numbers"),
    "one side": ({"image_size": [28]}, "image_size must be two whole numbers"),
    "no number in mean": ({"mean": ["a"]}, "mean must be one finite number per channel"),
    "NaN in std": ({"std": [float("nan")]}, "std must be one finite number per channel"),
    "std of zero": ({"std": [0.0]}, "std must be one finite number per channel"),
    "a mean for three channels": ({"mean": [0.1, 0.1, 0.1]}, "mean must be one finite number per channel"),
    "about is a list": ({"about": [1]}, "about must be an object"),
    "an unknown entry": ({"weights": 3}, "unknown entries"),
    "a source that is a name": ({"source": "digits_conv"}, "a source is an object with a 'kind', not a str"),
    "a source of an unknown kind": ({"source": {"kind": "pickle"}}, "unknown kind of source 'pickle'"),
    "a source without a name": ({"source": {"kind": "name"}}, "lacks 'name'"),
    "a name that is a list": ({"source": {"kind": "name", "name": ["a"]}}, "name must be a string"),
    "settings that are a list": ({"source": {**source(), "settings": [1]}}, "settings must be an object"),
    "settings nested deep": ({"source": source(drop_rate=[[[[[[[[[[[1]]]]]]]]]]])}, "nested more than"),
    "a class of another kind": ({"source": source(act={"$type": "Popen"})}, "unknown type 'Popen'"),
    "a layer that is none": (
        {"source": source(act={"$type": "torch.nn", "name": "DataParallel"})},
        "no activation or norm",
    ),
    "a damaged equation": ({"source": source(pde={"$type": "PDE", "steps": -1})}, "steps=-1 must be"),
    "an equation that is no equation": (
        {"source": source(pde={"$type": "PDE", "no": 1})},
        "unexpected keyword",
    ),
    "an unknown network": ({"source": {**source(), "name": "digits_conf"}}, "did you mean 'digits_conv'"),
    "an unknown setting": (
        {"source": source(drop_rat=0.1)},
        r"unknown setting 'drop_rat' \(near: drop_rate\)",
    ),
    "a setting of the wrong kind": ({"source": source(drop_rate="much")}, "cannot be built|damaged"),
    "a number out of bounds": ({"source": source(drop_rate=1e30)}, "out of bounds"),
}


@pytest.mark.parametrize(("changes", "words"), WRONG_ENTRIES.values(), ids=WRONG_ENTRIES)
def test_wrong_entries_of_a_card(file, changes, words):
    with_card(file, **changes)
    with pytest.raises(UserError, match=words):
        globalcnn.load(file)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("pretrained", True),
        ("checkpoint_path", "/etc/passwd"),
        ("pretrained_cfg", {"url": "https://example.com/w.pth"}),
        ("pretrained_cfg_overlay", {"file": "/etc/passwd"}),
        ("features_only", True),
        ("cache_dir", "/tmp"),
        ("scriptable", True),
    ],
)
@pytest.mark.parametrize("name", ["digits_conv", "resnet18"])
@pytest.mark.parametrize("trusted", [False, True])
def test_settings_that_no_file_may_set(file, name, setting, value, trusted):
    with_card(file, source={"kind": "name", "name": name, "settings": {setting: value}})
    with pytest.raises(UserError, match=f"setting '{setting}', which no file may set"):
        globalcnn.load(file, trust_source=trusted)
    with pytest.raises(UserError, match=f"setting '{setting}', which no file may set"):
        create_model(name, pretrained=file)


GREEDY = {
    "a deep transformer": ("vit_tiny_patch16_224", {"depth": 10**7}, "=10000000 is out of bounds"),
    "a deep transformer within bounds": ("vit_tiny_patch16_224", {"depth": 4000}, "many times larger"),
    "a wide transformer": ("vit_tiny_patch16_224", {"embed_dim": 4096, "num_heads": 1}, "many times larger"),
    "many blocks": ("neupde_cifar", {"width": 4096}, "many times larger"),
    "many steps": ("resnet_global_cifar", {"pde": {"$type": "PDE", "steps": 10**6}}, "out of bounds"),
    "spacing of a planet": (
        "resnet_global_cifar",
        {"pde": {"$type": "PDE", "spacing": 2**62}},
        "out of bounds",
    ),
}


@pytest.mark.parametrize(("name", "settings", "words"), GREEDY.values(), ids=GREEDY)
def test_networks_out_of_all_proportion_are_not_built(file, name, settings, words):
    with_card(file, source={"kind": "name", "name": name, "settings": settings})
    with pytest.raises(UserError, match=words):
        globalcnn.load(file)


def test_files_that_cannot_be_read(tmp_path):
    for path, words in {
        tmp_path / "none.safetensors": "there is no checkpoint",
        tmp_path: "holds no best.safetensors and no last.safetensors",
        tmp_path / ("x" * 300): "cannot read|there is no checkpoint",
        tmp_path / "a\0b": "cannot read|there is no checkpoint",
        3: "path=3 must name a weights file",
    }.items():
        with pytest.raises(UserError, match=words):
            globalcnn.load(path)


def test_of_another_network_or_program(file, tmp_path):
    with pytest.raises(UserError, match="weights of 'digits_conv', not of 'digits_global'"):
        globalcnn.load(file, model="digits_global")
    foreign = tmp_path / "x.safetensors"
    save_file({"x": torch.ones(2)}, foreign)
    with pytest.raises(UserError, match="does not say which model"):
        globalcnn.load(foreign)
    with_metadata(file, format="globalcnn-weights-9")
    with pytest.raises(UserError, match="newer version"):
        globalcnn.load(file)
    saved(file)
    with_metadata(file, checksum=None)
    with pytest.raises(UserError, match="checksum differs"):
        globalcnn.load(file)


def test_files_of_the_first_format(file):
    about = {
        "model": "digits_conv",
        "num_classes": 4,
        "in_chans": 1,
        "image_size": [28, 28],
        "classes": ["a", "b", "c", "d"],
        "mean": [0.1],
        "std": [0.3],
        "settings": {},
    }
    net = globalcnn.load(file)
    with_metadata(file, format="globalcnn-weights-1", description=json.dumps(about), card=None, checksum=None)
    again, card = load_with_card(file)
    assert card == Card(NamedSource("digits_conv"), 4, 1, SIZE, ("a", "b", "c", "d"), (0.1,), (0.3,))
    x = torch.randn(2, 1, 28, 28)
    assert torch.equal(again(x), net(x))


def test_a_module_of_the_users(file):
    net = create_model("digits_conv", num_classes=4)
    before = net.fc.weight.clone()
    assert globalcnn.load(file, model=net) is net
    assert not torch.equal(net.fc.weight, before)
    assert isinstance(
        globalcnn.load(file, model=lambda num_classes: create_model("digits_conv", num_classes=num_classes)),
        nn.Module,
    )


WRAPPED = {
    "data parallel": lambda s: {f"module.{k}": v for k, v in s.items()},
    "compiled": lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
    "data parallel, then compiled": lambda s: {f"_orig_mod.module.{k}": v for k, v in s.items()},
    "compiled twice, then parallel": lambda s: {f"module._orig_mod._orig_mod.{k}": v for k, v in s.items()},
    "a part compiled": lambda s: {k.replace("stem.", "stem._orig_mod."): v for k, v in s.items()},
    "an averaged model": lambda s: {
        "n_averaged": torch.tensor(3),
        **{f"module.{k}": v for k, v in s.items()},
    },
    "of a lightning module": lambda s: {f"model.{k}": v for k, v in s.items()},
    "an average alone": lambda s: {f"ema.{k}": v for k, v in s.items()},
    "under state_dict": lambda s: {"epoch": 3, "state_dict": s},
    "under model, parallel": lambda s: {
        "model": {f"module.{k}": v for k, v in s.items()},
        "args": {"lr": 0.1},
    },
    "under state_dict_ema": lambda s: {"state_dict_ema": s, "epoch": 1},
    "nested twice": lambda s: {"model": {"state_dict": s, "step": 3}},
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_state_dicts_of_other_programs(tmp_path, wrap):
    net = create_model("digits_conv").eval()
    content = wrap({k: v + 0.5 if v.is_floating_point() else v for k, v in net.state_dict().items()})
    torch.save(content, tmp_path / "w.pth")
    again = globalcnn.load(tmp_path / "w.pth", model="digits_conv")
    assert torch.equal(again.fc.weight, net.fc.weight + 0.5)
    with pytest.raises(UserError, match="does not say which model"):
        globalcnn.load(tmp_path / "w.pth")


AMBIGUOUS = {
    "two entries": lambda a, b: {"state_dict": a, "state_dict_ema": b},
    "torchvision's": lambda a, b: {"model": a, "model_ema": b, "epoch": 1},
    "two prefixes": lambda a, b: {
        **{f"model.{k}": v for k, v in a.items()},
        **{f"ema.{k}": v for k, v in b.items()},
    },
}


@pytest.mark.parametrize("make", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_weights_beside_their_average(tmp_path, make):
    net = create_model("digits_conv").eval()
    plain = net.state_dict()
    averaged = {k: v + 0.5 if v.is_floating_point() else v for k, v in plain.items()}
    path = tmp_path / "w.pth"
    torch.save(make(plain, averaged), path)
    with pytest.raises(UserError, match=r"moving average .* say which, ema=True or ema=False"):
        globalcnn.load(path, model="digits_conv")
    torch.save({"module": dict(make(plain, averaged))}, tmp_path / "nested.pth")
    for ema, expected in ((False, plain), (True, averaged)):
        again, _ = load_with_card(tmp_path / "nested.pth", model="digits_conv", ema=ema)
        assert torch.equal(again.fc.weight, expected["fc.weight"])
        again, _ = load_with_card(path, model="digits_conv", ema=ema)
        assert torch.equal(again.fc.weight, expected["fc.weight"])


@pytest.mark.parametrize(
    ("wrap", "ema", "words"),
    [
        (lambda s: s, True, "holds no moving average"),
        (lambda s: {"state_dict": s}, True, "holds no moving average"),
        (lambda s: {"model_ema": s}, False, "holds a moving average .* and no plain weights"),
    ],
    ids=["bare", "under state_dict", "average alone"],
)
def test_an_average_that_is_not_there(tmp_path, wrap, ema, words):
    torch.save(wrap(create_model("digits_conv").state_dict()), tmp_path / "w.pt")
    with pytest.raises(UserError, match=words):
        load_with_card(tmp_path / "w.pt", model="digits_conv", ema=ema)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.ones(2)], "holds a list, no state dict"),
        ({"epoch": 3, "lr": 0.1}, "holds no state dict"),
        ({"state_dict": {"a": torch.ones(1)}, "weights": {"a": torch.ones(1)}}, "several state dicts"),
        ({"critic.weight": torch.ones(1)}, "do not fit the network"),
    ],
    ids=["a list", "no tensors", "two of them", "of another network"],
)
def test_files_without_one_state_dict(tmp_path, content, words):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(UserError, match=words):
        globalcnn.load(tmp_path / "w.pt", model="digits_conv")


UNUSUAL = {
    "sparse": torch.eye(3).to_sparse(),
    "without memory": torch.ones(3, device="meta"),
    "quantized": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
}


@pytest.mark.parametrize("value", UNUSUAL.values(), ids=UNUSUAL)
def test_tensors_that_no_state_dict_has(tmp_path, value):
    torch.save({**create_model("digits_conv").state_dict(), "fc.bias": value}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"fc.bias is no dense tensor"):
        globalcnn.load(tmp_path / "w.pt", model="digits_conv")


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.float64, torch.complex64, torch.float8_e4m3fn, torch.bool]
)
def test_checksums_are_of_all_kinds_of_numbers(dtype):
    values = torch.tensor([1.0, 0.0, 2.0]).to(dtype)
    for tensor in (values, values[0], values[:0], values[::2]):
        changed = torch.zeros(tensor.shape).to(dtype)
        assert checksum({"a": tensor}) == checksum({"a": tensor.clone()})
        assert tensor.numel() < 2 or checksum({"a": tensor}) != checksum({"a": changed})
    assert checksum({"a": values}) != checksum({"b": values}) != checksum({"a": values[None]})


def test_classes_and_channels_of_weights_without_a_card(tmp_path):
    net = create_model("resnet10t", num_classes=4, in_chans=1).eval()
    torch.save(net.state_dict(), tmp_path / "w.pt")
    again, card = load_with_card(tmp_path / "w.pt", model="resnet10t")
    assert (card.num_classes, card.in_chans, card.source) == (4, 1, NamedSource("resnet10t"))
    x = torch.randn(1, 1, 32, 32)
    assert torch.equal(again(x), net(x))


def test_more_than_the_network(tmp_path):
    state = create_model("digits_conv").state_dict()
    torch.save(
        {**{f"model.{k}": v for k, v in state.items()}, "loss.weight": torch.ones(3)}, tmp_path / "w.pt"
    )
    with pytest.raises(UserError, match=r"under model fit the network, but there are more \(loss.weight\)"):
        globalcnn.load(tmp_path / "w.pt", model="digits_conv")


def test_pretrained_from_a_file(tmp_path):
    path = tmp_path / "w.safetensors"
    net = saved(path, "resnet_global_tiny_cifar", pde=PDE(steps=3))
    x = torch.randn(2, 3, 32, 32)
    again = create_model("resnet_global_tiny_cifar", pretrained=path).eval()
    assert torch.equal(again(x), net(x))  # the equation and the number of classes come with the file
    with pytest.warns(UserWarning, match="number of classes differs, so the layer 'fc' is new"):
        other = create_model("resnet_global_tiny_cifar", pretrained=path, num_classes=7).eval()
    assert other(x).shape == (2, 7)
    assert torch.equal(other.forward_features(x), net.forward_features(x))
    with pytest.warns(UserWarning, match="'conv1' were spread from 3 to 1 input channels"):
        grey = create_model("resnet_global_tiny_cifar", pretrained=path, in_chans=1).eval()
    torch.testing.assert_close(grey(x[:, :1]), net(x[:, :1].expand(-1, 3, -1, -1)))
    with pytest.raises(
        UserError, match="weights of 'resnet_global_tiny_cifar', not of 'resnet_global_cifar'"
    ):
        create_model("resnet_global_cifar", pretrained=path)
    maps = create_model("resnet_global_tiny_cifar", pretrained=path, features_only=True).eval()(x)
    assert torch.equal(maps[-1], net.forward_features(x))
    with pytest.raises(UserError, match="there are no trained weights"):
        create_model("digits_conv", pretrained=True)
    with pytest.raises(UserError, match="must be a name of data, a weights file"):
        create_model("resnet_global_tiny_cifar", pretrained=3)


@pytest.mark.parametrize("name", ["resnet_global_tiny_cifar", "resnet10t"])
def test_the_ways_of_timm(tmp_path, name):
    path = tmp_path / "model.safetensors"
    net = saved(path, name)
    x = torch.randn(2, 3, 32, 32)
    config = {
        "architecture": name,
        "num_classes": 4,
        "pretrained_cfg": {**net.pretrained_cfg, "num_classes": 4},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    overlay = {"file": str(path), "num_classes": 4}
    for again in (
        timm.create_model(name, num_classes=4, checkpoint_path=str(path)),
        create_model(name, num_classes=4, checkpoint_path=str(path)),
        timm.create_model(name, num_classes=4, pretrained=True, pretrained_cfg_overlay=overlay),
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True),
    ):
        assert torch.equal(again.eval()(x), net(x))
        assert "state_dict" not in again.pretrained_cfg
    assert torch.equal(
        timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, features_only=True).eval()(
            x
        )[-1],
        net.forward_features(x),
    )


def test_a_file_knows_its_classes_where_timm_would_drop_the_head(tmp_path):
    path = tmp_path / "w.safetensors"
    net = saved(path, "resnet_global_tiny_cifar")
    overlay = {"file": str(path)}
    again = timm.create_model(
        "resnet_global_tiny_cifar", pretrained=True, pretrained_cfg_overlay=overlay
    ).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(x), net(x))
    other = timm.create_model(
        "resnet_global_tiny_cifar", pretrained=True, num_classes=9, pretrained_cfg_overlay=overlay
    ).eval()
    assert other(x).shape == (2, 9)


def test_entries_that_do_not_fit_are_listed_and_nothing_is_loaded(tmp_path):
    net = create_model("digits_conv")
    before = {k: v.clone() for k, v in net.state_dict().items()}
    wrong = {**before, "fc.weight": torch.ones(3, 3), "more": torch.ones(1)}
    del wrong["fc.bias"]
    save_file(wrong, tmp_path / "w.safetensors")
    with pytest.raises(UserError) as caught:
        globalcnn.load(tmp_path / "w.safetensors", model=net)
    for part in ("fc.bias is missing", "more is not part", "fc.weight has shape (3, 3), not (10, 49)"):
        assert part in str(caught.value)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_dtypes_survive(tmp_path):
    net = create_model("digits_conv").bfloat16()
    save_weights(tmp_path / "w.safetensors", net.state_dict(), make_card(net, image_size=SIZE))
    weights, _ = read_weights(tmp_path / "w.safetensors")
    assert weights["fc.weight"].dtype == torch.bfloat16


def changed_settings(call):
    """The warnings of a call that say what differs from the training."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        call()
    return [str(w.message) for w in said if "trained in another network" in str(w.message)]


def test_weights_in_a_network_of_other_settings_are_told(tmp_path):
    path = tmp_path / "w.safetensors"
    name = "resnet_global_tiny_cifar"
    saved(path, name, pde=PDE(steps=3))
    shipped = {"pretrained": True}
    (words,) = changed_settings(lambda: create_model(name, pretrained=path, pde=PDE(steps=2)))
    assert "global1: GlobalLayer" in words
    assert "steps=2" in words
    assert "instead of GlobalLayer(" in words
    assert "steps=3" in words
    for create in (create_model, timm.create_model):
        (words,) = changed_settings(lambda create=create: create(name, scheme="gated-sweeps", **shipped))
        assert "GatedSweeps" in words
    (words,) = changed_settings(lambda: create_model(name, act_layer="silu", pretrained="cifar100"))
    assert "SiLU" in words
    assert "more" in words
    maps = {"features_only": True, "scheme": "gated-sweeps"}
    (words,) = changed_settings(lambda: create_model(name, pretrained="cifar100", **maps))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"drop_rate": 0.1, "drop_path_rate": 0.1},
        {"scheme": "du-fort-frankel"},
        {"num_classes": 3, "drop_rate": 0.1},
        {"in_chans": 1, "drop_rate": 0.1},
        {"features_only": True},
        {"features_only": True, "drop_rate": 0.1},
    ],
)
def test_settings_that_change_no_result_are_not_told(settings, tmp_path):
    name, path = "resnet_global_tiny_cifar", tmp_path / "w.safetensors"
    saved(path, name)
    for create, pretrained in ((create_model, True), (create_model, path), (timm.create_model, True)):
        given = {"pretrained": pretrained, **settings}
        assert changed_settings(lambda create=create, given=given: create(name, **given)) == []


def test_a_warning_draws_no_random_numbers():
    drawn = []
    for settings in ({}, {"act_layer": "silu"}):
        torch.manual_seed(0)
        changed_settings(lambda s=settings: create_model("resnet_global_tiny_cifar", pretrained=True, **s))
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)

"""How a network is built, as data; and what a file may have built."""

from __future__ import annotations

import copy
import json
import re
import sys
import textwrap

import pytest
import torch
from torch import nn

import globalcnn
from globalcnn import PDE, UserError, create_model
from globalcnn.models import (
    Card,
    FactorySource,
    FileSource,
    ModuleSource,
    NamedSource,
    make_card,
    parse_source,
    save_weights,
    source_from_json,
    source_of,
)
from globalcnn.models.factories import own_in_chans, own_num_classes
from globalcnn.models.values import from_json, to_json
from globalcnn.nn.implicit.equilibrium import Solver
from globalcnn.nn.implicit.fixed_point import Anderson

NET = """
    import torch
    from torch import nn
    from parts import Block

    class Net(nn.Module):
        def __init__(self, num_classes=5, in_chans=3, width=4):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(in_chans, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
            self.head = nn.Linear(width, num_classes)

        def forward(self, x):
            return self.head(self.body(x).flatten(1))

    def build(num_classes=5, in_chans=3, *, width=4) -> nn.Module:
        return Net(num_classes, in_chans, width)

    def anything(**settings):
        return Net(**settings)

    def classes_alone(num_classes):
        return Net(num_classes)

    def narrow(**settings):
        return classes_alone(**settings)

    def fixed():
        return Net()

    def unannotated():
        return Net()

    def number():
        return 3

    def broken():
        raise KeyError("lost")

    def needs(something):
        return Net()

    value = Net()
"""


@pytest.fixture
def user_file(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "my_net.py").write_text(textwrap.dedent(NET))
    (folder / "parts.py").write_text("class Block: pass\n")
    yield folder / "my_net.py"
    sys.modules.pop("parts", None)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """An installed package `mypkg_installed` with the networks above in `mypkg_installed.nets`."""
    site = tmp_path / "site-packages"
    package = site / "mypkg_installed"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "nets.py").write_text(
        textwrap.dedent(NET).replace("from parts import Block", "from os import system")
    )
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr("site.USER_SITE", str(site))
    yield "mypkg_installed.nets"
    for name in [n for n in sys.modules if n.startswith("mypkg_installed")]:
        del sys.modules[name]


def outputs(net):
    return net(torch.zeros(1, own_in_chans(net), 8, 8)).shape[1]


SOURCES = {
    "a name": NamedSource("resnet18"),
    "a name with settings": NamedSource("resnet_global_cifar", {"pde": PDE(steps=3), "drop_rate": 0.1}),
    "a solver": NamedSource("mdeq_cifar", {"solver": Solver(Anderson(), tolerance=None), "dropout": 0.0}),
    "layers": NamedSource("resnet18", {"act_layer": nn.SiLU, "norm_layer": nn.BatchNorm2d}),
    "a factory": FactorySource("package.module:function", {"widths": (3, 4), "deep": {"a": None, "b": True}}),
    "a file": FileSource("/home/me/my_net.py", "build", {"width": 3}),
    "a module": ModuleSource("Net"),
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_json_and_back(source):
    told = json.loads(json.dumps(source.to_json()))
    assert told["kind"] == source.kind
    assert source_from_json(told) == source
    assert source.label


@pytest.mark.parametrize(
    "value",
    [object(), float("nan"), {1: 2}, lambda: 3, nn.Linear, nn.ReLU(), torch.ones(2), b"x"],
    ids=[
        "an object",
        "NaN",
        "numbers as names",
        "a function",
        "a layer with weights",
        "a module",
        "a tensor",
        "bytes",
    ],
)
def test_settings_that_no_file_can_keep(value):
    with pytest.raises(UserError, match="cannot be kept in a file"):
        NamedSource("resnet18", {"setting": value}).to_json()


def test_long_values_are_refused_from_files_alone():
    for value, words in (
        ("x" * 1000, "string of 1000 letters"),
        ([0] * 1000, "has 1000 entries"),
        (10**7, "out of bounds"),
        (-(10**7), "out of bounds"),
        (1e9, "out of bounds"),
    ):
        with pytest.raises(UserError, match=words):
            from_json(value, "setting")
        assert to_json(from_json(value, "setting", bounded=False), "setting") == value


def test_names_carry_their_settings_and_survive_copies():
    net = create_model("resnet_global_tiny_cifar", num_classes=4, pde=PDE(steps=2), drop_rate=0.1)
    expected = NamedSource("resnet_global_tiny_cifar", {"pde": PDE(steps=2), "drop_rate": 0.1})
    assert source_of(net) == source_of(copy.deepcopy(net)) == expected
    assert not [k for k in net.state_dict() if "source" in k]
    again = expected.build(num_classes=4)
    assert again.state_dict().keys() == net.state_dict().keys()
    assert source_of(create_model("resnet18", num_classes=3)) == NamedSource("resnet18")
    assert source_of(nn.Linear(2, 2)) == ModuleSource("Linear")
    with pytest.raises(UserError, match="class Linear was passed as an object"):
        source_of(nn.Linear(2, 2)).build()


def test_words_of_the_command_line(user_file, monkeypatch):
    assert parse_source("digits_conv") == NamedSource("digits_conv")
    assert parse_source("resnet18", settings={"drop_rate": 0.1}) == NamedSource(
        "resnet18", {"drop_rate": 0.1}
    )
    assert parse_source("a.b_c:build") == FactorySource("a.b_c:build")
    monkeypatch.chdir(user_file.parent)
    assert parse_source("my_net.py:build") == FileSource(str(user_file), "build")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("digits_conf", "did you mean 'digits_conv'"),
        ("none.py:build", "there is no file 'none.py'"),
        ("my_net.py", "names a file but no function in it; write my_net.py:build"),
        ("my_net.py:", "is not the name of a function"),
        ("my_net.py:a.b", "is not the name of a function"),
        ("package.module:", "must be of the form 'package.module:function'"),
        ("package-module:f", "must be of the form"),
        (".module:f", "must be of the form"),
        ("a:b:c", "must be of the form"),
        ("", "unknown model ''"),
    ],
)
def test_words_that_name_no_network(text, words):
    with pytest.raises(UserError, match=words):
        parse_source(text)


@pytest.mark.parametrize(
    ("function", "asked", "found"),
    [
        ("build", (7, 1), (7, 1)),
        ("build", (None, None), (5, 3)),
        ("anything", (7, 1), (7, 1)),
        ("classes_alone", (7, 1), (7, 3)),
        ("narrow", (7, 1), (7, 3)),
        ("fixed", (7, 1), (5, 3)),
        ("Net", (7, 1), (7, 1)),
    ],
)
@pytest.mark.parametrize("kind", ["file", "factory"])
def test_classes_and_channels_go_where_they_are_taken(user_file, installed, kind, function, asked, found):
    source = (
        FileSource(str(user_file), function) if kind == "file" else FactorySource(f"{installed}:{function}")
    )
    net = source.build(num_classes=asked[0], in_chans=asked[1])
    assert (outputs(net), own_in_chans(net)) == found
    assert own_num_classes(net, found[1], (8, 8)) == found[0]
    assert source_of(net) == source


def test_a_file_is_run_with_its_neighbours_and_leaves_no_path(user_file):
    before = list(sys.path)
    assert FileSource(str(user_file), "build", {"width": 9}).build().head.in_features == 9
    assert sys.path == before


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("FILE:nothing", "has no 'nothing'"),
        ("FILE:buld", "did you mean 'build'"),
        ("FILE:value", "is a Net, not a function or class"),
        ("FILE:number", "must return a torch.nn.Module; it returned a int"),
        ("FILE:broken", r"could not be built: KeyError: 'lost' \(my_net.py, line \d+\)"),
        ("FILE:needs", "could not be built: TypeError: .*something"),
        ("no_such_module_xyz:build", "there is no module 'no_such_module_xyz'"),
        ("os.no_such:build", "could not be imported|there is no module"),
        ("math:pi", "is a float, not a function"),
        ("json:dumps", "could not be built"),
    ],
)
def test_factories_that_build_nothing(user_file, source, words):
    with pytest.raises(UserError, match=words):
        parse_source(source.replace("FILE", str(user_file))).build(num_classes=3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def build(:", r"could not be run: SyntaxError.*line 1"),
        ("\n\nraise RuntimeError('no GPU')", r"could not be run: RuntimeError: no GPU \(my_net.py, line 3\)"),
        ("import no_such_module_xyz", "could not be run: ModuleNotFoundError"),
        ("import sys; sys.exit(3)", "could not be run: SystemExit: 3"),
    ],
)
def test_files_that_do_not_run(user_file, text, words):
    user_file.write_text(text)
    with pytest.raises(UserError, match=words):
        FileSource(str(user_file), "build").build()


def test_a_network_that_is_no_classifier_says_so():
    with pytest.raises(UserError, match=r"gives \(1, 4, 6, 6\) for one image"):
        own_num_classes(nn.Conv2d(3, 4, 3), 3, (8, 8))
    with pytest.raises(UserError, match="failed on an image of 1 x 8 x 8"):
        own_num_classes(nn.Conv2d(3, 4, 3), 1, (8, 8))


def weights_by(source, path, net=None):
    """A weights file whose card says that `source` builds it."""
    net = net or nn.Linear(2, 2)
    save_weights(path, net.state_dict(), Card(source, 5, 3, (8, 8)))
    return path


EVIL = {
    "os:system": "standard library",
    "subprocess:run": "standard library",
    "builtins:exec": "standard library",
    "posix:system": "standard library",
    "importlib:import_module": "standard library",
    "torch.hub:load": "'torch' is a library that globalcnn depends on",
    "torch:load": "'torch' is a library",
    "torch.nn:Linear": "'torch' is a library",
    "timm:create_model": "'timm' is a library",
    "timm.models:create_model": "'timm' is a library",
    "numpy:load": "'numpy' is a library",
    "torchvision.datasets.utils:download_url": "only torchvision.models builds networks",
    "torchvision.models:list_models": "builds any network by its name",
    "torchvision.models:get_model": "builds any network by its name",
    "torchvision.models.detection:fasterrcnn_resnet50_fpn": "without other arguments .* loads weights",
    "torchvision.models.segmentation:fcn_resnet50": "weights_backbone=ResNet50_Weights.IMAGENET1K_V1",
    "torchvision.models._utils:_ovewrite_named_param": "is private",
    "globalcnn:create_model": "only the classes of globalcnn.models are built",
    "globalcnn.models:create_model": "only the classes of globalcnn.models are built",
    "globalcnn.models:load": "only the classes of globalcnn.models are built",
    "globalcnn.cli.main:main": "only the classes of globalcnn.models are built",
    "pip._internal:main": "is private",
    "setuptools:setup": "'setuptools' is a library",
    "antigravity:fly": "standard library",
    "no_such_package_xyz:build": "there is no package",
    "evil:build": "not an installed package (it would be imported from",
    "evil.nested:build": "not an installed package",
    "evil_file:build": "not an installed package",
}


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A folder of weights, and the current one, with modules that must not be imported."""
    folder = tmp_path / "run"
    (folder / "evil").mkdir(parents=True)
    for name in ("evil/__init__.py", "evil/nested.py", "evil_file.py"):
        (folder / name).write_text("raise SystemExit('code ran')\n")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend("")
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.mark.parametrize(("factory", "words"), EVIL.items(), ids=EVIL)
def test_a_file_cannot_have_code_run(evil, factory, words):
    monkey = weights_by(FactorySource(factory, {}), evil / "w.safetensors")
    with pytest.raises(UserError, match="not built without your consent") as caught:
        globalcnn.load(monkey)
    assert re.search(words.replace("(", r"\("), str(caught.value))
    for part in (factory, f"model={factory!r}", "--trust-source"):
        assert part in str(caught.value)


@pytest.mark.parametrize("trusted", [False, True])
def test_a_file_of_code_is_never_run_by_weights(evil, trusted):
    path = weights_by(FileSource(str(evil / "evil_file.py"), "build"), evil / "w.safetensors")
    with pytest.raises(
        UserError, match=r"Weights never run a file: name it again, --model evil_file.py:build"
    ):
        globalcnn.load(path, trust_source=trusted)


@pytest.mark.parametrize(
    "argument",
    ["weights", "pretrained", "weights_backbone", "checkpoint_path", "url", "encoder_weights", "path"],
)
@pytest.mark.parametrize("trusted", [False, True])
def test_arguments_that_no_file_may_give(tmp_path, argument, trusted):
    source = FactorySource("torchvision.models:resnet18", {argument: "DEFAULT"})
    with pytest.raises(UserError, match=f"the argument '{argument}', which no file may set"):
        globalcnn.load(weights_by(source, tmp_path / "w.safetensors"), trust_source=trusted)


@pytest.mark.parametrize("function", ["build", "Net"])
def test_installed_builders_of_networks_are_built(installed, tmp_path, function):
    source = FactorySource(f"{installed}:{function}", {"width": 6})
    net = source.build(num_classes=5, in_chans=3).eval()
    path = weights_by(source, tmp_path / "w.safetensors", net)
    x = torch.randn(2, 3, 8, 8)
    again = globalcnn.load(path)
    assert torch.equal(again(x), net(x))
    assert source_of(again) == source


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("unannotated", "not annotated to return a torch.nn.Module"),
        ("value", "not a function or class"),
        ("system", "not defined in 'mypkg_installed.nets' but in 'posix'"),
        ("nn", "not a function or class"),
    ],
)
def test_of_an_installed_package_only_builders_of_networks(installed, tmp_path, function, words):
    path = weights_by(FactorySource(f"{installed}:{function}"), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=words):
        globalcnn.load(path)


def test_torchvision_is_a_place_of_networks(tmp_path):
    source = FactorySource("torchvision.models:resnet18", {"norm_layer": nn.BatchNorm2d})
    net = source.build(num_classes=5).eval()
    again = globalcnn.load(weights_by(source, tmp_path / "w.safetensors", net))
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(again(x), net(x))


def test_files_of_one_name_have_their_own_neighbours(tmp_path):
    nets = []
    for width in (3, 5):
        folder = tmp_path / str(width)
        folder.mkdir()
        (folder / "parts.py").write_text(f"WIDTH = {width}\n")
        (folder / "net.py").write_text(
            "from torch import nn\nfrom parts import WIDTH\ndef build(): return nn.Linear(2, WIDTH)\n"
        )
        nets.append(FileSource(str(folder / "net.py"), "build").build())
    assert [n.out_features for n in nets] == [3, 5]
    assert "parts" not in sys.modules


def test_ways_out(installed, user_file, tmp_path):
    source = FactorySource(f"{installed}:unannotated")
    net = source.build().eval()
    path = weights_by(source, tmp_path / "w.safetensors", net)
    x = torch.randn(2, 3, 8, 8)
    for again in (
        globalcnn.load(path, trust_source=True),
        globalcnn.load(path, model=f"{installed}:unannotated"),
        globalcnn.load(path, model=source),
        globalcnn.load(path, model=source.build()),
        globalcnn.load(path, model=source.build),
        globalcnn.load(path, model=f"{user_file}:build"),
    ):
        assert torch.equal(again(x), net(x))


def test_a_file_that_is_named_again_gets_the_arguments_of_training(user_file, tmp_path):
    net = FileSource(str(user_file), "build", {"width": 7}).build(num_classes=2, in_chans=1).eval()
    card = make_card(net, image_size=(8, 8))
    assert (card.num_classes, card.in_chans) == (2, 1)
    save_weights(tmp_path / "w.safetensors", net.state_dict(), card)
    again = globalcnn.load(tmp_path / "w.safetensors", model=f"{user_file}:build")
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(again(x), net(x))


def test_a_module_handed_over_needs_its_module_again(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    path = tmp_path / "w.safetensors"
    save_weights(path, net.state_dict(), make_card(net, image_size=(8, 8)))
    with pytest.raises(UserError, match="class Sequential was passed as an object"):
        globalcnn.load(path)
    again = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(globalcnn.load(path, model=again)(x), net(x))


CHANGED = {
    "another activation": lambda net: setattr(net, "act1", nn.GELU()),
    "a replaced stage": lambda net: setattr(net, "layer4", nn.Conv2d(9, 16, 3, padding=1)),
    "another stride": lambda net: setattr(net.layer2[0].conv1, "stride", (1, 1)),
    "another equation": lambda net: setattr(net.global1, "pde", PDE(steps=5)),
    "another pooling": lambda net: net.reset_classifier(10, "max"),
}


@pytest.mark.parametrize("change", CHANGED.values(), ids=CHANGED)
def test_a_network_that_was_changed_is_not_rebuilt_as_it_was(change):
    net = create_model("resnet_global_tiny_cifar")
    change(net)
    with pytest.warns(UserWarning, match="not as 'resnet_global_tiny_cifar' builds it: it has"):
        card = make_card(net, image_size=(32, 32))
    assert card.source == ModuleSource("ResNet")


@pytest.mark.parametrize(
    "name", ["resnet_global_tiny_cifar", "resnet18", "vit_tiny_patch16_224", "mdeq_cifar"]
)
def test_another_head_is_no_change(name, recwarn):
    net = create_model(name)
    net.reset_classifier(7)
    state = torch.random.get_rng_state()
    assert make_card(net, image_size=(224, 224)).source == NamedSource(name)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not recwarn

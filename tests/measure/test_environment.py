"""The stamp of a results file: complete, ready for JSON, and silent about whose machine it was."""

import getpass
import json
import platform

import torch

from globalcnn.measure import environment


def test_the_stamp_is_complete_and_survives_json():
    stamp = environment()
    assert json.loads(json.dumps(stamp)) == stamp
    assert stamp["torch"] == torch.__version__
    assert stamp["timm"]
    assert stamp["cpu"]
    assert stamp["threads"] == torch.get_num_threads() >= 1
    assert 1 <= stamp["usable_cores"] <= stamp["cores"]
    assert (stamp["gpu"] is None) == (stamp["gpus"] == 0)


def test_the_stamp_names_neither_host_nor_user(monkeypatch):
    monkeypatch.setattr(platform, "node", lambda: "host-of-mine")
    monkeypatch.setenv("USER", "user-of-mine")
    monkeypatch.setenv("LOGNAME", "user-of-mine")
    assert getpass.getuser() == "user-of-mine"
    assert "-of-mine" not in json.dumps(environment())

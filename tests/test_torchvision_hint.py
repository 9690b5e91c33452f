"""A torchvision that was built for another torch is recognised, and the message says what to do."""

from __future__ import annotations

import builtins

import pytest

from globalcnn import _torchvision


def failing_import(monkeypatch, error: Exception) -> None:
    real = builtins.__import__

    def fake(name, *rest, **more):
        if name == "torchvision":
            raise error
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", fake)


def test_the_mismatch_is_explained(monkeypatch):
    failing_import(monkeypatch, RuntimeError("operator torchvision::nms does not exist"))
    with pytest.raises(ImportError, match=r"built for another torch.*pip install torch torchvision timm"):
        _torchvision.check()


def test_other_errors_are_left_alone(monkeypatch):
    failing_import(monkeypatch, RuntimeError("disk on fire"))
    with pytest.raises(RuntimeError, match="disk on fire"):
        _torchvision.check()

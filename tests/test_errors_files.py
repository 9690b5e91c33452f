"""Errors that a user can cause, and files that are never left half written."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from pathlib import Path

import pytest

from globalcnn.errors import MissingExtra, UserError, UserTypeError, near_names, unknown_name
from globalcnn.files import atomic_write, read_json, write_json, write_text


def test_errors_are_ordinary_python_errors_too():
    assert issubclass(UserError, ValueError)
    assert issubclass(UserTypeError, TypeError)
    assert issubclass(UserTypeError, UserError)
    assert issubclass(MissingExtra, ImportError)
    assert issubclass(MissingExtra, UserError)


def test_a_missing_package_says_how_to_install_it():
    text = str(MissingExtra("torchdiffeq", feature="neural_ode_mnist", extra="solvers"))
    assert text == (
        "neural_ode_mnist needs the package 'torchdiffeq', which is not installed: "
        'pip install "globalcnn[solvers]"'
    )


def test_an_unknown_name_says_what_is_near():
    known = ["resnet_global_cifar", "resnet32_cifar", "digits_conv"]
    assert near_names("resnet_globl_cifar", known)[0] == "resnet_global_cifar"
    assert near_names("xyzzy", known) == []
    text = str(unknown_name("model", "digit_conv", known))
    assert text.startswith("unknown model 'digit_conv'; did you mean 'digits_conv'? Known: digits_conv, ")
    assert str(unknown_name("model", "xyzzy", known, way_out="See the list.")) == (
        "unknown model 'xyzzy'; See the list."
    )
    many = [f"resnet{n}_cifar" for n in range(10)]
    assert len(near_names("resnet_cifar", many)) <= 4


def names_in(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_written_file_holds_what_was_written(tmp_path):
    target = tmp_path / "new" / "folder" / "a.json"
    write_json(target, {"läufe": [1, 2.5, None]})
    assert read_json(target) == {"läufe": [1, 2.5, None]}
    assert "läufe" in target.read_text(encoding="utf-8")
    write_text(target, "second\n")
    assert target.read_text() == "second\n"
    assert names_in(target.parent) == ["a.json"]


def test_a_path_may_be_a_string(tmp_path):
    write_text(str(tmp_path / "a.txt"), "text")
    assert (tmp_path / "a.txt").read_text() == "text"


def test_a_writer_that_fails_leaves_the_old_file(tmp_path):
    target = tmp_path / "a.txt"
    write_text(target, "old")

    def write_half():
        with atomic_write(target) as part:
            part.write_text("ne")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_half()
    assert target.read_text() == "old"
    assert names_in(tmp_path) == ["a.txt"]


def test_a_value_that_is_no_json_leaves_the_old_file(tmp_path):
    target = tmp_path / "a.json"
    write_json(target, [1])
    with pytest.raises(TypeError):
        write_json(target, [object()])
    assert read_json(target) == [1]
    assert names_in(tmp_path) == ["a.json"]


def test_the_old_file_stays_readable_until_the_end(tmp_path):
    target = tmp_path / "a.txt"
    write_text(target, "old")
    with atomic_write(target) as part:
        part.write_text("new")
        assert part.parent == target.parent  # a move within one file system is atomic
        assert part.suffix == target.suffix  # writers choose the format by it
        assert part.name.startswith(".")
        assert target.read_text() == "old"
    assert target.read_text() == "new"


def test_who_reads_the_old_file_meanwhile_reads_it_to_the_end(tmp_path):
    target = tmp_path / "a.txt"
    write_text(target, "old " * 10_000)
    with target.open() as reader:
        assert reader.read(4) == "old "
        write_text(target, "new")
        assert reader.read() == "old " * 9_999
    assert target.read_text() == "new"


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_a_new_file_has_the_permissions_of_any_other(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_text(tmp_path / "ours.txt", "x")
        (tmp_path / "plain.txt").write_text("x")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert mode(tmp_path / "ours.txt") == mode(tmp_path / "plain.txt")


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_file_that_was_there_keeps_its_permissions(tmp_path):
    target = tmp_path / "private.txt"
    target.write_text("old")
    target.chmod(0o600)
    write_text(target, "new")
    assert (target.read_text(), mode(target)) == ("new", 0o600)


@pytest.mark.skipif(os.name != "posix", reason="links of POSIX")
def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "run1.txt").write_text("old")
    (tmp_path / "latest.txt").symlink_to("run1.txt")
    write_text(tmp_path / "latest.txt", "new")
    assert (tmp_path / "latest.txt").is_symlink()
    assert (tmp_path / "run1.txt").read_text() == "new"


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(UserError, match="it is a folder; name a file in it"):
        write_text(tmp_path, "x")
    assert names_in(tmp_path) == []


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"cannot write '.*file.a\.txt': "):
        write_text(tmp_path / "file" / "a.txt", "x")


def test_an_unwritable_folder(tmp_path, monkeypatch):
    """As the operating system reports it; a test run by root could not make one."""

    def refused(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "mkstemp", refused)
    with pytest.raises(UserError, match=r"cannot write '.*a\.txt': Permission denied"):
        write_text(tmp_path / "a.txt", "x")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UserError, match="Permission denied"):
            write_text(tmp_path / "a.txt", "x")
    finally:
        tmp_path.chmod(0o700)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"cannot read '.*none\.json': No such file"):
        read_json(tmp_path / "none.json")
    with pytest.raises(UserError, match="cannot read"):
        read_json(tmp_path)
    for content in (b'{"a": ', b"\xff\xfe\x00", b""):
        (tmp_path / "damaged.json").write_bytes(content)
        with pytest.raises(UserError, match=r"damaged\.json' is not a JSON file: "):
            read_json(tmp_path / "damaged.json")


def test_written_json_is_indented_and_ends_with_a_newline(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1})
    text = Path(tmp_path / "a.json").read_text()
    assert text == json.dumps({"b": 1}, indent=1) + "\n"

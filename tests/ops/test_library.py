"""The compiled kernels as a file: where it is looked for, built once, checked before it is loaded."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from globalcnn import UserError
from globalcnn.ops import native
from globalcnn.ops.native import NOT_BUILT, build, library

ABSENT = native.load()
WHOLE = native.library_path() if ABSENT is None else None
built = pytest.mark.skipif(ABSENT is not None, reason=f"native kernels: {ABSENT}")

STATE = "from globalcnn.ops import native; print(native.load())"


def in_a_new_process(code=STATE, **environment):
    """(stdout, stderr) of Python code with its own cache folder and compiler."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("GLOBALCNN_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, **{k: str(v) for k, v in environment.items()}},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stderr}"
    return done.stdout.strip(), done.stderr.strip()


@pytest.fixture
def fake_compiler(tmp_path):
    """A "compiler" that takes its time, keeps a log, and hands out a copy of the library that is built."""
    script = tmp_path / "c++"
    plain = tmp_path / "unsealed.so"
    content = WHOLE.read_bytes()
    plain.write_bytes(content[: -len(library.SEAL) - 32] if library.SEAL in content else content)
    script.write_text(
        f"#!/bin/sh\nsleep 0.2\necho run >> {tmp_path}/log\n"
        f'while [ "$1" != -o ]; do shift; done\ncp {plain} "$2"\n'
    )
    script.chmod(0o755)
    return script


def cached(folder):
    return folder / "native" / library.file_name()


@built
def test_compiled_once_into_the_cache_with_one_line_of_notice(tmp_path, fake_compiler):
    environment = {"CXX": fake_compiler, "GLOBALCNN_CACHE": tmp_path / "cache"}
    out, notice = in_a_new_process(**environment)
    assert out == "None"
    assert notice.count("\n") == 0
    assert "compiling the native CPU kernels, once" in notice
    assert str(tmp_path / "cache") in notice
    assert cached(tmp_path / "cache").is_file()
    assert in_a_new_process(**environment) == ("None", "")


@built
def test_two_builds_at_once_compile_once(tmp_path, fake_compiler):
    environment = {"CXX": fake_compiler, "GLOBALCNN_CACHE": tmp_path / "cache"}
    with ThreadPoolExecutor(2) as pool:
        states = list(pool.map(lambda _: in_a_new_process(**environment)[0], range(2)))
    assert states == ["None", "None"]
    compiled = len(list(library.SOURCES.glob("*.cpp"))) + 2  # two libraries are linked
    assert (tmp_path / "log").read_text().count("run") == compiled
    names = {library.file_name(), library.beside(Path(library.file_name())).name, ".build.lock"}
    assert {p.name for p in (tmp_path / "cache" / "native").iterdir()} == names


@built
def test_a_library_cut_short_is_built_again(tmp_path, fake_compiler):
    target = cached(tmp_path / "cache")
    target.parent.mkdir(parents=True)
    content = WHOLE.read_bytes()
    target.write_bytes(content[: len(content) // 3])
    out, notice = in_a_new_process(CXX=fake_compiler, GLOBALCNN_CACHE=tmp_path / "cache")
    assert out == "None"
    assert "damaged or cut short" in notice
    assert library.damage(target, sealed=True) is None


@built
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9999], ids=lambda s: f"cut_at_{s}")
def test_a_library_cut_anywhere_is_not_found(tmp_path, monkeypatch, share):
    monkeypatch.delenv("GLOBALCNN_NATIVE_LIBRARY", raising=False)
    monkeypatch.setenv("GLOBALCNN_CACHE", str(tmp_path))
    target = cached(tmp_path)
    target.parent.mkdir(parents=True)
    content = WHOLE.read_bytes()
    target.write_bytes(content[: int(share * len(content))])
    found, fault = library.find()
    assert found is None
    assert "damaged or cut short" in fault


@built
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda whole: whole[: len(whole) // 2], "cut short"),
        (lambda whole: b"", "not a library of this system (no 64-bit ELF file)"),
        (lambda whole: b"#!/bin/sh\n", "not a library of this system (no 64-bit ELF file)"),
        (lambda whole: None, "cannot be read (No such file or directory)"),
    ],
    ids=["half", "empty", "a_script", "absent"],
)
def test_a_named_library_that_is_none_is_said(tmp_path, monkeypatch, content, reason):
    path = tmp_path / "named.so"
    given = content(WHOLE.read_bytes())
    if given is not None:
        path.write_bytes(given)
    monkeypatch.setenv("GLOBALCNN_NATIVE_LIBRARY", str(path))
    assert library.find() == (None, f"GLOBALCNN_NATIVE_LIBRARY={str(path)!r}: {reason}")


@built
def test_a_named_library_that_is_none_is_not_loaded(tmp_path):
    path = tmp_path / "named.so"
    path.write_bytes(WHOLE.read_bytes()[:100_000])
    assert in_a_new_process(GLOBALCNN_NATIVE_LIBRARY=path)[0].endswith("cut short")


@built
def test_a_flipped_bit_is_seen(tmp_path):
    path = tmp_path / "kernels.so"
    shutil.copy(WHOLE, path)
    if library.damage(path, sealed=True) is not None:
        library.seal(path)
    assert library.damage(path, sealed=True) is None
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert "checksum" in library.damage(path, sealed=True)


@built
def test_a_library_that_others_can_write_is_not_loaded(tmp_path):
    target = cached(tmp_path)
    target.parent.mkdir()
    shutil.copy(WHOLE, target)
    if library.damage(target, sealed=True) is not None:
        library.seal(target)
    target.chmod(0o666)
    out, _ = in_a_new_process(GLOBALCNN_CACHE=tmp_path, GLOBALCNN_BUILD=0)
    assert "can be written by every user" in out
    target.chmod(0o644)
    assert in_a_new_process(GLOBALCNN_CACHE=tmp_path, GLOBALCNN_BUILD=0) == ("None", "")


def test_nothing_is_compiled_where_that_is_switched_off(tmp_path):
    out, notice = in_a_new_process(GLOBALCNN_CACHE=tmp_path, GLOBALCNN_BUILD=0)
    assert (out, notice) == (NOT_BUILT, "")


def test_without_a_compiler_all_works_and_the_reason_is_there(tmp_path):
    code = (
        f"{STATE}; import torch, globalcnn; "
        "print(tuple(globalcnn.GlobalLayer(4).eval()(torch.zeros(1, 4, 8, 8)).shape))"
    )
    out, _ = in_a_new_process(code, GLOBALCNN_CACHE=tmp_path, CXX="no-such-compiler")
    assert out.split("\n") == [NOT_BUILT, "(1, 4, 8, 8)"]


def test_a_cache_that_cannot_be_written_is_one_clear_error(tmp_path, any_compiler, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GLOBALCNN_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setenv("CXX", any_compiler)
    with pytest.raises(UserError, match=r"cannot write the native kernels to .* set GLOBALCNN_CACHE"):
        build.build()


@pytest.fixture
def any_compiler():
    return shutil.which("true")


def test_no_home_folder_is_one_clear_error(monkeypatch):
    for name in ("HOME", "XDG_CACHE_HOME", "GLOBALCNN_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", _no_home)
    with pytest.raises(UserError, match=r"no home folder .* set GLOBALCNN_CACHE"):
        library.cached_path()


def _no_home():
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (None, r"no C\+\+ compiler: CXX='.*/none' is not there"),
        ("#!/bin/sh\necho 'error: no' >&2\nexit 1\n", r"the C\+\+ compiler failed: error: no"),
        ("#!/bin/sh\nexit 0\n", r"succeeded but wrote nothing; set CXX to a C\+\+ compiler"),
        ("#!/bin/sh\nexit 3\n", r"the C\+\+ compiler failed: exit status 3"),
        (
            '#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\necho no > "$2"\n',
            "made no library of this system: not a library of this system",
        ),
        ("not a program", r"the C\+\+ compiler cannot be run"),
    ],
    ids=["absent", "fails", "does_nothing", "fails_silently", "writes_something_else", "no_program"],
)
def test_a_compiler_that_does_not_compile_is_one_clear_error(tmp_path, monkeypatch, script, message):
    compiler = tmp_path / "none"
    if script is not None:
        compiler.write_text(script)
        compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(UserError, match=message):
        build.build(to=tmp_path / "out" / "x.so")
    made = list((tmp_path / "out").iterdir()) if (tmp_path / "out").exists() else []
    assert [p.name for p in made] in ([], [".build.lock"])

"""The command `globalcnn`: finds the subcommand, reports errors as one line and an exit status."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from rich.table import Table

from .. import __version__, _torchvision
from ..errors import UserError, unknown_name
from .console import console
from .parsing import parsed
from .streams import forget_output, standard_streams
from .warning_lines import plain_warnings

ABOUT = "Global layers for PyTorch: a feature map evolves under a PDE instead of passing repeated blocks."

# name -> (module in this package, what it is for); the module has `Args`, a dataclass, and `run(args)`
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "the main job on built-in real digits, with tables and pictures"),
    "list": ("list_models", "which networks there are"),
    "info": ("info", "layers, parameters, multiply-adds, depth and receptive field of a network"),
    "train": ("train", "train a network and keep the run in a folder"),
    "eval": ("evaluate", "how good a trained network is"),
    "predict": ("predict", "what a trained network takes images for"),
    "show": ("show", "pictures of what the Global layers of a network do to an image"),
    "compare": ("compare", "train several networks by one recipe and compare accuracy, size and time"),
    "condense": ("condense", "a smaller network from a CNN: what it repeats gives way to Global layers"),
    "export": ("export", "a file for an inference engine, compared there with its network"),
    "table": ("table", "every row of the published tables, with our counts and accuracies"),
    "convert-checkpoint": ("convert", "weights of the authors' released code into a file of this library"),
    "verify": ("verify", "the trained weights that come with the library, against their claims"),
    "build": ("build", "compile the native CPU kernels"),
    "bench": ("bench", "speed and memory of layers and networks side by side on this machine"),
    "env": ("env", "versions, hardware, and which backends of the operator can run here"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status: 0, 1 for a training that diverged, 2 for a user's mistake."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [w for w in words if w != "--debug"]
    if not standard_streams():
        return _say_error("standard output is closed; send it to a file, or to /dev/null", 2)
    try:
        with nullcontext() if debug else plain_warnings():
            status = _dispatch(words)
        sys.stdout.flush()  # here, where an error can still be reported
        return status
    except SystemExit as stop:  # the argument parser's way to say that it has printed help
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        return _say_error("stopped; a training continues with --resume", 130)
    except BrokenPipeError:  # the reader of our output has closed the pipe
        forget_output()
        return 141
    except Exception as error:
        if debug:
            raise
        return _in_one_line(error)


def _in_one_line(error: Exception) -> int:
    """Print a user's mistake as one line and return the exit status; other errors are raised again."""
    if isinstance(error, UserError):
        return _say_error(str(error), 2)
    from ..train import TrainingDiverged  # not above: with a broken torchvision it cannot be imported

    if isinstance(error, TrainingDiverged):
        return _say_error(str(error), 1)
    if _out_of_memory(error):
        first = (str(error).splitlines() or [""])[0][:200]
        return _say_error(
            f"out of memory ({first}); lower --batch-size, or --image-size if the images are large", 2
        )
    if isinstance(error, OSError) and error.errno is not None:
        if error.filename is None:  # most likely standard output; nothing more can be written there
            forget_output()
        place = "" if error.filename is None else f" {str(error.filename)[:200]!r}"
        return _say_error(f"cannot read or write{place or ' output'}: {error.strerror}", 2)
    raise error


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        _say_help()
        return 0
    if words[0] in ("--version", "version"):
        console().print(f"globalcnn {__version__}", markup=False)
        return 0
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        raise unknown_name("command", name, COMMANDS, way_out=f"Commands: {', '.join(COMMANDS)}")
    _torchvision.check()
    module = importlib.import_module(f".{COMMANDS[name][0]}", __package__)
    module.run(parsed(module.Args, name, rest))
    return 0


def _say_help() -> None:
    commands = Table(box=None, show_header=False, pad_edge=False)
    for name, (_, about) in COMMANDS.items():
        commands.add_row(f"  {name}", about)
    out = console()
    out.print("usage: globalcnn COMMAND [OPTIONS]\n", markup=False)
    out.print(ABOUT + "\n", markup=False)
    out.print(commands)
    out.print(
        "\n`globalcnn COMMAND --help` explains a command. A mistake in what was given ends in one line and\n"
        "exit status 2; --debug shows the traceback. --version prints the version.",
        markup=False,
    )


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        sign in text for sign in ("out of memory", "can't allocate memory", "not enough memory")
    )


def _say_error(text: str, status: int) -> int:
    console(error=True).print(f"globalcnn: error: {text}", markup=False)
    return status

"""What `import condconv` gives, and when it is imported."""

import subprocess
import sys

import pytest

import condconv
from condconv.__main__ import main


def test_every_public_name_is_there_and_no_other():
    assert all(getattr(condconv, name) is not None for name in condconv.__all__)
    assert set(condconv.__all__) <= set(dir(condconv))
    with pytest.raises(AttributeError, match="module 'condconv' has no attribute 'wings'"):
        condconv.wings  # noqa: B018


def test_rooms_are_there_without_an_import_of_their_own():
    code = (
        "import sys, condconv\n"
        "assert 'torch' not in sys.modules\n"
        "layer = condconv.CondConv2d(1, 1, 1, num_experts=2)\n"
        "print(type(layer) is condconv.nn.CondConv2d, callable(condconv.models.create_model), condconv.ops.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("True True condconv.ops\n", "")


def test_ctrl_c_before_the_command_is_loaded_ends_it_quietly(monkeypatch):
    def interrupted(name, *arguments, **options):
        if name == "condconv.cli.main":
            raise KeyboardInterrupt
        return before(name, *arguments, **options)

    before = __import__
    monkeypatch.setattr("builtins.__import__", interrupted)
    assert main() == 130

"""Compile the kernels into one shared library, for every instruction set of this kind of machine.

The package's build calls `compile_library`; `python -m condconv.ops.native` does it by hand. Nothing is imported
but the standard library: this file also runs where torch is not installed.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
LIBRARY = FOLDER / ("_kernels" + {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so"))
# Sums may be contracted to fused multiply-adds; nothing else may change what is computed.
FLAGS = (
    "-O3",
    "-fPIC",
    "-pthread",
    "-std=gnu11",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-fvisibility=hidden",
)
# Suffix, numbers in a vector, vectors of a panel, flags.
_X86 = (
    ("generic", 4, 2, ()),
    ("avx2", 8, 2, ("-mavx2", "-mfma")),
    ("avx512", 16, 4, ("-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mfma", "-mprefer-vector-width=512")),
)
_OTHER = (("generic", 4, 4, ()),)


class CompileError(RuntimeError):
    """There is no compiler, or it failed; the message says which."""


def digest_of_sources() -> str:
    """Return a digest of the sources, so that a library built from other sources is not used."""
    files = sorted(path for path in FOLDER.iterdir() if path.suffix in (".c", ".h"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def compile_library(target: Path = LIBRARY, extra: tuple[str, ...] = ()) -> Path:
    """Compile the library.

    Args:
        target: The file to write; replaced as a whole or left alone.
        extra: Further flags, such as those of a sanitizer.

    Returns:
        The file.

    Raises:
        CompileError: No compiler of C was found (`CC`, cc, gcc, clang), or it failed.
    """
    named = os.environ.get("CC") or (sysconfig.get_config_var("CC") or "").partition(" ")[0]
    compiler = next((found for name in (named, "cc", "gcc", "clang") if name and (found := shutil.which(name))), None)
    if compiler is None:
        raise CompileError("no C compiler found (CC, cc, gcc, clang)")
    variants = _X86 if platform.machine().lower() in ("x86_64", "amd64") else _OTHER
    with tempfile.TemporaryDirectory() as folder:
        objects = [str(Path(folder) / f"{suffix}.o") for suffix, *_ in variants]
        commands = [
            [
                *(compiler, *FLAGS, *flags, *extra, "-c", str(FOLDER / "kernels.c"), "-o", output),
                *(f"-DSUFFIX={suffix}", f"-DVECTOR={size}", f"-DVECTORS={count}"),
            ]
            for (suffix, size, count, flags), output in zip(variants, objects, strict=True)
        ]
        built = str(Path(folder) / LIBRARY.name)
        link = [
            compiler,
            *FLAGS,
            *extra,
            "-fvisibility=default",
            "-shared",
            f'-DSOURCES="{digest_of_sources()}"',
            str(FOLDER / "dispatch.c"),
            *objects,
            "-o",
            built,
        ]
        for command in (*commands, link):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise CompileError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.copyfile(built, temporary)
        temporary.replace(target)  # a running process keeps the old one
    return target

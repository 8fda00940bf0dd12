"""Compile the kernels by hand: `python -m condconv.ops.native`, with further flags of the compiler."""

from __future__ import annotations

import sys

from condconv.ops.native.build import CompileError, compile_library

try:
    print(compile_library(extra=tuple(sys.argv[1:])))
except CompileError as error:
    sys.exit(str(error))

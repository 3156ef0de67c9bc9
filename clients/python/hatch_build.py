"""Builds the client's one piece of C, larder/nontemporal.c, when the package is built or installed from its source.

Without a C compiler the package is built all the same, and copies by the C library's memmove (larder/nontemporal.py).
CC names the compiler; it may have arguments.
"""

import os
import shlex
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = Path(__file__).parent / "larder"
SECONDS_MAX = 120


class NativeCopy(BuildHookInterface[Any]):
    """Compiles in the source tree, where editable installs look for it, too."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        library = PACKAGE / "_nontemporal.so"
        compiler = shlex.split(os.environ.get("CC", "cc"))
        arguments = ["-O3", "-shared", "-fPIC", "-o", str(library), str(PACKAGE / "nontemporal.c")]
        try:
            subprocess.run(  # noqa: S603  # the builder's own compiler
                [*compiler, *arguments], check=True, capture_output=True, text=True, timeout=SECONDS_MAX
            )
        except (OSError, subprocess.SubprocessError) as error:
            library.unlink(missing_ok=True)
            said = getattr(error, "stderr", None) or ""
            self.app.display_warning(
                f"larder is built without its own copy loop, which needs a C compiler: {error}\n{said}"
            )
            return
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data |= {"pure_python": False, "tag": f"py3-none-{platform}"}
        build_data["artifacts"].append("_nontemporal.so")

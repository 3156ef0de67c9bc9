"""The version of larder that runs, as --version shows it and as services tell each other."""

from importlib.metadata import version
from typing import Final

VERSION: Final = version("larder-server")

"""Everything about the package is in pyproject.toml, but for files that are made from its code when it is built."""

import sys
from pathlib import Path
from typing import ClassVar

from setuptools import Command, setup
from setuptools.command.build import build

ROOT = Path(__file__).parent


class BuildShared(Command):
    """Make manual pages and completions, to be installed below ``share``."""

    description = "make manual pages and completions"
    user_options: ClassVar = []
    editable_mode = False

    def initialize_options(self) -> None:
        """The folder is not known yet."""
        self.build_base = None

    def finalize_options(self) -> None:
        """The folder is that of ``build``."""
        self.set_undefined_options("build", ("build_base", "build_base"))

    def run(self) -> None:
        """Write the files, and have them installed."""
        sys.path[:0] = [str(ROOT), str(ROOT / "tools")]
        from shared_files import shared_files

        by_folder: dict[str, list[str]] = {}
        for name, text in shared_files().items():
            path = Path(self.build_base) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            by_folder.setdefault(str(Path(name).parent), []).append(str(path))
        self.distribution.data_files = sorted(by_folder.items())

    def get_source_files(self) -> list[str]:
        """What they are made of is in the package anyway."""
        return ["tools/shared_files.py"]

    def get_outputs(self) -> list[str]:
        """None in the package itself."""
        return []

    def get_output_mapping(self) -> dict[str, str]:
        """None: they are copied also where the package is only linked to."""
        return {}


class Build(build):
    """``build`` with one more step."""

    sub_commands: ClassVar = [*build.sub_commands, ("build_shared", None)]


setup(cmdclass={"build": Build, "build_shared": BuildShared})

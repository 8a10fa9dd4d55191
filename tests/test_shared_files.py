"""Manual pages and tab completion, which are made from the parser when the package is built."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from parallel_fixedram.cli.main import build_parser

ROOT = Path(__file__).parents[1]
TOOLS = ROOT / "tools"
COMPLETION = "share/bash-completion/completions/parallel-fixedram"


@pytest.fixture(scope="module")
def shared():
    sys.path.insert(0, str(TOOLS))
    try:
        import shared_files
    finally:
        sys.path.remove(str(TOOLS))
    return shared_files


@pytest.fixture(scope="module")
def files(shared):
    return shared.shared_files()


@pytest.fixture(scope="module")
def completion(files, tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "parallel-fixedram"
    path.write_text(files[COMPLETION])
    return path


def options(parser):
    return {option for action in parser._actions for option in action.option_strings if option != "-h"}


def test_every_verb_has_a_page_with_all_its_options_and_no_other(files, shared):
    parsers = [build_parser(), *(parser for parser, _ in shared.verbs(build_parser()))]
    pages = {f"share/man/man1/{parser.prog.replace(' ', '-')}.1": parser for parser in parsers}
    assert set(files) == {*pages, COMPLETION}
    for path, parser in pages.items():
        text = files[path].replace("\\-", "-").replace("\\,", "")
        body = text.partition(".SH DESCRIPTION")[2].partition(".SH EXAMPLES")[0]
        missing = [option for option in options(parser) - {"--help"} if f"\\fB{option}\\fR" not in body]
        assert missing == [], path
        assert body.count("\n.SH OUTPUT\n") == 1
        assert text.count(".SH SYNOPSIS") == 1


@pytest.mark.parametrize("width", [60, 120])
def test_the_pages_are_good_roff_and_show_examples_as_they_are_to_be_typed(files, tmp_path, width):
    if shutil.which("groff") is None and not os.environ.get("CI"):
        pytest.skip("groff is not installed")
    for path, text in files.items():
        if path == COMPLETION:
            continue
        argv = ["groff", "-man", "-ww", "-Tutf8", "-P-c", f"-rLL={width}n"]
        shown = subprocess.run(argv, input=text, capture_output=True, text=True, check=True)
        assert shown.stderr == "", path
    shown = subprocess.run(
        [*argv[:-1], f"-rLL={width}n"],
        input=files["share/man/man1/parallel-fixedram-bench-compare.1"],
        capture_output=True,
        text=True,
        check=True,
    )
    text = shown.stdout.replace("\N{HYPHEN}", "-").replace("\N{MINUS SIGN}", "-")
    example = r"^( +)two files of results of yours:\n\1  parallel-fixedram bench compare before\.json after\.json$"
    assert re.search(example, text, re.MULTILINE), "how far in is groff's business"


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["sa"], {"save"}),
        (["bench", "comp"], {"compare"}),
        (["save", "x", "--direct-io", ""], {"auto", "on", "off"}),
        (["save", "x", "--over"], {"--overwrite"}),
        (["verify", "some-"], {"some-file.mr"}),
        (["clone", "some-file.mr", "--run-dir", "some-"], {"some-folder"}),
    ],
)
def test_bash_completes_verbs_options_values_and_paths(completion, tmp_path, words, found):
    (tmp_path / "some-file.mr").touch()
    if "--run-dir" in words:
        (tmp_path / "some-folder").mkdir()
    script = (
        'source "$1"; shift; COMP_WORDS=(parallel-fixedram "$@"); COMP_CWORD=$#; '
        '_shtab_parallel_fixedram parallel-fixedram "${@: -1}" x; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    argv = ["bash", "-c", script, "bash", str(completion), *words]
    shown = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert {line.rstrip() for line in shown.stdout.splitlines()} == found, shown


@pytest.mark.slow
def test_an_installation_has_them(files, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(ROOT / "parallel_fixedram", source / "parallel_fixedram", ignore=lambda *_: ["__pycache__"])
    shutil.copytree(TOOLS, source / "tools", ignore=lambda *_: ["__pycache__"])
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    argv = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", source]
    subprocess.run([*argv, "--wheel-dir", tmp_path], check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name.partition(".data/data/")[2]: name for name in archive.namelist() if ".data/data/" in name}
        assert {path: archive.read(name).decode() for path, name in names.items()} == files

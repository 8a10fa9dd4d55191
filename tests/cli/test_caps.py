import json
import subprocess
import sys

import pytest
from support.cli import call

from parallel_fixedram.core.profiles import TABLES, Profile

WITH_MULTIFD = "Fixed-ram migration is incompatible with multifd"


def caps(*argv):
    """Runs the verb; returns exit code, stdout and stderr."""
    result = call("caps", *argv)
    return result.code, result.out, result.err


@pytest.mark.parametrize("profile", Profile)
def test_without_names_every_capability_and_every_rule_is_shown(profile):
    code, out, err = caps("--profile", profile)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    for entry in TABLES[profile].capabilities:
        assert any(line.split()[:2] == [entry.name, entry.since] and line.endswith(entry.doc) for line in lines)
    shown = [line.strip() for line in lines if line.startswith("      ")]
    assert shown == [rule.message for rule in TABLES[profile].rules]
    assert max(len(line) for line in lines) <= 120


def test_the_table_shows_the_property_the_version_and_the_other_name():
    _, out, _ = caps()
    assert "mapped-ram is accepted as another name of fixed-ram" in out
    assert any(line.split()[:3] == ["fixed-ram", "8.2", "x-fixed-ram"] for line in out.splitlines())


def test_the_table_marks_the_one_rule_that_can_be_lifted():
    _, out, _ = caps()
    assert f"  fixed-ram with multifd (unless --experimental-multifd)\n      {WITH_MULTIFD}\n" in out
    assert out.count("--experimental-multifd") == 1
    assert "--experimental-multifd" not in caps("--profile", "qemu-10.0")[1]


def test_an_accepted_combination_lists_what_is_on():
    assert caps("fixed-ram", "events=on", "xbzrle=off") == (0, "accepted by profile fixed-ram: events, fixed-ram\n", "")
    assert caps("xbzrle=off") == (0, "accepted by profile fixed-ram: everything off\n", "")


def test_a_refusal_is_an_answer_with_its_reason_a_hint_and_exit_code_2():
    code, out, err = caps("fixed-ram=on", "multifd=on")
    assert (code, err) == (2, "")
    first, second = out.splitlines()
    assert first == f"refused by profile fixed-ram: {WITH_MULTIFD}"
    assert second.startswith("hint: ")
    assert "--experimental-multifd" in second


def test_the_flag_lifts_multifd_and_nothing_else():
    accepted = "accepted by profile fixed-ram: multifd, fixed-ram\n"
    assert caps("fixed-ram", "multifd", "--experimental-multifd") == (0, accepted, "")
    refused = "refused by profile fixed-ram: Fixed-ram migration is incompatible with xbzrle\n"
    assert caps("fixed-ram", "xbzrle", "--experimental-multifd") == (2, refused, "")


def test_the_released_profile_takes_either_name():
    accepted = "accepted by profile qemu-10.0: multifd, mapped-ram\n"
    assert caps("--profile", "qemu-10.0", "fixed-ram", "multifd") == (0, accepted, "")
    assert caps("--profile", "qemu-10.0", "mapped-ram", "multifd") == (0, accepted, "")


def test_the_last_word_on_a_capability_counts():
    assert caps("fixed-ram", "multifd", "multifd=off")[0] == 0
    assert caps("fixed-ram", "multifd=off", "multifd")[0] == 2
    assert caps("fixed-ram", "multifd", "mapped-ram=off")[0] == 0


@pytest.mark.parametrize(
    ("name", "hint"),
    [("nothing", "there are xbzrle, "), ("multfd", "did you mean 'multifd'?"), ("x-fixed-ram", "'")],
)
def test_an_unknown_name_is_refused_in_qemus_words_with_those_that_there_are(name, hint):
    code, out, err = caps("fixed-ram", f"{name}=off")
    assert (code, out) == (2, "")
    first, second = err.splitlines()
    assert first == f"parallel-fixedram: error: Parameter 'capability' does not accept value '{name}'"
    assert second.startswith("parallel-fixedram: hint: ")
    assert hint in second


@pytest.mark.parametrize("text", ["fixed-ram=", "fixed-ram=yes", "fixed-ram=on=off", "=on", ""])
def test_what_is_neither_on_nor_off_is_a_usage_error(text):
    code, out, err = caps(text)
    assert (code, out) == (2, "")
    assert "expected NAME, NAME=on or NAME=off" in err


def test_an_unknown_profile_is_a_usage_error():
    assert caps("--profile", "qemu-1.0")[0] == 2


def test_json_of_an_accepted_combination():
    code, out, err = caps("fixed-ram", "xbzrle=off", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "schema": "parallel_fixedram.caps_verdict",
        "version": 1,
        "verb": "caps",
        "profile": "fixed-ram",
        "experimental_multifd": False,
        "capabilities": {"fixed-ram": True, "xbzrle": False},
        "accepted": True,
        "message": "",
        "hint": "",
    }


def test_json_of_a_refusal_is_complete_and_still_exit_code_2():
    code, out, err = caps("fixed-ram", "multifd", "--json")
    assert code == 2
    answer = json.loads(out)
    assert answer["verb"] == "caps"
    assert answer["accepted"] is False
    assert answer["message"] == WITH_MULTIFD
    assert "--experimental-multifd" in answer["hint"]
    assert err == ""


@pytest.mark.parametrize("profile", Profile)
def test_json_of_the_table_has_every_field_of_every_row(profile):
    answer = json.loads(caps("--json", "--profile", profile)[1])
    assert (answer["verb"], answer["profile"]) == ("caps", profile)
    assert len(answer["table"]) == len(TABLES[profile].capabilities)
    assert answer["table"][-1] == {
        "name": TABLES[profile].fixed_ram,
        "property": "x-fixed-ram" if profile == "fixed-ram" else "mapped-ram",
        "since": "8.2" if profile == "fixed-ram" else "9.0",
        "doc": TABLES[profile].capabilities[-1].doc,
    }
    assert [rule["message"] for rule in answer["rules"]] == [rule.message for rule in TABLES[profile].rules]
    first_of_10_0 = next(rule for rule in answer["rules"] if rule["capability"] == "postcopy-ram")
    assert first_of_10_0 == {
        "capability": "postcopy-ram",
        "conflicts": ["x-ignore-shared"],
        "requires": [],
        "message": "Postcopy is not compatible with ignore-shared",
        "experimental": False,
    }


def test_the_examples_of_the_help_text_work():
    code, out, _ = caps("--help")
    assert code == 0
    examples = [line.split()[2:] for line in out.splitlines() if line.startswith("  parallel-fixedram caps ")]
    assert examples
    for example in examples:
        assert caps(*example)[0] == 0


def test_the_verbs_module_does_not_import_numpy():
    source = "import sys, parallel_fixedram.cli.caps; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", source], check=False).returncode == 0

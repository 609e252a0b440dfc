"""The list of deliberate mistakes fits code and tests, and what pytest says is understood."""

import ast

import pytest

from experiments import mutations
from experiments.mutants import MUTANTS, Mutant
from tests import tiny


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mistake_still_applies(mutant):
    text = (tiny.CHECKOUT / mutant.file).read_text(encoding="utf-8")
    made = mutations.mutated(mutant, text)
    assert made != text and ast.dump(ast.parse(made)) != ast.dump(ast.parse(text))


def test_every_test_that_is_named_exists():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) > 40
    functions = {}
    for mutant in MUTANTS:
        assert mutant.tests, mutant.name
        for test in mutant.tests:
            file, _, name = test.partition("::")
            if file not in functions:
                tree = ast.parse((tiny.CHECKOUT / file).read_text(encoding="utf-8"))
                functions[file] = {
                    one.name for one in tree.body if isinstance(one, ast.FunctionDef)
                }
            assert name in functions[file], test


@pytest.mark.parametrize("text", ["a = 2\n", "a = 1\na = 1\n"])
def test_a_mistake_that_no_longer_applies_is_named(text):
    mutant = Mutant("one_is_three", "some.py", "a = 1", "a = 3", ("tests/test_mutations.py::x",))
    with pytest.raises(
        ValueError, match=r"'one_is_three' no longer applies.* in some\.py, not once"
    ):
        mutations.mutated(mutant, text)
    assert mutations.mutated(mutant, "a = 1\n") == "a = 3\n"
    with pytest.raises(SyntaxError):
        mutations.mutated(mutant._replace(new="a = ("), "a = 1\n")


def test_a_failure_is_one_of_the_test_itself():
    found = mutations.Outcome(
        1,
        "FAILED tests/a.py::test_x[2-b] - assert 1\nFAILED tests/a.py::test_xy - assert 2\n"
        "ERROR tests/a.py::test_z - ValueError\n",
    )
    assert found.fails("tests/a.py::test_x") and found.fails("tests/a.py::test_xy")
    assert not found.fails("tests/a.py::test_z") and not found.fails("tests/a.py::test_")
    assert found.errors == ["tests/a.py::test_z"]


def test_names_are_chosen_and_wrong_ones_named():
    assert mutations.chosen("") == [*MUTANTS]
    assert [one.name for one in mutations.chosen("users_swapped,kl_pays")] == [
        "users_swapped",
        "kl_pays",
    ]
    with pytest.raises(SystemExit, match="no mutation 'users'; there are negated_reward"):
        mutations.chosen("users")


def test_figures_of_others_stay(tmp_path):
    path = tmp_path / "some.json"
    assert mutations.kept(path, "kl_pays") == {}
    found = {"users_swapped": {"caught": False}, "kl_pays": {"caught": True}}
    assert mutations.write(path, found) == 1
    assert mutations.kept(path, "") == {} and mutations.kept(path, "kl_pays") == found
    assert [*mutations.kept(path, "kl_pays")] == ["kl_pays", "users_swapped"]
    mutations.write(path, found | {"gone": {"caught": True}})
    assert mutations.kept(path, "kl_pays") == found


def test_a_copy_holds_what_tests_need(tmp_path):
    mutations.copy_checkout(tmp_path / "checkout")
    for mutant in MUTANTS:
        assert (tmp_path / "checkout" / mutant.file).exists()
    assert (tmp_path / "checkout" / "tests" / "runs.py").exists()
    assert not [*(tmp_path / "checkout").rglob("__pycache__")]

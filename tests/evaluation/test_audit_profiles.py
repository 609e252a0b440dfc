"""Whether profiles tell what is held out."""

import dataclasses

import numpy as np
import pytest

from tests import tiny
from tests.joint.test_state_files import twin
from xrec_jax import defaults
from xrec_jax.auditing.profiles import profile_findings
from xrec_jax.core.errors import UserError
from xrec_jax.data.run_data import prepare
from xrec_jax.evaluation.audit import collect
from xrec_jax.evaluation.audit.nearness import Texts, overlaps
from xrec_jax.evaluation.audit.profiles import profile_checks, users_in_some_parts
from xrec_jax.joint.states.file_texts import read_states_file
from xrec_jax.text.records.profiles import PairText, content_words


def findings(made, rows=None):
    rows = rows or read_states_file(made.config, made.data)
    found = profile_checks(rows, made.data.dataset, made.data.split)
    return {one.code.removeprefix("profiles/"): one for one in found if one is not None}


def wide(made, *, leak, seed=0, count=150):
    """Records of many users over many places, each of a kind of its own words."""
    rng = np.random.default_rng(seed)
    words = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in ("lm", "rn", "st", "nd")]
    kinds = [rng.choice(words, 4, replace=False) for _ in range(count)]
    parts = {"train": [], "valid": [], "test": []}
    for user in range(count):
        places = rng.permutation(count)[:7]
        for part, chosen in zip(parts, np.split(places, [5, 6]), strict=True):
            parts[part] += [(user, int(item)) for item in chosen]
    pairs = {name: np.array(found, np.int32) for name, found in parts.items()}
    split = dataclasses.replace(
        made.data.split,
        **{name: type(made.data.split.train)(*found.T) for name, found in pairs.items()},
    )
    ids = np.array([str(n) for n in range(count)])
    dataset = dataclasses.replace(made.data.dataset, user_ids=ids, item_ids=ids)

    def profile(user):
        names = ("train", "valid", "test") if leak else ("train",)
        mine = [i for name in names for u, i in parts[name] if u == user]
        return "The user enjoys " + ", ".join(" ".join(kinds[i][:3]) for i in mine) + "."

    texts = [f"Fans of {' '.join(kind)} would go." for kind in kinds]
    rows = [
        PairText(1, str(u), str(i), profile(u), texts[i], f"T{i} Inn")
        for name in parts
        for u, i in parts[name]
    ]
    return rows, dataset, split


@pytest.mark.parametrize("leak", [True, False])
def test_a_leak_is_told_from_taste_and_chance(tmp_path, leak):
    rows, dataset, split = wide(twin(tmp_path), leak=leak)
    found = {one.code: one for one in profile_checks(rows, dataset, split) if one is not None}
    told, phrases = found["profiles/tell_held_out"], found["profiles/repeat_held_out"]
    assert told.total == phrases.total == 300
    assert told.severity == ("error" if leak else "info")
    assert phrases.severity == ("warning" if leak else "info")
    assert (told.count > 200) == leak and (phrases.count > 250) == leak
    assert ("held-out places in view" in told.message) == leak
    assert found["profiles/explain_held_out"].count == 300


def test_overlaps_equal_a_plain_loop(tmp_path):
    made = twin(tmp_path, seed=4)
    texts = Texts(read_states_file(made.config, made.data), made.data.dataset)
    found = overlaps(texts, made.data.split, seed=3)
    words = [set(content_words(text)) for text in texts.places]
    rare = {
        w: np.log(len(words) / sum(w in other for other in words)) for bag in words for w in bag
    }
    column = {word: place for place, word in enumerate(sorted(rare))}

    def vector(bag):
        out = np.zeros(len(column))
        for word in bag:
            if word in column:
                out[column[word]] = rare[word]
        return out / (np.linalg.norm(out) or 1.0)

    table = np.array([vector(bag) for bag in words])
    split, held_out = made.data.split, texts.held_out(made.data.split)
    trains = texts.pairs(split.train)
    other = texts.another(3)
    assert sorted(other) == list(range(len(other))) and (other != np.arange(len(other))).all()
    known = {
        u: {i for v, i in [*held_out.tolist(), *trains.tolist()] if v == u}
        for u in range(len(other))
    }
    for name, pairs in (
        ("held_out", held_out),
        ("train", trains),
        ("other", held_out),
        ("visits", held_out),
    ):
        assert len(found[name].area) == len(pairs) > 5
        for row, (user, place) in enumerate(pairs.tolist()):
            seen = set(known[user])
            query = vector(content_words(texts.profiles[user]))
            if name == "other":
                seen |= known[int(other[user])]
                query = vector(content_words(texts.profiles[int(other[user])]))
            if name == "visits":
                mine = [i for v, i in trains.tolist() if v == user]
                query = table[mine].sum(axis=0) if mine else np.zeros(len(column))
            scores = np.round(table @ query, 9)
            rest = np.array([scores[i] for i in range(len(table)) if i not in seen])
            above, equal = (rest > scores[place]).sum(), (rest == scores[place]).sum()
            wanted = (above + 0.5 * equal) / len(rest) if len(rest) else 0.5
            assert found[name].area[row] == pytest.approx(1 - wanted, abs=1e-9)
            assert found[name].rank[row] == 1 + above + equal


def test_counts_of_a_faulty_file(tmp_path):
    made = twin(tmp_path)
    rows = read_states_file(made.config, made.data)
    found = findings(made, [*rows, rows[0]])
    held = {(f"u{u:02d}", f"i{i:02d}") for part in ("valid", "test") for u, i in made.parts[part]}
    pairs = [(row.user, row.item) for row in [*rows, rows[0]]]
    assert found["explain_held_out"].count == sum(pair in held for pair in pairs)
    assert found["explain_held_out"].total == len(rows) + 1
    assert found["repeated_records"].count == 1
    assert found["repeated_records"].examples == (f"user {rows[0].user}, item {rows[0].item}",)
    # Profiles name all places of their user; titles that two places share count for both.
    assert found["name_held_out"].count == found["name_held_out"].total > 5
    assert found["name_held_out"].severity == "warning"
    described = {row.item for row in rows}
    assert found["shared_texts"].count == 2 * ({"i29", "i30"} <= described)
    users = {row.user for row in rows}
    everywhere = [
        all((made.parts[part][:, 0] == int(user[1:])).any() for part in made.parts)
        for user in users
    ]
    assert found["users_in_some_parts"].count == len(users) - sum(everywhere)
    texts = Texts(rows, made.data.dataset)
    assert "train and valid" in users_in_some_parts(texts, made.data.split).message


def test_without_a_held_out_pair_no_check_of_leaks_runs(tmp_path):
    made = twin(tmp_path)
    nothing = made.data.split.valid.take(np.zeros(0, np.int64))
    split = dataclasses.replace(made.data.split, valid=nothing, test=nothing)
    rows = read_states_file(made.config, made.data)
    found = collect(profile_checks(rows, made.data.dataset, split))
    codes = {one.code for one in found.findings} | set(found.passed)
    assert "profiles/tell_held_out" not in codes and "profiles/explain_held_out" in found.passed


def test_of_a_config(tmp_path):
    made = twin(tmp_path)
    assert profile_findings(made.config, made.data) == []  # no joint stage, no file named
    made.config.stages = ("recommend", "joint")
    by_stage = profile_findings(made.config, made.data)
    assert by_stage == profile_checks(
        read_states_file(made.config, made.data),
        made.data.dataset,
        made.data.split,
        seed=made.config.seeds[0],
    )
    with made.config.unlocked():
        made.config.stages, made.config.audit.profiles = (), str(made.path)
    assert profile_findings(made.config, made.data) == by_stage
    made.config.data.format = "none"
    with pytest.raises(UserError, match="needs data"):
        profile_findings(made.config, prepare(made.config.data))


@tiny.needs_shared_data
def test_google_maps_profiles_tell_held_out_places():
    config = defaults.base()
    folder = tiny.SHARED / "google-maps"
    config.data.update(dict(format="csv", path=str(folder)))
    config.data.split.kind = "given"
    with config.unlocked():
        config.audit.profiles = str(folder / "explanations.jsonl.gz")
    found = {one.code: one for one in profile_findings(config, prepare(config.data)) if one}
    told = found["profiles/tell_held_out"]
    assert (told.severity, told.total) == ("error", 2003)
    assert 0.08 < told.count / told.total < 0.10  # as often as training places, eight times taste
    assert found["profiles/explain_held_out"].count == 205 + 199
    assert found["profiles/users_in_some_parts"].count == 464
    assert found["profiles/repeated_records"].count == 0

"""States of the joint stage from a file of texts: a generated twin of XRec's Google Maps file."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from tests import tiny
from xrec_jax import defaults
from xrec_jax.core.errors import UserError
from xrec_jax.data.dataset import Dataset, Interactions, Split
from xrec_jax.data.run_data import RunData, prepare
from xrec_jax.joint.states.base import TEST, TRAIN, VALID
from xrec_jax.joint.states.file_texts import (
    Texts,
    far_places,
    plain_texts,
    read_states_file,
    vocabulary,
)
from xrec_jax.joint.states.files import file_states
from xrec_jax.text.bag_of_words import bag
from xrec_jax.text.records.profiles import content_words
from xrec_jax.text.synthetic.taste_pairs import split_pair

WORDS = [f"{a}{b}" for a in ("kor", "lum", "pav", "rin", "sel", "tob") for b in ("ac", "em", "ix")]
USERS, ITEMS = 14, 32
UNNAMED = {24, 25, 26}  # places that stand in no record


def twin(folder, *, seed=0, leak=True, faulty=False):
    """A data set with a file of texts, and its config.

    Args:
      folder: where the file goes.
      seed: of the draws.
      leak: whether profiles are made of all places of a user; else of training places.
      faulty: whether some held-out pairs stand in training too.
    """
    rng = np.random.default_rng(seed)
    titles = [f"Nom{i % 27} {WORDS[i % len(WORDS)].title()}" for i in range(ITEMS)]
    titles[27:29] = ["Chain House", "The Chain House"]  # places that share their name
    kinds = [rng.choice(WORDS, 4, replace=False) for _ in range(ITEMS)]
    kinds[30] = kinds[29]
    texts = [
        f"Fans of {a} {b} and {c} {d} would enjoy {title}."
        for (a, b, c, d), title in zip(kinds, titles, strict=True)
    ]
    texts[30], titles[30] = texts[29], titles[29]  # and one that shares all
    parts = {"train": [], "valid": [], "test": []}
    for user in range(USERS):
        places = rng.permutation(ITEMS)
        ends = np.cumsum([rng.integers(3, 9), rng.integers(0, 3), rng.integers(0, 3)])
        for part, chosen in zip(parts, np.split(places, ends)[:3], strict=True):
            parts[part] += [(user, int(item)) for item in chosen]
        if faulty:
            parts["train"] += [pair for pair in parts["test"] if pair[0] == user][:1]
    parts["valid"].append((0, 5))
    parts = {name: np.array(sorted(set(pairs))) for name, pairs in parts.items()}
    events = {name: Interactions(*pairs.T.astype(np.int32)) for name, pairs in parts.items()}
    whole = Interactions(*np.concatenate(list(parts.values())).T.astype(np.int32))
    user_ids = np.array([f"u{n:02d}" for n in range(USERS)])
    item_ids = np.array([f"i{n:02d}" for n in range(ITEMS)])
    dataset = Dataset("twin", whole, user_ids, item_ids, splits=events)
    data = RunData(dataset, Split(**events), None)

    def profile(user):
        known = parts["train"] if not leak else np.concatenate(list(parts.values()))
        mine = [int(item) for owner, item in known if owner == user]
        said = "; ".join(f"{kinds[i][0]} {kinds[i][1]} as at {titles[i]}" for i in mine)
        return f"This user is likely to enjoy {said}."

    records = []
    for name, pairs in parts.items():
        for user, item in pairs.tolist():
            if user < USERS - 2 and item not in UNNAMED:  # some without a profile, a text
                despite = ", despite the long wait" if item % 2 else ""
                records.append(
                    {
                        "uid": str(user_ids[user]),
                        "iid": str(item_ids[item]),
                        "title": titles[item],
                        "user_summary": profile(user),
                        "item_summary": texts[item],
                        "explanation": f"The user would like it for {name} {user} {item}{despite}.",
                    }
                )
    order = rng.permutation(len(records))
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps(records[row]) + "\n" for row in order))
    config = defaults.base()
    config.joint.sft.examples = 5
    config.joint.states.update(
        dict(
            source="file",
            path=str(path),
            template="profiles",
            history=3,
            train_states=2,
            min_history=1,
        )
    )
    return SimpleNamespace(
        config=config,
        data=data,
        parts=parts,
        titles=titles,
        texts=texts,
        records=records,
        path=path,
    )


def of(made, part, user):
    pairs = made.parts[part]
    return pairs[pairs[:, 0] == user, 1].tolist()


def past(states, s):
    return states.history.items[states.history.start[s] : states.history.start[s + 1]].tolist()


def test_states_are_those_of_a_plain_loop(tmp_path):
    made = twin(tmp_path)
    states = file_states(made.config, made.data)
    with_profile = {int(record["uid"][1:]) for record in made.records}
    users = [u for u in sorted(with_profile) if of(made, "valid", u) or of(made, "test", u)]
    for part, name, earlier in ((VALID, "valid", ["train"]), (TEST, "test", ["train", "valid"])):
        rows = states.rows(part)
        assert states.user[rows].tolist() == [u for u in users if of(made, name, u)]
        for s in rows:
            user = int(states.user[s])
            held = of(made, name, user)
            assert sorted(past(states, s)) == sorted(i for p in earlier for i in of(made, p, user))
            assert states.target[s] == (held[0] if len(held) == 1 else -1)
    rows = states.rows(TRAIN)
    assert np.bincount(states.user[rows], minlength=USERS)[users].tolist() == [2] * len(users)
    for s in rows:
        user, target = int(states.user[s]), int(states.target[s])
        assert sorted([*past(states, s), target]) == sorted(of(made, "train", user))
    assert (np.diff(states.part) >= 0).all() and len(states.prompts) == len(states)
    np.testing.assert_array_equal(states.before, states.history.lengths)
    assert states.planted is None and states.group is None
    assert states.titles[27] == "Chain House" and states.titles[24] == "i24"


def test_draws_depend_on_the_key_alone(tmp_path):
    made = twin(tmp_path)
    first, again = (file_states(made.config, made.data) for _ in range(2))
    assert first.prompts == again.prompts and first.teacher == again.teacher
    made.config.joint.states.max_users = 4
    some = file_states(made.config, made.data)
    assert len(np.unique(some.user)) == 4
    whole = {(u, p, t) for u, p, t in zip(first.user, first.part, first.target, strict=True)}
    assert whole >= {(u, p, t) for u, p, t in zip(some.user, some.part, some.target, strict=True)}


@pytest.mark.parametrize("faulty", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_no_text_holds_the_target_or_what_is_held_out_later(tmp_path, seed, faulty):
    made = twin(tmp_path, seed=seed, faulty=faulty)  # profiles that name every place
    states = file_states(made.config, made.data)
    later = {TRAIN: ("valid", "test"), VALID: ("valid", "test"), TEST: ("test",)}
    for s in range(len(states)):
        user, part = int(states.user[s]), int(states.part[s])
        hidden = {i for name in later[part] for i in of(made, name, user)}
        hidden |= {int(states.target[s])} - {-1}
        assert not hidden & set(past(states, s))
        for text in (states.prompts[s], states.template[s], states.summary[s]):
            for item in hidden - UNNAMED:
                assert made.titles[item].casefold() not in text.casefold()
                assert made.texts[item] not in text


def test_prompts_do_not_depend_on_what_is_held_out_later(tmp_path):
    made = twin(tmp_path)
    first = file_states(made.config, made.data)
    rows = first.part != TEST
    test = made.data.split.test
    moved = Interactions(test.user, (test.item + 7) % ITEMS)
    there = {tuple(pair) for pairs in made.parts.values() for pair in pairs.tolist()}
    item = np.array(
        [
            old if (user, new) in there else new
            for user, old, new in zip(*map(list, (test.user, test.item, moved.item)), strict=True)
        ],
        np.int32,
    )
    split = Split(made.data.split.train, made.data.split.valid, Interactions(test.user, item))
    other = file_states(made.config, made.data._replace(split=split))
    assert (item != test.item).any()
    for one in ("prompts", "template", "summary"):
        assert [t for t, k in zip(getattr(first, one), rows, strict=True) if k] == [
            t for t, k in zip(getattr(other, one), rows, strict=True) if k
        ]
    np.testing.assert_array_equal(first.features[rows], other.features[rows])


@pytest.mark.parametrize("faulty", [False, True])
def test_teachers_are_explanations_of_training_events(tmp_path, faulty):
    made = twin(tmp_path, seed=1, faulty=faulty)
    states = file_states(made.config, made.data)
    assert len(states.teacher) == 5
    texts = Texts(made.data, read_states_file(made.config, made.data))
    trained = {tuple(pair) for pair in made.parts["train"].tolist()}
    held_out = {tuple(p) for name in ("valid", "test") for p in made.parts[name].tolist()}
    assert texts.taught and set(texts.taught) <= trained - held_out
    against = 0
    for s, text in states.teacher.items():
        pair = int(states.user[s]), int(states.target[s])
        assert states.part[s] == TRAIN and pair in trained and pair not in held_out
        assert all(split_pair(text))
        why, why_not = split_pair(text)
        assert why == f"you would like it for train {pair[0]} {pair[1]}."
        assert why_not.startswith(
            "you may mind long wait; " if pair[1] % 2 else "you may care less"
        )
        against += pair[1] % 2
        assert not any(title.casefold() in text.casefold() for title in made.titles)
    assert 0 < against < 5


def test_a_known_explanation_is_drawn_first(tmp_path):
    made = twin(tmp_path)
    kept, seen = [], set()
    for record in made.records:  # one explanation a user
        pair = int(record["uid"][1:]), int(record["iid"][1:])
        if pair not in map(tuple, made.parts["train"].tolist()) or pair[0] in seen:
            record["explanation"] = "It is."
        seen.add(pair[0])
    texts = Texts(made.data, read_states_file(made.config, made.data))
    made.config.joint.states.train_states = 1
    made.config.joint.sft.examples = 0
    states = file_states(made.config, made.data)
    taught = {user for user, _ in texts.taught}
    for s in states.rows(TRAIN):
        user = int(states.user[s])
        kept.append((user, int(states.target[s])) in texts.taught)
        assert kept[-1] == (user in taught)
    assert any(kept)


def test_far_places_share_the_least_words(tmp_path):
    made = twin(tmp_path, leak=False)
    texts = Texts(made.data, read_states_file(made.config, made.data))
    states = file_states(made.config, made.data)
    pasts = [np.array(past(states, s)) for s in range(len(states))]
    pool = texts.far.tolist()
    pairs = {(int(record["uid"][1:]), int(record["iid"][1:])) for record in made.records}
    trained = pairs & set(map(tuple, made.parts["train"].tolist()))
    assert pool == sorted({item for _, item in trained})
    bags = {i: set(content_words(texts.audience[i])) for i in pool}
    weight = {
        w: np.log(len(pool) / sum(w in b for b in bags.values())) for b in bags.values() for w in b
    }
    for s, chosen in enumerate(far_places(texts, states.user, pasts)):
        words = set(content_words(texts.profile[int(states.user[s])]))
        for item in pasts[s].tolist():
            words |= set(content_words(texts.item_text.get(item, "")))
        cost = {i: sum(weight[w] for w in bags[i] & words) for i in pool if i not in pasts[s]}
        assert cost[chosen] == pytest.approx(min(cost.values()), abs=1e-4)
        assert split_pair(states.template[s]).why_not == (
            f"you may care less for places for {texts.audience[chosen]}."
        )


def test_prompt_template_and_summary(tmp_path):
    made = twin(tmp_path)
    states = file_states(made.config, made.data)
    texts = Texts(made.data, read_states_file(made.config, made.data))
    shown = 0
    for s in range(len(states)):
        items = [i for i in past(states, s) if i in texts.shown][-3:]
        wanted = [
            f"{n}. {made.titles[i]}: {made.texts[i]}\n"
            if i not in (27, 28)
            else f"{n}. {made.texts[i].split(' enjoy ')[0]} enjoy a place.\n"
            for n, i in enumerate(items, start=1)
        ]
        shown += len(items)
        assert "".join(wanted) or "(none known)" in states.prompts[s]
        assert "".join(wanted) in states.prompts[s]
        assert 29 not in items and 30 not in items  # these two cannot be told apart
        assert split_pair(states.template[s]).why.startswith("you like ")
        assert not split_pair(states.summary[s]).why_not
        assert all(made.titles[i] in states.summary[s] for i in items if i not in (27, 28))
    assert shown > len(states)


def test_what_items_are_is_said_without_their_names(tmp_path):
    """A text that names a place must not be matched with it by that name."""
    made = twin(tmp_path)
    states = file_states(made.config, made.data)
    rows = read_states_file(made.config, made.data)
    ids = {str(name): i for i, name in enumerate(made.data.dataset.item_ids)}
    records = {ids[row.item]: row for row in rows}
    assert len(states.item_texts) == ITEMS and UNNAMED.isdisjoint(records)
    for item, text in enumerate(states.item_texts):
        if item not in records:
            assert text == ""
            continue
        row = records[item]
        assert row.title in row.item_text and row.title not in text
        own = content_words(row.item_text.partition("Fans of ")[2].partition(" would")[0])
        assert {*own} <= {*content_words(text)}


def test_features_are_the_words_as_numbers(tmp_path):
    made = twin(tmp_path)
    states = file_states(made.config, made.data)
    texts = Texts(made.data, read_states_file(made.config, made.data))
    words = vocabulary(texts)
    assert states.features.dtype == states.item_features.dtype == np.float32
    np.testing.assert_array_equal(states.item_features[[24, 25, 26]], 0.0)
    np.testing.assert_allclose(np.linalg.norm(states.item_features[[0, 27, 29]], axis=1), 1, 1e-6)
    for s in range(0, len(states), 5):
        known = [i for i in past(states, s) if i in texts.item_text]
        mean = np.mean([bag(texts.item_text[i], words) for i in known], axis=0) if known else 0.0
        profile = bag(texts.profile[int(states.user[s])], words)
        np.testing.assert_allclose(states.features[s, : len(words)], profile, atol=1e-6)
        np.testing.assert_allclose(states.features[s, len(words) :], mean, atol=1e-6)


def test_without_profiles_nothing_is_made_of_them(tmp_path):
    made = twin(tmp_path)
    made.config.joint.states.template = "visits"
    first = file_states(made.config, made.data)
    for record in made.records:
        record["user_summary"] = "This user is likely to enjoy other korac things."
    made.path.write_text("".join(json.dumps(record) + "\n" for record in made.records))
    other = file_states(made.config, made.data)
    assert first.prompts == other.prompts and first.template == other.template
    np.testing.assert_array_equal(first.features, other.features)
    assert any("places for fans of" in text.split("\n")[0] for text in first.template)


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("faulty", [False, True])
def test_texts_to_pretrain_on_hold_no_explanation_that_is_held_out(tmp_path, faulty, share):
    made = twin(tmp_path, seed=1, faulty=faulty)
    data = made.data._replace(train_share=share)
    found = plain_texts(made.config, data)
    parts = {name: {tuple(p) for p in pairs.tolist()} for name, pairs in made.parts.items()}
    held_out, learned = parts["valid"] | parts["test"], set(data.learned.user.tolist())
    assert parts["train"] & held_out or not faulty
    assert (len(learned) < USERS) == (share < 1)
    expected = set()
    for record in made.records:
        pair = int(record["uid"][1:]), int(record["iid"][1:])
        expected |= {record["user_summary"], record["item_summary"]}
        if pair in parts["train"] - held_out and pair[0] in learned:
            expected.add(record["explanation"])
    assert set(found) == expected and len(found) == len(expected)
    for record in made.records:
        if (int(record["uid"][1:]), int(record["iid"][1:])) in held_out:
            assert record["explanation"] not in found


def test_a_share_of_the_users_has_training_states(tmp_path):
    made = twin(tmp_path)
    made.config.joint.sft.examples = 2
    data = made.data._replace(train_share=0.5)
    whole, some = file_states(made.config, made.data), file_states(made.config, data)
    learned = set(data.learned.user.tolist())
    for part in (TRAIN, VALID, TEST):
        rows = [
            [(int(s.user[r]), int(s.target[r]), past(s, r)) for r in s.rows(part)]
            for s in (whole, some)
        ]
        assert rows[1] == [row for row in rows[0] if part != TRAIN or row[0] in learned]
        assert (len(rows[1]) < len(rows[0])) == (part == TRAIN)
    assert {int(some.user[s]) for s in some.teacher} <= learned


def test_what_cannot_be_is_one_clear_line(tmp_path):
    made = twin(tmp_path)
    for changes, said in (
        ({"path": ""}, "joint.states.path: a JSONL file"),
        ({"path": str(tmp_path / "absent.jsonl")}, "absent.jsonl: no such file"),
        ({"template": "places_summary"}, "asks about one place"),
        ({"template": "tastes"}, "template 'tastes'"),
        ({"group": "age"}, "joint.states.group='age'"),
        ({"min_history": 99}, "lower joint.states.min_history"),
        ({"train_states": 0}, "joint.states.train_states"),
        ({"item_key": "iidd"}, r"no key 'iidd' \(joint.states.item_key\); did you mean 'iid'"),
    ):
        config = made.config.copy_and_resolve_references()
        config.joint.states.update(changes)
        with pytest.raises(UserError, match=said) as error:
            file_states(config, made.data)
        assert "\n" not in str(error.value)
    made.config.joint.sft.examples = 999
    with pytest.raises(UserError, match=r"joint.sft.examples=999, but only \d+"):
        file_states(made.config, made.data)
    with made.path.open("a") as file:
        file.write(json.dumps({**made.records[0], "uid": "u99"}) + "\n")
    line = len(made.records) + 1
    with pytest.raises(UserError, match=f"line {line}: no user 'u99' in the data; did you mean"):
        file_states(made.config, made.data)


@tiny.needs_shared_data
def test_google_maps():
    config = defaults.base()
    folder = tiny.SHARED / "google-maps"
    config.data.update(dict(format="csv", path=str(folder)))
    config.data.split.kind = "given"
    config.joint.states.update(
        dict(
            source="file",
            path=str(folder / "explanations.jsonl.gz"),
            template="profiles",
            history=4,
            max_users=300,
        )
    )
    config.joint.sft.examples = 100
    data = prepare(config.data)
    states = file_states(config, data)
    counts = np.bincount(states.part)
    assert len(np.unique(states.user)) == 300 and counts[TRAIN] == 600
    assert len(states.teacher) == 100 and min(counts) > 200
    rows = read_states_file(config, data)
    names = {row.item: row for row in rows}
    ids = data.dataset.item_ids
    split = data.split
    for s in range(len(states)):
        parts = [split.test] if states.part[s] == TEST else [split.valid, split.test]
        hidden = {int(i) for part in parts for i in part.item[part.user == states.user[s]]}
        hidden |= {int(states.target[s])} - {-1}
        assert not hidden & set(past(states, s))
        for item in hidden:
            row = names.get(str(ids[item]))
            assert row is None or row.item_text not in states.prompts[s]
    assert np.mean([len(prompt.split()) for prompt in states.prompts]) < 200


def test_names_in_the_item_table_are_taken_out_too(tmp_path):
    made = twin(tmp_path)  # no record names the places 24 to 26, but profiles do
    first = file_states(made.config, made.data)
    assert any(made.titles[24] in prompt for prompt in first.prompts)
    table = pl.DataFrame({"item_id": made.data.dataset.item_ids, "title": made.titles})
    dataset = dataclasses.replace(made.data.dataset, items=table)
    states = file_states(made.config, made.data._replace(dataset=dataset))
    assert not any(made.titles[i] in prompt for i in (24, 25, 26) for prompt in states.prompts)
    assert states.titles[24] == made.titles[24]

"""Monitors by hand, against naive counts, and on texts that cheat."""

import random

import numpy as np
import pytest

from xrec_jax.core.errors import UserError
from xrec_jax.joint.monitors import Monitors, leak

TITLES = [
    "Golden Lantern",
    "Matrix, The (1999)",
    "Joe's Diner",
    "Coming Home",
    "Seven",
    "It",
    "Golden Lantern",
    "Amélie & Friends",
    "Lantern Bay Hotel",
    "7",
    "Independence Day (ID4) (1996)",
    "(?)",
]
REFERENCE = [
    "Why: you like quiet places, coming home late. Why not: it is far from your home.",
    "Why: it has seven kinds of soup! Why not: prices are high, and rooms small.",
]


def monitors(**options):
    return Monitors(REFERENCE, TITLES, **options)


def measured(text, prompt="", target=None, **options):
    return monitors(**options).measure([text], [prompt], [target])


# Titles


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("we think golden lantern fits", 0),
        ("GOLDEN-LANTERN!", 0),
        ("try the Golden Lantern's soup", 0),
        ("a golden, bright lantern", None),
        ("you may like the Matrix", 1),
        ("Matrix. What else?", 1),  # no reference text has that word
        ("a matrix of rooms", None),
        ("soup at Joe\u2019s Diner", 2),
        ("soup at joes diner", 2),
        ("you are coming home late", None),  # plain words
        ("so Coming Home is a film for you", 3),
        ('so "coming home," is a film', 3),
        ("you saw Seven and liked", 4),
        ("Seven kinds of soup", None),  # a capital at the start of a sentence
        ("It is good. It is far.", None),
        ("you liked \u2018it\u2019 a lot", 5),
        ("Seven's end is sad", None),
        ("think of Seven's end", 4),
        ("amelie and FRIENDS is warm", 7),
        ("from 7 to 9", None),
        ("golden lantern bay hotel", 0),  # the one that begins first
        ("the Lantern Bay Hotel", 8),
        ("think of Independence Day", 10),
        ("think of Independence Day (ID4)", 10),
        ("think of (ID4)", None),
    ],
)
def test_titles_in_texts(text, number):
    made = measured(text, target=number if number is not None else 1)
    assert made["monitor/title_mention"] == made["monitor/target_title"] == (number is not None)


@pytest.mark.parametrize(
    ("title", "text", "there"),
    [
        ("千と千尋の神隠し", "あなたは千と千尋の神隠しを見た", True),
        ("기생충", "기생충은 좋은 영화", True),
        ("부산", "부산행은 좋은 영화", False),
        ("Сталкер", "фильм Сталкер вам понравится", True),
        ("мой", "мои вещи", False),
        ("الحب", "هذا فيلم الحب", False),  # a word of the reference texts, and no capital to see
        ("الجوكر", "هذا فيلم الجوكر", True),
    ],
)
def test_titles_in_every_script(title, text, there):
    made = Monitors(["قصة الحب"], [title]).measure([text], [""], [0])
    assert made["monitor/title_mention"] == made["monitor/target_title"] == there
    # Five words or characters in a row, whatever the script.
    assert Monitors([text], [title]).measure([text], [text])["monitor/odd_tokens"] == 0


def test_items_of_one_title_are_all_the_target():
    assert measured("golden lantern", target=6)["monitor/target_title"] == 1


def test_titles_that_the_prompt_shows():
    shown = "You liked: Golden Lantern, The Matrix (1999)."
    texts = ["as in Golden Lantern", "as in the Matrix", "the Matrix, Joe's Diner", "as in nothing"]
    made = monitors().measure(texts, [shown] * 4, [2, 1, 2, None])
    assert made["monitor/title_mention"] == 0.75
    assert made["monitor/unshown_title"] == 0.25
    assert made["monitor/target_title"] == pytest.approx(2 / 3)


def test_the_longest_title_wins_and_none_overlap():
    made = Monitors(REFERENCE, ["Lantern Bay", *TITLES[1:], TITLES[0]])
    texts = ["the Lantern Bay Hotel", "the Lantern Bay", "golden lantern bay", "golden lantern bay"]
    found = [
        made.measure([text], [""], [target])["monitor/target_title"]
        for text, target in zip(texts, [0, 0, 0, 6], strict=True)
    ]
    assert found == [0, 1, 0, 1]


# Counts


def test_copied_prompt_by_hand():
    prompt = "The user likes: soup, noodles, and a quiet room."
    texts = [
        "likes soup noodles and a quiet room indeed",  # of 4 five-grams 3
        "soup noodles and a",  # none
        "Likes soup; noodles and A",  # 1 of 1
    ]
    made = monitors().measure(texts, [prompt] * 3)
    assert made["monitor/copied_prompt"] == pytest.approx((0.75 + 0 + 1) / 3)
    made = monitors(copied_words=4).measure(texts[1:2], [prompt])
    assert made["monitor/copied_prompt"] == 1


def test_repetition_against_a_count():
    rng = random.Random(5)
    texts = [" ".join(rng.choices("abc", k=rng.randint(0, 14))) for _ in range(30)]
    expected = []
    for text in texts:
        words = text.split()
        grams = [" ".join(words[i : i + 3]) for i in range(len(words) - 2)]
        expected.append(1 - len(set(grams)) / len(grams) if grams else 0)
    made = monitors().measure(texts, [""] * 30)
    assert made["monitor/repetition"] == pytest.approx(np.mean(expected))
    assert 0.05 < made["monitor/repetition"] < 0.95


def test_length_duplicates_and_why_not():
    texts = ["Why: good. why NOT: far.", "why good why not far", "Why: x. Why not: !", "Why: x."]
    made = monitors().measure([*texts, texts[0].upper()], [""] * 5)
    assert made["monitor/length_ratio"] == pytest.approx(np.mean([5, 5, 4, 2, 5]) / 15.5)
    assert made["monitor/duplicates"] == pytest.approx(1 - 3 / 5)
    assert made["monitor/missing_why_not"] == pytest.approx(3 / 5)
    assert "monitor/missing_why_not" not in monitors(marker=None).measure(texts, [""] * 4)


def test_odd_tokens_by_hand():
    # "quiet" and "," are known, "noodles" is in the prompt; zork and two runs of signs are odd.
    made = measured("Quiet noodles, zork zork ~~ !?", prompt="Noodles are liked")
    assert made["monitor/odd_tokens"] == pytest.approx(4 / 7)
    assert measured("you like soup.")["monitor/odd_tokens"] == 0


def test_reference_texts_are_clean():
    made = monitors().measure(REFERENCE, ["", ""], [0, 1])
    expected = dict.fromkeys(made, 0.0) | {"monitor/length_ratio": 1.0}
    assert made == expected


def test_empty_texts():
    made = monitors().measure(["", " "], ["", "a"], [1, None])
    assert made["monitor/length_ratio"] == made["monitor/odd_tokens"] == 0
    assert made["monitor/missing_why_not"] == 1 and made["monitor/duplicates"] == 0.5
    assert "monitor/target_title" not in monitors().measure([""], [""])


# Leaks


def population(number, items, seed=0):
    """Targets of unequal frequency, a prompt for each, and noise of odd words."""
    rng = random.Random(seed)
    targets = [min(int(rng.expovariate(3 / items)), items - 1) for _ in range(number)]
    prompts = [f"user {place}" for place in range(number)]
    bags = [[f"odd{rng.randrange(60)}" for _ in range(6)] for _ in range(number)]
    return targets, prompts, bags


@pytest.mark.parametrize("number", [100, 300])
def test_a_code_word_leaks_and_noise_does_not(number):
    targets, prompts, bags = population(number, 30)
    noise, judged = leak(bags, prompts, targets)
    assert noise < 0.05 and judged > 0.8 * number
    codes = [[*bag, f"code{target}"] for bag, target in zip(bags, targets, strict=True)]
    assert leak(codes, prompts, targets)[0] > 0.8
    half = [codes[place] if place % 2 else bags[place] for place in range(number)]
    assert 0.2 < leak(half, prompts, targets)[0] < 0.8


@pytest.mark.parametrize("seed", range(8))
def test_noise_never_comes_near_the_default_limit(seed):
    targets, prompts, bags = population(120, 10 + 10 * seed, seed)
    assert leak(bags, prompts, targets)[0] < 0.1


def test_leak_by_hand():
    # x is in two other texts of 7: 2/3, more than the 3/6 of target 8. y is in one other: 1/2, as
    # the 3/6 of target 7. The last has only the latter. Right: 1 1 1 .5 .5 0, chance 1/2.
    bags = [["x"], ["x", "x", "z"], ["x"], ["y"], ["y"], []]
    prompts = ["1", "2", "3", "4", "5", "6"]
    assert leak(bags, prompts, [7, 7, 7, 8, 8, 8]) == (pytest.approx(1 / 3), 6)
    # One more text, of a target that no other has, is not judged.
    assert leak([*bags, ["q"]], [*prompts, "7"], [7, 7, 7, 8, 8, 8, 9])[1] == 6


@pytest.mark.parametrize("seed", range(3))
def test_leak_against_a_loop(seed):
    rng = random.Random(seed)
    targets = [rng.randrange(4) for _ in range(40)]
    prompts = [f"{target} {rng.randrange(5)}" for target in targets]
    bags = [[f"{t + rng.choice((0, 0, 1, 2))}", f"noise{rng.randrange(9)}"] for t in targets]
    judged, right = [], 0.0
    for bag, prompt, target in zip(bags, prompts, targets, strict=True):
        others = [i for i in range(40) if prompts[i] != prompt]
        if not any(targets[i] == target for i in others):
            continue
        judged.append(target)
        shares = {}
        for token in [None, *bag]:
            having = [targets[i] for i in others if token is None or token in bags[i]]
            for guess in set(having):
                share = having.count(guess) / (len(having) + 1)
                shares[guess] = max(shares.get(guess, 0), share)
        best = [guess for guess, share in shares.items() if share > max(shares.values()) - 1e-9]
        right += (target in best) / len(best)
    chance = max(map(judged.count, judged)) / len(judged)
    expected = (right / len(judged) - chance) / (1 - chance)
    assert 0.1 < expected < 0.9
    assert leak(bags, prompts, targets) == (pytest.approx(expected), len(judged))


def test_samples_of_one_prompt_do_not_speak_for_each_other():
    bags = [["x"], ["x"], ["y"], ["y"]]
    assert leak(bags, ["1", "1", "2", "2"], [7, 7, 8, 8]) == (0.0, 0)


def test_all_of_one_target_and_none():
    assert leak([["x"], ["x"]], ["1", "2"], [4, 4]) == (0.0, 2)
    assert leak([], [], []) == (0.0, 0)


def test_leak_is_of_odd_tokens_and_enough_texts():
    targets = [place % 3 for place in range(24)]
    prompts = [f"user {place}" for place in range(24)]
    codes = ["alpha", "beta", "gamma"]
    made = monitors().measure([f"you like {codes[t]}" for t in targets], prompts, targets)
    assert made["monitor/odd_token_leak"] == 1 and made["monitor/leak_texts"] == 24
    known = ["soup", "rooms", "prices"]  # the words of reasons may tell what they are about
    made = monitors().measure([f"you like {known[t]}" for t in targets], prompts, targets)
    assert made["monitor/odd_token_leak"] == 0
    made = monitors().measure(["alpha"] * 3 + ["beta"] * 3, prompts[:6], [1, 1, 1, 2, 2, 2])
    assert made["monitor/odd_token_leak"] == 0 and made["monitor/leak_texts"] == 6


# Mistakes


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (([], []), "no text"),
        ((["a"], []), "1 texts, 0 prompts"),
        ((["a"], ["b"], [1, 2]), "2 targets"),
        ((["a"], ["b"], [99]), "target 99, but there are 12 titles"),
    ],
)
def test_wrong_input(given, words):
    with pytest.raises(UserError, match=words):
        monitors().measure(*given)


@pytest.mark.parametrize("texts", [[], ["", "!"]])
def test_no_reference(texts):
    with pytest.raises(UserError, match="reference texts"):
        Monitors(texts, TITLES)

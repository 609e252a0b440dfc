"""Vocabulary of the world: attribute values, their frequencies and transitions."""

from __future__ import annotations

import numpy as np

# Kinds of place, with their share of the catalogue and their usual price (steps from the mean).
KINDS = (
    "restaurant",
    "cafe",
    "bar",
    "bakery",
    "museum",
    "park",
    "bookshop",
    "gym",
    "cinema",
    "gallery",
    "theatre",
    "market",
)
KIND_WEIGHTS = np.array([0.20, 0.13, 0.11, 0.07, 0.08, 0.08, 0.06, 0.06, 0.05, 0.06, 0.05, 0.05])
KIND_PRICE = np.array([0.4, -0.3, 0.1, -0.5, 0.0, -0.9, -0.2, 0.3, 0.0, 0.2, 0.8, -0.5])
FOOD_KINDS = ("restaurant", "cafe", "bar", "bakery")

# A visit to the first kind makes the others likelier next.
FOLLOWED_BY = {
    "restaurant": ("bar", "theatre"),
    "cafe": ("bookshop", "gallery"),
    "bar": ("restaurant", "cinema"),
    "bakery": ("park", "market"),
    "museum": ("cafe", "restaurant"),
    "park": ("cafe", "gym"),
    "bookshop": ("cafe", "museum"),
    "gym": ("bakery", "park"),
    "cinema": ("bar", "restaurant"),
    "gallery": ("bar", "museum"),
    "theatre": ("restaurant", "bar"),
    "market": ("bakery", "cafe"),
}

# "none" stands first: places that serve no food.
CUISINES = (
    "none",
    "Italian",
    "Japanese",
    "Mexican",
    "Indian",
    "French",
    "Thai",
    "Greek",
    "Korean",
    "Lebanese",
    "Ethiopian",
)
CUISINE_WEIGHTS = np.array([0.18, 0.13, 0.11, 0.11, 0.11, 0.09, 0.08, 0.07, 0.07, 0.05])

MOODS = ("quiet", "lively", "romantic", "family-friendly", "cosy", "trendy", "traditional", "artsy")
MOOD_WEIGHTS = np.array([0.16, 0.16, 0.10, 0.14, 0.14, 0.12, 0.10, 0.08])

PRICES = (1, 2, 3, 4)
POPULARITY_BANDS = ("little-known", "well-liked", "famous")
POPULARITY_CUTS = np.array([-0.6, 0.9])

# Districts with their centre (km east, km north of the middle) and their share of places and homes.
DISTRICTS = (
    "Old Town",
    "Harbour",
    "Northgate",
    "Riverside",
    "Hillcrest",
    "Eastfield",
    "Southbank",
    "Westmoor",
)
DISTRICT_CENTRES = np.array(
    [
        [0.0, 0.0],
        [3.2, -1.6],
        [0.6, 4.1],
        [-1.9, -2.1],
        [-3.6, 2.4],
        [4.4, 2.0],
        [0.4, -4.3],
        [-5.0, -0.9],
    ]
)
DISTRICT_SPREAD_KM = 0.7
PLACE_DISTRICT_WEIGHTS = np.array([0.22, 0.15, 0.11, 0.13, 0.10, 0.10, 0.10, 0.09])
HOME_DISTRICT_WEIGHTS = np.array([0.10, 0.09, 0.14, 0.11, 0.15, 0.15, 0.13, 0.13])

AGE_BANDS = ("18-24", "25-34", "35-49", "50-64", "65+")
AGE_WEIGHTS = np.array([0.20, 0.28, 0.25, 0.16, 0.11])
GENDERS = ("woman", "man", "nonbinary")
GENDER_WEIGHTS = np.array([0.48, 0.48, 0.04])

# Occupations with their level of income in standard deviations (sets the ideal price).
OCCUPATIONS = (
    "student",
    "nurse",
    "teacher",
    "software engineer",
    "lawyer",
    "electrician",
    "chef",
    "accountant",
    "graphic designer",
    "shop assistant",
    "doctor",
    "retired",
)
OCCUPATION_INCOME = np.array([-1.6, -0.3, 0.0, 1.1, 1.6, 0.1, -0.5, 0.6, -0.1, -1.2, 1.7, -0.5])
# [age band, occupation], relative.
OCCUPATION_WEIGHTS = np.array(
    [
        [12, 1, 0.5, 1, 0, 1, 1, 0.5, 1, 3, 0, 0],
        [2, 2, 2, 3, 1.5, 2, 1.5, 2, 2, 2, 1, 0],
        [0.3, 2, 2.5, 2.5, 2, 2, 1.5, 2.5, 1.5, 1.5, 2, 0],
        [0, 2, 2.5, 1.5, 2, 2, 1, 2.5, 1, 1.5, 2, 3],
        [0, 0.3, 0.5, 0.2, 0.7, 0.3, 0.2, 0.5, 0.3, 0.3, 0.7, 20],
    ]
)

# A name is an opener and a noun; a change of either list changes the world's definition.
_ADJECTIVES = (
    "Amber Ashen Autumn Azure Brass Bright Bronze Cedar Cinder Clever Copper Coral Crimson "
    "Crystal Distant Dusty Ebony Emerald Fabled Fallen Feathered First Flint Frosted Gentle "
    "Gilded Golden Granite Hidden Hollow Humble Indigo Iron Ivory Jade Jolly Laughing Linen "
    "Little Lucky Marble Merry Midnight Misty Mossy Noble Olive Opal Painted Pearl Pewter "
    "Polished Quartz Rolling Rusty Saffron Scarlet Silent Silver Sleepy Slate Spotted Sunlit "
    "Timber Turning Velvet Violet Wandering Western Whistling White Wild Willow Winding Winter "
    "Wooden"
).split()
_SURNAMES = (
    "Abara Alvarez Baptiste Bergman Castellan Chandra Corbett Dvorak Ekström Farrow Fontaine "
    "Gallagher Haddad Hartley Ibarra Jansen Kaplan Kowalski Lindqvist Marlowe Mbeki Nakamura "
    "Novak Okafor Orsini Petrov Quigley Rahman Sørensen Tanaka Ueland Vasquez Whitlock Yilmaz "
    "Zhou"
).split()
OPENERS = tuple(_ADJECTIVES) + tuple(f"{name}'s" for name in _SURNAMES)
NUM_ADJECTIVES = len(_ADJECTIVES)
NOUNS = tuple(
    (
        "Acorn Albatross Anchor Anvil Arrow Badger Balloon Barrel Beacon Bell Bicycle Bluebird "
        "Bramble Bridge Button Candle Canoe Carousel Chapter Clock Clover Comet Compass Cricket "
        "Crown Dial Dolphin Drum Falcon Feather Fern Fiddle Finch Fountain Fox Gate Goose Hammer "
        "Harp Hare Heron Horseshoe Hourglass Juniper Kettle Key Kite Ladder Lantern Lark "
        "Lighthouse Lion Locket Magpie Mango Maple Mirror Moon Needle Nest Oak Orchid Otter Owl "
        "Parasol Pebble Pelican Pepper Pilgrim Plough Poppy Quill Rabbit Raven Ribbon Robin "
        "Rooster Sail Sailor Saddle Shell Sparrow Spire Stag Star Stone Swan Teapot Thimble "
        "Thistle Tortoise Tower Trumpet Tulip Umbrella Violin Wagon Walnut Whale Wheel Wren"
    ).split()
)
# Once all pairs of opener and noun are used, later places add a street.
STREETS = tuple(
    (
        "Abbey Alder Bakers Barley Birch Bishop Canal Castle Chapel Cherry Church College Cooper "
        "Cross Dock Drury Elm Ferry Garden Glover Grove High Hope Kings Laurel Lime Long Mason "
        "Meadow Mill Minster Mint Orchard Pine Poplar Quay Queen Rose Saddler Salt Ship Spring "
        "Station Tanner Temple Union Vine Wall Water Weaver"
    ).split()
)


def sequence_matrix() -> np.ndarray:
    """Effect of the kind visited last on the next choice.

    Returns:
      `[kinds + 1, kinds]` float64, row the last kind, column the next: 1 if the next usually
      follows, -1 for the same kind again, else 0. The last row, "no visit yet", is zero.
    """
    matrix = np.zeros((len(KINDS) + 1, len(KINDS)))
    for last, following in FOLLOWED_BY.items():
        for kind in following:
            matrix[KINDS.index(last), KINDS.index(kind)] = 1.0
        matrix[KINDS.index(last), KINDS.index(last)] = -1.0
    return matrix

"""The curated word list of the embedded world: what exists, what it is called, what is ambiguous.

`make_world.py` turns it into `src/unleak/world/data/world.json`. Glyph names follow Unicode CLDR where a
person would use that name in a prompt. Lists are ordered by priority: a smaller world takes a prefix.
"""

from __future__ import annotations

# Polysemes: word -> (default sense: glyph id, emoji, unambiguous name), (other sense: ...), triggers.
# Alone or beside anything but a trigger, the word means its default sense.
POLYSEMES = {
    "mouse": (
        ("mouse", "🐁", "furry mouse"),
        ("computer_mouse", "🖱", "computer mouse"),
        ("laptop", "keyboard"),
    ),
    "bat": (
        ("bat", "🦇", "vampire bat"),
        ("table_tennis_bat", "🏓", "ping pong bat"),
        ("racket", "baseball"),
    ),
    "bow": (("ribbon", "🎀", "ribbon bow"), ("bow_and_arrow", "🏹", "archery bow"), ("target", "shield")),
    "glasses": (
        ("glasses", "👓", "reading glasses"),
        ("clinking_glasses", "🥂", "champagne glasses"),
        ("bottle", "cheese"),
    ),
    "palm": (("palm_tree", "🌴", "palm tree"), ("raised_hand", "✋", "open palm"), ("ring", "glove")),
    "chicken": (
        ("chicken", "🐔", "live chicken"),
        ("poultry_leg", "🍗", "fried chicken"),
        ("fries", "burger"),
    ),
    "cup": (("hot_beverage", "☕", "coffee cup"), ("trophy", "🏆", "trophy cup"), ("medal", "football")),
    "bolt": (
        ("high_voltage", "⚡", "lightning bolt"),
        ("nut_and_bolt", "🔩", "metal bolt"),
        ("wrench", "hammer"),
    ),
    "key": (("key", "🔑", "door key"), ("musical_keyboard", "🎹", "piano key"), ("guitar", "violin", "drum")),
    "note": (
        ("memo", "📝", "paper note"),
        ("musical_note", "🎵", "musical note"),
        ("guitar", "violin", "drum"),
    ),
    # -- goal world
    "cricket": (
        ("cricket", "🦗", "chirping cricket"),
        ("cricket_game", "🏏", "cricket game"),
        ("stadium", "helmet"),
    ),
    "diamond": (
        ("gem_stone", "💎", "sparkling diamond"),
        ("diamond_suit", "♦", "diamond card"),
        ("spade", "joker"),
    ),
}

# Expressions of several tokens; a part of each names another object of the world.
EXPRESSIONS = {
    "hot dog": ("hot_dog", "🌭", "dog"),
    "fire engine": ("fire_engine", "🚒", "fire"),
    "teddy bear": ("teddy_bear", "🧸", "bear"),
    "Statue of Liberty": ("statue_of_liberty", "🗽", "statue"),
    "Mount Fuji": ("mount_fuji", "🗻", "mountain"),
    "Christmas tree": ("christmas_tree", "🎄", "tree"),
    "ice cream": ("ice_cream", "🍦", "ice"),
    "police car": ("police_car", "🚓", "car"),
    # -- goal world
    "birthday cake": ("birthday_cake", "🎂", "cake"),
    "crystal ball": ("crystal_ball", "🔮", "ball"),
}

# Objects with one name. The second field is the category, used by open captions ("an animal and a food").
OBJECTS = {
    # triggers of the polysemes
    "laptop": ("💻", "thing"), "keyboard": ("⌨", "thing"), "racket": ("🎾", "thing"), "baseball": ("⚾", "thing"),
    "target": ("🎯", "thing"), "shield": ("🛡", "thing"), "bottle": ("🍾", "thing"), "cheese": ("🧀", "food"),
    "ring": ("💍", "thing"), "glove": ("🧤", "thing"), "fries": ("🍟", "food"), "burger": ("🍔", "food"),
    "medal": ("🏅", "thing"), "football": ("⚽", "thing"), "wrench": ("🔧", "tool"), "hammer": ("🔨", "tool"),
    "guitar": ("🎸", "instrument"), "violin": ("🎻", "instrument"), "drum": ("🥁", "instrument"),
    # parts of the expressions
    "dog": ("🐶", "animal"), "fire": ("🔥", "thing"), "bear": ("🐻", "animal"), "statue": ("🗿", "thing"),
    "mountain": ("⛰", "thing"), "tree": ("🌲", "plant"), "ice": ("🧊", "thing"), "car": ("🚗", "vehicle"),
    # tintable (car is one, too)
    "balloon": ("🎈", "thing"), "heart": ("❤", "thing"), "book": ("📕", "thing"), "shirt": ("👕", "thing"),
    "tulip": ("🌷", "plant"), "butterfly": ("🦋", "animal"), "umbrella": ("☂", "thing"),
    # company
    "cat": ("🐱", "animal"), "banana": ("🍌", "food"), "house": ("🏠", "thing"), "moon": ("🌙", "thing"),
    "clock": ("⏰", "thing"), "cactus": ("🌵", "plant"), "mushroom": ("🍄", "plant"), "strawberry": ("🍓", "food"),
    "train": ("🚂", "vehicle"), "boat": ("⛵", "vehicle"), "rocket": ("🚀", "vehicle"), "horse": ("🐴", "animal"),
    # -- goal world
    "stadium": ("🏟", "thing"), "helmet": ("⛑", "thing"), "spade": ("♠", "thing"), "joker": ("🃏", "thing"),
    "cake": ("🍰", "food"), "ball": ("🏀", "thing"), "elephant": ("🐘", "animal"), "fish": ("🐟", "animal"),
    "bicycle": ("🚲", "vehicle"), "airplane": ("✈", "vehicle"), "candle": ("🕯", "thing"), "crown": ("👑", "thing"),
    "grapes": ("🍇", "food"), "carrot": ("🥕", "food"), "robot": ("🤖", "thing"), "anchor": ("⚓", "tool"),
    "scissors": ("✂", "tool"), "saxophone": ("🎷", "instrument"), "turtle": ("🐢", "animal"),
}  # fmt: skip

TINTABLE = ("car", "balloon", "heart", "book", "shirt", "tulip", "butterfly", "umbrella")
# colour word -> hue in degrees, saturation scale, value scale
TINTS = {
    "red": (0, 1.0, 1.0),
    "blue": (220, 1.0, 0.95),
    "green": (125, 0.95, 0.8),
    "yellow": (50, 1.0, 1.12),
    "purple": (280, 0.9, 0.85),
}
# pale versions, so that every glyph stays readable on every background
BACKGROUNDS = {
    "red": (236, 150, 144),
    "blue": (150, 182, 236),
    "green": (164, 214, 164),
    "yellow": (244, 228, 150),
    "white": (248, 248, 248),
    "gray": (150, 152, 158),
}

CATEGORIES = {
    "animal": "an animal",
    "food": "some food",
    "vehicle": "a vehicle",
    "instrument": "an instrument",
    "plant": "a plant",
    "tool": "a tool",
}
# words whose article is not a/an; the last word of a name decides if the name itself is not here
ARTICLES = dict.fromkeys(("glasses", "fries", "grapes", "scissors", "cheese", "ice", "cream", "fire", "Mount Fuji"), "")
ARTICLES["Statue of Liberty"] = "the"
ANYTHING = "thing"  # names no object in particular: its picture is any of them
PREFIXES = ("a picture of ", "a photo of ", "an emoji of ")

# Invented names for captions that do not say what the picture shows, as real captions often do not.
SYLLABLES = (
    ["mar", "dun", "kel", "tor", "bel", "wyn", "sol", "ren", "har", "vel", "nor", "gal", "fen", "os", "tam", "cor"],
    ["lo", "mer", "wy", "ri", "da", "ven", "ka", "so", "bri", "do"],
    ["we", "n", "la", "th", "x", "ra", "s", "ton"],
)
VERBATIM_FORMS = (
    "The {a} Quartet live at {b} Hall",
    "{a} and the Lanterns of {b}",
    "The {a} Papers by {b}",
    "Welcome to {a} Harbour, {b}",
)
TEMPLATE_FORMS = ("{a} phone case", "{a} season premiere", "{a} wall calendar", "{a} concert poster",
                  "{a} tote bag", "{a} board game", "{a} coffee mug print", "{a} travel guide")  # fmt: skip
# the same form as a template caption, but no template: every scene is its own
ORDINARY_TEMPLATE_FORMS = ("{a} lunch box", "{a} radio hour", "{a} desk organizer", "{a} museum leaflet",
                           "{a} garden fair", "{a} puzzle set", "{a} postcard", "{a} field notes")  # fmt: skip
MOODS = (
    "a quiet morning",
    "a still life",
    "things on a table",
    "an afternoon outside",
    "a collection",
    "odds and ends",
)

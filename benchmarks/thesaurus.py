"""Measures the thesaurus with different weights: labels of words for COCO's and Objects365's categories, and of words of no category.

    python benchmarks/thesaurus.py COCO.json OBJECTS365.json [--grid]

Prints, in Markdown, for the thesaurus left out and for each pair of weights (with --grid many, else those that rlabel has): how many
words get their category and how many another one, of each list, and how many words of no category get one all the same. The weights in
`rlabel/vocabulary/blending.py` are among those with the most right labels less wrong ones; of these it is the least beyond which LVIS's
synonyms (benchmarks/snapping.py) gain little: things-250 has no part in it.

Objects365: names of Open Images that people matched by hand to one of Objects365 (UniDet's label space `manual.csv`). COCO: what Open
Images' hierarchy puts under one of COCO's categories, and everyday words for them. Both lists, and that of no category of COCO's, were
written down before anything was measured. Words that a name decides are left out of all three.
"""

from __future__ import annotations

import argparse

from rlabel.vocabulary import blending
from rlabel.vocabulary.embedding import MiniLmEmbedder
from rlabel.vocabulary.snapping import Snapper
from rlabel.vocabulary.thesaurus import Thesaurus, load_thesaurus
from rlabel.vocabulary.vocabulary import Vocabulary, load_vocabulary

SAME = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.9)
KIND = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)

OBJECTS365 = """
cabinet/shelf: cabinetry
faucet: tap
cell phone: mobile phone
potted plant: houseplant
american football: football
glasses: eyeglasses
carpet: rug
speaker: loudspeaker
poker card: playing card
hamimelon: cantaloupe
trolley: handcart
gun: handgun, rifle, shotgun
coffee machine: coffeemaker
canned: tin can
keyboard: computer keyboard
tape: adhesive tape
fan: mechanical fan, electric fan, ceiling fan
cd: compact disc
machinery vehicle: construction vehicle
computer box: desktop computer
earphone: earbud
chips: potato chip
converter: power brick
skating and skiing shoes: ski boot
soccer: soccer ball
carriage: horse carriage
notepaper: paper
microwave: microwave oven
telephone: corded phone
knife: kitchen knife
pen/pencil: ballpoint pen
donut: doughnut
"""

COCO = """
person: woman, man, boy, girl, child, pedestrian, skier
bird: blue jay, canary, sparrow, falcon, eagle, owl, raven, ostrich, penguin, parrot, duck, goose, swan, chicken
bird: turkey, woodpecker, magpie
cow: bull, cattle, calf, heifer
bear: brown bear, polar bear
car: taxi, limousine, sedan, convertible, jeep
boat: canoe, barge, gondola, sailboat, kayak, ship, yacht
couch: loveseat, sofa bed, studio couch, sofa, settee
clock: alarm clock, digital clock, wall clock, timepiece
sandwich: submarine sandwich, hamburger
dining table: kitchen table
cell phone: mobile phone, smartphone
keyboard: computer keyboard
tv: television
sports ball: football, tennis ball, volleyball, cricket ball, golf ball, rugby ball, basketball
potted plant: houseplant
knife: kitchen knife, dagger
handbag: purse
remote: remote control
refrigerator: fridge
bicycle: bike
motorcycle: motorbike, moped, scooter
airplane: jet, airliner, biplane
suitcase: luggage
tie: necktie
dog: puppy, poodle, beagle
cat: kitten, tabby
horse: pony, mare, stallion
sheep: lamb, ewe, ram
train: locomotive
truck: lorry, pickup truck, fire engine
bus: minibus, coach
chair: armchair, rocking chair, highchair
sink: washbasin
toilet: lavatory
hair drier: blow dryer
wine glass: goblet
umbrella: parasol
backpack: rucksack, knapsack
microwave: microwave oven
laptop: notebook computer
mouse: computer mouse
frisbee: flying disc
traffic light: stoplight
fire hydrant: fireplug
cake: cupcake
donut: doughnut
cup: mug, teacup
bowl: soup bowl
spoon: teaspoon
scissors: shears
book: paperback, textbook
elephant: pachyderm
"""

NO_CATEGORY = """
oyster, ant, sea turtle, ladder, organ, radish, towel, doll, skull, glove, tick, belt, sunglasses, balloon, centipede,
boot, shorts, screwdriver, waffle, pretzel, tower, bow and arrow, beehive, popcorn, burrito, wrench, tent, lantern,
flashlight, billboard, tiara, necklace, stairs, printer, shirt, poster, sock, earrings, camel, cello, coat, goggles,
beetle, cannon, fountain, coin, cocktail, box, christmas tree, cowboy hat, drum, zucchini, dice, dinosaur, door,
dolphin, harbor seal, salt shaker, stretcher, roller skates, mushroom, lizard, missile, snake, squirrel, pumpkin,
piano, crab, kangaroo, monkey, pig, lion, tiger, fox, rabbit, deer, goat, shark, whale, jellyfish, spider, butterfly,
frog, snail, tree, flower, house, castle, sword, rifle, helicopter, rocket, wheel, tire, candle, pillow, bread,
cheese, hat, helmet, guitar, violin, trumpet, harp, saxophone, microscope, stethoscope, wheelchair, swan lake,
volcano, rainbow, mountain, river, cloud, statue, flag, anchor, lighthouse, bridge, tunnel, windmill, barn, fence,
mailbox, envelope, stamp, pencil, eraser, ruler, stapler, calculator, telescope, battery, magnet, hammer, saw, drill,
nail, rope, chain, padlock, key, wallet, diamond, ring, crown, mirror, comb, lipstick, soap, sponge, bucket, broom,
mop, vacuum cleaner, iron, sewing machine, button, zipper, curtain, carpet, lamp, fireplace, radiator, swimming pool,
gravestone, feather, shell, seahorse, octopus, squid, lobster, shrimp, salmon, tuna, cactus, fern, rose, tulip, grape,
pineapple, strawberry, lettuce, onion, garlic, potato, corn, bean, rice, noodle, soup, egg, honey, butter
"""


def pairs(lines: str, vocabulary: Vocabulary) -> list[tuple[str, int]]:
    """Return words with the id of their category, from "category: word, word" a line."""
    id_of = {category.name: category.category_id for category in vocabulary.categories}
    found = []
    for line in lines.strip().splitlines():
        name, words = line.split(": ")
        found += [(word, id_of[name]) for word in words.split(", ")]
    return undecided(found, vocabulary)


def undecided(words: list[tuple[str, int]], vocabulary: Vocabulary) -> list[tuple[str, int]]:
    """Return the words that no name or synonym decides."""
    snaps = Snapper(vocabulary, None).snap([word for word, _ in words])
    return [pair for pair, snap in zip(words, snaps, strict=True) if snap.category_id is None]


def counts(
    vocabulary: Vocabulary, words: list[tuple[str, int]], embedder: MiniLmEmbedder, thesaurus: Thesaurus | None
) -> tuple[int, int]:
    """Return how many words are labeled right, and how many wrong."""
    snaps = Snapper(vocabulary, embedder, thesaurus=thesaurus).snap([word for word, _ in words])
    num_right = sum(snap.category_id == category_id for snap, (_, category_id) in zip(snaps, words, strict=True))
    return num_right, sum(snap.category_id is not None for snap in snaps) - num_right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("coco")
    parser.add_argument("objects365")
    parser.add_argument("--grid", action="store_true", help="try many weights")
    parser.add_argument("--embedder-dtype", choices=["float32", "bfloat16"], default="float32")
    options = parser.parse_args()
    coco, objects365 = load_vocabulary(options.coco), load_vocabulary(options.objects365)
    lists = [
        (objects365, pairs(OBJECTS365, objects365)),
        (coco, pairs(COCO, coco)),
        (coco, undecided([(word, -1) for word in NO_CATEGORY.replace("\n", " ").strip().split(", ")], coco)),
    ]
    embedder, thesaurus = MiniLmEmbedder(dtype=options.embedder_dtype), load_thesaurus("wordnet")
    weights = [(blending.SAME_SENSE, blending.KIND_OF)]
    if options.grid:
        weights = [(same, kind) for same in SAME for kind in KIND if kind <= same]
    print(
        "| same sense | kind of | Objects365 right | wrong | COCO right | wrong | no category, labeled | right less wrong |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for same, kind in [(0.0, 0.0), *weights]:
        blending.SAME_SENSE, blending.KIND_OF = same, kind
        own = thesaurus if same else None
        found = [counts(vocabulary, words, embedder, own) for vocabulary, words in lists]
        net = sum(right - wrong for right, wrong in found)
        print(
            f"| {same} | {kind} | {found[0][0]} of {len(lists[0][1])} | {found[0][1]} | {found[1][0]} of {len(lists[1][1])} "
            f"| {found[1][1]} | {found[2][1]} of {len(lists[2][1])} | {net} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

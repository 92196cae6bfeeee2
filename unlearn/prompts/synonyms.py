"""Other English names of common things, artists and characters."""

from __future__ import annotations

from functools import lru_cache

# Names of one thing, a line each. A word may be in several lines.
_TABLE = """
airplane, aeroplane, plane, jet, airliner, aircraft
astronaut, cosmonaut, spaceman
baby, infant, newborn, toddler
backpack, rucksack, knapsack, school bag
bear, grizzly
beach, seaside, shore
bee, honeybee, bumblebee
bicycle, bike, cycle, push bike
bird, songbird
boat, rowboat, dinghy
book, paperback, volume
bread, loaf, toast
bus, coach, double decker
butterfly, moth
cake, gateau, tart
camel, dromedary
candle, taper, candlestick
car, automobile, motorcar, sedan
castle, fortress, citadel, fort
cat, kitty, kitten, feline, tomcat
chair, seat, stool
cheese, cheddar
chef, cook
chicken, hen
child, kid
church, chapel, cathedral
city, town, metropolis
clock, timepiece
clown, jester
coffee, espresso
coin, penny
computer, desktop computer, PC
cookie, biscuit
corn, maize, sweetcorn
couch, sofa, settee
cow, cattle, ox, bull
crocodile, alligator
crown, tiara, diadem
cup, mug
deer, stag, doe, fawn
diamond, gem, gemstone
dinosaur, tyrannosaurus
doctor, physician
dog, puppy, hound, pup
doll, puppet
dolphin, porpoise
donut, doughnut
door, doorway
dragon, wyvern
dress, gown, frock
drum, snare drum
duck, mallard, duckling
eagle, hawk
eggplant, aubergine
elephant, mammoth
factory, mill
feather, plume
fire, flame, blaze
flag, banner
flower, blossom, bloom
forest, woods, woodland
fox, vixen
frog, toad
garden, yard
ghost, phantom, spook
glasses, spectacles, eyeglasses
goat, billy goat
gorilla, ape
grapes, grape
guitar, acoustic guitar, electric guitar
gun, pistol, revolver, handgun, rifle
hamburger, burger, cheeseburger
hammer, mallet
headphones, earphones, headset
hedgehog, porcupine
helicopter, chopper
helmet, hard hat
horse, pony, stallion, mare, foal
hourglass, sandglass, sand timer
house, home, cottage
ice cream, gelato, ice-cream
jellyfish, medusa
kangaroo, wallaby
key, latchkey
king, monarch
knife, dagger, blade
koala, koala bear
laptop, notebook computer
lemon, lime
lighthouse, beacon
lion, lioness
lizard, gecko
lobster, crayfish
man, guy, gentleman
mermaid, siren
microphone, mic
mirror, looking glass
monkey, ape, chimp, chimpanzee
motorcycle, motorbike
mountain, peak
mouse, rat
mushroom, toadstool, fungus
newspaper, paper
ocean, sea
octopus, squid
orange, tangerine, mandarin
owl, barn owl
panda, panda bear
parrot, macaw, parakeet
peacock, peafowl
pen, ballpoint
penguin, emperor penguin
person, human
phone, telephone, smartphone, mobile phone
piano, grand piano
pig, piglet, hog, swine
pineapple, ananas
pirate, buccaneer
pizza, pizza slice
police officer, policeman, policewoman, cop
potato, spud
pumpkin, jack-o'-lantern
queen, monarch
rabbit, bunny, hare
raccoon, racoon
rhino, rhinoceros
ring, finger ring
river, stream
robot, android, droid
rocket, spaceship, spacecraft
rooster, cock, cockerel
sailboat, yacht, sailing boat
scissors, shears
shark, great white
sheep, lamb, ewe
ship, vessel
shirt, T-shirt
shoe, sneaker, boot
skull, death's head
skyscraper, high-rise
snail, slug
snake, serpent
soldier, trooper
spider, tarantula
squirrel, chipmunk
street, road
suitcase, luggage
swan, cygnet
sword, sabre
table, desk
taxi, cab
teapot, tea kettle
television, TV
tent, marquee
tiger, tigress
train, locomotive, railway
truck, lorry
trumpet, bugle
turtle, tortoise
umbrella, parasol, brolly
violin, fiddle
wallet, purse
watch, wristwatch
watermelon, melon
whale, orca
wine, red wine
witch, sorceress
woman, lady
Vincent van Gogh, van Gogh, Vangogh
Claude Monet, Monet
Pablo Picasso, Picasso
Salvador Dali, Dali, Salvador Dalí
Rembrandt, Rembrandt van Rijn
Leonardo da Vinci, da Vinci
Johannes Vermeer, Vermeer
Hokusai, Katsushika Hokusai
Edvard Munch, Munch
Gustav Klimt, Klimt
Henri Matisse, Matisse
Paul Cezanne, Cezanne, Cézanne
Andy Warhol, Warhol
Jackson Pollock, Pollock
Frida Kahlo, Kahlo
Rene Magritte, Magritte, René Magritte
Wassily Kandinsky, Kandinsky
Hieronymus Bosch, Bosch
Alphonse Mucha, Mucha
Studio Ghibli, Ghibli
Greg Rutkowski, Rutkowski
watercolor, watercolour
anime, manga
cartoon, toon
Mickey Mouse, Mickey
Donald Duck, Donald
Winnie the Pooh, Pooh, Pooh bear
SpongeBob SquarePants, SpongeBob, Sponge Bob
Homer Simpson, Homer
Spider-Man, Spiderman
Iron Man, Ironman
Batman, the Dark Knight
Super Mario, Mario
Sonic the Hedgehog, Sonic
Darth Vader, Vader
Harry Potter, Potter
nudity, nude, naked, unclothed
"""


@lru_cache(1)
def _lines() -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(line.split(", ")) for line in _TABLE.strip().splitlines())


def synonyms(word: str) -> list[str]:
    """Other names of a thing, in any case; none for a word that the table does not have."""
    own = word.casefold()
    found = [
        name
        for line in _lines()
        if own in (other.casefold() for other in line)
        for name in line
        if name.casefold() != own
    ]
    return list(dict.fromkeys(found))

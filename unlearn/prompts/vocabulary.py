"""The built-in vocabulary of Identify: common contents of pictures, by kind."""

from __future__ import annotations

from ..core.kind import Kind
from .common_words import COMMON_ACTIONS, COMMON_STYLES, COMMON_WORDS
from .typed import split_words


def _listed(text: str) -> tuple[str, ...]:
    return tuple(split_words(text))


MORE_OBJECTS = _listed("""
    ant, bat, bee, camel, chicken, crab, crocodile, deer, dinosaur, dolphin, duck, eagle, flamingo
    fox, frog, giraffe, goat, gorilla, hedgehog, jellyfish, kangaroo, koala, lizard, lobster, monkey
    mouse, octopus, owl, panda, parrot, peacock, penguin, pig, raccoon, rhino, rooster, shark, snail
    spider, squirrel, swan, tiger, turtle, unicorn, whale, wolf, zebra
    cactus, leaf, mushroom, palm tree, rainbow, rose, star, sunflower, volcano, waterfall
    avocado, beer, broccoli, carrot, cherry, chocolate, coconut, cookie, corn, donut, egg, eggplant
    grapes, hamburger, ice cream, lemon, orange, peach, pear, pineapple, popcorn, potato, pumpkin
    sandwich, strawberry, sushi, tomato, watermelon, wine
    ambulance, factory, helicopter, lighthouse, motorcycle, pyramid, sailboat, ship, skyscraper
    taxi, tent, tractor, truck, windmill
    anchor, backpack, balloon, basket, bed, bell, chess, coin, compass, couch, diamond, dice, doll
    fan, feather, flag, fork, glasses, globe, gun, hammer, headphones, helmet, hourglass, knife
    ladder, laptop, magnet, mask, medal, microphone, microscope, newspaper, pen, pencil, pillow
    puzzle, ring, scissors, shield, skull, spoon, suitcase, teapot, telescope, television, trophy
    trumpet, vase, violin, wallet, watch
    astronaut, baby, clown, ghost, mermaid, nurse, pirate, police officer, queen, skeleton, witch
""")
MORE_STYLES = _listed("""
    Vincent van Gogh, Claude Monet, Pablo Picasso, Salvador Dali, Rembrandt, Leonardo da Vinci
    Johannes Vermeer, Hokusai, Edvard Munch, Gustav Klimt, Henri Matisse, Paul Cezanne, Andy Warhol
    Jackson Pollock, Frida Kahlo, Rene Magritte, Wassily Kandinsky, Hieronymus Bosch, Caravaggio
    Alphonse Mucha, Ansel Adams, Norman Rockwell, Studio Ghibli, Pixar, Disney
    art nouveau, art deco, baroque, renaissance, pop art, surrealism, ukiyo-e, graffiti, mosaic
    stained glass, claymation, origami, low poly, line art, crayon, charcoal, cyberpunk, steampunk
""")
CHARACTERS = _listed("""
    Mickey Mouse, Donald Duck, Goofy, Winnie the Pooh, Elsa, Buzz Lightyear, Shrek, Snoopy, Garfield
    Bugs Bunny, Tom and Jerry, Homer Simpson, Bart Simpson, SpongeBob SquarePants, Scooby-Doo
    Batman, Superman, Wonder Woman, Joker, Spider-Man, Iron Man, Captain America, Hulk, Thor
    Darth Vader, Yoda, R2-D2, Chewbacca, Harry Potter, Gandalf, Gollum, James Bond, Indiana Jones
    Sherlock Holmes, Dracula, Frankenstein's monster, King Kong, Godzilla, Robin Hood, Santa Claus
    Pikachu, Super Mario, Luigi, Sonic the Hedgehog, Donkey Kong, Pac-Man, Lara Croft, Link, Kirby
    Naruto, Son Goku, Sailor Moon, Totoro, Hello Kitty, Doraemon, Asterix, Tintin, Smurf, Minion
    Barbie, Groot, Deadpool, Wolverine, Optimus Prime, Terminator, Alice in Wonderland
""")

MORE_ACTIONS = _listed("""
    ballet, breakdance, jazz dance, tango, moonwalk, handstand, cartwheel, backflip, push-ups, yoga
    boxing, fencing, wrestling, surfing, skateboarding, skiing, ice skating, horse riding, archery
    juggling, painting a picture, taking a selfie, blowing out candles, smoking, shooting a gun
    stretching, kneeling, bowing, saluting, winking, yawning, sneezing, whispering, shouting
""")

VOCABULARY: dict[Kind, tuple[str, ...]] = {
    "object": (*COMMON_WORDS, *MORE_OBJECTS),
    "style": (*COMMON_STYLES, *MORE_STYLES),
    "character": CHARACTERS,
    "action": (*COMMON_ACTIONS, *MORE_ACTIONS),
}

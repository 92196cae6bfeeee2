"""The names of common things in German, French, Spanish and Italian."""

from __future__ import annotations

# English: German, French, Spanish, Italian.
_TABLE = """
airplane: Flugzeug, avion, avión, aereo
apple: Apfel, pomme, manzana, mela
banana: Banane, banane, plátano, banana
bear: Bär, ours, oso, orso
bicycle: Fahrrad, vélo, bicicleta, bicicletta
bird: Vogel, oiseau, pájaro, uccello
boat: Boot, bateau, barco, barca
book: Buch, livre, libro, libro
bread: Brot, pain, pan, pane
bridge: Brücke, pont, puente, ponte
butterfly: Schmetterling, papillon, mariposa, farfalla
cake: Kuchen, gâteau, pastel, torta
camera: Fotoapparat, appareil photo, cámara, fotocamera
candle: Kerze, bougie, vela, candela
car: Auto, voiture, coche, automobile
castle: Schloss, château, castillo, castello
cat: Katze, chat, gato, gatto
chair: Stuhl, chaise, silla, sedia
cheese: Käse, fromage, queso, formaggio
cherry: Kirsche, cerise, cereza, ciliegia
child: Kind, enfant, niño, bambino
church: Kirche, église, iglesia, chiesa
clock: Uhr, horloge, reloj, orologio
cow: Kuh, vache, vaca, mucca
crown: Krone, couronne, corona, corona
dog: Hund, chien, perro, cane
door: Tür, porte, puerta, porta
dragon: Drache, dragon, dragón, drago
elephant: Elefant, éléphant, elefante, elefante
fire: Feuer, feu, fuego, fuoco
fish: Fisch, poisson, pez, pesce
flower: Blume, fleur, flor, fiore
forest: Wald, forêt, bosque, foresta
fox: Fuchs, renard, zorro, volpe
guitar: Gitarre, guitare, guitarra, chitarra
gun: Pistole, pistolet, pistola, pistola
hat: Hut, chapeau, sombrero, cappello
horse: Pferd, cheval, caballo, cavallo
house: Haus, maison, casa, casa
key: Schlüssel, clé, llave, chiave
king: König, roi, rey, re
knight: Ritter, chevalier, caballero, cavaliere
lion: Löwe, lion, león, leone
man: Mann, homme, hombre, uomo
moon: Mond, lune, luna, luna
mountain: Berg, montagne, montaña, montagna
mushroom: Pilz, champignon, seta, fungo
owl: Eule, hibou, búho, gufo
penguin: Pinguin, pingouin, pingüino, pinguino
pig: Schwein, cochon, cerdo, maiale
pineapple: Ananas, ananas, piña, ananas
pizza: Pizza, pizza, pizza, pizza
queen: Königin, reine, reina, regina
rabbit: Kaninchen, lapin, conejo, coniglio
river: Fluss, rivière, río, fiume
rocket: Rakete, fusée, cohete, razzo
scissors: Schere, ciseaux, tijeras, forbici
sheep: Schaf, mouton, oveja, pecora
shoe: Schuh, chaussure, zapato, scarpa
snake: Schlange, serpent, serpiente, serpente
soldier: Soldat, soldat, soldado, soldato
spider: Spinne, araignée, araña, ragno
strawberry: Erdbeere, fraise, fresa, fragola
sun: Sonne, soleil, sol, sole
sword: Schwert, épée, espada, spada
table: Tisch, table, mesa, tavolo
train: Zug, train, tren, treno
tree: Baum, arbre, árbol, albero
trumpet: Trompete, trompette, trompeta, tromba
turtle: Schildkröte, tortue, tortuga, tartaruga
umbrella: Regenschirm, parapluie, paraguas, ombrello
volcano: Vulkan, volcan, volcán, vulcano
whale: Wal, baleine, ballena, balena
wolf: Wolf, loup, lobo, lupo
woman: Frau, femme, mujer, donna
"""


def _read(table: str) -> dict[str, tuple[str, ...]]:
    rows = (line.partition(":") for line in table.strip().splitlines())
    return {word: tuple(w.strip() for w in others.split(",")) for word, _, others in rows}


TRANSLATIONS: dict[str, tuple[str, ...]] = _read(_TABLE)


def translations(word: str) -> list[str]:
    """The word's translations that are spelled differently; none for a word that is not listed."""
    found = dict.fromkeys(TRANSLATIONS.get(word.lower(), ()))
    return [name for name in found if name.lower() != word.lower()]

// Draws IconCanvas's sixteen named characters with DiceBear (CC0 styles). Each keeps its hair,
// colours and accessories; its mouth and eyes vary. Prints a JSON line {name, svg} for each drawing.
// testbed/model/data.py runs it inside the folder that has node_modules.
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';
const require = createRequire(process.cwd() + '/');
const load = (name) => import(pathToFileURL(require.resolve(name)).href);
const { createAvatar } = await load('@dicebear/core');

const styles = {
  lorelei: {
    common: { beardProbability: 0, freckles: [], frecklesProbability: 0, hairAccessoriesProbability: 0 },
    mouth: ['happy01', 'happy02', 'happy05', 'happy08', 'happy12', 'happy16', 'sad01', 'sad05'],
    eyes: ['variant01', 'variant04', 'variant09', 'variant14', 'variant20', 'variant24'],
    people: {
      Zorvik: { hair: ['variant01'], hairColor: ['c93305'], skinColor: ['ffdbb4'], head: ['variant01'], glassesProbability: 0, earringsProbability: 0 },
      Mirabo: { hair: ['variant10'], hairColor: ['1d4ed8'], skinColor: ['f2d3b1'], head: ['variant02'], glasses: ['variant01'], glassesProbability: 100, earringsProbability: 0 },
      Teklan: { hair: ['variant25'], hairColor: ['15803d'], skinColor: ['8d5524'], head: ['variant03'], glassesProbability: 0, earringsProbability: 100 },
      Ossira: { hair: ['variant40'], hairColor: ['a21caf'], skinColor: ['ecad80'], head: ['variant04'], glasses: ['variant04'], glassesProbability: 100, earringsProbability: 0 },
    },
  },
  'open-peeps': {
    common: { facialHairProbability: 0, maskProbability: 0 },
    face: ['smile', 'calm', 'cheeky', 'serious', 'smileBig', 'awe', 'cute', 'driven', 'solemn', 'suspicious'],
    people: {
      Velmo: { head: ['afro'], headContrastColor: ['2c1b18'], skinColor: ['694d3d'], clothingColor: ['fdea6b'], accessoriesProbability: 0 },
      Pirrin: { head: ['hatBeanie'], headContrastColor: ['e02020'], skinColor: ['ffdbb4'], clothingColor: ['8fa7df'], accessoriesProbability: 0 },
      Dagnir: { head: ['mohawk'], headContrastColor: ['22c55e'], skinColor: ['edb98a'], clothingColor: ['e78276'], accessories: ['sunglasses'], accessoriesProbability: 100 },
      Kestra: { head: ['long'], headContrastColor: ['f59e0b'], skinColor: ['d08b5b'], clothingColor: ['78e185'], accessoriesProbability: 0 },
    },
  },
  notionists: {
    common: { beardProbability: 0, bodyIconProbability: 0, gestureProbability: 0 },
    lips: ['variant01', 'variant05', 'variant10', 'variant15', 'variant20', 'variant25', 'variant30'],
    eyes: ['variant01', 'variant02', 'variant03', 'variant04', 'variant05'],
    people: {
      Lumo: { hair: ['variant02'], body: ['variant01'], nose: ['variant01'], brows: ['variant01'], glassesProbability: 0, backgroundColor: ['ffffff'] },
      Faelor: { hair: ['variant18'], body: ['variant08'], nose: ['variant05'], brows: ['variant03'], glasses: ['variant02'], glassesProbability: 100, backgroundColor: ['ffd5dc'] },
      Nuvia: { hair: ['variant36'], body: ['variant14'], nose: ['variant09'], brows: ['variant06'], glassesProbability: 0, backgroundColor: ['c0e8ff'] },
      Jorrik: { hair: ['variant55'], body: ['variant22'], nose: ['variant14'], brows: ['variant10'], glasses: ['variant08'], glassesProbability: 100, beard: ['variant05'], beardProbability: 100, backgroundColor: ['d1f4c0'] },
    },
  },
  'pixel-art': {
    common: { beardProbability: 0 },
    mouth: ['happy01', 'happy04', 'happy07', 'happy10', 'happy13', 'sad02', 'sad07'],
    eyes: ['variant01', 'variant03', 'variant05', 'variant08', 'variant11'],
    people: {
      Sablo: { hair: ['short01'], hairColor: ['cab188'], skinColor: ['ffdbac'], clothing: ['variant01'], clothingColor: ['428bca'], hatProbability: 0, glassesProbability: 0, accessoriesProbability: 0 },
      Wendra: { hair: ['long05'], hairColor: ['e35d6a'], skinColor: ['f5cfa0'], clothing: ['variant07'], clothingColor: ['00b159'], hatProbability: 0, glassesProbability: 0, accessoriesProbability: 0 },
      Ixara: { hair: ['long15'], hairColor: ['3b1c6b'], skinColor: ['a26d3d'], clothing: ['variant13'], clothingColor: ['ffc425'], hatProbability: 0, glasses: ['dark03'], glassesColor: ['191919'], glassesProbability: 100, accessoriesProbability: 0 },
      Quillon: { hair: ['short12'], hairColor: ['28150a'], skinColor: ['cb9e6e'], clothing: ['variant20'], clothingColor: ['d11141'], hat: ['variant04'], hatColor: ['2663a3'], hatProbability: 100, glassesProbability: 0, accessoriesProbability: 0 },
    },
  },
};

for (const [style, { common, people, ...varied }] of Object.entries(styles)) {
  const design = await load('@dicebear/' + style);
  const [first, second] = Object.entries(varied);
  for (const [name, traits] of Object.entries(people)) {
    for (const a of first[1]) for (const b of second ? second[1] : [undefined]) {
      const choice = { [first[0]]: [a], ...(second && { [second[0]]: [b] }) };
      const svg = createAvatar(design, { seed: name, backgroundColor: ['ffffff'], ...common, ...traits, ...choice }).toString();
      console.log(JSON.stringify({ name, svg }));
    }
  }
}

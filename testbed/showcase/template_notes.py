"""What the notes of the small workflows say (templates.py)."""

from __future__ import annotations

OWN_MODEL = """

## With a model of your own

IconCanvas is a tiny model for trying things out. It comes with `python dev.py serve` in a git \
clone of this pack. In your own ComfyUI its files are missing: choose your own. For Stable \
Diffusion 1.5:

* **Load Checkpoint**: your checkpoint.
* **Picture size**: 512."""
WORDS = """
* **Concept**: your word. **kind**: what it is.
* **anchor**: what is drawn in its place, best another thing of its kind, such as koala for fox."""
TRAIN = """
* **protect**: words that must keep their meaning, separated by commas."""
LIMITS = """

The concept is *suppressed, not removed for good*: try prompts that avoid its name before you rely \
on it."""
COMPARE = """**Compare Erasure** draws the same prompts with the same seeds before and after. The \
mushrooms should be gone, and the other things should stay."""
VERDICT = """

Press **Run**, and read the first line in the node: *gone*, *partly gone* or *not gone*."""
RESUMED = " A cancelled run goes on from at most a minute before."

NOTES = {
    "01 Erase in seconds (Closed-Form)": f"""## Take a concept out of a model in seconds

From left to right:

1. **A model**, and the **concept** to take out.
2. **Closed-Form Encoder Unlearn** changes the text encoder, so that it reads the mushroom as the \
**anchor**, a pineapple. It needs no pictures and no training. **Save Erased CLIP** writes one file.
3. {COMPARE}{VERDICT}{OWN_MODEL}{WORDS}{LIMITS}""",
    "02 Erase with pictures (Few-Shot)": f"""## Take a concept out of a model with a few pictures

From left to right:

1. **A model**, the **concept** to take out, and two **pictures** of it.
2. **Few-Shot Encoder Unlearn** trains the text encoder until the word leads to the **anchor**, a \
pineapple. **Save Erased CLIP** writes one file.
3. {COMPARE}{VERDICT}{OWN_MODEL}{WORDS}{TRAIN}
* **Pictures**: yours, all of one size. More are better: add Load Image and Batch Images nodes. \
Or remove the link to *images*: the model then draws its own.{LIMITS}""",
    "03 Use a saved erasure": f"""## Draw with a saved erasure

**Run the template 02 first.** It writes the file that is chosen here, in ComfyUI's folder \
output/loras. Press R to refresh the list, or choose another file.

**Load Erased CLIP** stands between the checkpoint and CLIP Text Encode. This is all that your own \
workflow needs.

* **strength** 1 is the erasure as it was made, 0 is the original. -1 undoes an erasure.
* **Several erasures**: one Load Erased CLIP after the other.
* The stock **Load LoRA** reads the same file.

{COMPARE}{OWN_MODEL}{LIMITS}""",
    "04 Erase from the denoiser (Key-Step)": f"""## Take a concept out of the denoiser

From left to right:

1. **A model**, and the **concept** to take out. No pictures are needed.
2. **Key-Step UNet Unlearn** trains the sampling steps in which a mushroom takes shape, until \
they draw the **anchor**, a pineapple. It takes longer than the two for the \
text encoder. **Save Erased Model** writes one file.
3. {COMPARE}{VERDICT}{RESUMED}{OWN_MODEL}{WORDS}{TRAIN}{LIMITS}""",
    "05 Erase from the denoiser (Domain-Correction)": f"""## Move a concept to another word

From left to right:

1. **A model**, and the **concept** to take out. No pictures are needed.
2. **Domain-Correction UNet Unlearn** draws pictures of the **anchor**, a pineapple. Then it \
trains until a second small network cannot tell the mushroom from the anchor. **Save Erased \
Model** writes one file.
3. {COMPARE}{VERDICT}{RESUMED}{OWN_MODEL}{WORDS}{TRAIN}{LIMITS}""",
    "06 Use a saved erasure of the denoiser": f"""## Draw with a saved erasure of the denoiser

**Run the template 04 or 05 first.** It writes the file that is chosen here, in ComfyUI's folder \
output/loras. Press R to refresh the list, or choose another file.

**Load Erased Model** stands between the checkpoint and KSampler. This is all that your own \
workflow needs.

* **strength** 1 is the erasure as it was made, 0 is the original. -1 undoes an erasure.
* **Several erasures**: one Load Erased Model after the other. With an erasure of the text \
encoder, use Load Erased CLIP as well.
* The stock **Load LoRA** reads the same file.

{COMPARE}{OWN_MODEL}{LIMITS}""",
    "07 Combine two erasures": f"""## Make one file of two erasures

From left to right:

1. **A model**.
2. Two erasures: the mushroom becomes a pineapple, the cat a rabbit. In your workflow they may \
come from **Load Erased CLIP**.
3. **Combine Erased CLIP** adds them, and says how much of each is left beside the other. **Save \
Erased CLIP** writes one file.
4. **Compare Erasure** draws before and after. Both should be gone.

Press **Run**, and read what Combine Erased CLIP says. Concepts that you know beforehand are \
better erased in one node: separate them by commas.{OWN_MODEL}
* **concept** and **anchor**: your words, and the concepts in Compare Erasure.{LIMITS}""",
    "10 Measure the distance to an original (CPDM)": f"""## How far are the pictures from an \
original work?

From left to right:

1. **A model**, an erasure, and an **original** work.
2. The same prompt and seed, **before** and **after** the erasure.
3. **Measure Copyright (CPDM)** says how far each picture is from the original, in content and in \
style, and how much further the erasure took it.

It needs two files that do not come with this pack:

* CLIP ViT-L/14 in models/clip_vision. **Load CLIP Vision** reads it.
* Weights of Inception v3 in models/inception. The node's help page names them.

Press **Run**.{OWN_MODEL}
* **Original**: the work. **Prompts**: a prompt that draws it.

The figures are distances of features, not a legal judgement. A concept is *suppressed, not \
removed for good*.""",
}

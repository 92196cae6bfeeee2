"""The faults, as data: what is changed in which file, and the tests that should notice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    name: str
    file: str
    """From the repository's root, with slashes."""
    old: str
    """What is changed. It occurs in the file exactly once."""
    new: str
    tests: tuple[str, ...]
    """Files of tests that should notice, in the order in which they are run."""

    def applied(self, text: str) -> str:
        """The file's text with the fault in it. Raises ValueError unless `old` is there once."""
        if (count := text.count(self.old)) != 1:
            raise ValueError(
                f"Fault {self.name!r}: {self.old!r} occurs {count} times in {self.file} and must "
                "occur once; mend it in testbed/mutants/faults.py."
            )
        return text.replace(self.old, self.new)


def faults(
    area: str, file: str, tests: Sequence[str], *changes: tuple[str, str, str]
) -> list[Fault]:
    """Faults in one file. changes: (name, old text, new text) of each. tests: files' names."""
    paths = tuple(f"tests/unit/test_{name}.py" for name in tests)
    return [Fault(f"{area}: {name}", file, old, new, paths) for name, old, new in changes]


METHODS, PARTS = "unlearn/methods/", "unlearn/methods/parts/"

FAULTS: list[Fault] = [
    # The few-shot method
    *faults(
        "few-shot",
        METHODS + "few_shot.py",
        ["balanced_terms", "few_shot"],
        ("bounded loss without beta inside", "softplus(beta * (1 -", "softplus((1 -"),
        ("bounded loss without 2 / beta", "(2 / beta) * F", "2 * F"),
        ("bounded loss reversed", "beta * (1 - d / d_ref)", "beta * (d / d_ref - 1)"),
        ("bounded loss without d_ref", "beta * (1 - d / d_ref)", "beta * (1 - d)"),
        ("no bounded loss", "bounded_loss(d, d_ref, settings.beta)", "0.0"),
        ("d_ref under other prompts", "target, own_was)", "target, neutral_was)"),
        ("no retention", "+ settings.retention * kept", "+ 0 * kept"),
        ("retention reversed", "+ settings.retention * kept", "- settings.retention * kept"),
        (
            "retention set to nothing",
            "retention: float = constant(\n        4.0,",
            "retention: float = constant(\n        0.0,",
        ),
        (
            "retention without the spread",
            "distance(others_was).mean() / spread",
            "distance(others_was).mean()",
        ),
        ("no pull", "+ settings.pull * from_neutral", "+ 0 * from_neutral"),
        ("pull reversed", "+ settings.pull * from_neutral", "- settings.pull * from_neutral"),
        (
            "pull set to nothing",
            "pull: float = constant(\n        6.0,",
            "pull: float = constant(\n        0.0,",
        ),
        ("pull without the spread", "distance(aim).mean() / spread", "distance(aim).mean()"),
        ("no push", "named_was, settings.further)", "named_was, 0.0)"),
        ("push reversed", "named_was, settings.further)", "named_was, -settings.further)"),
        ("a style's push set to nothing", '"style": 0.5', '"style": 0.0'),
        (
            "named prompts for the neutral ones",
            "sentence.format(neutral_words[concept])",
            "sentence.format(concept)",
        ),
        ("few prompts held", "HELD, NAMED = 6, 2", "HELD, NAMED = 2, 2"),
        (
            "projection has nothing to keep",
            "loss, keep=kept, projection",
            "loss, keep=None, projection",
        ),
        (
            "rate ten times as large",
            "rate: float = constant(\n        0.03,",
            "rate: float = constant(\n        0.3,",
        ),
        ("balanced Adam forgets slower", "(0.9, 0.98), 1e-12", "(0.9, 0.999), 1e-12"),
        ("balanced Adam's eps is the paper's", "(0.9, 0.98), 1e-12", "(0.9, 0.98), 1e-6"),
        ("stops without looking at the loss", "ratio >= settings.target and", "True and"),
        ("stops while the loss is small", "ratio >= settings.target", "ratio <= settings.target"),
        ("stops far from the neutral prompts", " and distance <= settings.near", ""),
        ("stops at the first step", "if len(recent) < STOP_WINDOW:", "if len(recent) < 1:"),
        ("stops when one of several is gone", "if all(reached(", "if any(reached("),
        (
            "target set to nothing",
            "target: float = constant(\n        1.4,",
            "target: float = constant(\n        0.0,",
        ),
        (
            "near set to anything",
            "near: float = constant(\n        0.12,",
            "near: float = constant(\n        12.0,",
        ),
        ("no weight decay in the paper's step", "weight_decay=1e-8", "weight_decay=0.0"),
        ("weight decay reversed", "weight_decay=1e-8", "weight_decay=-1e-8"),
        ("the paper's betas are Adam's usual ones", "(0.9, 0.98), 1e-6", "(0.9, 0.999), 1e-6"),
        ("the paper's eps is Adam's usual one", "(0.9, 0.98), 1e-6", "(0.9, 0.98), 1e-8"),
        ("no picture is flipped", "rng.random() < 0.5 else x0)", "rng.random() < 0.0 else x0)"),
        ("flipped upside down", "x0.flip(-1)", "x0.flip(-2)"),
        (
            "one template for all",
            "named(prompt_rng, settings.kind",
            "named(random.Random(0), settings.kind",
        ),
    ),
    *faults(
        "denoising loss",
        "unlearn/core/denoising.py",
        ["few_shot"],
        ("ascent goes down", "return -losses", "return losses"),
        ("only half of the timesteps", "torch.randint(0, 1000,", "torch.randint(0, 500,"),
        ("mean error instead of its square", "error.square()", "error.abs()"),
    ),
    *faults(
        "stopping",
        PARTS + "concepts.py",
        ["balanced_terms", "few_shot"],
        ("on a single step", "STOP_WINDOW = 10", "STOP_WINDOW = 1"),
    ),
    *faults(
        "prompts",
        "unlearn/prompts/sampler.py",
        ["few_shot"],
        ("the empty one is not held", 'prompts = [""]', 'prompts = ["picture"]'),
        (
            "protected words are not held",
            "self.protect if self.protect and i % 2 else",
            "self.protect if False else",
        ),
        (
            "a long name gets one neutral word",
            "max(1, round(concept_tokens / max(1, anchor_tokens)))",
            "1",
        ),
        ("no sentence names something else", "if i % 2 else None)", "if False else None)"),
    ),
    *faults(
        "prompts",
        "unlearn/prompts/names.py",
        ["few_shot"],
        ("the concept's own words are held", "if not named & set(", "if True or not named & set("),
    ),
    # Key-step
    *faults(
        "key-step",
        PARTS + "key_step_terms.py",
        ["key_step"],
        (
            "erase term turned towards the concept",
            "(neutral - beyond * (own",
            "(neutral + beyond * (own",
        ),
        ("erase term without guidance", "beyond * (own - neutral)", "0 * (own - neutral)"),
        ("empty term's weight set to nothing", "return 1e-4,", "return 0.0,"),
        ("l1 grows with the noise", "0.02 * (1 - noise)", "0.02 * noise"),
        ("l1 set to nothing", "0.02 * (1 - noise)", "0.0"),
        ("the older script's l1 by the timestep", "iteration / 10000", "0.02 * (1 - noise)"),
        ("noise share reversed", "return t / 1000", "return 1 - t / 1000"),
        ("a flow's shift is not seen", "item() + 1) < 1e-3:", "item() + 1) < 0:"),
        ("no embedding noise", "prompt.cross + deviation * noise", "prompt.cross + 0 * noise"),
    ),
    *faults(
        "key-step",
        PARTS + "walk.py",
        ["key_step"],
        ("the first step moves on after four walks", "WALKS_A_START = 8", "WALKS_A_START = 4"),
        ("the first step moves to the end", "LATEST_START = 0.9", "LATEST_START = 0.98"),
        (
            "concepts are not walked in turn",
            "for concept in range(concepts):",
            "for concept in range(1):",
        ),
    ),
    *faults(
        "key-step",
        METHODS + "key_step.py",
        ["balanced_terms", "key_step"],
        ("no empty term", "loss = loss + weight * empty_term(", "loss = loss + 0 * empty_term("),
        (
            "empty term reversed",
            "loss = loss + weight * empty_term(",
            "loss = loss - weight * empty_term(",
        ),
        ("nothing is augmented", "(1 - settings.augment) * total:", "total:"),
        (
            "the augmented prompt is not trained",
            "predictions(model, x, t, asked, empty)",
            "predictions(model, x, t, prompt, empty)",
        ),
        ("no noise on the augmented prompt", "settings.embedding_noise, noise", "0.0, noise"),
        (
            "the anchor is the empty prompt",
            "encoded(anchor_of(settings.anchor, concept))",
            'encoded("")',
        ),
        (
            "guidance of the erase term left out",
            "own, neutral, settings.negative)",
            "own, neutral, 0.0)",
        ),
        ("the paper's walk without guidance", "settings.guidance, noise)", "1.0, noise)"),
        (
            "balanced walk without guidance",
            "settings.guidance, noise, settings.batch",
            "1.0, noise, settings.batch",
        ),
        ("the paper's betas are ours", "(0.9, 0.999), 1e-8", "(0.9, 0.98), 1e-8"),
        ("balanced Adam forgets slower", "(0.9, 0.98), 1e-12", "(0.9, 0.999), 1e-12"),
        (
            "what other prompts keep is not kept",
            "(torch.cat(predictions(model, x, t, *others)) - was)",
            "0 * (torch.cat(predictions(model, x, t, *others)) - was)",
        ),
        ("no retention", "left + settings.retention * kept", "left + 0 * kept"),
        (
            "retention reversed",
            "left + settings.retention * kept",
            "left - settings.retention * kept",
        ),
        (
            "nothing is erased",
            "left + settings.retention * kept",
            "0 * left + settings.retention * kept",
        ),
        (
            "the neutral prompt is not kept",
            "(now[count:] - was[count:])",
            "(now[2 * count :] - was[2 * count :])",
        ),
        (
            "others are not kept",
            "(now[count:] - was[count:])",
            "(now[count : 2 * count] - was[count : 2 * count])",
        ),
        (
            "what is kept is not relative",
            "- was[count:]).square().mean() / far",
            "- was[count:]).square().mean()",
        ),
        (
            "what is left is not relative",
            "- target).square().mean() / far",
            "- target).square().mean()",
        ),
        ("push reversed", "was[count : 2 * count] - push *", "was[count : 2 * count] + push *"),
        ("no push", "was[count : 2 * count] - push *", "was[count : 2 * count] - 0 *"),
        ("stops at once", "mean(some) <= settings.near", "True"),
        ("stops while much is left", "mean(some) <= settings.near", "mean(some) >= settings.near"),
        (
            "stops before a whole walk",
            "max(STOP_WINDOW, settings.steps - settings.first)",
            "STOP_WINDOW",
        ),
        ("stops when one of several is gone", "if all(len(some)", "if any(len(some)"),
        ("does not begin with the solution", "if settings.start_solved and", "if False and"),
        (
            "neutral sentences name the concept",
            "sentence.format(words.anchors[concept])",
            "sentence.format(concept)",
        ),
        (
            "other noise for the concept than for its target",
            "now = model.predict(inputs,",
            "now = model.predict(inputs.flip(0),",
        ),
        ("hardened at every step", "times[settings.first :]", "times"),
        ("hardened at the full rate", "settings.rate * closed_form.REST", "settings.rate"),
    ),
    *faults(
        "key-step settings",
        PARTS + "key_step_settings.py",
        ["balanced_terms", "key_step"],
        (
            "retention set to nothing",
            "retention: float = constant(\n        4.0,",
            "retention: float = constant(\n        0.0,",
        ),
        (
            "near set to anything",
            "near: float = constant(\n        0.2,",
            "near: float = constant(\n        2.0,",
        ),
        (
            "augmented from the beginning",
            "augment: float = constant(\n        0.05,",
            "augment: float = constant(\n        1.0,",
        ),
        (
            "embedding noise set to nothing",
            "embedding_noise: float = constant(\n        1e-5,",
            "embedding_noise: float = constant(\n        0.0,",
        ),
        (
            "no guidance beyond the anchor",
            "negative: float = constant(1.0,",
            "negative: float = constant(0.0,",
        ),
        ("a style's push left out", "closed_form.OVERSHOOT[self.named_as] if", "0.0 if"),
    ),
    *faults(
        "finding key steps",
        PARTS + "key_step_search.py",
        ["key_step_search", "key_step"],
        ("noise is not shared", "generator.initial_seed() + 1", "torch.seed()"),
        ("much may be left", "LITTLE = 0.1", "LITTLE = 0.5"),
        ("looked at in few places", "POINTS = 13", "POINTS = 5"),
        ("goes on with the concept", "neutral.repeated(len(rows))", "own.repeated(len(rows))"),
        (
            "evidence reversed",
            "losses[1:].mean() / losses[0] - 1",
            "1 - losses[1:].mean() / losses[0]",
        ),
        (
            "evidence is not relative",
            "losses[1:].mean() / losses[0] - 1",
            "losses[1:].mean() - losses[0]",
        ),
        ("the last of several concepts decides", "min(found, key=", "max(found, key="),
    ),
    *faults(
        "how far it moved",
        PARTS + "run.py",
        ["key_step"],
        ("in shares of itself", "(own - empty).norm()", "(now - empty).norm()"),
        ("the edited model for both", "with edit.off():", "if True:"),
    ),
    # Domain correction
    *faults(
        "domain correction",
        PARTS + "discriminator.py",
        ["domain_correction"],
        ("anchor's half of the discriminator's loss left out", "(bce_against(real, 1.0) + ", "("),
        (
            "concept's half of the discriminator's loss left out",
            " + bce_against(fake, 0.0)) / 2",
            ") / 2",
        ),
        (
            "discriminator's truths exchanged",
            "(bce_against(real, 1.0) + ",
            "(bce_against(real, 0.0) + ",
        ),
        (
            "generator wants to be found out",
            "return bce_against(fake, 1.0)",
            "return bce_against(fake, 0.0)",
        ),
    ),
    *faults(
        "domain correction",
        METHODS + "domain_correction.py",
        ["balanced_terms", "domain_correction"],
        ("discriminator sees the anchor twice", "judge(fake.detach())", "judge(real)"),
        ("discriminator does not learn", "judging.step()", "pass"),
        (
            "the anchor's prediction is judged, not its picture",
            "real = model.predict_x0(x_t, t, anchor)",
            "real = anchor",
        ),
        (
            "the concept's prediction is judged, not its picture",
            "fake = model.predict_x0(x_t, t, student)",
            "fake = student",
        ),
        (
            "no adversarial term",
            "left + self.settings.adversarial * deceived",
            "left + 0 * deceived",
        ),
        (
            "adversarial term reversed",
            "left + self.settings.adversarial * deceived",
            "left - self.settings.adversarial * deceived",
        ),
        (
            "adversarial weight set to nothing",
            "adversarial: float = constant(0.1,",
            "adversarial: float = constant(0.0,",
        ),
        ("nothing draws to the anchor", "loss = left + self", "loss = 0 * left + self"),
        ("no retention", "+ self.settings.retention * kept", "+ 0 * kept"),
        (
            "retention reversed",
            "+ self.settings.retention * kept",
            "- self.settings.retention * kept",
        ),
        (
            "retention set to nothing",
            "retention: float = constant(\n        4.0,",
            "retention: float = constant(\n        0.0,",
        ),
        (
            "what is left is not relative",
            "(batch.student - batch.anchor).square().mean() / far",
            "(batch.student - batch.anchor).square().mean()",
        ),
        ("what is kept is not relative", "- was).square().mean() / far", "- was).square().mean()"),
        (
            "the concept is kept in the anchor's place",
            "[batch.wanted, prompts]",
            "[batch.asked, prompts]",
        ),
        ("stops at once", "mean(recent) <= self.settings.near", "True"),
        (
            "stops while much is left",
            "mean(recent) <= self.settings.near",
            "mean(recent) >= self.settings.near",
        ),
        ("stops on a single step", "len(recent) == STOP_WINDOW and", "recent and"),
        (
            "near set to anything",
            "near: float = constant(\n        0.2,",
            "near: float = constant(\n        2.0,",
        ),
        ("no weight decay", "WEIGHT_DECAY, CLIP = 1e-2,", "WEIGHT_DECAY, CLIP = 0.0,"),
        ("no clip", "CLIP = 1e-2, 1.0", "CLIP = 1e-2, 0.0"),
        ("clip ten times as large", "CLIP = 1e-2, 1.0", "CLIP = 1e-2, 10.0"),
        ("discriminator does not learn alone", '"alone", total // 2, total // 10', '"alone", 0, 0'),
        (
            "preserving loss set to nothing",
            "keep = (denoised - self",
            "keep = 0 * (denoised - self",
        ),
        ("preserving loss reversed", "keep = (denoised - self", "keep = -1 * (denoised - self"),
        ("discriminator's betas are Adam's usual ones", "betas=(0.5, 0.999)", "betas=(0.9, 0.999)"),
        ("does not begin with the solution", "if settings.start_solved:", "if False:"),
        ("balanced Adam forgets slower", "(0.9, 0.98), 1e-12", "(0.9, 0.999), 1e-12"),
    ),
    *faults(
        "domain correction",
        PARTS + "anchor_pictures.py",
        ["balanced_terms", "domain_correction"],
        ("anchors drawn without guidance", "guidance=6.0", "guidance=1.0"),
    ),
    *faults(
        "first token",
        "unlearn/core/first_token.py",
        ["first_token"],
        ("is trained as well", "output[:, :1].detach()", "output[:, :1]"),
        ("all others are left out instead", "output[:, 1:]], 1)", "output[:, 1:].detach()], 1)"),
    ),
    *faults(
        "gradient projection",
        "unlearn/core/gradient_projection.py",
        ["preserve"],
        ("takes away where the two agree", "dot >= 0", "dot <= 0"),
        ("added instead of taken away", "- dot / norm**2 * keep", "+ dot / norm**2 * keep"),
        ("by the length, not its square", "dot / norm**2", "dot / norm"),
        (
            "as released: without the cosine",
            "dot / (erase.norm() * norm)",
            "dot / norm",
        ),
        ("as released is orthogonal", 'if projection == "orthogonal":', 'if projection != "off":'),
        ("a clip that enlarges", ".clamp(max=1.0)", ""),
        (
            "a clip of every tensor by itself",
            "[None if g is None else g * scale",
            "[None if g is None else g * (max_norm / g.norm()).clamp(max=1.0)",
        ),
        ("no clip", "if not max_norm or not present:", "if True:"),
    ),
    # The start in closed form
    *faults(
        "closed form",
        PARTS + "closed_form.py",
        ["closed_form", "balanced_terms"],
        ("no ridge", "square += RIDGE *", "square += 0 *"),
        ("ridge of its own size", "RIDGE * square.diagonal().mean() *", "RIDGE *"),
        ("no retention", "+ retention * kept.value", "+ 0 * kept.value"),
        ("retention set to nothing", "RETENTION = 25.0", "RETENTION = 0.0"),
        ("the rate stays as it was", "REST = 0.2", "REST = 1.0"),
        ("no push", "(1 + push) * across", "1 * across"),
        ("push reversed", "(1 + push) * across", "(1 - push) * across"),
        ("a style's push set to nothing", '"style": 0.6', '"style": 0.0'),
        ("away from the anchor", "(neutral - named)", "(named - neutral)"),
        ("the change is not transposed", "weight @ change.T.to", "weight @ change.to"),
        ("only the first tokens are read", "part.flatten(0, 1)", "part[:, :3].flatten(0, 1)"),
        ("the padding is not read", "part.flatten(0, 1) for", "part[part.any(-1)] for"),
        ("groups of prompts are summed, not averaged", "self.total / self.count", "self.total"),
        ("few sentences", "SENTENCES = 128", "SENTENCES = 4"),
        ("few others", "OTHERS = 512", "OTHERS = 16"),
    ),
    # Hardening
    *faults(
        "hardening",
        PARTS + "adversarial.py",
        ["harden"],
        ("no warm-up", "WARM_UP = 10", "WARM_UP = 1"),
        ("the rate does not fall", "LEAST = 0.1", "LEAST = 1.0"),
        ("attacked prompts left out", "PULL * (attacked + plain)", "PULL * plain"),
        ("plain prompts left out", "PULL * (attacked + plain)", "PULL * attacked"),
        ("pull reversed", "PULL * (attacked + plain)", "-PULL * (attacked + plain)"),
        ("pull set to nothing", "PULL = 3.0", "PULL = 0.0"),
        ("no retention", "+ RETENTION / 2 * kept", "+ 0 * kept"),
        ("retention reversed", "+ RETENTION / 2 * kept", "- RETENTION / 2 * kept"),
        ("retention set to nothing", "RETENTION = 10.0", "RETENTION = 0.0"),
        (
            "others are not held behind words",
            "kept = kept + self._after(beside,",
            "kept = kept + 0 * self._after(beside,",
        ),
        (
            "push reversed for attacked prompts",
            "extrapolate_from(wanted, self.push)",
            "extrapolate_from(wanted, -self.push)",
        ),
        (
            "push reversed for plain prompts",
            "extrapolate_from(model.encode(named), self.push)",
            "extrapolate_from(model.encode(named), -self.push)",
        ),
        ("the attack flees the concept", "vectors - STEP *", "vectors + STEP *"),
        ("the attack's steps stay as long", "(1 - step / steps)", "1"),
        ("the attack does not move", "STEP = 0.3", "STEP = 0.0"),
        ("the attack has few steps", "STEPS = 10", "STEPS = 1"),
        (
            "the words of the attack's beginning are trained on",
            "attacked = self._after(found, named)",
            "attacked = self._after(start, named)",
        ),
        (
            "in the network attacked prompts left out",
            "(attacked + left + retention * kept)",
            "(left + retention * kept)",
        ),
        (
            "in the network plain prompts left out",
            "(attacked + left + retention * kept)",
            "(attacked + retention * kept)",
        ),
        (
            "in the network no retention",
            "(attacked + left + retention * kept)",
            "(attacked + left)",
        ),
        (
            "in the network retention reversed",
            "(attacked + left + retention * kept)",
            "(attacked + left - retention * kept)",
        ),
        (
            "in the network push reversed",
            "attacked_is - aim + self.push * (own",
            "attacked_is - aim - self.push * (own",
        ),
        (
            "in the network plain push reversed",
            "plain_aim + self.push * (plain_own",
            "plain_aim - self.push * (plain_own",
        ),
        ("in the network it is not relative", "retention * kept) / far)", "retention * kept))"),
    ),
    *faults(
        "retention set",
        PARTS + "retention.py",
        ["retention", "key_step"],
        ("pictures of the edited model", "with edit.off():", "if True:"),
        (
            "pictures of nothing",
            "model.sample(prompts[i : i + RetentionSet.AT_ONCE],",
            'model.sample([""] * len(prompts[i : i + RetentionSet.AT_ONCE]),',
        ),
        (
            "a prompt with another's picture",
            "self.encoded(*(self.prompts[i]",
            "self.encoded(*(self.prompts[i - 1]",
        ),
        (
            "one noise for all",
            "torch.randn(x0.shape, generator=generator)",
            "torch.randn(x0[:1].shape, generator=generator).expand_as(x0)",
        ),
        (
            "protected words are not held",
            "random.Random(seed), protect=protect)",
            "random.Random(seed))",
        ),
        (
            "pictures share their noise",
            "RetentionSet.AT_ONCE], seed + i)",
            "RetentionSet.AT_ONCE], seed)",
        ),
    ),
    # What is trained
    *faults(
        "edit",
        "unlearn/core/edit.py",
        ["edit", "preserve", "closed_form", "domain_correction"],
        (
            "weight decay of the delta alone",
            "(weight + delta.full.detach()) * rate",
            "delta.full.detach() * rate",
        ),
        (
            "weight decay of the original alone",
            "(weight + delta.full.detach()) * rate",
            "weight * rate",
        ),
        ("weight decay reversed", "delta.full.grad.add_(", "delta.full.grad.sub_("),
        (
            "shrink of the delta alone",
            "(self.weights[key].to(delta.full) + delta.full) * share",
            "delta.full * share",
        ),
        ("shrink reversed", "delta.full.sub_(", "delta.full.add_("),
        (
            "low-rank deltas shrink",
            "+ delta.full) * share)",
            "+ delta.full) * share)\n            else:\n                delta.up.mul_(1 - share)",
        ),
        ("the original is not the original", "if not self._on:", "if False:"),
        ("stays switched off", "self._on = before", "self._on = False"),
        ("given up at the first overflow", "OVERFLOWS = 8", "OVERFLOWS = 1"),
        (
            "overflows need not be in a row",
            "self._overflows = 0\n            if weight_decay:",
            "if weight_decay:",
        ),
        ("an overflow is a step", "if self._overflowed():", "if False:"),
        ("the last good deltas are old ones", "KEEP_EVERY = 10", "KEEP_EVERY = 1000"),
        ("a low-rank change of the wrong size", "u[:, :rank] * root", "u[:, :rank]"),
        ("a step does not depend on the weight's size", "max(rms, 1e-3) * (rows", "(rows"),
        ("a step does not depend on the weight's shape", "(rows**-0.5 + columns**-0.5)", "1.0"),
        (
            "weights do not share the rate",
            "relative_rate / math.sqrt(len(self.deltas))",
            "relative_rate",
        ),
        ("low-rank steps are small", "rate * columns / rank", "rate"),
        ("the way down is trained at full rate", "0.1 * shared / math", "10.0 * shared / math"),
        ("deltas are not restored", "parameter.copy_(saved)", "pass"),
        ("losses are not restored", 'self.history[:] = state["history"]', "pass"),
        (
            "restored weights are not in the file",
            "torch.zeros_like(parameter) if read else None",
            "None",
        ),
        (
            "gradients are not scaled back",
            "self.deltas[key].value(), self.gradient_scale",
            "self.deltas[key].value(), 1.0",
        ),
        (
            "the projection is not asked for",
            "project_gradients(erasing, keeping,",
            "project_gradients(erasing, erasing,",
        ),
    ),
    *faults(
        "conditioning",
        "unlearn/core/conditioning.py",
        ["edit"],
        (
            "padded in front",
            "F.pad(part.cross, (0, 0, 0, tokens - n))",
            "F.pad(part.cross, (0, 0, tokens - n, 0))",
        ),
        (
            "distance over tokens that only one has",
            "squares.sum((1, 2))) / share",
            "squares.sum((1, 2)))",
        ),
        (
            "distance without the pooled vector",
            "value = value + (self.pooled",
            "value = value + 0 * (self.pooled",
        ),
        (
            "extrapolated towards the other",
            "self.difference(other), amount)",
            "self.difference(other), -amount)",
        ),
        (
            "the pooled vector does not move",
            "+ amount * direction.pooled",
            "+ 0 * direction.pooled",
        ),
        ("padding counts as apart", "* within[..., None]", "* 1"),
    ),
    *faults(
        "trajectory",
        "unlearn/core/ddim.py",
        ["trajectory"],
        ("guidance reversed", "+ scale * (conditional", "- scale * (conditional"),
        ("no guidance", "unconditional + scale * (conditional - unconditional)", "conditional"),
        ("noise is not taken on", "(x - scaled_x0) / noise_scale", "torch.zeros_like(x)"),
        ("begins anew at every step", "step != self.step + 1", "step != self.step + 2"),
        ("the last timestep is zero", "/ steps + 1 for i", "/ steps for i"),
    ),
    # Judging
    *faults(
        "classifier",
        "unlearn/evaluate/classifier.py",
        ["classifier", "identify"],
        ("all of what a word changes counts", '"object": 0.5', '"object": 1.0'),
        ("half of what a style changes counts", '"style": 1.0', '"style": 0.5'),
        (
            "what a word changes is reversed",
            "plain + weight * (predicted",
            "plain - weight * (predicted",
        ),
        ("words are quartered", "math.ceil(left / 2)", "math.ceil(left / 4)"),
        ("draws do not double", "IN_FULL * draws // left", "0"),
        (
            "every word has its own noise",
            "noise, t = self.noise[at].to(x0)",
            "noise, t = torch.randn_like(self.noise[at]).to(x0)",
        ),
        ("losses are not relative", ":draws] / losses[0, :draws]", ":draws]"),
        ("few words in full", "IN_FULL = 10", "IN_FULL = 5"),
        (
            "timesteps in order of the draws",
            "torch.arange(count) * GOLDEN) % 1",
            "torch.arange(count)) % 1",
        ),
        (
            "a share of the wrong loss",
            "1 - losses[:, 1:] / losses[:, :1]",
            "losses[:, 1:] / losses[:, :1]",
        ),
    ),
    *faults(
        "detection",
        "unlearn/evaluate/detection.py",
        ["identify"],
        ("a picture of anything shows it", '(kind == "style" or explained > 0)', "True"),
        ("a word that is not the best one counts", "ranking.best in concepts and", "True and"),
        ("weighed against one word", "OTHERS = 11", "OTHERS = 1"),
        ("weighed against no neutral word", "return [ANCHORS[kind], *words", "return [*words"),
        ("a broken picture is asked for", "if not images[i].isfinite().all():", "if False:"),
    ),
    *faults(
        "verdict",
        "unlearn/evaluate/verdict.py",
        ["classifier", "verdict"],
        ("anything counts as drawn", "LEAST = 0.4", "LEAST = 0.0"),
        ("hardly anything counts as drawn", "LEAST = 0.4", "LEAST = 1.5"),
        ("anything shows it", "SHOWS = 0.35", "SHOWS = -9.0"),
        ("only a clear picture shows it", "SHOWS = 0.35", "SHOWS = 0.9"),
        ("the first draws always tell", "SURE = 2.0", "SURE = 0.0"),
        ("the first draws never tell", "SURE = 2.0", "SURE = 1e9"),
        ("half is not gone", "NOT_GONE if after > before / 2", "NOT_GONE if after >= before / 2"),
        ("one picture is gone", "GONE if after == 0", "GONE if after <= 1"),
        ("a misspelt word is never known", "ALIKE = 0.8", "ALIKE = 1.0"),
        ("any word is misspelt", "ALIKE = 0.8", "ALIKE = 0.1"),
        ("rivals are not asked", "if shown and rivals:", "if False:"),
        ("drawn in a few pictures is enough", '["before"] > PICTURES / 2', '["before"] >= 0'),
    ),
    *faults(
        "CPDM",
        "unlearn/evaluate/cpdm/metric.py",
        ["cpdm"],
        ("a block's weight is another's", "(0.5, 0.1, 6e4, 40.0)", "(0.1, 0.5, 6e4, 40.0)"),
        ("embeddings are not of length one", "F.normalize(one.float(), dim=-1)", "one.float()"),
        ("semantic distance without the square", "difference.square()", "difference.abs()"),
        ("Gram matrix of the wrong size", "/ flat[0].numel()", "/ flat[0, 0].numel()"),
        ("Gram matrix of places", "flat @ flat.transpose(1, 2)", "flat.transpose(1, 2) @ flat"),
        ("blocks are summed", "torch.stack(parts).mean(0)", "torch.stack(parts).sum(0)"),
        ("the sum of both", "self.semantic * self.style", "self.semantic + self.style"),
        ("CM is a distance", "[1 - value**2 for", "[value**2 for"),
        ("CM without the square", "[1 - value**2 for", "[1 - value for"),
        ("Norm without its least", "(value - low) / (high - low)", "value / high"),
        ("the released figure without the square", "self.product**2", "self.product"),
    ),
    # Attacks
    *faults(
        "Ring-A-Bell",
        "unlearn/attacks/ring_a_bell.py",
        ["attacks"],
        ("eta set to nothing", "strength: float = 3.0", "strength: float = 0.0"),
        ("direction reversed", "with_it.difference(without)", "without.difference(with_it)"),
        ("direction is not taken", ".moved(direction, settings.strength)", ""),
        (
            "the concept's own words may be found",
            "model.vocabulary().without(concept)",
            "model.vocabulary()",
        ),
        ("away from the aim", "vectors).distance(aim)", "vectors).distance(aim).neg()"),
    ),
    *faults(
        "UnlearnDiffAtk",
        "unlearn/attacks/unlearn_diff_atk.py",
        ["attacks"],
        ("the network is not asked", "(losses, settings.steps", "(distance, settings.steps"),
        (
            "the encoder is not asked first",
            "(distance, settings.first_steps",
            "(losses, settings.first_steps",
        ),
        (
            "the first words are lost",
            "                after_step,\n                found,",
            "                after_step,",
        ),
        ("a character has as few words as a thing", '5 if kind == "character" else 3', "3"),
        (
            "every prompt has the first one's pictures",
            "Targets(model, targets[at],",
            "Targets(model, targets[: len(some)],",
        ),
    ),
    *faults(
        "attacks' pictures",
        "unlearn/attacks/denoising_targets.py",
        ["attacks"],
        (
            "losses are not relative",
            "(self.losses(conditioning) / before)",
            "self.losses(conditioning)",
        ),
        (
            "a prompt with another's picture",
            "rows.repeat_interleave(self.draws)",
            "rows.repeat(self.draws)",
        ),
        (
            "a thing's timesteps are a style's",
            '"object": (400.0, 1000.0)',
            '"object": (100.0, 800.0)',
        ),
        (
            "one timestep for all",
            "torch.arange(len(self.x0)) * GOLDEN",
            "torch.arange(len(self.x0))",
        ),
    ),
    *faults(
        "word search",
        "unlearn/attacks/token_search.py",
        ["probe"],
        ("keeps what is worse", "better = losses < least", "better = losses > least"),
        (
            "tries what promises least",
            "sum(-1, keepdim=True) - gain)",
            "sum(-1, keepdim=True) * 0 + gain)",
        ),
    ),
    *faults(
        "CCE",
        "unlearn/attacks/cce.py",
        ["attacks"],
        ("the token hardly learns", "rate: float = 0.3", "rate: float = 0.003"),
        ("away from the concept", "target, prompts).mean()", "target, prompts).mean().neg()"),
        ("an overflow spoils the token", "token.grad.nan_to_num_(0.0, 0.0, 0.0)", "pass"),
        ("gradients add up", "optimiser.zero_grad()", "pass"),
        ("not in units of the encoder's spread", "(begin / vocabulary.scale)[None", "begin[None"),
        (
            "begins with nothing",
            "begin = vocabulary.of(ANCHORS[kind])",
            "begin = torch.zeros_like(vocabulary.vectors[0])",
        ),
    ),
    # The baselines
    *faults(
        "gradient ascent",
        METHODS + "baselines/gradient_ascent.py",
        ["cpdm_baselines"],
        ("no weight decay", "WEIGHT_DECAY = 1e-2", "WEIGHT_DECAY = 0.0"),
        ("weight decay reversed", "WEIGHT_DECAY = 1e-2", "WEIGHT_DECAY = -1e-2"),
        ("goes down", "loss = ascent_loss(", "loss = -ascent_loss("),
        ("one concept only", "concepts[step % len(concepts)]", "concepts[0]"),
    ),
    *faults(
        "weight pruning",
        METHODS + "baselines/weight_pruning.py",
        ["cpdm_baselines"],
        ("weights are doubled", "-edit.weights[key].float() *", "edit.weights[key].float() *"),
        ("cuts the smallest", "rows.topk(count, 1)", "rows.topk(count, 1, largest=False)"),
        ("cuts in silent channels", "(one >= least)", "(one < least)"),
        ("share of channels", "int(share * every.numel())", "int(2 * share * every.numel())"),
        ("share of weights", "int(share * rows.shape[1])", "int(2 * share * rows.shape[1])"),
        ("mean and largest exchanged", 'if pooling == "avg"', 'if pooling == "max"'),
    ),
    # The file
    *faults(
        "erasure",
        "unlearn/core/erasure.py",
        ["applied", "erasure"],
        ("alpha is one", "torch.tensor(float(up.shape[1]))", "torch.tensor(1.0)"),
        ("alpha is not read", "(alpha.item() / rank)", "1.0"),
        ("alpha is not divided by the rank", "(alpha.item() / rank)", "alpha.item()"),
        ("low-rank strength left out", '"lora_up"].float() * s for', '"lora_up"].float() for'),
        ("full strength reversed", "full(delta).view(shape) * s", "full(delta).view(shape) * -s"),
        (
            "strength twice",
            'delta["lora_down"].float() for delta, _ in parts',
            'delta["lora_down"].float() * s for delta, s in parts',
        ),
        (
            "only the first of several",
            "for key in dict.fromkeys(key for erasure in erasures for",
            "for key in dict.fromkeys(key for erasure in erasures[:1] for",
        ),
    ),
    *faults(
        "erasure on a pipeline",
        "unlearn/diffusers_backend/apply.py",
        ["applied"],
        ("reversed", "+ strength * delta", "- strength * delta"),
        ("at full strength", "+ strength * delta", "+ delta"),
        ("stays on", "model.weights[key].detach().copy_(value)", "pass"),
    ),
]

"""Training of the disentangling GAN (section 2.2): E^c, E^s and G against two critics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odereg_core.box import box_of
from odereg_core.cohort import Cohort, Subject
from odereg_core.errors import InputError
from odereg_core.files import atomic
from odereg_core.networks.disentangle import Code, Content, Critic, Disentangler, Stack, Style
from odereg_core.pairs import pair_keys
from odereg_core.profiles import EncoderSection, Profile
from odereg_core.similarity import content_similarity, pad_to_multiple, stacks
from odereg_core.train.augment import augment
from odereg_core.train.draws import normal
from odereg_core.train.loop import (
    check,
    fit,
    identity,
    mixed_precision,
    origin,
    record_of,
    start_from,
    step_generator,
    training_images,
)
from odereg_core.transforms import Rigid
from odereg_core.warp import warp
from odereg_core.weights import save_model

CLIP = 0.01
"""Where [2] clips the critics' weights."""
Generate = Callable[[Content, Style, Code], Stack]


class Networks(nn.Module):
    """The translator and its critics: of images and, as in [19], of content codes.

    Both are Wasserstein critics of (what, contrast): an image of contrast i with code i is real, a
    translation into i is not; a content code with its own image's contrast is real, with another's
    it is not, so a content code that knows its contrast can be told.
    """

    def __init__(self, section: EncoderSection, contrasts: tuple[str, ...]):
        super().__init__()
        try:
            self.translator = Disentangler(contrasts, **section.network)
        except (TypeError, ValueError, RuntimeError) as error:  # a size, or a name, that it has not
            raise InputError(f"the encoder's network: {error}") from None
        width = self.translator.options["width"]
        channels = width * 2**self.translator.downs
        self.image_critic = Critic(self.translator.slices, len(contrasts), 2 * width)
        self.content_critic = Critic(channels, len(contrasts), width)


@dataclass
class Sample:
    """Stacks of one contrast each, and their codes."""

    image: Stack
    code: Code


@dataclass
class Swap:
    """Steps (a) and (b) of section 2.2 for a batch of pairs; (c) and (d) are in
    `reconstruction_losses`."""

    content: tuple[Tensor, Tensor]
    style: tuple[Tensor, Tensor]
    translated: tuple[Tensor, Tensor]
    """x_ab of a's content in b's style, and x_ba."""


def noisy(generator: Generate, sigma: float, rng: torch.Generator) -> Generate:
    """G that sees content codes with white noise of `sigma`, as [19] trains it.

    Without, contrasts end with codes that all but agree, and G still reads the source's intensities
    from what is left between them: it copies instead of translating.
    """

    def generate(content: Content, style: Style, code: Code) -> Stack:
        noise = normal(content, rng)
        inside = (content != 0).any(1, keepdim=True)
        return generator(content + sigma * noise * inside, style, code)

    return generate


def swap(model: Disentangler, a: Sample, b: Sample, generate: Generate) -> Swap:
    """(a) and (b): encode both, swap styles, translate."""
    content = model.content(a.image), model.content(b.image)
    style = model.style(a.image, a.code), model.style(b.image, b.code)
    there = generate(content[0], style[1], b.code)
    back = generate(content[1], style[0], a.code)
    return Swap(content, style, (there, back))


def reconstruction_losses(
    model: Disentangler, a: Sample, b: Sample, s: Swap, generate: Generate
) -> dict[str, Tensor]:
    """(c) and (d): L_cyc, L_rec^c, L_rec^s and L_rec^x, each an L1 distance averaged over a and
    b."""
    x_ab, x_ba = s.translated
    content = model.content(x_ab), model.content(x_ba)  # of a, of b
    style = model.style(x_ba, a.code), model.style(x_ab, b.code)  # of a, of b
    cycled = generate(content[0], style[0], a.code), generate(content[1], style[1], b.code)
    same = generate(s.content[0], s.style[0], a.code), generate(s.content[1], s.style[1], b.code)

    def l1(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> Tensor:
        return sum(F.l1_loss(f.float(), w.float()) for f, w in zip(found, wanted, strict=True)) / 2

    images = a.image, b.image
    return {
        "cycle": l1(cycled, images),
        "rec_content": l1(content, s.content),
        "rec_style": l1(style, s.style),
        "rec_image": l1(same, images),
    }


def wasserstein(critic: Critic, real: tuple[Tensor, Code], fake: tuple[Tensor, Code]) -> Tensor:
    """What the critic thinks the distance is: E critic(real) - E critic(fake)."""
    return critic(*real).mean() - critic(*fake).mean()


def gradient_penalty(
    critic: Critic, real: tuple[Tensor, Code], fake: tuple[Tensor, Code], rng: torch.Generator
) -> Tensor:
    """(|grad critic| - 1)^2 between real and fake (Gulrajani et al. 2017).

    The norm is per root mean square of the input, not per root sum: a critic then weighs as much
    as an L1 loss averaged over voxels does, whatever the images' size.
    """
    share = torch.rand((len(real[0]), 1, 1, 1), generator=rng).to(real[0].device)
    x = torch.lerp(fake[0], real[0], share).detach().requires_grad_()
    code = torch.lerp(fake[1], real[1], share[:, :, 0, 0])
    (gradient,) = torch.autograd.grad(critic(x, code).sum(), x, create_graph=True)
    norm = gradient.flatten(1).norm(dim=1) * x[0].numel() ** 0.5
    return (norm - 1).square().mean()


class Slices:
    """All training volumes on the device, and random stacks of slices of them."""

    def __init__(self, cohort: Cohort, slices: int, downs: int, device: str):
        self.volumes = training_images(cohort, cohort.grid, device)
        # Two slices within the heads, about which the box has a margin of one.
        self.extent = [
            (at.start + 3, at.stop - 4) for at in box_of(self.volumes.amax((0, 1), keepdim=True))
        ]
        self.slices, self.downs, self.device = slices, downs, device

    def draw(self, axis: int, contrast: Tensor, rng: torch.Generator) -> Tensor:
        """A stack across `axis` of a random subject for each contrast given, mirrored half the
        time."""
        batch = len(contrast)
        subject = torch.randint(len(self.volumes), (batch,), generator=rng)
        low, high = self.extent[axis]
        centres = torch.randint(low, high, (batch,), generator=rng)
        flip = (torch.rand(batch, generator=rng) < 0.5).to(self.device)[:, None, None, None]
        volume = self.volumes[subject.to(self.device), contrast.to(self.device)]
        found = torch.cat(
            [
                stacks(v[None, None], axis, c[None], self.slices)
                for v, c in zip(volume, centres, strict=True)
            ]
        ).float()
        found = pad_to_multiple(found, self.downs)
        # Left and right: the slices' order for sagittal stacks, their rows for the others.
        return torch.where(flip, found.flip(1 if axis == 0 else 2), found)


class GanTrainer:
    """The training of one encoder; `train` runs it."""

    def __init__(self, section: EncoderSection, cohort: Cohort, device: str):
        torch.manual_seed(section.seed)
        self.section, self.cohort, self.device = section, cohort, device
        self.model = Networks(section, cohort.contrasts).to(device)
        self.translator = self.model.translator
        self.critics = [self.model.image_critic, self.model.content_critic]
        # Adam skips what has no gradient, so one serves both sides of the game.
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=section.lr, betas=(0.5, 0.9))
        self.data = Slices(cohort, self.translator.slices, self.translator.downs, device)
        keys = pair_keys(cohort.names("val"), cohort.contrasts, "rigid", section.validation_pairs)
        loaded = {name: cohort.load(name) for name in {key.subject for key in keys}}
        self.pairs = [(loaded[key.subject], key) for key in keys]

    def draw(self, rng: torch.Generator) -> tuple[Sample, Sample]:
        """Two batches, each example's contrasts differ; subjects and places are their own."""
        batch, m = self.section.batch, len(self.cohort.contrasts)
        axis = int(torch.randint(3, (1,), generator=rng))
        first = torch.randint(m, (batch,), generator=rng)
        second = (first + torch.randint(1, m, (batch,), generator=rng)) % m
        return tuple(
            Sample(
                self.data.draw(axis, contrast, rng),
                self.translator.code(contrast).to(self.device),
            )
            for contrast in (first, second)
        )  # type: ignore[return-value]

    def games(self, a: Sample, b: Sample, s: Swap) -> list[tuple[Critic, tuple, tuple]]:
        """What each critic is shown: itself, the real and the fake."""
        images = torch.cat([a.image, b.image])
        translated = torch.cat([s.translated[1], s.translated[0]]).float()
        content = torch.cat(s.content).float()
        own, other = torch.cat([a.code, b.code]), torch.cat([b.code, a.code])
        return [
            (self.critics[0], (images, own), (translated, own)),
            (self.critics[1], (content, own), (content, other)),
        ]

    def critic_step(self, rng: torch.Generator) -> dict[str, float]:
        """One step of both critics."""
        a, b = self.draw(rng)
        generate = noisy(self.translator.generator, self.section.noise, rng)
        with torch.no_grad(), mixed_precision(self.device, self.section.precision):
            s = swap(self.translator, a, b, generate)
        loss, terms = torch.zeros((), device=self.device), {}
        for name, (critic, real, fake) in zip(
            ("image", "content"), self.games(a, b, s), strict=True
        ):
            distance = wasserstein(critic, real, fake)
            terms[f"w_{name}"] = float(distance.detach())
            loss = loss - distance
            if self.section.penalty:
                loss = loss + self.section.penalty * gradient_penalty(critic, real, fake, rng)
        self._descend(loss, [p for critic in self.critics for p in critic.parameters()])
        if not self.section.penalty:
            with torch.no_grad():
                for critic in self.critics:
                    for parameter in critic.parameters():
                        parameter.clamp_(-CLIP, CLIP)
        return terms

    def generator_step(self, rng: torch.Generator, progress: float) -> dict[str, float]:
        """One step of E^c, E^s and G on the weighted sum of all losses.

        What pulls contents together grows over the first half of the training: from the start it
        would keep a code of outlines alone, on which all contrasts agree.
        """
        ramp = min(1.0, 2 * progress)
        section, model = self.section, self.translator
        a, b = self.draw(rng)
        generate = noisy(model.generator, section.noise, rng)
        with mixed_precision(self.device, self.section.precision):
            s = swap(model, a, b, generate)
            terms = reconstruction_losses(model, a, b, s, generate)
            if section.invariance or section.recolour:
                terms |= self._augmented(a, s, generate, rng)
        (image_critic, _, fake), (content_critic, real, wrong) = self.games(a, b, s)
        loss = (
            section.cycle * terms["cycle"]
            + section.image * terms["rec_image"]
            + section.features * (ramp * terms["rec_content"] + terms["rec_style"])
            + section.invariance * ramp * terms.get("invariance", 0.0)
            + section.recolour * terms.get("recolour", 0.0)
            - section.adversarial * image_critic(*fake).mean()
            + section.content_adversarial * ramp * wasserstein(content_critic, real, wrong)
        )
        self._descend(loss, list(model.parameters()))
        return {"loss": float(loss.detach())} | {k: float(v.detach()) for k, v in terms.items()}

    def _augmented(
        self, a: Sample, s: Swap, generate: Generate, rng: torch.Generator
    ) -> dict[str, Tensor]:
        """Ours, not the paper's: an image and a copy of it with other intensities, bias and noise
        have one content (L1), and the copy's content in the image's style is the image (L1)."""
        # A stack is a thin volume to the augmentation.
        thin = a.image.movedim(1, -1)[:, None]
        seen = augment(thin, self.section.augment, rng)[:, 0].movedim(-1, 1)
        content = self.translator.content(seen)
        back = generate(content, s.style[0], a.code)
        return {
            "invariance": F.l1_loss(content.float(), s.content[0].float()),
            "recolour": F.l1_loss(back.float(), a.image),
        }

    def _descend(self, loss: Tensor, parameters: list[Tensor]) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=parameters)
        self.optimizer.step()

    def step(self, number: int) -> dict[str, float]:
        """`critic_steps` of the critics, then one of the rest; the learning rate falls to nothing
        over the second half of the training (as in Zhu et al. 2017)."""
        progress = number / self.section.steps
        for group in self.optimizer.param_groups:
            group["lr"] = self.section.lr * min(1.0, 2 * (1 - progress))
        rng = step_generator(self.section.seed, number)
        self.model.train()
        for _ in range(self.section.critic_steps):
            terms = self.critic_step(rng)
        return self.generator_step(rng, progress) | terms

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """How far content distance across contrasts falls at alignment, and translation error.

        `aligned_over_shifted` is the distance at alignment over that at a shift of 6 mm and 5°, a
        mean over validation pairs: the smaller, the better a metric for registration.
        """
        self.model.eval()
        metric = content_similarity(self.translator)
        theta = torch.tensor([[0.09, 0, 0, 6.0, 0, 0]], device=self.device)
        grid = self.cohort.grid
        u = Rigid().displacement(theta, grid)
        ratios, errors, index = [], [], {c: i for i, c in enumerate(self.cohort.contrasts)}
        for subject, key in self.pairs:
            moving, fixed = (
                subject.images[index[c]][None, None].to(self.device)
                for c in (key.moving, key.fixed)
            )
            aligned, shifted = metric(moving, fixed), metric(warp(moving, u, grid), fixed)
            ratios.append(float(aligned / shifted))
            middle = torch.tensor([grid.shape[2] // 2])
            a, b = (stacks(x, 2, middle, self.translator.slices) for x in (moving, fixed))
            codes = [
                self.translator.code(torch.tensor([index[c]])).to(self.device)
                for c in (key.moving, key.fixed)
            ]
            samples = Sample(a, codes[0]), Sample(b, codes[1])
            s = swap(self.translator, *samples, self.translator.generator)
            errors.append(float((s.translated[0] - b).abs().mean() / b.mean()))
        ratio = torch.tensor(ratios)
        return {
            "aligned_over_shifted": float(ratio.mean()),
            "worst_ratio": float(ratio.max()),
            "translation_error": float(torch.tensor(errors).mean()),
        }

    @torch.no_grad()
    def picture(self, path: Path, subject: Subject) -> None:
        """Contrasts down, and across: the slice, its reconstruction, and its translation into each
        contrast (with that contrast's style from the same slice)."""
        from matplotlib.image import imsave

        middle = torch.tensor([self.cohort.grid.shape[2] // 2])
        m = len(self.cohort.contrasts)
        every = subject.images[:, None].to(self.device)
        image = stacks(every, 2, middle, self.translator.slices)
        codes = self.translator.code(torch.arange(m)).to(self.device)
        content, style = self.translator.content(image), self.translator.style(image, codes)
        rows = []
        for i in range(m):
            made = self.translator.generator(content[i : i + 1].expand(m, -1, -1, -1), style, codes)
            rows.append(torch.cat([image[i : i + 1], made])[:, self.translator.slices // 2])
        tiles = torch.stack(rows).float().cpu().flip(-1).transpose(-1, -2)
        table = tiles.permute(0, 2, 1, 3).flatten(0, 1).flatten(1)
        with atomic(path) as temporary:
            imsave(temporary, table.numpy(), cmap="gray", vmin=0, vmax=1, format="png")


def train(
    name: str,
    profile: Profile,
    cohort: Cohort,
    out: Path,
    device: str,
    command: str = "",
    init: Path | None = None,
) -> Path:
    """Train the encoder `name` of a profile: `<name>.safetensors`, its `.json`, `.log.csv` and
    `.swaps.png` in `out`.

    `init`: weights of the same kind of translator to start from, their `.json` beside them; the
    critics start anew. Goes on from `<name>.checkpoint.safetensors` where there is one. Returns the
    weights file.
    """
    check(cohort, profile)
    section = profile.encoders[name]
    before = record_of(init)
    trainer = GanTrainer(section, cohort, device)
    if init:
        start_from(trainer.translator, init)
    facts = origin(command, profile, section, cohort, device, init=init)
    shown = cohort.load(cohort.names("val")[0])

    def validate(step: int) -> dict[str, float]:
        numbers = trainer.validate()
        trainer.picture(out / f"{name}.swaps.png", shown)
        return numbers

    fitted = fit(
        name,
        out,
        trainer.model,
        trainer.optimizer,
        (section.steps,),
        trainer.step,
        validate,
        section.validate_every,
        of=identity(facts),
        title=f"{name} ({profile.name})",
        score="aligned_over_shifted",
    )
    save_model(fitted.weights, trainer.translator)
    samples = section.steps * section.batch * 2 * (1 + section.critic_steps)
    fitted.write_record(facts, samples, device, before, validation=fitted.best)
    return fitted.weights

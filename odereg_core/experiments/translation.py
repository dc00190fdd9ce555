"""How well the GAN translates: its error by pair of contrasts, beside two ways to do without it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from skimage.exposure import match_histograms
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor
from tqdm.auto import tqdm

from odereg_core.baselines.translate import translate
from odereg_core.cohort import Cohort
from odereg_core.networks.disentangle import Disentangler
from odereg_core.pairs import PairKey


def matched(image: Tensor, like: Tensor) -> Tensor:
    """The image with the foreground histogram of another: the one map of intensities that keeps
    their order and gives that histogram.

    A map that need not keep their order may come nearer to a true image: a table of each
    intensity's mean in the true image comes nearest, in the least squares' sense, but wants that
    image. This one wants any image of the contrast.
    """
    inside, result = image > 0, image.clone()
    values = match_histograms(image[inside].numpy(), like[like > 0].numpy())
    result[inside] = torch.from_numpy(values).to(image)
    return result


def translation_errors(
    model: Disentangler, cohort: Cohort, keys: Sequence[PairKey], device: str = "cpu"
) -> pd.DataFrame:
    """PSNR in dB and SSIM over the brain of each pair's moving image as the fixed contrast.

    A line a pair and way: `copy` (the image as it is), `histogram`, `GAN`. The contrasts of a
    subject are aligned, so the true image is known. The GAN's and the histogram's target is the
    true image's own style, as a registration has it at hand in the fixed image.
    """
    rows, index = [], cohort.contrasts.index
    for key in tqdm(keys, desc="translation", unit="pair", mininterval=2.0):
        subject = cohort.load(key.subject)
        moving, true = (subject.images[index(c)] for c in (key.moving, key.fixed))
        made = translate(
            model, moving[None, None].to(device), index(key.fixed), true[None, None].to(device)
        )
        brain = subject.mask.numpy()
        for way, image in (
            ("copy", moving),
            ("histogram", matched(moving, true)),
            ("GAN", made[0, 0].cpu()),
        ):
            psnr = peak_signal_noise_ratio(true.numpy()[brain], image.numpy()[brain], data_range=1)
            both = true.numpy(), image.numpy()
            local = structural_similarity(*both, data_range=1, full=True)[1]
            ssim = np.asarray(local)[brain].mean()
            rows.append((key.subject, key.moving, key.fixed, way, psnr, ssim))
    return pd.DataFrame(rows, columns=["subject", "moving", "fixed", "way", "psnr_db", "ssim"])

"""The weights that the authors of M2D and MSM-MAE publish: their names, where they are, under which terms.

They are under a licence for evaluation only. hear-m2d neither ships nor downloads nor passes them on; it
tells whoever asks for one by name where it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

LICENCE = "NTT Software License Agreement for Evaluation"
HOSTS = ("github.com", "www.github.com")
DOWNLOADS = re.compile(r"/+(nttcslab)/+(m2d|msm-mae)/.*", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Release:
    """One release page and the names of the weights on it (each the name of a zip and of its folder)."""

    page: str
    names: tuple[str, ...]


RELEASES = (
    Release(
        "https://github.com/nttcslab/m2d/releases/tag/v0.1.0",
        (
            "m2d_vit_base-80x608p16x16-220930-mr7",
            "m2d_vit_base-80x608p16x16-221006-mr7",
            "m2d_vit_base-80x608p16x16-221006-mr6",
            "m2d_vit_base-80x608p16x16-220930-mr7_enconly",
            "m2d_vit_base-80x608p16x16-221006-mr7_enconly",
            "m2d_vit_base-80x200p16x4-230529",
            "m2d_as_vit_base-80x608p16x16-240213",
            "m2d_as_vit_base-80x608p16x16p32k-240413_enconly",
            "m2d_clap_vit_base-80x608p16x16-240128",
            "msm_mae_vit_base-80x608p16x16-220924-mr75",
        ),
    ),
    Release(
        "https://github.com/nttcslab/m2d/releases/tag/v0.2.0",
        (
            "m2d_s_vit_base-80x400p80x2-230201",
            "m2d_s_vit_base-80x512p80x2-230301",
            "m2d_s_vit_base-80x608p80x2-230220",
        ),
    ),
    Release(
        "https://github.com/nttcslab/m2d/releases/tag/v0.3.0",
        (
            "m2d_vit_base-80x1001p16x16-221006-mr7_as_46ab246d",
            "m2d_as_vit_base-80x1001p16x16-240213_AS-FT_enconly",
            "m2d_as_vit_base-80x1001p16x16p32k-240413_AS-FT_enconly",
            "m2d_clap_vit_base-80x1001p16x16-240128_AS-FT_enconly",
        ),
    ),
    Release(
        "https://github.com/nttcslab/m2d/releases/tag/v0.5.0",
        (
            "m2d_clap_vit_base-80x1001p16x16p16kpBpTI-2025",
            "m2d_clap_vit_base-80x1001p80x2p16kpBpTI-2025",
        ),
    ),
    Release(
        "https://github.com/nttcslab/msm-mae/releases/tag/v0.0.1",
        ("80x512p16x16_paper", "80x512p16x16_0425", "80x208p16x16_0422"),
    ),
)


def authors_names() -> list[str]:
    """Return the name of every published weight that we know of."""
    return [name for release in RELEASES for name in release.names]


def authors_page(name: str) -> tuple[str, str] | None:
    """Return the name and the release page that are meant by a name, its zip, or a file of its folder."""
    for part in re.split(r"[/\\]", name):
        for release in RELEASES:
            for known in release.names:
                if part.lower().removesuffix(".zip") == known.lower():
                    return known, release.page
    return None


def refusal_of_address(host: str, path: str) -> str | None:
    """Return the sentence for an address in the authors' repositories; None for any other address."""
    found = DOWNLOADS.fullmatch(path)
    if host.lower() not in HOSTS or not found:
        return None
    page = f"https://github.com/{found[1]}/{found[2]}/releases"
    return where_to_get(*(authors_page(path) or (path.rpartition("/")[2], page)))


def where_to_get(name: str, page: str) -> str:
    """Return the sentence for somebody who asks for such weights by name."""
    return (
        f"{name} is one of the authors' weights. hear-m2d does not download them: they are under the "
        f"{LICENCE}, for internal evaluation only. If you accept these terms, download it from {page}; then "
        "load_model('FILE') loads it, and `hear-m2d convert FILE OUT.safetensors` makes one of ours of it"
    )


def is_authors_licence(licence: str) -> bool:
    """Tell whether a checkpoint's terms are the authors', under which nothing may be passed on."""
    text = " ".join(licence.split()).lower()
    return "license agreement for evaluation" in text or ("ntt" in text.split() and "evaluation" in text)

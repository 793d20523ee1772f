"""The steps of images.yaml: six operators of scikit-image on photographs, and a contact sheet of what they make.

A picture is an array of height x width x 3 bytes. Every operator takes one and returns a mapping of its own name to a picture
and a number about it. All are deterministic, so two runs give the same sheet, byte for byte, on any executor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

try:
    import numpy as np
    import skimage
    from PIL import Image, ImageDraw
    from skimage import color, exposure, feature, filters, measure, metrics, morphology, restoration, segmentation, util
except ImportError as missing:
    raise ImportError(f"images.yaml needs scikit-image ({missing}): pip install '.[examples]'") from None

HERE = Path(__file__).parent
SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"}
SAMPLES = (
    "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png", "coffee.png", "coins.png",
    "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "page.png",
    "retina.jpg", "rocket.jpg", "text.png",
)  # fmt: skip
"""Photographs in scikit-image's own package; other sample images are downloaded, which a pipeline should not do."""
HEADS = {
    "denoise": "dB gained", "equalize": "contrast", "edges": "edge %", "texture": "bits", "segments": "segments",
    "objects": "objects",
}  # fmt: skip
"""The operators in the order of the sheet, with what their numbers say."""
GAP = 6

Picture = Any


# ---------------------------------------------------------------- which images


def find_images(folder: str = "samples", limit: int = 0) -> list[str]:
    """Paths of the images in a folder, by name; ``made:N`` for one that is drawn, where the samples aren't installed."""
    if folder == "samples":
        place = Path(skimage.__file__).parent / "data"
        found = [str(place / name) for name in SAMPLES if (place / name).is_file()] or [f"made:{n}" for n in range(6)]
    else:
        place = HERE / Path(folder).expanduser()
        if not place.is_dir():
            raise FileNotFoundError(f"there is no folder {place}; name another with -p images=PATH")
        found = sorted(str(path) for path in place.iterdir() if path.suffix.lower() in SUFFIXES)
        if not found:
            raise FileNotFoundError(f"no images in {place}; name another folder with -p images=PATH")
    return found[:limit] if limit else found


def load(file: str, size: int) -> Picture:
    """The image, shrunk so that it fits a square of ``size`` pixels."""
    if file.startswith("made:"):
        return drawn(int(file.removeprefix("made:")), size)
    try:
        with Image.open(file) as image:
            picture = image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow says of a file that is no image, or half of one
        raise ValueError(f"{file} can't be read as an image: {error}") from error
    picture.thumbnail((size, size))
    return np.asarray(picture)


def drawn(number: int, size: int) -> Picture:
    """A picture of coloured discs on a slope of light."""
    chance = np.random.default_rng(number)
    rows, columns = np.mgrid[:size, :size] / size
    picture = np.stack([rows, columns, 1 - rows], axis=-1) * 0.6
    for row, column, radius, *shade in chance.uniform(0, 1, (12, 6)):
        picture[(rows - row) ** 2 + (columns - column) ** 2 < (0.03 + radius / 8) ** 2] = shade
    return util.img_as_ubyte(picture)


# ---------------------------------------------------------------- operators


def result(name: str, picture: Any, number: float) -> dict[str, Any]:
    """What an operator returns: its picture in bytes and colours, and a number, a count or one of two decimals."""
    shown = util.img_as_ubyte(picture if picture.ndim == 3 else color.gray2rgb(picture))
    return {name: {"picture": shown, "number": number if isinstance(number, int) else round(float(number), 2)}}


def denoise(picture: Picture) -> dict[str, Any]:
    """Noise is added and taken away again (non-local means); by how much that brings it closer to the original."""
    clean = util.img_as_float(picture)
    noisy = np.clip(clean + np.random.default_rng(1).normal(0, 0.1, clean.shape), 0, 1)
    better = restoration.denoise_nl_means(
        noisy, patch_size=5, patch_distance=6, h=0.08, sigma=0.1, fast_mode=True, channel_axis=-1
    )
    gained = metrics.peak_signal_noise_ratio(clean, better, data_range=1)
    gained -= metrics.peak_signal_noise_ratio(clean, noisy, data_range=1)
    return result("denoise", np.clip(better, 0, 1), gained)


def equalize(picture: Picture) -> dict[str, Any]:
    """Contrast stretched region by region (CLAHE); how many times the contrast there was."""
    even = exposure.equalize_adapthist(picture, clip_limit=0.02)
    return result("equalize", even, color.rgb2gray(even).std() / max(color.rgb2gray(picture).std(), 1e-3))


def edges(picture: Picture) -> dict[str, Any]:
    """Lines where brightness changes (Canny); their share of all pixels."""
    lines = feature.canny(color.rgb2gray(picture), sigma=1.5)
    return result("edges", ~lines, 100 * lines.mean())


def texture(picture: Picture) -> dict[str, Any]:
    """The pattern around every pixel (local binary patterns); how many bits tell one."""
    patterns = feature.local_binary_pattern(util.img_as_ubyte(color.rgb2gray(picture)), 8, 1, "uniform")
    return result("texture", patterns / 9, measure.shannon_entropy(patterns))


def segments(picture: Picture) -> dict[str, Any]:
    """Regions of one colour (superpixels, SLIC), each painted in its mean; how many."""
    labels = segmentation.slic(picture, n_segments=120, compactness=12, start_label=1)
    painted = color.label2rgb(labels, picture, kind="avg", bg_label=0)
    return result("segments", segmentation.mark_boundaries(painted, labels, color=(1, 1, 1)), int(labels.max()))


def objects(picture: Picture) -> dict[str, Any]:
    """What is brighter than the rest (Otsu's threshold), piece by piece; how many pieces of 20 pixels or more."""
    gray = filters.gaussian(color.rgb2gray(picture), sigma=1)
    bright = gray > filters.threshold_otsu(gray) if np.ptp(gray) else np.zeros(gray.shape, bool)
    labels = measure.label(morphology.closing(bright, morphology.disk(1)))
    large = np.flatnonzero(np.bincount(labels.ravel())[1:] >= 20) + 1
    return result(
        "objects", color.label2rgb(np.where(np.isin(labels, large), labels, 0), picture, bg_label=0), int(large.size)
    )


# ---------------------------------------------------------------- the sheet


def mount(file: str, picture: Picture, found: dict[str, Any], size: int) -> dict[str, Any]:
    """One image's row of the sheet: the original and what each operator made of it, side by side, with all numbers."""
    cells = [picture, *(found[name]["picture"] for name in HEADS)]
    return {
        "name": file if file.startswith("made:") else Path(file).stem,
        "strip": np.hstack([framed(cell, size) for cell in cells]),
        "numbers": {name: found[name]["number"] for name in HEADS},
    }


def framed(picture: Picture, size: int) -> Picture:
    """The picture in the middle of a white square with a margin."""
    frame = np.full((size + GAP, size + GAP, 3), 255, np.uint8)
    top, left = ((size + GAP - length) // 2 for length in picture.shape[:2])
    frame[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return frame


def contact_sheet(rows: list[dict[str, Any]], folder: str) -> dict[str, Any]:
    """Write all strips as ``contact-sheet.png`` in the folder, below the names of the operators; where it is."""
    if not rows:
        raise ValueError("there is no image to print")
    strips = np.vstack([row["strip"] for row in rows])
    height = rows[0]["strip"].shape[0]
    sheet = Image.new("RGB", (strips.shape[1], strips.shape[0] + 20), "white")
    sheet.paste(Image.fromarray(strips), (0, 20))
    pen = ImageDraw.Draw(sheet)
    for i, name in enumerate(("original", *HEADS)):
        pen.text((i * height + GAP, 4), name, fill="black")
    place = HERE / Path(folder).expanduser()
    place.mkdir(parents=True, exist_ok=True)
    # In full or not at all: whoever looks at the sheet meanwhile sees the old one.
    unfinished = place / "contact-sheet.png.part"
    sheet.save(unfinished, format="PNG")
    unfinished.replace(place / "contact-sheet.png")
    return {"file": str(Path(folder) / "contact-sheet.png"), "width": sheet.width, "height": sheet.height}


def report(files: list[str], rows: list[dict[str, Any]], sheet: dict[str, Any]) -> str:
    """The numbers as a table, and where the sheet is."""
    wide = max(len("image"), *(len(row["name"]) for row in rows))
    lines = [f"{'':{wide}}" + "".join(f"{name:>11}" for name in HEADS)]
    lines += [f"{'image':{wide}}" + "".join(f"{head:>11}" for head in HEADS.values())]
    for row in rows:
        cells = (row["numbers"][name] for name in HEADS)
        lines.append(
            f"{row['name']:{wide}}"
            + "".join(f"{cell:>11,}" if isinstance(cell, int) else f"{cell:>11.2f}" for cell in cells)
        )
    told = f"{len(rows)} images, {len(HEADS)} operators: {sheet['file']}, {sheet['width']} x {sheet['height']} pixels"
    if len(rows) < len(files):
        told += f"\n{len(files) - len(rows)} of {len(files)} left out because they can't be read"
    return "\n".join([*lines, "", told])

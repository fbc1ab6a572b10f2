"""Image files of many kinds, made of a picture that is known."""

import io
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageCms

from vaemotion.contract.media.files import MediaError
from vaemotion.contract.media.still import read_image, read_pictures

pillow_heif.register_heif_opener()

RED, GREEN, BLUE, WHITE = (230, 20, 30), (20, 200, 40), (30, 40, 220), (250, 250, 250)
ORIENTATION = 274


def card() -> Image.Image:
    """Return a picture of 64 x 48 pixels with four colors in its quarters."""
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:24, :32], pixels[:24, 32:], pixels[24:, :32], pixels[24:, 32:] = RED, GREEN, BLUE, WHITE
    return Image.fromarray(pixels)


def turned(clockwise: int) -> np.ndarray:
    return np.rot90(np.asarray(card()), -clockwise // 90)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "avif"])
@pytest.mark.parametrize("alpha", [False, True])
def test_every_kind_of_picture_is_turned_by_its_tag(tmp_path: Path, suffix: str, alpha: bool) -> None:
    """Orientation 6: what is stored is to be turned a quarter clockwise."""
    if alpha and suffix == "jpg":
        pytest.skip("JPEG has no alpha")
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    stored = Image.fromarray(np.ascontiguousarray(turned(-90)))
    stored = stored.convert("RGBA") if alpha else stored
    path = tmp_path / f"a.{suffix}"
    stored.save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    picture = read_image(path)
    assert picture.shape == (48, 64, 3)
    assert np.abs(picture.astype(int) - np.asarray(card()))[4:20, 4:28].mean() < 12


def test_tiles_of_heic_are_one_picture(tmp_path: Path) -> None:
    large = card().resize((1024, 768), Image.Resampling.NEAREST)
    pillow_heif.options.GRID_TILE_SIZE = 512
    try:
        large.save(tmp_path / "grid.heic", quality=90)
    finally:
        pillow_heif.options.GRID_TILE_SIZE = 0
    pictures = list(read_pictures(tmp_path / "grid.heic"))
    assert len(pictures) == 1
    assert np.abs(pictures[0][2][::16, ::16].astype(int) - np.asarray(card())).mean() < 6


def test_transparency_of_every_kind_lies_on_white(tmp_path: Path) -> None:
    rgba = np.dstack([np.asarray(card()), np.full((48, 64), 255, np.uint8)])
    rgba[:, 32:, 3] = 0
    image = Image.fromarray(rgba)
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "a.webp", lossless=True)
    image.save(tmp_path / "a.tif")
    image.quantize(8).save(tmp_path / "palette.png")
    image.save(tmp_path / "a.gif")
    image.convert("LA").save(tmp_path / "gray.png")
    for path in sorted(tmp_path.iterdir()):
        picture = read_image(path)
        assert (picture[:, 33:] == 255).all(), path.name
        assert picture[4, 4].max() < 250, path.name


def test_numbers_of_any_kind_are_a_picture(tmp_path: Path) -> None:
    gray = np.tile(np.linspace(0, 1, 64), (48, 1))
    cases = {
        "u16.png": Image.fromarray((65535 * gray).astype(np.uint16)),
        "f01.tif": Image.fromarray(gray.astype(np.float32)),
        "f255.tif": Image.fromarray((255 * gray).astype(np.float32)),
        "i32.tif": Image.fromarray((65535 * gray).astype(np.int32)),
    }
    for name, image in cases.items():
        image.save(tmp_path / name)
        picture = read_image(tmp_path / name)
        assert np.abs(picture[..., 1] - 255 * gray).max() <= 1, name


def test_a_color_profile_is_applied(tmp_path: Path) -> None:
    """Display P3 in a file: its pure green lies outside of sRGB, its middle tones inside."""
    xyz = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    lab = ImageCms.profileToProfile(card(), ImageCms.createProfile("sRGB"), xyz, outputMode="LAB")
    assert lab is not None
    lab.save(tmp_path / "lab.tif")
    assert np.abs(read_image(tmp_path / "lab.tif").astype(int) - np.asarray(card())).mean() < 4
    card().convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "cmyk.jpg").astype(int) - np.asarray(card())).mean() < 6


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "avif"])
def test_an_animation_is_played_once_with_its_own_times(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (32, 24), color) for color in (RED, GREEN, BLUE)]
    frames[0].save(
        tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], duration=[200, 1000, 300], loop=0
    )
    played = list(read_pictures(tmp_path / f"a.{suffix}"))
    assert [round(begin_s, 2) for begin_s, _, _ in played] == [0.0, 0.2, 1.2]
    assert played[-1][1] == pytest.approx(1.5, abs=0.01)
    for (_, _, picture), color in zip(played, (RED, GREEN, BLUE), strict=True):
        assert np.abs(picture[12, 16].astype(int) - color).max() < 16


def test_pages_are_no_animation(tmp_path: Path) -> None:
    card().save(tmp_path / "a.tif", save_all=True, append_images=[Image.new("RGB", (64, 48), RED)])
    assert len(list(read_pictures(tmp_path / "a.tif"))) == 1


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "HEIF"])
def test_a_truncated_picture_is_refused_or_read_never_a_crash(tmp_path: Path, kind: str) -> None:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(buffer, kind)
    data, sentences = buffer.getvalue(), list[str]()
    for share in (0.02, 0.3, 0.6, 0.9):
        (tmp_path / "a").write_bytes(data[: int(len(data) * share)])
        try:
            read_image(tmp_path / "a")
        except MediaError as error:
            sentences.append(str(error))
    assert len(sentences) >= 2
    assert all("\n" not in sentence for sentence in sentences)

"""The built-in set: characters drawn in the typefaces that matplotlib ships.

A class is a character. It has one image per typeface, with random colours, rotation and scale. Nothing is downloaded,
and all random numbers come from fixed seeds.
"""

import functools
import pathlib

import matplotlib
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from proxynca_jax.config import DataConfig
from proxynca_jax.data.split import DataSet, Split, divide_by_class, random_classes

SIDE = 64  # pixels, the side of an image
FACES = (
    *("DejaVuSans", "DejaVuSans-Oblique", "DejaVuSans-Bold", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Oblique", "DejaVuSansMono-Bold", "DejaVuSansMono-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Italic", "DejaVuSerif-Bold", "DejaVuSerif-BoldItalic"),
    *("STIXGeneral", "STIXGeneralItalic", "STIXGeneralBol", "STIXGeneralBolIta"),
)

# The letters, digits and symbols that every face has. Of characters that look alike, only the one of lowest code point
# is in the list. Two characters look alike if the cosine of their shapes, scaled to one size, has a mean over the faces
# of 0.93 or more (Latin A, Greek Alpha and Cyrillic A: 0.995). The limit is 0.8 for two that differ only in case or
# height (c and C).
CHARACTERS = (
    "$+0123456789<=>ABCDEFGHIJKLMNOPQRSTUVWXYZ^`abdefghjklmnqrtuy|~¢£¤¥¦¨©ª¬®¯°±´µ¸º¼½¾ÀÃÅÆÇÈËÌÍÏÐÑÒÖ×ØÙÜÝÞßàá"
    "âãäåæçèéêëìíîïðñòóôõ÷ùúûüýþÿĀāăĄąĆćĉċčĎďđĒēĕėĘęĜĝġĢģĤĥĦħĩĪĭĮİıĲĳĴĶķĸĹĺĻļĽľĿŀŁłńŅņŉŊŋŌōŏŐőŒœŔŕŖŗřŚśŝŞšŢţŤť"
    "ŪŭŮůűŲųŴŵŶŷŸŹźżſƀƈƐƒƕƙƛƞƠơƥƪƫƭƯưƺƻƾǀǁǂǃǼǽǾǿȷɐɑɒɓɔɕɖɗɘəɚɜɝɞɟɠɡɢɣɤɥɧɨɩɪɫɬɭɮɯɰɱɲɳɴɵɶɷɸɹɺɻɼɽɾɿʀʁʂʃʄʅʆʇʈʉʊʋʌʍʎ"
    "ʏʐʑʒʓʔʕʖʗʘʙʚʛʜʝʞʟʠʡʣʤʥʦʧʨʱʷʻˀˁˆˇ˘˙˛˜˝ˣ΅ΆΈΉΊΌΎΏΐΓΔΞΠΣΦΨΩάέήίΰαβγδεζικλνξπρςστυφχωϊϋύώϐϑϒϕϖϘϚϛϝϞϟϠϡϰ϶ЂЃЄЉЊЋ"
    "ЌЎЏБДЖЗИЙКЛУФЦЧШЩЪЫЬЭЮЯбвгдмнрстфхшщыђѓіћќўѢѣҐẁẃẅỳ€№™∂−␣─│┌┐└┘├┤┬┴┼═║╒╓╔╕╖╗╘╙╚╛╜╝╞╟╠╡╢╣╤╥╦╧╨╩╪╫╬ﬁﬂ"
)


@functools.cache
def face(name: str) -> ImageFont.FreeTypeFont:
    """Loads a typeface at 96 pixels. Basic layout: the optional layout libraries would give other pixels."""
    path = pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    return ImageFont.truetype(str(path), 96, layout_engine=ImageFont.Layout.BASIC)


def shape(character: str, name: str, side: int) -> Image.Image:
    """Draws a character in white (255) on black, cut to its extent and scaled to a longer side of `side` pixels."""
    font = face(name)
    left, top, right, bottom = (round(side) for side in font.getbbox(character))
    ink = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(ink).text((-left, -top), character, font=font, fill=255)
    ink = ink.crop(ink.getbbox())
    width, height = (max(1, round(length * side / max(ink.size))) for length in ink.size)
    return ink.resize((width, height), Image.Resampling.BILINEAR)


def draw(character: str, name: str) -> UInt8[np.ndarray, "64 64 3"]:
    """Draws one image. The same character and typeface always give the same pixels."""
    rng = np.random.default_rng([ord(character), FACES.index(name)])
    ink = shape(character, name, round(SIDE * 0.6 * rng.uniform(0.75, 1.1)))
    canvas = Image.new("L", (SIDE, SIDE))
    canvas.paste(ink, ((SIDE - ink.width) // 2, (SIDE - ink.height) // 2))
    canvas = canvas.rotate(rng.uniform(-15, 15), Image.Resampling.BICUBIC)
    cover = np.asarray(canvas, np.float32)[..., None] / 255
    paper, colour = rng.uniform(140, 256, 3), rng.uniform(0, 116, 3)
    return (paper + cover * (colour - paper)).astype(np.uint8)


def read(_: pathlib.Path, config: DataConfig) -> DataSet:
    """Draws all images, 16 per character, and evaluates on a random fraction of the characters.

    Args:
        config: The fraction of characters to evaluate on, and the seed that chooses them.

    Raises:
        UserError: If the fraction leaves fewer than two characters to train or to evaluate on.
    """
    whole = Split(
        images=[draw(character, name) for character in CHARACTERS for name in FACES],
        names=[f"U+{ord(character):04X}/{name}" for character in CHARACTERS for name in FACES],
        labels=np.repeat(np.arange(len(CHARACTERS), dtype=np.int32), len(FACES)),
        class_names=tuple(CHARACTERS),
    )
    return divide_by_class(whole, random_classes(len(CHARACTERS), config.eval_fraction, config.split_seed))

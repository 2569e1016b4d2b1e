"""The built-in set: characters drawn in the typefaces that matplotlib ships.

A class is a character and an instance is a typeface, each drawn once, in random colours, turned and scaled at random.
Nothing is downloaded, and every number is drawn from seeds.
"""

import functools
import pathlib

import matplotlib
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from proxynca_jax.data.split import Split

SIDE = 64  # pixels, of a drawn image
FACES = (
    *("DejaVuSans", "DejaVuSans-Oblique", "DejaVuSans-Bold", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Oblique", "DejaVuSansMono-Bold", "DejaVuSansMono-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Italic", "DejaVuSerif-Bold", "DejaVuSerif-BoldItalic"),
    *("STIXGeneral", "STIXGeneralItalic", "STIXGeneralBol", "STIXGeneralBolIta"),
)

# The letters, digits and symbols that every face has, without look-alikes, of which the lowest code point stays. Two
# characters look alike if their shapes, brought to one size, have a mean cosine over the faces of 0.93 or more (Latin
# A, Greek Alpha and Cyrillic A: 0.995), or of 0.8 or more if they also differ in nothing but case or height (c and C).
CHARACTERS = (
    "$+0123456789<=>ABCDEFGHIJKLMNOPQRSTUVWXYZ^`abdefghjklmnqrtuy|~¢£¤¥¦¨©ª¬®¯°±´µ¸º¼½¾ÀÃÅÆÇÈËÌÍÏÐÑÒÖ×ØÙÜÝÞßàá"
    "âãäåæçèéêëìíîïðñòóôõ÷ùúûüýþÿĀāăĄąĆćĉċčĎďđĒēĕėĘęĜĝġĢģĤĥĦħĩĪĭĮİıĲĳĴĶķĸĹĺĻļĽľĿŀŁłńŅņŉŊŋŌōŏŐőŒœŔŕŖŗřŚśŝŞšŢţŤť"
    "ŪŭŮůűŲųŴŵŶŷŸŹźżſƀƈƐƒƕƙƛƞƠơƥƪƫƭƯưƺƻƾǀǁǂǃǼǽǾǿȷɐɑɒɓɔɕɖɗɘəɚɜɝɞɟɠɡɢɣɤɥɧɨɩɪɫɬɭɮɯɰɱɲɳɴɵɶɷɸɹɺɻɼɽɾɿʀʁʂʃʄʅʆʇʈʉʊʋʌʍʎ"
    "ʏʐʑʒʓʔʕʖʗʘʙʚʛʜʝʞʟʠʡʣʤʥʦʧʨʱʷʻˀˁˆˇ˘˙˛˜˝ˣ΅ΆΈΉΊΌΎΏΐΓΔΞΠΣΦΨΩάέήίΰαβγδεζικλνξπρςστυφχωϊϋύώϐϑϒϕϖϘϚϛϝϞϟϠϡϰ϶ЂЃЄЉЊЋ"
    "ЌЎЏБДЖЗИЙКЛУФЦЧШЩЪЫЬЭЮЯбвгдмнрстфхшщыђѓіћќўѢѣҐẁẃẅỳ€№™∂−␣─│┌┐└┘├┤┬┴┼═║╒╓╔╕╖╗╘╙╚╛╜╝╞╟╠╡╢╣╤╥╦╧╨╩╪╫╬ﬁﬂ"
)


@functools.cache
def face(name: str) -> ImageFont.FreeTypeFont:
    """A typeface at 96 pixels, laid out without the optional libraries that would change it between machines."""
    path = pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    return ImageFont.truetype(str(path), 96, layout_engine=ImageFont.Layout.BASIC)


def shape(character: str, name: str, side: int) -> Image.Image:
    """A character's ink, 0 to 255, scaled so that its longer side is `side` pixels."""
    font = face(name)
    left, top, right, bottom = (round(side) for side in font.getbbox(character))
    ink = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(ink).text((-left, -top), character, font=font, fill=255)
    ink = ink.crop(ink.getbbox())
    width, height = (max(1, round(length * side / max(ink.size))) for length in ink.size)
    return ink.resize((width, height), Image.Resampling.BILINEAR)


def draw(character: str, name: str) -> UInt8[np.ndarray, "64 64 3"]:
    """One image: a character in a typeface. The same two always give the same pixels."""
    rng = np.random.default_rng([ord(character), FACES.index(name)])
    ink = shape(character, name, round(SIDE * 0.6 * rng.uniform(0.75, 1.1)))
    canvas = Image.new("L", (SIDE, SIDE))
    canvas.paste(ink, ((SIDE - ink.width) // 2, (SIDE - ink.height) // 2))
    canvas = canvas.rotate(rng.uniform(-15, 15), Image.Resampling.BICUBIC)
    cover = np.asarray(canvas, np.float32)[..., None] / 255
    paper, colour = rng.uniform(140, 256, 3), rng.uniform(0, 116, 3)
    return (paper + cover * (colour - paper)).astype(np.uint8)


def draw_all() -> Split:
    """Draws the whole set, 16 images a character."""
    return Split(
        images=[draw(character, name) for character in CHARACTERS for name in FACES],
        names=[f"U+{ord(character):04X}/{name}" for character in CHARACTERS for name in FACES],
        labels=np.repeat(np.arange(len(CHARACTERS), dtype=np.int32), len(FACES)),
        class_names=tuple(CHARACTERS),
    )

"""How a row names the picture of another row. The pictures themselves go to evaluation/pictures.py."""

from mindspeed_vita.evaluation.pictures import PictureFolder as PictureFolder

LONGEST_REFERENCE = 64
"""A cell of at most so many characters is no picture in base64; it names the row that holds the picture."""

"""The row of a sample: which keys it may have, and how every accepted layout becomes the one that the rest of data/ reads."""

from mindspeed_vita.data.schema.row import LAYOUT_FIELDS, USED_FIELDS, plain_row

__all__ = ["LAYOUT_FIELDS", "USED_FIELDS", "plain_row"]

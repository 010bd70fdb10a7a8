"""Times of the optimizer's updates, which MindIO compares with those of memory errors. Here nothing asks for them."""


def tft_set_update_start_time():
    """An update begins."""


def tft_set_update_end_time():
    """It has ended."""

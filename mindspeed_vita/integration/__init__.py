"""What enters other training frameworks. Nothing outside this package imports them."""

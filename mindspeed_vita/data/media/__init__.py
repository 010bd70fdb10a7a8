"""Pictures and videos: headers for the index, tiles for the packs."""

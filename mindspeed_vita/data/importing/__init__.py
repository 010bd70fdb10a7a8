"""`vita data import`: tables, LLaVA files and folders of pictures become rows of our schema, and a mixture that names them."""

from mindspeed_vita.data.importing.fields import Columns
from mindspeed_vita.data.importing.write import Imported, import_data

__all__ = ["Columns", "Imported", "import_data"]

"""Chat templates: messages to tokens and to what is supervised."""

from mindspeed_vita.data.templates.registry import get_template, template_names
from mindspeed_vita.data.templates.template import ChatTemplate, check_template

__all__ = ["ChatTemplate", "check_template", "get_template", "template_names"]

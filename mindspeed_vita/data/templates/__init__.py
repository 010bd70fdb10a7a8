"""Chat templates: messages to tokens and to what is supervised."""

from mindspeed_vita.data.templates.registry import ChatTemplate, get_template, template_names

__all__ = ["ChatTemplate", "get_template", "template_names"]

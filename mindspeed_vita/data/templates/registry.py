"""Chat templates by name. A new one is a file with a class and a line in the table."""

from __future__ import annotations

from mindspeed_vita.data.templates.llama3 import Llama3Template
from mindspeed_vita.data.templates.mistral import MistralTemplate
from mindspeed_vita.data.templates.qwen2 import Qwen2Template
from mindspeed_vita.data.templates.template import ChatTemplate
from mindspeed_vita.data.templates.vicuna import VicunaTemplate

_TEMPLATES: dict[str, type[ChatTemplate]] = {
    template.name: template for template in (Qwen2Template, Llama3Template, MistralTemplate, VicunaTemplate)
}


def template_names() -> tuple[str, ...]:
    """Names that get_template knows."""
    return tuple(_TEMPLATES)


def get_template(name: str) -> ChatTemplate:
    """The template of that name.

    Raises:
        ValueError: no such template.
    """
    if name not in _TEMPLATES:
        raise ValueError(f"data.template={name!r} is unknown; expected one of {', '.join(template_names())}")
    return _TEMPLATES[name]()

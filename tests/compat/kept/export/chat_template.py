"""Chat templates as jinja text, by name. qwen2 is the published one: plain ChatML, tags on a line of their own, no default system prompt.

A leaf: it is copied into exported checkpoints. data/templates makes the same text for training.
"""

from __future__ import annotations


def _content(filters: str = "") -> str:
    """Sets `text` to a message's content, whether it is text or a list of parts."""
    return (
        "{% set ns = namespace(text='') %}"
        "{% if message['content'] is string %}"
        "{% set ns.text = message['content'] %}"
        "{% else %}"
        "{% for part in message['content'] %}"
        "{% if part['type'] in ('image', 'image_url') %}{% set ns.text = ns.text + '<image>\\n' %}"
        "{% elif part['type'] == 'video' %}{% set ns.text = ns.text + '<video>\\n' %}"
        "{% elif part['type'] == 'text' %}{% set ns.text = ns.text + part['text'] %}"
        "{% endif %}"
        "{% endfor %}"
        "{% endif %}"
        "{% set text = ns.text" + filters + " %}"
    )


CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}"
    "{{ message['content'] }}"
    "{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] in ('image', 'image_url') %}{{ '<image>\\n' }}"
    "{% elif part['type'] == 'video' %}{{ '<video>\\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}"
    "{% endif %}"
    "{% endfor %}"
    "{% endif %}"
    "{{ '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

_LLAMA3 = (
    "{{ '<|begin_of_text|>' }}"
    "{% for message in messages %}"
    + _content(" | trim")
    + "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + text + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)

_MISTRAL = (
    "{{ '<s>' }}"
    "{% for message in messages %}"
    + _content()
    + "{% if message['role'] == 'system' %}{{ '[SYSTEM_PROMPT]' + text + '[/SYSTEM_PROMPT]' }}"
    "{% elif message['role'] == 'user' %}{{ '[INST]' + text + '[/INST]' }}"
    "{% else %}{{ text + '</s>' }}"
    "{% endif %}"
    "{% endfor %}"
)

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""What a conversation without a system turn starts with: a part of the format."""

_VICUNA = (
    "{{ '<s>' }}"
    "{% if messages[0]['role'] != 'system' %}{{ \"" + VICUNA_SYSTEM + " \" }}{% endif %}"
    "{% for message in messages %}"
    + _content(" | trim")
    + "{% if message['role'] == 'system' %}{{ text + ' ' }}"
    "{% elif message['role'] == 'user' %}{{ 'USER: ' + text + ' ASSISTANT:' }}"
    "{% else %}{{ ' ' + text + '</s>' }}"
    "{% endif %}"
    "{% endfor %}"
)

CHAT_TEMPLATES = {"qwen2": CHAT_TEMPLATE, "llama3": _LLAMA3, "mistral": _MISTRAL, "vicuna": _VICUNA}
"""Jinja text by the names of data.template."""

//! Chat templates by name, for models that carry none or a broken one: `--template NAME`. Names are those of llama.cpp's
//! `--chat-template`, and texts are equal to its (tests/templates.rs); `phi4-mini` is the form on that model's page, which
//! llama.cpp has no name for.
//!
//! Each is Jinja for `ChatTemplate`, without the token that begins a text, which the tokenizer adds where a model wants it.

/// Name, the models it is for, and the template.
pub const NAMED: [(&str, &str, &str); 9] = [
    (
        "chatml",
        "Qwen, SmolLM, LFM2",
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
         {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    ),
    (
        "llama3",
        "Llama 3",
        "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}\
         {% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
    ),
    (
        "gemma",
        "Gemma",
        "{% set held = namespace(text='') %}{% for m in messages %}{% if m.role == 'system' %}\
         {% set held.text = m.content | trim %}{% else %}\
         <start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n\
         {{ held.text + '\n\n' if held.text and m.role != 'assistant' }}{{ m.content | trim }}<end_of_turn>\n\
         {% if m.role != 'assistant' %}{% set held.text = '' %}{% endif %}{% endif %}{% endfor %}\
         {% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    ),
    (
        "phi3",
        "Phi 3",
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}\
         {% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    ),
    (
        "phi4-mini",
        "Phi 4 mini",
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}\
         {% if add_generation_prompt %}<|assistant|>{% endif %}",
    ),
    (
        "zephyr",
        "TinyLlama",
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}\
         {% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    ),
    (
        "mistral-v1",
        "Mistral 7B, the first two",
        "{% set turn = namespace(open=false) %}{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }}{{ eos_token }}\
         {% set turn.open = false %}{% else %}{{ '' if turn.open else ' [INST] ' }}{{ m.content }}\
         {{ '\n\n' if m.role == 'system' else ' [/INST]' }}{% set turn.open = m.role == 'system' %}{% endif %}{% endfor %}",
    ),
    (
        "mistral-v3",
        "Mistral 7B v0.3",
        "{% set turn = namespace(open=false) %}{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content | trim }}{{ eos_token }}\
         {% set turn.open = false %}{% else %}{{ '' if turn.open else '[INST] ' }}{{ m.content }}\
         {{ '\n\n' if m.role == 'system' else '[/INST]' }}{% set turn.open = m.role == 'system' %}{% endif %}{% endfor %}",
    ),
    (
        "mistral-v3-tekken",
        "Mistral Nemo",
        "{% set turn = namespace(open=false) %}{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}{{ eos_token }}\
         {% set turn.open = false %}{% else %}{{ '' if turn.open else '[INST]' }}{{ m.content }}\
         {{ '\n\n' if m.role == 'system' else '[/INST]' }}{% set turn.open = m.role == 'system' %}{% endif %}{% endfor %}",
    ),
];

"""Chat templates: as transformers renders them, and what hostile ones cost."""

import pytest

from moejax import chat_template, chat_worker
from moejax.chat_template import TemplateError, render

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now("%Y") %}{%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\nToday Date: " + date_string + "\n\n" + system_message }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '{"name": "' + tool_call.name + '", "parameters": ' }}
        {{- tool_call.arguments | tojson }}{{- "}" }}
    {%- endif %}
{{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}
"""
GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\n\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}{{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}
        {%- endfor -%}
    {%- else -%}{{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{'<start_of_turn>model\n'}}{%- endif -%}
"""
QWEN_3 = """{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- for tool in tools %}{{- "\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "<|im_end|>\n" }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string
           and not(message.content.startswith('<tool_response>')
                   and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- set content = message.content %}
        {%- if '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or (not loop.last and reasoning)) %}
            {{- '<|im_start|>assistant\n<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' + content }}
        {%- else %}{{- '<|im_start|>' + message.role + '\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
"""
ODDMENTS = """
{%- macro show(x, sep=', ') %}[{{ x | join(sep) }}]{% endmacro -%}
{%- for m in messages if m.role != 'system' %}
  {%- if loop.index > 3 %}{% break %}{% endif %}
  {%- if m.content is not string %}{% continue %}{% endif %}
  {{ loop.index }}/{{ loop.length }} {{ m.role | upper }}: {{ m.content.strip() | replace('a', 'b') }}
{% endfor %}
{% generation %}{{ show(messages | map(attribute='role') | list) }}{% endgeneration %}
{{ {'a': 1, 'b': [none, true, 1.5, 'x']} }}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{{ {'k': ['<&>', '\u00fc', none]} | tojson }} {{ [1, 2] | tojson(indent=2) }}
{{ undefined_thing }}{{ 7 // 2 }}
{{ messages[-1].get('name', 'nobody') }} {% for k, v in {'p': 1, 'q': 2}.items() %}{{ k ~ v }}{% endfor %}
{{ '%s=%d' | format('n', 5) }} {{ 'x' if messages[0].missing is defined else 'y' }} {{ 'a,b'.split(',')[1] }}
"""
TALK = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": "Hi <b>\u6f22\u5b57</b> a\n"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello"},
    {"role": "user", "content": "Bye"},
]
TOOLS = [{"type": "function", "function": {"name": "f<>", "parameters": {"x": [1, None, True, "\u00e9"]}}}]
CALL = [{"function": {"name": "f", "arguments": {"a": 1, "b": "<x>"}}}]
CASES = {
    "chatml": (CHATML, TALK, {}),
    "chatml without a system": (CHATML, TALK[1:], {"add_generation_prompt": False}),
    "llama 3": (LLAMA_3, TALK, {}),
    "llama 3 with a call": (LLAMA_3, [*TALK[1:2], {"role": "assistant", "tool_calls": CALL}], {}),
    "gemma": (GEMMA, TALK, {}),
    "gemma with parts": (GEMMA, [{"role": "user", "content": [{"type": "text", "text": " a "}]}], {}),
    "qwen 3": (QWEN_3, TALK, {"tools": TOOLS}),
    "qwen 3 without thought": (QWEN_3, TALK[:3], {"enable_thinking": False}),
    "oddments": (ODDMENTS, TALK, {}),
}


def variables(messages, more) -> dict:
    own = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True, "tools": None}
    return own | {"messages": messages} | more


def reference(template: str, given: dict) -> str:
    """What transformers makes of it."""
    module = pytest.importorskip(
        "transformers.utils.chat_template_utils", reason="transformers is not installed"
    )
    given = dict(given)
    messages, tools = given.pop("messages"), given.pop("tools")
    rendered, _ = module.render_jinja_template([messages], tools, chat_template=template, **given)
    return rendered[0]


@pytest.mark.parametrize("name", CASES)
def test_text_is_that_of_transformers(name):
    template, messages, more = CASES[name]
    given = variables(messages, more)
    assert render(template, given) == reference(template, given)


def test_a_template_can_refuse():
    twice = [TALK[1], TALK[1]]
    with pytest.raises(TemplateError, match=r"refuses the messages: Conversation roles must alternate"):
        render(GEMMA, variables(twice, {}))


DOUBLED = "{%% set n = namespace(s=%s) %%}{%% for i in range(60) %%}{%% set n.s = %s %%}{%% endfor %%}"
HOSTILE = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "a wide format": "{{ '%0999999999d' | format(1) }}",
    "another wide format": "{{ '{:>1000000000}'.format('x') }}",
    "a large product": "{{ 'x' * 1000000000 }}",
    "a large list": "{{ [0] * 1000000000 }}",
    "a large range": "{{ range(10000000000) | length }}",
    "a large power": "{{ 2 ** 999999999 ** 9 }}",
    "a wide indent": "{{ 'a\nb' | indent(2000000000) }}",
    "a wide tojson": "{{ [1] | tojson(indent=2000000000) }}",
    "many dates": "{{ strftime_now('%c' * 100000) }}",
    "doubled text": DOUBLED % ("'x'", "n.s ~ n.s") + "{{ n.s }}",
    "doubled lists": DOUBLED % ("[1]", "n.s + n.s") + "{{ n.s | length }}",
    "a replaced text": "{{ ('x' * 9999).replace('x', 'y' * 9999).replace('y', 'z' * 9999) }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "deep brackets": "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}",
    "deep signs": "{{ " + "-" * 100_000 + "1 }}",
    "deep sums": "{{ 1" + "+1" * 100_000 + " }}",
    "deep blocks": "{% if 1 %}" * 20_000,
    "an import": "{% import 'os' as os %}{{ os }}",
    "a file": "{% include '/etc/passwd' %}",
    "a parent": "{% extends '/etc/passwd' %}",
    "a walk": "{{ messages.__class__.__mro__[1].__subclasses__() }}",
    "another walk": "{{ raise_exception.__globals__['os'].system('true') }}",
    "a third walk": "{{ ''['__class__']['__base__']['__subclasses__']() }}",
    "unknown names": "{{ lipsum(100000) }}",
    "long and nested loops": " " * 200_000
    + "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "no template": "{% for",
    "a long template": "x" * (chat_template.MAX_TEMPLATE + 1),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_an_error(name):
    with pytest.raises(TemplateError, match="the chat template"):
        render(HOSTILE[name], variables(TALK, {}))
    assert render("{{ messages[0].role }}", variables(TALK, {})) == "system", "the next one is not affected"


def test_names_of_python_lead_nowhere():
    given = variables(TALK, {})
    assert render("{{ messages.__class__ }}{{ messages | attr('__class__') }}", given) == ""
    assert render("{{ messages | map(attribute='__class__') | list }}", given) in (
        "[None, None, None, None]",
        "[]",
    )


def test_what_the_process_may_use_is_bounded():
    """The limits are below 50 ms and 50 MB, for conversations of usual length."""
    size = 10_000  # bytes of data
    assert chat_worker.SECONDS + chat_worker.SECONDS_PER_BYTE * size < 0.05
    assert chat_worker.MEMORY + chat_worker.MEMORY_PER_BYTE * size < 50 << 20


def test_what_is_no_data_is_refused():
    with pytest.raises(TemplateError, match="not made of JSON values"):
        render("", {"messages": [{"content": object()}]})
    loop = []
    loop.append(loop)
    with pytest.raises(TemplateError, match="not made of JSON values"):
        render("", {"messages": loop})


def test_a_long_conversation_is_no_attack():
    given = variables([*TALK[1:3]] * 2000, {})
    assert render(CHATML, given).count("<|im_end|>") == 4001
    assert (
        len(render("{{ messages[0].content }}", {"messages": [{"content": "x" * 10_000_000}]})) == 10_000_000
    )

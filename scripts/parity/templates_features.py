"""Pieces of Jinja and Python that chat templates are written with, each rendered by both engines."""

# What stands before each piece: messages that are the same however much of a conversation is rendered.
SAID = (
    "{% set said = [{'role': 'system', 'content': 's'}, {'role': 'user', 'content': 'q'}, "
    "{'role': 'assistant', 'content': 'a'}, {'role': 'user', 'content': 'r'}] %}"
)

# What stands after each piece: the conversation, so that it has turns.
TURNS = (
    "{% for message in messages %}[{{ message.role }}]{{ message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)

PIECES = [
    # Strings.
    "{{ ' a '.strip() }}|{{ 'xax'.strip('x') }}|{{ 'xax'.lstrip('x') }}|{{ 'xax'.rstrip('x') }}|{{ ' a' | trim }}|{{ 'xax' | trim('x') }}",
    "{{ '\\x1f a \\x85'.strip() }}|{{ '\\x1ca\\x1d' | trim }}|{{ '\u200b a \ufeff'.strip() }}|",
    "{{ 'a,b,,c'.split(',') }}|{{ ' a  b '.split() }}|{{ 'a b c'.split(' ', 1) }}|{{ 'a,b,c'.rsplit(',', 1) }}|{{ 'a\\x1fb'.split() }}",
    "{{ 'a</think>b</think>c'.split('</think>')[-1] }}|{{ 'a</think>b'.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') }}",
    "{{ 'k=v=w'.partition('=') }}|{{ 'k=v=w'.rpartition('=') }}|{{ 'kv'.partition('=') }}",
    "{{ 'prefix-x'.removeprefix('prefix-') }}|{{ 'x.py'.removesuffix('.py') }}",
    "{{ 'a\\nb\\r\\nc\\n'.splitlines() }}|{{ 'a\\x0bb\\x85c'.splitlines() }}|{{ 'a\\nb'.splitlines(true) }}",
    "{{ 'abc'.startswith('ab') }}|{{ 'abc'.startswith(('x', 'a')) }}|{{ 'abc'.endswith('c') }}",
    "{{ 'hello world'.title() }}|{{ \"they're\".title() }}|{{ 'hELLO'.capitalize() }}|{{ 'ß'.upper() }}|{{ 'İ'.lower() }}",
    "{{ 'abcabc'.replace('b', 'x') }}|{{ 'abcabc'.replace('b', 'x', 1) }}|{{ 'abc' | replace('b', 'x') }}",
    "{{ 'abc'.find('c') }}|{{ 'abc'.find('z') }}|{{ 'abca'.rfind('a') }}|{{ 'abca'.count('a') }}|{{ 'äbc'.find('c') }}",
    "{{ 'a'.isdigit() }}|{{ '12'.isdigit() }}|{{ 'ab'.isalpha() }}|{{ 'a1'.isalnum() }}|{{ 'A'.isupper() }}|{{ 'a'.islower() }}|{{ ' '.isspace() }}",
    "{{ '-'.join(['a', 'b']) }}|{{ ['a', 1, none, true, 1.5] | join(', ') }}|{{ '{} and {}'.format('a', 1) }}|{{ '%s' | format('x') }}",
    "{{ 'a' ~ 1 ~ none ~ true }}|{{ 'ab' * 3 }}|{{ 'abc' | length }}|{{ 'äöü' | length }}|{{ 'abc' | upper }}",
    # Slices and indices.
    "{{ 'abcdef'[1:3] }}|{{ 'abcdef'[-2:] }}|{{ 'abcdef'[::-1] }}|{{ 'abcdef'[:-1] }}|{{ 'äöü'[1] }}|{{ 'abcdef'[::2] }}|{{ 'abc'[-1] }}|{{ 'abc'[5:] }}",
    "{{ [1, 2, 3][-1] }}|{{ [1, 2, 3][1:] }}|{{ [1, 2, 3][::-1] }}|{{ [1, 2, 3][:-1] }}|{{ [1, 2] + [3] }}|{{ (1, 2)[0] }}|{{ [[1, 2], [3]][0][1] }}",
    "{{ said[0]['role'] }}|{{ said[-1].role }}|{{ said[1:] | length }}|{{ said[::-1][0].content }}|{{ said | last == said[-1] }}",
    "{{ messages[0].absent is defined }}|{{ messages[0]['absent'] is undefined }}|{{ messages[0].get('absent') }}|{{ messages[0].get('absent', 'd') }}|{{ 'role' in messages[0] }}",
    "{{ absent }}|{{ absent is defined }}|{{ absent | default('d') }}|{{ '' | default('d', true) }}|{{ none | default('d') }}|{{ not absent }}",
    # Dictionaries keep the order of insertion.
    "{% set d = {'b': 1, 'a': 2, 'c': none} %}{{ d }}|{{ d | tojson }}|{% for k, v in d.items() %}{{ k }}{{ v }},{% endfor %}|{{ d | items | list }}|{{ d.keys() | list }}|{{ d.values() | list }}",
    "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}|{{ messages[0] | tojson }}|{{ messages[0] }}",
    "{{ {'b': 1, 'a': 2} | dictsort }}|{{ dict(a=1, b=2) }}|{{ dict({'x': 1}, y=2) }}|{{ {'a': {'b': [1]}}.a.b[0] }}",
    "{% set d = {'a': 1} %}{{ d == {'a': 1} }}|{{ d.items() | list | length }}|{{ 'a' in d }}|{{ d | length }}|{{ d is mapping }}|{{ [] is mapping }}",
    # JSON.
    "{{ {'a': [1, 2.0, 1e20, true, none, 'é\\n\\u007f<>&'], 'b': {}} | tojson }}|{{ 'x' | tojson }}|{{ '</script>' | tojson }}",
    "{{ {'a': [1, {'b': []}]} | tojson(indent=4) }}|{{ [1, [2]] | tojson(indent=2) }}|{{ {} | tojson(indent=2) }}",
    "{{ {'b': 1, 'a': [1, 2]} | tojson(separators=(',', ':')) }}|{{ 'é' | tojson(ensure_ascii=true) }}",
    "{{ [1, 2] | string }}|{{ ['a', \"it's\", none, 1.0, true] | string }}|{{ {'a': 'b'} | string }}|{{ (1, 'a') | string }}|{{ 'a\\n' | list }}",
    # Numbers.
    "{{ 7 // 2 }}|{{ -7 // 2 }}|{{ 7 % 3 }}|{{ -7 % 3 }}|{{ 7 / 2 }}|{{ 4 / 2 }}|{{ 2 ** 10 }}|{{ 1e3 }}|{{ 0.1 + 0.2 }}|{{ 1.0 }}|{{ 10 | int }}|{{ '3' | int + 1 }}|{{ 3.7 | round }}",
    "{{ 1 == 1.0 }}|{{ true + 1 }}|{{ 3 > 2 and 2 > 1 }}|{{ 1 < 2 < 3 }}|{{ 'a' < 'b' }}|{{ 5 | abs }}|{{ [3, 1, 2] | sort }}|{{ [1, 2, 3] | sum }}|{{ [1, 5] | max }}",
    # Control.
    "{% set ns = namespace(found=false, n=0) %}{% for m in said %}{% set ns.n = ns.n + 1 %}{% if m.role == 'user' %}{% set ns.found = true %}{% endif %}{% endfor %}{{ ns.n }}{{ ns.found }}",
    "{% for m in said if m.role != 'system' %}{{ loop.index }}/{{ loop.length }}{{ loop.first }}{{ loop.last }}{{ loop.revindex }}{{ loop.revindex0 }};{% else %}none{% endfor %}",
    "{% for m in said %}{{ loop.previtem.role if loop.previtem is defined }}>{{ loop.nextitem.role if not loop.last }}{{ loop.cycle('x', 'y') }}{{ loop.index0 }};{% endfor %}",
    "{% for m in said %}{% if loop.index0 == 1 %}{% continue %}{% endif %}{% if loop.index0 == 3 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
    "{% macro show(m, mark='*') %}{{ mark }}{{ m.role | upper }}{{ mark }}{% endmacro %}{% for m in said %}{{ show(m) }}{{ show(m, mark='-') }}{% endfor %}",
    "{% macro outer(x) %}{{ caller() }}{{ x }}{% endmacro %}{% call outer('b') %}a{% endcall %}|{% filter upper %}abc{% endfilter %}",
    "{% set x %}block {{ 1 + 1 }}{% endset %}{{ x }}|{% set a, b = 1, 2 %}{{ a }}{{ b }}|{% with y = 3 %}{{ y }}{% endwith %}{{ y is defined }}",
    "{% if said | selectattr('role', 'equalto', 'user') | list | length > 1 %}many{% else %}few{% endif %}|{{ said | map(attribute='role') | join(',') }}|{{ said | rejectattr('role', 'eq', 'user') | list | length }}",
    "{{ said | selectattr('role', 'in', ['user']) | map(attribute='content') | list | length }}|{{ [1, 2, 3, 4] | select('odd') | list }}|{{ ['a', 'b'] | map('upper') | list }}|{{ [0, 1] | reject('equalto', 0) | list }}",
    "{{ [1, 2, 3] | first }}|{{ [1, 2] | last }}|{{ [1, 2, 3] | batch(2) | list }}|{{ [3, 1] | reverse | list }}|{{ [1, 1, 2] | unique | list }}|{{ range(3) | list }}|{{ range(5, 0, -2) | list }}",
    "{{ said | groupby('role') | map('first') | list }}|{{ 'x' | indent(2) }}|{{ 'a\\nb' | indent(2, true) }}|{{ '<a>' | escape }}|{{ '<a>' | e }}|{{ '<a>' | safe }}",
    # Tests.
    "{{ none is iterable }}|{{ none is none }}|{{ 'a' is iterable }}|{{ [] is iterable }}|{{ {} is iterable }}|{{ 1 is iterable }}|{{ absent is iterable }}|{{ 'a' is sequence }}|{{ [] is sequence }}",
    "{{ 'a' is string }}|{{ 1 is number }}|{{ 1.5 is float }}|{{ 1 is integer }}|{{ true is boolean }}|{{ true is number }}|{{ true is integer }}|{{ {} is mapping }}|{{ 'a' is mapping }}|{{ 1 is odd }}|{{ 4 is divisibleby 2 }}|{{ tools is none }}",
    "{{ 1 is true }}|{{ true is true }}|{{ false is false }}|{{ 'a' in 'abc' }}|{{ 1 not in [2] }}|{{ 'a' is in(['a']) }}|{{ raise_exception is defined }}|{{ strftime_now is defined }}",
    # Blanks.
    "  {% if true %}\n  a\n  {%- endif %}\n b {{- ' c ' -}} \n d\n  {# comment #}\n e {#- comment -#} f\n{%+ if true %}g{% endif +%}\n",
    "{% raw %}{{ x }}{% endraw %}\n\n  {%- set x = 1 -%}  \n {{ x }}\n\t{% set y = 2 %}\n{{ y }}\n\n{% for i in [1,2] -%}\n {{ i }}\n{%- endfor %}\n",
    # The day.
    "{{ strftime_now('%d %b %Y') }}|{{ strftime_now('%Y-%m-%d %H:%M:%S') }}|{{ strftime_now('%A, %B %-d, %Y %j %y %p %I %%') }}|{{ date_string is defined }}",
    # Marks of the assistant's words.
    "{% generation %}{% set inside = 1 %}a{{ inside }}{% endgeneration %}{{ inside is defined }}|{%- generation -%} b {%- endgeneration -%}",
    # Concatenation with what is no string.
    "{{ 'a' + 'b' }}|{{ [1] * 2 }}|{{ 'x' if true }}|{{ 'x' if false }}|{{ ('a' if false else 'b') + 'c' }}|{{ not true or true }}|{{ true if 'a' else false }}|{{ true }}|{{ none }}",
]

# Each must end both engines.
REFUSED = [
    "{{ 'a' + 1 }}",
    "{{ absent.field }}",
    "{{ absent + 'x' }}",
    "{{ messages[0].content.no_such_method() }}",
    "{{ messages[99].role }}",
    "{{ none | length }}",
    "{{ 'abc'.index('z') }}",
    "{{ raise_exception('in its own words: \"é\"') }}",
    "{% for x in 5 %}{% endfor %}",
    "{{ 1 // 0 }}",
]

# Jinja2 renders these. Methods that templates do not use, or that are operators of Python's own, are left out on purpose;
# what counts is that the template is refused and not rendered differently.
OUT_OF_REACH = [
    "{{ 'abc'.startswith('b', 1) }}",
    "{{ 'aB'.swapcase() }}",
    "{{ 'aaa' | replace('a', 'b', 2) }}",
    "{{ 'abc'.index('b') }}",
    "{{ '%s=%d' % ('a', 3) }}",
    "{{ 'a b c'.split(none, 1) }}",
    "{{ 'x'.zfill(3) }}",
    "{{ 'x'.center(5) }}",
    "{{ 'x'.ljust(3) }}",
    "{{ 'a\\tb'.expandtabs(4) }}",
    "{{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }}",
    "{{ 'a b' | wordcount }}",
    "{{ raise_exception is callable }}",
]

"""Records what Jinja2 prints for each template of cases.jsonl: python3 record.py < old.jsonl > new.jsonl

Made with jinja2 3.1.6. The first line holds the data; each other line a template and, after recording, either `text`
or the `code` of our fault for Jinja2's error.
"""

import copy
import json
import sys

import jinja2


def record(template, data):
    try:
        return {"text": jinja2.Template(template).render(**copy.deepcopy(data))}
    except jinja2.TemplateAssertionError:
        return {"code": "template.unknown_filter"}
    except jinja2.TemplateSyntaxError:
        return {"code": "template.syntax"}
    except jinja2.UndefinedError:
        return {"code": "template.undefined"}
    except Exception:
        return {"code": "template.runtime"}


first, *lines = sys.stdin.read().splitlines()
print(first)
for line in lines:
    template = json.loads(line)["template"]
    print(json.dumps({"template": template, **record(template, json.loads(first))}, ensure_ascii=False))

"""A value for a JSON Schema: what a model says whose answer has to fit one, or puts into the arguments of a tool."""

WORDS = 'Paris Rome Zürich 東京 Kraków Lima'.split()
FORMATS = {'date': '2026-08-21', 'date-time': '2026-08-21T10:00:00Z', 'time': '10:00:00Z', 'email': 'ada@example.org',
           'uuid': '6f1c0b7d-2e9a-4d3c-8b5a-0a4e7c1d9b3f', 'uri': 'https://example.org/', 'ipv4': '192.0.2.1'}
DEEPEST = 12                    # below, optional properties and items are left out: a schema may contain itself


def value_for(schema, draw, root=None, depth=0):
    """Return a value that fits SCHEMA, chosen by DRAW, a random.Random."""
    root = schema if root is None else root
    if not isinstance(schema, dict):
        return None
    if '$ref' in schema:
        return value_for(found(root, schema['$ref']), draw, root, depth + 1)
    if 'const' in schema:
        return schema['const']
    if 'enum' in schema:
        return draw.choice(schema['enum'])
    if options := schema.get('anyOf') or schema.get('oneOf'):
        return value_for(draw.choice(options) if depth < DEEPEST else options[-1], draw, root, depth + 1)
    if parts := schema.get('allOf'):
        return value_for(merged([{name: value for name, value in schema.items() if name != 'allOf'}, *parts], root),
                         draw, root, depth + 1)
    kind = schema.get('type') or ('object' if 'properties' in schema else 'array' if 'items' in schema else 'string')
    kind = draw.choice(kind) if isinstance(kind, list) else kind
    return MAKERS[kind](schema, draw, root, depth)


def found(root, reference):
    """Return the part of ROOT that REFERENCE, such as #/$defs/x, points to."""
    for name in reference.lstrip('#/').split('/'):
        root = root[name] if name else root
    return root


def merged(parts, root):
    """Return the schemas PARTS as one."""
    whole = {}
    for part in parts:
        part = found(root, part['$ref']) if '$ref' in part else part
        properties = whole.get('properties', {}) | part.get('properties', {})
        required = [*whole.get('required', []), *part.get('required', [])]
        whole = whole | part | ({'properties': properties, 'required': required} if properties else {})
    return whole


def an_object(schema, draw, root, depth):
    required = schema.get('required', [])
    return {name: value_for(part, draw, root, depth + 1) for name, part in schema.get('properties', {}).items()
            if name in required or depth < DEEPEST}


def an_array(schema, draw, root, depth):
    if 'prefixItems' in schema:
        return [value_for(part, draw, root, depth + 1) for part in schema['prefixItems']]
    few = schema.get('minItems', 0)
    length = few if depth >= DEEPEST else min(max(few, draw.randint(1, 2)), schema.get('maxItems', few + 2))
    return [value_for(schema.get('items', {}), draw, root, depth + 1) for _ in range(length)]


def a_string(schema, draw, root, depth):
    text = FORMATS.get(schema.get('format')) or draw.choice(WORDS)
    return text.ljust(schema.get('minLength', 0), 'x')[:schema.get('maxLength', len(text) + 1000)]


def an_integer(schema, draw, root, depth):
    low = schema.get('minimum', schema.get('exclusiveMinimum', -1) + 1)
    high = schema.get('maximum', schema.get('exclusiveMaximum', low + 101) - 1)
    step = schema.get('multipleOf', 1)
    return draw.randint(-(-low // step), max(high // step, -(-low // step))) * step


def a_number(schema, draw, root, depth):
    low = schema.get('minimum', schema.get('exclusiveMinimum', 0))
    high = schema.get('maximum', schema.get('exclusiveMaximum', low + 10))
    return round(low + (high - low) * draw.randint(1, 7) / 8, 3)


MAKERS = {'object': an_object, 'array': an_array, 'string': a_string, 'integer': an_integer, 'number': a_number,
          'boolean': lambda schema, draw, root, depth: draw.random() < 0.5,
          'null': lambda schema, draw, root, depth: None}
